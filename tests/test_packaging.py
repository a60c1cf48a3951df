"""What a stranger relies on: pins for everything that is installed, make targets that exist, links that lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="GNU make is not installed")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    """Canonical package name -> pinned version."""
    lines = [line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): Version(version) for name, version in lines}


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """GNU make in `root`, away from any make that runs the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_constraints_are_plain_pins_sorted_and_unique() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)] == []
    names = [canonicalize_name(line.split("==")[0]) for line in lines]
    assert names == sorted(set(names))


def test_declared_requirements_are_pinned_within_their_bounds(project: dict[str, Any], pins: dict[str, Version]) -> None:
    declared = [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["dev"], "lightgbm"]]
    unmet = {str(each) for each in declared if pins.get(canonicalize_name(each.name), Version("0")) not in each.specifier}
    missing = {each.name for each in declared if canonicalize_name(each.name) not in pins}
    assert not missing
    assert not unmet


def requirements_of(name: str, extras: frozenset[str]) -> list[Requirement]:
    """What an installed distribution asks for here, with some of its extras; nothing if it is not installed."""
    try:
        lines = distribution(name).requires or []
    except PackageNotFoundError:
        return []
    wanted = [Requirement(line) for line in lines]
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [each for each in wanted if each.marker is None or any(each.marker.evaluate(env) for env in environments)]


def test_everything_the_install_pulls_is_pinned(project: dict[str, Any], pins: dict[str, Version]) -> None:
    waiting = [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        each = waiting.pop()
        key = (canonicalize_name(each.name), frozenset(each.extras))
        if key not in seen:
            seen.add(key)
            waiting += requirements_of(*key)
    assert len(seen) > 100
    assert sorted({name for name, _ in seen} - set(pins)) == []


def imported_packages() -> set[str]:
    """Top-level names that the package's files import, without its own and the standard library's."""
    names: set[str] = set()
    for path in (REPOSITORY / "raytraffic").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"raytraffic"}


def test_what_the_package_imports_is_declared(project: dict[str, Any]) -> None:
    lines = [*project["dependencies"], *project["optional-dependencies"]["baselines"]]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    provided_by = packages_distributions()
    owners = {name: {canonicalize_name(each) for each in provided_by.get(name, [name])} for name in imported_packages()}
    undeclared = [name for name, distributions in owners.items() if not distributions & declared]
    assert sorted(undeclared) == []


def test_license_is_apache_2(project: dict[str, Any]) -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@needs_make
def test_make_installs_with_the_pins_before_it_runs(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for target, command in {"quickstart": "raytraffic quickstart --out runs/quickstart", "test": "-m pytest"}.items():
        plan = make(tmp_path, "--dry-run", target).stdout
        assert "-c constraints.txt -e '.[dev]'" in plan
        assert plan.index("constraints.txt") < plan.index(command)


@needs_make
def test_make_refuses_an_old_python_by_name(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = make(tmp_path, "test", f"PYTHON={old}")
    assert result.returncode != 0
    assert "Python >= 3.11" in result.stderr
    assert str(old) in result.stderr
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_alone_lists_every_target() -> None:
    phony = next(line for line in (REPOSITORY / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    listed = set(re.findall(r"^make (\S+)", make(REPOSITORY).stdout, flags=re.MULTILINE))
    assert listed == set(phony.split()[1:])


def test_ci_runs_every_check() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert {"lint", "types", "contracts", "test"} <= set(script.read_text().split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


def commands_of(page: Path) -> dict[str, set[str]]:
    """Verb -> options that the fenced shell examples of a page use with `raytraffic <verb>`."""
    used: dict[str, set[str]] = {}
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for verb, rest in re.findall(r"^(?:\.venv/bin/)?raytraffic (\w+)(.*)$", block.replace("\\\n", " "), flags=re.MULTILINE):
            used.setdefault(verb, set()).update(re.findall(r"--[a-z][a-z-]*", rest))
    return used


@pytest.mark.skipif(find_spec("raytraffic.cli") is None, reason="the command line does not exist yet")
@pytest.mark.parametrize(("verb", "options"), sorted(commands_of(REPOSITORY / "README.md").items()))
def test_commands_of_the_readme_exist(verb: str, options: set[str]) -> None:
    program = f"import sys; from raytraffic.cli import main; sys.argv = ['raytraffic', {verb!r}, '--help']; sys.exit(main())"
    environment = os.environ | {"COLUMNS": "200"}
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert {option for option in options - {"--help"} if option not in result.stdout} == set()
