"""Sources in S3 are read as those on a disk are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raytraffic.files import Location
from raytraffic.sources.city import City
from raytraffic.sources.open import open_source
from tests.fixtures_s3 import _s3_server, s3_bucket

__all__ = ["_s3_server", "s3_bucket"]


def write_table(folder: Path, name: str) -> str:
    """A long table of two stations and its sites; the spec with the folder left open."""
    times = pd.date_range("2024-05-06", periods=12, freq="30min").astype(str)
    frame = pd.DataFrame({"unique_id": np.repeat(["a", "b"], 12), "ds": np.tile(times, 2), "y": np.arange(24.0)})
    frame.to_parquet(folder / name) if name.endswith("parquet") else frame.to_csv(folder / name, index=False)
    pd.DataFrame({"unique_id": ["a", "b"], "lat": [45.0, 45.01], "lon": [9.0, 9.01]}).to_csv(folder / "sites.csv", index=False)
    return f"table:{{folder}}/{name}?sites={{folder}}/sites.csv"


def write_grid(folder: Path, name: str) -> str:
    """A grid."""
    np.savez(folder / name, traffic=np.arange(96.0).reshape(6, 4, 4), step_minutes=30)
    return f"grid:{{folder}}/{name}?name=gridton&start=2024-05-06T00:00"


def write_series(folder: Path, name: str) -> str:
    """A folder of series."""
    arrays = {"traffic": np.arange(96.0).reshape(1, 6, 4, 4), "start_weekday_slot": np.array([0, 0]), "step_minutes": np.array(30)}
    np.savez(folder / name, **arrays)
    return "series:{folder}"


WRITERS = {
    "traffic.parquet": write_table,
    "traffic.csv": write_table,
    "traffic.csv.gz": write_table,
    "grid.npz": write_grid,
    "east_train.npz": write_series,
}


def cities(spec: str) -> list[City]:
    """All records of a source."""
    source = open_source(spec)
    return [city for name in source.names() for city in source.read(name)]


@pytest.mark.parametrize("name", WRITERS)
def test_a_source_in_s3_is_the_same_as_on_a_disk(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bucket = request.getfixturevalue("s3_bucket")
    spec = WRITERS[name](tmp_path, name)
    for path in tmp_path.iterdir():
        Location.of(f"{bucket}/in/{path.name}").write_bytes(path.read_bytes())
    ours, theirs = cities(spec.format(folder=f"{bucket}/in")), cities(spec.format(folder=tmp_path))
    assert len(ours) == len(theirs) == 1
    assert np.array_equal(ours[0].traffic, theirs[0].traffic) and list(ours[0].sites) == list(theirs[0].sites)
    assert ours[0].start == theirs[0].start and ours[0].step_minutes == theirs[0].step_minutes


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_not_there_is_told(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bucket = request.getfixturevalue("s3_bucket")
    spec = WRITERS[name](tmp_path, name).format(folder=f"{bucket}/none")
    with pytest.raises(ValueError, match=r"s3://.*/none.*no such file"):
        cities(spec)
