"""Fleet forecasts on a cluster: whole tables, the same bytes however they were made, and resume by what is there."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from raytraffic import registry
from raytraffic.checkpoint import load_forecaster, save_forecaster
from raytraffic.config import ForecastConfig
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.forecasting import ForecastRequest, forecast_table, possible_windows
from raytraffic.on_ray.forecast import forecast
from raytraffic.store import open_store
from raytraffic.windows import Windows, windows_for

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


@dataclass(frozen=True)
class Told:
    """A model that looks at a caller's forecast of users, and what it is told: the true users of one city's six last hours."""

    config: ForecastConfig
    windows: Windows
    rows: np.ndarray
    starts: np.ndarray
    table: pd.DataFrame

    def by_hand(self, sampler: Sampler, draws: int) -> dict[str, np.ndarray]:
        """(slots, draws) by station, of the whole model called on the windows whose last hours are hidden."""
        batch = self.windows.batch(self.windows.cut(self.rows, self.starts))
        known = batch.known.clone()
        known[:, :, -HOURS:] = False
        expected = torch.full(batch.context["users"].shape, torch.nan)
        expected[:, -HOURS:] = batch.context["users"][:, -HOURS:]
        traffic = torch.where(known, batch.traffic, torch.nan)
        batch = replace(batch, traffic=traffic, known=known, context={**batch.context, "expected_users": expected})
        found = load_forecaster(self.config.checkpoint)[0].eval().forecast(batch, sampler, draws=draws).draws[:, :, 0, -HOURS:]
        names = np.ndenumerate(self.windows.site_names(self.rows))
        return {name: found[i, :, :, j].T.numpy() for (i, j), name in names}


@pytest.fixture
def told(wanted: ForecastConfig, tmp_path: Path) -> Told:
    """A forecast of the last six hours of the city of hourly slots."""
    model = replace(registry.model("uomo").preset("tiny"), contexts=("users", "expected_users"))
    torch.manual_seed(0)
    weights = registry.model("uomo").build(model).state_dict()
    moved = {name: value + 0.05 * torch.randn_like(value) for name, value in weights.items()}
    save_forecaster(tmp_path / "model", moved, "uomo", model, {})
    windows = windows_for(open_store(str(wanted.store)), "all", model)
    index = windows.store.index
    mine = index.city == index.cities.index("west")
    issue = int((index.start_minute + index.steps * index.step_minutes)[mine].max()) - HOURS * 60
    rows, starts, _ = possible_windows(windows, ForecastRequest(horizon=HOURS), issue, STEPS["west"])
    users, times = windows.cut(rows, starts)["users"][:, -HOURS:], pd.to_datetime(issue + 60 * np.arange(HOURS), unit="m")
    columns = [
        pd.DataFrame({"unique_id": name, "ds": times, "expected_users": users[i, :, j], "city": "west"})
        for (i, j), name in np.ndenumerate(windows.site_names(rows))
    ]
    config = replace(
        wanted,
        checkpoint=str(tmp_path / "model"),
        out=str(tmp_path / "out"),
        issue=str(np.datetime64(issue, "m")),
        keep_draws=True,
        expected_users=str(tmp_path / "users.csv"),
    )
    return Told(config, windows, rows, starts, pd.concat(columns))


def test_the_caller_s_forecast_of_users_is_told_to_the_model(told: Told) -> None:
    """The answers are those of the whole model called by hand, and others than without."""
    told.table.to_csv(str(told.config.expected_users), index=False)
    forecast(told.config)
    found = pd.concat([pq.read_table(path).to_pandas() for path in (Path(told.config.out) / "shards").iterdir()])
    found = found[found["city"] == "west"].astype({"unique_id": str}).sort_values(["unique_id", "ds"], ignore_index=True)
    sampler, draws = Sampler("dpm++", told.config.steps), told.config.draws
    by_hand = told.by_hand(sampler, draws)
    assert set(found["unique_id"]) == set(by_hand) and len(by_hand) == 64
    for name, mine in found.groupby("unique_id"):
        np.testing.assert_array_equal(np.stack(mine["draws"]), by_hand[name])
    request = ForecastRequest(horizon=HOURS, draws=draws, sampler=sampler)
    silent = forecast_table(load_forecaster(told.config.checkpoint)[0].eval(), told.windows, told.rows, told.starts, request)
    other = silent.to_pandas().astype({"unique_id": str}).sort_values(["unique_id", "ds"], ignore_index=True)
    assert (other["ds"] == found["ds"]).all() and not np.allclose(found["mean"], other["mean"], rtol=0.01)
    told.table.assign(expected_users=1.0).to_csv(str(told.config.expected_users), index=False)
    with pytest.raises(ValueError, match=r"out: holds the forecast of another .*, expected an empty folder"):
        forecast(told.config)


def test_users_that_no_forecast_can_be_told_are_refused_before_anything_is_written(told: Told, wanted: ForecastConfig) -> None:
    told.table.replace({"unique_id": {"r0c0": "r9c9"}}).to_csv(str(told.config.expected_users), index=False)
    with pytest.raises(ValueError, match=r"users.csv\): station 'r9c9' of west, expected stations of the store"):
        forecast(told.config)
    expected = "expected none, for the model was not trained with a forecast of the users"
    with pytest.raises(ValueError, match=rf"^expected_users: '.*users.csv', {expected} \(contexts: users\)$"):
        forecast(replace(told.config, checkpoint=wanted.checkpoint))
    assert not Path(told.config.out).exists()
