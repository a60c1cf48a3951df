"""A scaling-law study on a cluster: what it leaves, that nothing is done twice, and that no run is lost from the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raytraffic.config import StudyConfig
from raytraffic.files import Location
from raytraffic.on_ray.study import study
from raytraffic.study import read_runs
from tests.ray.conftest import CLUSTER

REPOSITORY = Path(__file__).resolve().parent.parent.parent
#: What may differ between two computations of the same row.
TIMES = {"loop_s", "wall_s", "windows_per_second", "tokens_per_second", "attempts"}


def settings(store: Path, out: Path, **changed: Any) -> StudyConfig:
    """A study of two sizes and two amounts of data."""
    base = StudyConfig(
        store=str(store),
        out=str(out),
        sizes=("w16", "w24"),
        shares=(0.5, 1.0),
        cities=("east", "middle"),
        held_out=("west",),
        steps=(20,),
        seeds=(0,),
        training=("batch=8", 'options=["entries=0"]'),
        tasks=("short",),
        windows=4,
        draws=2,
        sampler_steps=2,
    )
    return replace(base, **changed)


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """The table's rows by address, without what is measured with a clock."""
    table = read_runs(Location.of(out)).to_pylist()
    return {row["run"]: {name: value for name, value in row.items() if name not in TIMES} for row in table}


@pytest.fixture(scope="module")
def studied(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    assert study(settings(prepared, out)) == Location.of(out)
    return out


def test_a_study_leaves_a_row_a_run_and_a_report(studied: Path) -> None:
    found = list(rows(studied).values())
    assert sorted((row["size"], row["share"]) for row in found) == [("w16", 0.5), ("w16", 1.0), ("w24", 0.5), ("w24", 1.0)]
    assert {row["status"] for row in found} == {"done"}
    for row in found:
        assert row["flops"] > 0 and 0 < row["in_loss"] < 10 and 0 < row["out_loss"] < 10
        assert all(row[f"{domain}_short_{figure}"] > 0 for domain in ("in", "out") for figure in ("crps", "rmse", "mae"))
        # Twenty steps of eight windows: a validation looks at as few windows as one may.
        assert json.loads(row["config"])["validation_windows"] == 32
        assert row["curve_step"] == list(range(2, 21, 2)) and row["cities"] == ["east", "middle"]
    assert "w24" in (studied / "report.html").read_text()


def test_a_larger_share_is_more_data_and_a_wider_model_more_parameters(studied: Path) -> None:
    by = {(row["size"], row["share"]): row for row in rows(studied).values()}
    assert by["w16", 0.5]["data_tokens"] < by["w16", 1.0]["data_tokens"] and by["w16", 0.5]["passes"] > by["w16", 1.0]["passes"]
    assert by["w16", 1.0]["parameters"] < by["w24", 1.0]["parameters"] and by["w16", 1.0]["flops"] < by["w24", 1.0]["flops"]


def test_a_larger_study_does_what_is_missing_only(prepared: Path, studied: Path) -> None:
    before = rows(studied)
    written = {path: path.stat().st_mtime_ns for path in studied.glob("runs/*/row.json")}
    study(settings(prepared, studied, sizes=("w16", "w24", "w32"), shares=(1.0,)))
    after = rows(studied)
    assert {row["size"] for row in after.values()} == {"w16", "w24", "w32"} and len(after) == 3
    assert all(after[run] == before[run] for run in after if run in before)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_run_that_fails_is_tried_again_and_stands_in_the_table(prepared: Path, tmp_path: Path) -> None:
    broken = settings(prepared, tmp_path, sizes=("w16",), shares=(1.0,), training=("batch=8", "learning_rate=1e30"), attempts=2)
    with pytest.raises(RuntimeError, match=r"1 of 1 runs failed .*gradient norm.*runs\.parquet"):
        study(broken)
    (row,) = read_runs(Location.of(tmp_path)).to_pylist()
    assert row["status"] == "failed" and row["attempts"] == 2 and "gradient norm" in row["error"] and row["size"] == "w16"


def test_a_dry_run_prints_every_run_and_leaves_nothing(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(settings(prepared, tmp_path / "out", dry_run=True, device="1e12", price_per_hour=3600.0))
    told = capsys.readouterr().out
    assert told.count("w16") == 2 and told.count("w24") == 2 and "4 runs" in told and "device-hours" in told
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="device: 'abacus', expected a known GPU"):
        study(settings(prepared, tmp_path / "out", dry_run=True, device="abacus"))


@pytest.mark.slow
def test_runs_of_two_workers_that_share_the_model_give_the_same_rows(prepared: Path, studied: Path, tmp_path: Path) -> None:
    sharded = settings(prepared, tmp_path, sizes=("w24",), shares=(1.0,), workers=2, cpus_per_run=0.5)
    study(replace(sharded, training=(*sharded.training, "shard=fsdp")))
    ((run, row),) = rows(tmp_path).items()
    alone = rows(studied)[run]  # workers and sharding are no part of what a run is
    assert row["devices"] == 2 and row["in_loss"] == pytest.approx(alone["in_loss"], rel=1e-3)
    assert row["curve_loss"] == pytest.approx(alone["curve_loss"], rel=1e-3)


@pytest.mark.slow
def test_a_study_killed_in_the_middle_goes_on_to_the_same_rows(prepared: Path, studied: Path, short_folder: str, tmp_path: Path) -> None:
    wanted = settings(prepared, tmp_path / "out")
    (tmp_path / "study.json").write_text(json.dumps({name: getattr(wanted, name) for name in vars(wanted)}))
    environment = {**os.environ, **CLUSTER, "RAY_TMPDIR": f"{short_folder}/study", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "raytraffic.cli", "study", "--config", str(tmp_path / "study.json")]
    running = subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list((tmp_path / "out").glob("runs/*/row.json")):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/row.json")}
    assert 0 < len(done) < 4 and not (tmp_path / "out" / "runs.parquet").exists()
    study(wanted)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    unlike = {"config"}  # says where the run lies
    mine, theirs = (
        {run: {k: v for k, v in row.items() if k not in unlike} for run, row in rows(out).items()} for out in (tmp_path / "out", studied)
    )
    assert all(mine[run] == theirs[run] for run in mine if run in theirs)
