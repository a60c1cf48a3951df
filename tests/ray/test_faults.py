"""What clusters do: processes, drivers and nodes that end at the worst moments; the result is the same bytes all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raytraffic.config import ForecastConfig, TrainConfig, to_json
from raytraffic.files import Location
from raytraffic.lease import RENEWAL_S
from raytraffic.on_ray.forecast import forecast
from tests.ray.conftest import CLUSTER, settings
from tests.ray.test_train import LIMIT, REPOSITORY, started_by, weights

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")]

FAULTS = Path(__file__).parent / "faults"
SHARD = "shards/forecast-00002.parquet"


@pytest.fixture
def environment(short_folder: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """What a command of this test is started with: a Ray of its own."""
    name = f"f{abs(hash(request.node.name)) % 10**6}"
    found = {**os.environ, **CLUSTER, "RAY_TMPDIR": f"{short_folder}/{name}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    found.pop("RAY_ADDRESS", None)
    return found


@pytest.fixture(scope="module")
def wanted(prepared: Path, trained: Path) -> ForecastConfig:
    """A forecast of six shards."""
    config = ForecastConfig(
        checkpoint=str(trained / "best"),
        store=str(prepared),
        out=str(prepared.parent / "calm"),
        hours=6.0,
        draws=3,
        steps=2,
        tiles_per_shard=2,
    )
    forecast(config)
    return config


@pytest.fixture
def again(wanted: ForecastConfig, tmp_path: Path) -> Callable[[str], list[str]]:
    """The same forecast into another folder, as a command line."""
    kept = ("checkpoint", "store", "hours", "draws", "steps", "tiles_per_shard")

    def command(out: str) -> list[str]:
        values = {**{name: to_json(wanted)[name] for name in kept}, "out": out}
        return ["forecast", *(word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value)))]

    return command


def with_fault(environment: dict[str, str], file: str, moment: str, mark: Path) -> dict[str, str]:
    """The environment in which the first process that comes to a moment of writing a file ends there."""
    fault = json.dumps({"file": file, "moment": moment, "mark": str(mark)})
    return {**environment, "PYTHONPATH": f"{FAULTS}:{REPOSITORY}", "RAYTRAFFIC_TEST_FAULT": fault}


def verb(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A finished command."""
    command = [sys.executable, "-m", "raytraffic.cli", *words]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    clear(environment)
    return done


def clear(environment: dict[str, str]) -> None:
    """Ends what a killed driver's Ray left behind."""
    for child in started_by(environment["RAY_TMPDIR"]):
        os.kill(child, signal.SIGKILL)


def same(ours: Path, wanted: ForecastConfig) -> None:
    """The same files with the same bytes, and nothing else beside them."""
    calm = Path(wanted.out)
    names = sorted(path.relative_to(calm) for path in calm.rglob("*") if path.is_file())
    assert sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file()) == names
    for name in names:
        if name.name != "summary.json":  # holds seconds
            assert (ours / name).read_bytes() == (calm / name).read_bytes(), name


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_worker_that_ends_while_it_writes_a_shard(
    again: Callable[[str], list[str]], wanted: ForecastConfig, environment: dict[str, str], tmp_path: Path, moment: str
) -> None:
    mark = tmp_path / "ended"
    done = verb(again(str(tmp_path / "out")), with_fault(environment, SHARD, moment, mark))
    assert mark.exists() and done.returncode == 0, done.stdout + done.stderr
    # What was begun under a temporary name may lie there; it is no shard.
    for path in (tmp_path / "out" / "shards").glob(".tmp-*"):
        path.unlink()
    same(tmp_path / "out", wanted)


@pytest.mark.parametrize(("file", "moment"), [("run.json", "after"), ("failures.parquet", "before"), ("manifest.json", "between")])
def test_a_driver_that_ends_goes_on_where_it_was(
    again: Callable[[str], list[str]], wanted: ForecastConfig, environment: dict[str, str], tmp_path: Path, file: str, moment: str
) -> None:
    mark = tmp_path / "ended"
    first = verb(again(str(tmp_path / "out")), with_fault(environment, file, moment, mark))
    assert mark.exists() and first.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "manifest.json").exists()
    second = verb(again(str(tmp_path / "out")), environment)
    assert second.returncode == 0, second.stdout + second.stderr
    for path in (tmp_path / "out").glob(".tmp-*"):
        path.unlink()
    same(tmp_path / "out", wanted)


