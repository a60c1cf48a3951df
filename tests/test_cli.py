"""The command line: verbs, help, exit codes, and one line for the user's mistake wherever it was raised."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from raytraffic import cli
from raytraffic.cli import VERBS, main
from raytraffic.config import PrepareConfig, to_json

REPOSITORY = Path(__file__).resolve().parent.parent


class WrappedError(Exception):
    """What Ray wraps a worker's error in."""

    def __init__(self, cause: BaseException | None = None, worker_failures: dict[int, BaseException] | None = None) -> None:
        super().__init__("a long remote traceback")
        self.cause = cause
        self.worker_failures = worker_failures or {}


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes the verb `prepare` raise."""

    def run(self: cli.Verb, config: object) -> None:
        raise error

    monkeypatch.setattr(cli.Verb, "run", run)


class RaysValueError(WrappedError, ValueError):
    """A worker's ValueError as Ray raises it: its own text is the remote traceback."""


def chained() -> ValueError:
    """A mistake found while handling another."""
    error = ValueError("y: 3, expected 4")
    error.__cause__ = ValueError("not a number")
    return error


PREPARE = ["prepare", "--sources", "synthetic:east?days=2", "--out", "store"]


def test_no_verb_is_a_mistake_and_help_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_and_every_option_a_line(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    told = capsys.readouterr().out
    options = [f"--{field.name.replace('_', '-')}" for field in fields(VERBS[verb].config)]
    assert all(option in told for option in options)
    assert str(VERBS[verb].config.__doc__).strip().splitlines()[0][:50] in told


def test_unknown_verbs_options_and_values_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told == [f"raytraffic: unknown verb 'predict', expected one of {', '.join(VERBS)}"]
    for arguments, name in (
        ([*PREPARE, "--tlie", "4", "4"], "--tlie"),
        (["prepare", "--out", "store"], "--sources"),
        ([*PREPARE, "--seed", "x"], "'x'"),
    ):
        assert main(arguments) == 2
        assert name in capsys.readouterr().err


def test_the_configuration_is_printed_and_handed_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[object] = []

    def run(self: cli.Verb, config: object) -> str:
        seen.append(config)
        return "there"

    monkeypatch.setattr(cli.Verb, "run", run)
    assert main([*PREPARE, "--token", "4", "2", "2"]) == 0
    assert seen == [PrepareConfig(sources=("synthetic:east?days=2",), out="store", token=(4, 2, 2))]
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith('raytraffic prepare {"sources": ["synthetic:east?days=2"]') and last == "raytraffic prepare: done: there"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("y: 3, expected 4"),
        ValueError("y: 3, expected 4\nFailed after 1/1 attempts."),
        chained(),
        RaysValueError(cause=chained()),
        WrappedError(cause=ValueError("y: 3, expected 4")),
        WrappedError(worker_failures={1: WrappedError(cause=ValueError("y: 3, expected 4"))}),
        WrappedError(cause=WrappedError(cause=ValueError("y: 3, expected 4"))),
    ],
)
def test_a_mistake_is_one_line_wherever_it_was_raised(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    assert main(PREPARE) == 2
    assert capsys.readouterr().err == "raytraffic prepare: y: 3, expected 4\n"
    monkeypatch.setenv("RAYTRAFFIC_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(PREPARE)


def test_our_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, WrappedError(cause=AssertionError("an invariant")))
    with pytest.raises(WrappedError):
        main(PREPARE)


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert main(PREPARE) == 130
    assert capsys.readouterr().err == "raytraffic prepare: interrupted; the same command goes on where it was\n"


def test_settings_come_from_a_file_and_options_beside_it_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(cli.Verb, "run", lambda self, config: seen.append(config))
    kept = PrepareConfig(sources=("synthetic:east?days=2",), out="store", token=(4, 2, 2))
    (tmp_path / "config.json").write_text(json.dumps(to_json(kept)))
    assert main(["prepare", "--config", str(tmp_path / "config.json"), "--seed", "3"]) == 0
    assert seen == [replace(kept, seed=3)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "expected a JSON file"),
        ("{", "expected a JSON file"),
        ('{"sources": [], "out": "x", "tlie": 3}', "tlie: unknown field"),
        ('{"sources": [], "out": 3}', "config.json.out: 3, expected"),
    ],
)
def test_a_file_of_other_settings_is_refused(content: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(["prepare", "--config", str(tmp_path / "config.json")]) == 2
    assert told in capsys.readouterr().err


def test_a_file_that_is_not_named_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--config"]) == 2
    assert "--config: nothing, expected the path" in capsys.readouterr().err


JOBS = {path.stem: path.stem for path in (REPOSITORY / "jobs").glob("*.py")} | {"scaling_study": "study"}


@pytest.mark.parametrize(("job", "verb"), sorted(JOBS.items()))
def test_jobs_are_the_same_verbs(job: str, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [f"{job}.py", "--help"])
    with pytest.raises(SystemExit) as told:
        runpy.run_path(str(REPOSITORY / "jobs" / f"{job}.py"), run_name="__main__")
    assert not told.value.code
    assert f"usage: raytraffic {verb} " in capsys.readouterr().out


def test_help_starts_neither_ray_nor_torch() -> None:
    program = "import sys; from raytraffic.cli import main; main(['train', '--help']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"ray", "torch"} & set(result.stdout.splitlines()[-1].split())
