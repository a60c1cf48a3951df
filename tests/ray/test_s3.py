"""The whole line with everything in S3: each verb as its own process, so that its Ray workers inherit the way to the bucket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytraffic.checkpoint import committed, load_forecaster
from raytraffic.files import Location
from raytraffic.sources.open import open_source
from raytraffic.store import Layout, open_store, prepare_store
from raytraffic.training_log import read_metrics
from tests.ray.conftest import CLUSTER

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CITY = "synthetic:east?step=60&grid=4x4&days=12"


def run(short_folder: str, *arguments: str) -> str:
    """What a verb printed; the test fails with its errors where it did."""
    environment = {**os.environ, **CLUSTER, "RAY_TMPDIR": f"{short_folder}/s3", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "raytraffic.cli", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_prepare_train_and_forecast_in_s3(s3_bucket: str, short_folder: str, tmp_path: Path) -> None:
    store, trained, forecast = (f"{s3_bucket}/{name}" for name in ("store", "run", "forecast"))
    run(short_folder, "prepare", "--sources", CITY, "--out", store)
    prepare_store([open_source(CITY).read("east")], Location.of(tmp_path / "store"), Layout())
    assert open_store(store).manifest == open_store(tmp_path / "store").manifest
    open_store(store).verify()

    settings = ["--preset", "tiny", "--steps", "10", "--batch", "4", "--validate-every", "5"]
    run(short_folder, "train", "--store", store, "--out", trained, *settings)
    assert [row["step"] for row in read_metrics(Location.of(trained))] == [5, 10]
    assert all(committed(Location.of(f"{trained}/{name}")) for name in ("best", "last"))
    assert load_forecaster(f"{trained}/best")[1] == "uomo"

    weights = Location.of(f"{trained}/last/model.safetensors").read_bytes()
    for lost in ("best", "last", "checkpoints/step-00000010"):  # as if the run had been ended after its first checkpoint
        Location.of(f"{trained}/{lost}").delete()
    run(short_folder, "train", "--store", store, "--out", trained, *settings)
    assert Location.of(f"{trained}/last/model.safetensors").read_bytes() == weights
    assert len(Location.of(f"{trained}/ray").list()) == 2 and committed(Location.of(f"{trained}/checkpoints/step-00000010"))
    events = [child.name for child in Location.of(f"{trained}/tensorboard").list()]
    assert any(name.endswith(".from-5") for name in events), events  # the second launch went on, it did not begin again

    request = ["--hours", "6", "--draws", "2", "--steps", "2", "--workers", "1"]
    run(short_folder, "forecast", "--checkpoint", f"{trained}/best", "--store", store, "--out", forecast, *request)
    manifest = json.loads(Location.of(f"{forecast}/manifest.json").read_bytes())
    tables = [pq.read_table(pa.BufferReader(Location.of(f"{forecast}/shards/{name}").read_bytes())) for name in manifest["shards"]]
    assert sum(len(table) for table in tables) == 16 * 6
