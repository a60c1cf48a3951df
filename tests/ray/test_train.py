"""Training on a cluster: what it leaves behind, the same weights however it ran, and other settings refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from raytraffic.checkpoint import load_forecaster
from raytraffic.cli import main
from raytraffic.config import TrainConfig, to_json
from raytraffic.files import Location
from raytraffic.on_ray.train import train
from raytraffic.training import train_alone
from raytraffic.training_log import read_metrics
from tests.ray.conftest import CLUSTER, settings

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LIMIT = 600.0  # a hang must fail, not stop the test run; nothing depends on how long it really takes


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """The tensors of a run's model."""
    return safetensors.torch.load_file(run / name / "model.safetensors")


def test_a_run_leaves_models_metrics_and_its_newest_checkpoints(trained: Path) -> None:
    rows = read_metrics(Location.of(trained))
    assert [row["step"] for row in rows] == [10, 20, 25, 30, 40]
    assert all(0 < row["loss"] < 10 and row["learning_rate"] > 0 and row["windows_per_second"] > 0 for row in rows)
    validated = {row["step"]: row["validation_loss"] for row in rows if row["validation_loss"] is not None}
    assert list(validated) == [10, 20, 30, 40] and validated[40] < validated[10]
    best = min(validated, key=lambda step: validated[step])
    kept = [path.name for path in sorted((trained / "checkpoints").iterdir())]
    assert kept == [f"step-{step:08d}" for step in sorted({best, 30, 40})]
    for name in ("best", "last"):
        forecaster, model, config = load_forecaster(trained / name)
        assert model == "uomo" and config.contexts == ("users",) and not forecaster.training
        step = {"best": best, "last": 40}[name]
        average = safetensors.torch.load_file(trained / "checkpoints" / f"step-{step:08d}" / "ema.safetensors")
        assert all(torch.equal(value, average[key]) for key, value in weights(trained, name).items())
    assert json.loads((trained / "config.json").read_bytes())["steps"] == 40
    assert list((trained / "tensorboard").iterdir())
    assert "trained for 40 steps of 8 windows" in (trained / "report.html").read_text()


def test_a_finished_run_is_not_trained_again(prepared: Path, trained: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")}
    assert train(settings(prepared, trained)) == Location.of(trained / "best")
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*.safetensors")} == files


def test_a_run_without_ray_learns_the_same(prepared: Path, trained: Path, tmp_path: Path) -> None:
    train_alone(settings(prepared, tmp_path))
    assert all(torch.equal(value, weights(tmp_path)[name]) for name, value in weights(trained).items())


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("learning_rate", 2e-3), ("batch", 16), ("split", "place"), ("steps", 50)])
def test_a_run_directory_of_other_settings_is_refused(prepared: Path, trained: Path, name: str, value: object) -> None:
    before = (trained / "config.json").read_bytes()
    with pytest.raises(ValueError, match=rf"config\.json: {name} is .*, expected {value!r}; this run directory belongs to another run"):
        train(settings(prepared, trained, **{name: value}))
    assert (trained / "config.json").read_bytes() == before


def test_two_workers_learn_what_one_learns(prepared: Path, trained: Path, tmp_path: Path) -> None:
    train(settings(prepared, tmp_path / "run", workers=2))
    ours, theirs = weights(trained), weights(tmp_path / "run")
    for name, value in ours.items():
        # Gradients are summed in another order, and Adam divides by their size: an entry near zero may move by a share of a step (0.001).
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-4, msg=lambda told, name=name: f"{name}: {told}")
    losses = [[row["loss"] for row in read_metrics(Location.of(run))] for run in (trained, tmp_path / "run")]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=0)


def test_a_damaged_checkpoint_stops_the_run_with_one_line(
    prepared: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "best")
    average = run / "checkpoints" / "step-00000040" / "ema.safetensors"
    average.write_bytes(average.read_bytes()[:-1] + b"?")
    command = _command(settings(prepared, run))
    assert main([*command[3:], "--max-failures", "0"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"raytraffic train: {average}: its SHA-256 differs from the one in committed.json")
    assert not (run / "best").exists()


def _command(config: TrainConfig) -> list[str]:
    """The settings as a command line."""
    changed = ("preset", "steps", "batch", "warmup", "validate_every", "keep")
    options = [word for name in changed for word in (f"--{name.replace('_', '-')}", str(to_json(config)[name]))]
    return [sys.executable, "-m", "raytraffic.cli", "train", "--store", config.store, "--out", config.out, *options]


def started_by(folder: str) -> Iterator[int]:
    """Processes whose environment names this test's own folder for Ray: those that this test started."""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"RAY_TMPDIR={folder}".encode() in entry.read_bytes().split(b"\0"):
                yield int(entry.parent.name)
        except OSError:
            continue


def _kill(process: subprocess.Popen[bytes], folder: str) -> None:
    """SIGKILL to the driver's group and to what its Ray left behind."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for child in started_by(folder):
        os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes it started through /proc")
def test_a_killed_run_goes_on_to_the_same_bytes(prepared: Path, trained: Path, tmp_path: Path, short_folder: str) -> None:
    own = f"{short_folder}/kill"
    environment = {**os.environ, **CLUSTER, "RAY_TMPDIR": own, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    out = tmp_path / "run"
    command = _command(settings(prepared, out))
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + LIMIT
        try:
            while not list(out.glob("checkpoints/step-*/committed.json")):
                assert first.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.02)
        finally:
            _kill(first, own)
    assert not (out / "last").exists(), "the run ended before it was killed; make it longer"
    left = sorted(path.parent.name for path in out.glob("checkpoints/step-*/committed.json"))
    assert left and left[-1] < "step-00000040"

    again = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert again.returncode == 0, again.stderr
    for name in ("best", "last"):
        assert (out / name / "model.safetensors").read_bytes() == (trained / name / "model.safetensors").read_bytes()
    figures = [[(row["step"], row["loss"], row["validation_loss"]) for row in read_metrics(Location.of(run))] for run in (trained, out)]
    assert figures[0] == figures[1]
