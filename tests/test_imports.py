"""The layer rules: they hold for this repository, they catch what they are for, and the core runs without ray."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PYPROJECT = REPOSITORY / "pyproject.toml"
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter's own command on the package under `root`, with the configuration that stands there."""
    command = [sys.executable, "-c", LINT, "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def modules_of(contract: str) -> list[tuple[str, ...]]:
    """The layers of a contract, top first, as module names."""
    contracts = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each["name"] == contract)
    return [tuple(re.findall(r"\w+", layer)) for layer in layers]


AROUND, CORE = modules_of("The core imports nothing of what stands around it")


def write_package(root: Path, extra: dict[str, str]) -> None:
    """A package with one empty file a module of the layer rules, and `extra` lines in some of its files."""
    folders = {"models", "on_ray"}
    files = dict.fromkeys(("__init__", *(f"{name}/__init__" if name in folders else name for name in (*AROUND, *CORE))), "")
    files |= {f"models/{name}": "" for name in ("uomo", "lsdm")} | extra
    for name, text in files.items():
        path = root / "raytraffic" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copy(PYPROJECT, root)


def test_contracts_hold() -> None:
    result = lint_imports(REPOSITORY)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_contracts_allow_what_the_design_allows(tmp_path: Path) -> None:
    allowed = {
        "on_ray/train": "import ray.train\nfrom raytraffic import config, fit, registry, windows",
        "cli": "import ray\nfrom raytraffic import on_ray",
        "pretrained": "from raytraffic import checkpoint, windows, forecaster",
        "registry": "from raytraffic.models import uomo",
        "models/uomo": "from raytraffic import forecaster, nn, types",
    }
    write_package(tmp_path, allowed)
    result = lint_imports(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("masks", "import ray", "Only on_ray and cli import ray"),
        ("windows", "import ray.data", "Only on_ray and cli import ray"),
        ("models/uomo", "from raytraffic.models import lsdm", "Models are independent siblings"),
        ("metrics", "from raytraffic import store", "The core imports nothing of what stands around it"),
        ("forecaster", "from raytraffic import config", "The core imports nothing of what stands around it"),
        ("forecaster", "from raytraffic import on_ray", "The core imports nothing of what stands around it"),
        ("config", "from raytraffic import types", "Upper layers import lower ones, never back"),
        ("types", "from raytraffic import randomness", "Upper layers import lower ones, never back"),
        ("store", "from raytraffic import windows", "Upper layers import lower ones, never back"),
        ("study", "from raytraffic import on_ray", "Upper layers import lower ones, never back"),
        ("on_ray/train", "from raytraffic import cli", "Upper layers import lower ones, never back"),
        ("nn", "from raytraffic.models import uomo", "Upper layers import lower ones, never back"),
        ("helpers", "", "Upper layers import lower ones, never back"),
    ],
)
def test_contracts_catch(tmp_path: Path, module: str, line: str, contract: str) -> None:
    write_package(tmp_path, {module: line})
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in " ".join(result.stdout.split())


def loaded_by(statement: str) -> set[str]:
    """Names of the modules in memory after one statement in a fresh interpreter."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_neither_ray_nor_torch_nor_a_model() -> None:
    loaded = loaded_by("import raytraffic")
    assert "raytraffic" in loaded
    assert not loaded & {"ray", "torch", "raytraffic.models"}


def test_the_core_runs_without_ray() -> None:
    package = REPOSITORY / "raytraffic"
    core = [name for name in CORE if (package / f"{name}.py").is_file() or (package / name / "__init__.py").is_file()]
    assert "types" in core
    loaded = loaded_by("import " + ", ".join(f"raytraffic.{name}" for name in core))
    assert {f"raytraffic.{name}" for name in core} <= loaded
    assert "ray" not in loaded
    assert not {f"raytraffic.{name}" for name in AROUND} & loaded
