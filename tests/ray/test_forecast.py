"""Fleet forecasts on a cluster: whole tables, the same bytes however they were made, and resume by what is there."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raytraffic.checkpoint import load_forecaster, save_forecaster
from raytraffic.config import ForecastConfig
from raytraffic.files import Location
from raytraffic.on_ray.forecast import forecast
from raytraffic.store import open_store

HOURS = 6
STEPS = {"east": 15, "middle": 30, "west": 60}


@pytest.fixture(scope="module")
def wanted(prepared: Path, trained: Path) -> ForecastConfig:
    """Six hours of every cell, two tiles a shard."""
    return ForecastConfig(
        checkpoint=str(trained / "best"),
        store=str(prepared),
        out=str(prepared.parent / "forecast"),
        hours=HOURS,
        quantiles=(0.1, 0.5, 0.9),
        draws=3,
        steps=2,
        tiles_per_shard=2,
    )


@pytest.fixture(scope="module")
def made(wanted: ForecastConfig) -> Path:
    """The folder of that forecast."""
    assert forecast(wanted) == Location.of(wanted.out)
    return Path(wanted.out)


def shards(folder: Path) -> dict[str, bytes]:
    """The shards' bytes by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


def test_one_row_a_site_and_slot(made: Path, prepared: Path) -> None:
    tables = [pq.read_table(path).to_pandas() for path in sorted((made / "shards").iterdir())]
    assert len(tables) == 6  # four tiles a city, two a shard
    store = open_store(prepared)
    for city, step in STEPS.items():
        mine = [table for table in tables if (table["city"] == city).all()]
        rows = [row for table in mine for row in table.itertuples(index=False)]
        slots = HOURS * 60 // step
        names = {(row.unique_id, row.ds) for row in rows}
        assert len(rows) == len(names) == 64 * slots
        assert {name for name, _ in names} == {f"r{i}c{j}" for i in range(8) for j in range(8)}
        period = next(iter(store.manifest["cities"][city]["periods"].values()))
        end = period["start_minute"] + period["steps"] * step
        moments = sorted({ds for _, ds in names})
        assert [int(moment.timestamp()) // 60 for moment in moments] == [end + i * step for i in range(slots)]
        assert moments[1] - moments[0] == timedelta(minutes=step)
        for table in mine:
            assert list(table.columns) == ["city", "unique_id", "service", "ds", "mean", "0.1", "0.5", "0.9"]
            assert (table["0.1"] <= table["0.5"]).all() and (table["0.5"] <= table["0.9"]).all() and (table["0.1"] >= 0).all()
            assert (table["0.1"] < table["0.9"]).any() and (table["mean"] > 0).any()


def test_the_bytes_do_not_depend_on_who_made_them(wanted: ForecastConfig, made: Path, tmp_path: Path) -> None:
    forecast(replace(wanted, out=str(tmp_path), workers=1))
    assert shards(tmp_path) == shards(made)
    ours, theirs = (json.loads((folder / "manifest.json").read_bytes()) for folder in (made, tmp_path))
    assert ours == theirs and sorted(ours["shards"]) == sorted(shards(made))


def test_only_what_is_missing_is_made(wanted: ForecastConfig, made: Path) -> None:
    before = shards(made)
    lost = "forecast-00003.parquet"
    (made / "shards" / lost).unlink()
    (made / "manifest.json").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in (made / "shards").iterdir()}
    forecast(wanted)
    assert shards(made) == before and (made / "manifest.json").exists()
    assert {path.name: path.stat().st_mtime_ns for path in (made / "shards").iterdir() if path.name != lost} == times


@pytest.mark.parametrize("changed", ["seed", "hours", "checkpoint"])
def test_another_forecast_s_folder_is_refused(wanted: ForecastConfig, made: Path, tmp_path: Path, changed: str) -> None:
    forecaster, model, config = load_forecaster(wanted.checkpoint)
    average = {name: value * 1.5 for name, value in forecaster.state_dict().items()}
    save_forecaster(tmp_path, average, model, config, {})
    other = {"seed": 1, "hours": 5.0, "checkpoint": str(tmp_path)}[changed]
    before, claim = shards(made), (made / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"forecast: holds the forecast of another .*, expected an empty folder"):
        forecast(replace(wanted, **{changed: other}))  # type: ignore[arg-type]
    assert shards(made) == before and (made / "run.json").read_bytes() == claim
