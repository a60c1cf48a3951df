"""A local cluster, a prepared store and a trained tiny model that the tests of this folder share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from raytraffic.config import PrepareConfig, TrainConfig
from raytraffic.files import Location
from raytraffic.on_ray.prepare import prepare
from raytraffic.on_ray.train import train
from tests.fixtures_s3 import _s3_server, s3_bucket

__all__ = ["_s3_server", "s3_bucket"]

CITIES = (
    "synthetic:east?step=15&grid=8x8&days=8",
    "synthetic:middle?step=30&grid=8x8&days=8",
    "synthetic:west?step=60&grid=8x8&days=10",
)
#: What every cluster a test starts is told: throw-away, on the loopback interface, quiet.
CLUSTER = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@pytest.fixture(scope="session")
def short_folder() -> Iterator[str]:
    """A temporary folder for Ray's sockets, whose paths a Unix system bounds to about a hundred characters."""
    folder = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(short_folder: str) -> Iterator[None]:
    """Ray with two CPUs on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CLUSTER, "RAY_TMPDIR": short_folder}.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def prepared(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three cities of 15, 30 and 60 minutes."""
    folder = tmp_path_factory.mktemp("ray") / "store"
    assert prepare(PrepareConfig(sources=CITIES, out=str(folder))) == Location.of(folder)
    return folder


def settings(store: Path, out: Path, **changes: object) -> TrainConfig:
    """A run of some seconds with four checkpoints."""
    values = {"preset": "tiny", "steps": 40, "batch": 8, "warmup": 5, "validate_every": 10, "keep": 2, **changes}
    return TrainConfig(store=str(store), out=str(out), **values)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def trained(prepared: Path) -> Path:
    """The run directory of an uninterrupted run, whose paths were given as users do: relative to where they are."""
    out = prepared.parent / "run"
    here = [Path(os.path.relpath(folder)) for folder in (prepared, out)]
    assert train(settings(*here)) == Location.of(out / "best")
    return out