def test_two_drivers_on_one_folder(
    again: Callable[[str], list[str]], wanted: ForecastConfig, environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "raytraffic.cli", *again(str(out))]
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + LIMIT
        while not (out / "lease.json").exists():
            assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.01)
        second = verb(again(str(out)), {**environment, "RAY_TMPDIR": environment["RAY_TMPDIR"] + "b"})
        assert second.returncode == 2
        assert second.stderr.strip().splitlines()[-1].startswith(f"raytraffic forecast: {out}/lease.json: process {first.pid} on ")
        assert first.wait(LIMIT) == 0, (tmp_path / "log").read_text()
    same(out, wanted)
    assert RENEWAL_S <= 10  # what a taken-over folder costs at most three times of


def test_a_node_that_ends(again: Callable[[str], list[str]], wanted: ForecastConfig, environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = on_two_nodes(environment, str(out / "shards" / "forecast-*.parquet"), 0, again(str(out)))
    assert done.returncode == 0 and "lost the node" in done.stdout, done.stdout + done.stderr
    same(out, wanted)


def on_two_nodes(environment: dict[str, str], wanted: str, notice: float, words: list[str]) -> subprocess.CompletedProcess[str]:
    """A verb on two nodes of which one is lost, see `tests.ray.two_nodes`."""
    Path(environment["RAY_TMPDIR"]).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.ray.two_nodes", wanted, str(notice), *words]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    clear(environment)
    return done


def training(config: TrainConfig, **more: object) -> list[str]:
    """A run as a command line."""
    changed = ("preset", "steps", "batch", "warmup", "validate_every", "keep", "store", "out")
    values = {**{name: to_json(config)[name] for name in changed}, **more}
    return ["train", *(word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value)))]


def same_weights(ours: str | Path, trained: Path) -> None:
    """The model of the end is that of an undisturbed run."""
    for name in ("best", "last"):
        assert Location.of(f"{ours}/{name}/model.safetensors").read_bytes() == (trained / name / "model.safetensors").read_bytes()


def test_a_training_worker_that_ends(prepared: Path, trained: Path, environment: dict[str, str], tmp_path: Path) -> None:
    mark, out = tmp_path / "ended", tmp_path / "run"
    done = verb(training(settings(prepared, out)), with_fault(environment, "step-00000020/ema.safetensors", "between", mark))
    assert mark.exists() and done.returncode == 0, done.stdout + done.stderr
    same_weights(out, trained)


@pytest.mark.parametrize(("file", "moment"), [("optimiser.safetensors", "between"), ("committed.json", "before")])
def test_a_training_worker_that_ends_while_it_uploads(
    prepared: Path, trained: Path, s3_bucket: str, environment: dict[str, str], tmp_path: Path, file: str, moment: str
) -> None:
    mark, out = tmp_path / "ended", f"{s3_bucket}/run"
    credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_") or name.lower() == "no_proxy"}
    words = training(settings(prepared, Path("run")), out=out)
    done = verb(words, with_fault({**environment, **credentials}, f"step-00000020/{file}", moment, mark))
    assert mark.exists() and done.returncode == 0, done.stdout + done.stderr
    same_weights(out, trained)


@pytest.mark.parametrize("notice", [0, 8])
def test_a_node_that_is_taken_from_a_training_run(
    prepared: Path, trained: Path, environment: dict[str, str], tmp_path: Path, notice: int
) -> None:
    out = tmp_path / "run"
    steps = 40 if notice == 0 else 400
    words = training(settings(prepared, out), steps=steps, validate_every=10 if notice == 0 else 200)
    done = on_two_nodes(environment, str(out / "metrics.parquet"), notice, words)
    assert done.returncode == 0 and "lost the node" in done.stdout, done.stdout + done.stderr
    if notice == 0:
        same_weights(out, trained)
    else:  # a checkpoint beyond those at 200 and 400 was made between notice and loss
        assert "gave notice" in done.stdout
        resumed = list((out / "tensorboard").iterdir())
        assert any(int(path.name.rpartition("from-")[2]) not in (0, 200) for path in resumed), resumed


def test_a_run_goes_on_with_the_workers_that_are_left(prepared: Path, trained: Path, environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = training(settings(prepared, out), workers=2, min_workers=1, cpus_per_worker=2)  # a node has room for one of them
    done = on_two_nodes(environment | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}, str(out / "metrics.parquet"), 0, words)
    assert done.returncode == 0 and "lost the node" in done.stdout, done.stdout + done.stderr
    ours, theirs = weights(out), weights(trained)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-4)  # as with two workers throughout: test_train.py
