"""Shards of a fleet forecast in this process: the same bytes in any batch, bad stations reported and left out, counts that add up."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raytraffic.checkpoint import load_forecaster
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.fleet import Plan, ShardFacts, plan, read_facts, shard_bytes, summary, table_of_failures
from raytraffic.forecaster import Forecaster
from raytraffic.forecasting import Failure, ForecastRequest, forecast_table, issue_windows, station_forecasts
from raytraffic.rollout import rollout
from raytraffic.sources.table import LongTable
from raytraffic.store import Store
from raytraffic.windows import Windows
from tests.serving.local_stages import LAYOUT, POI, WINDOW, grid_city, small_model, station_city
from tests.store.cities import prepared

REQUEST = ForecastRequest(horizon=4, quantiles=(0.1, 0.9), draws=2, sampler=Sampler("dpm++", 2), batch=3)
GRID = grid_city()
#: Too short for any history, and one whose measurements end a day early.
SHORT = station_city("hamlet", steps=8, stations=3)
EARLY = replace(station_city("earlyville", stations=2), start=station_city().start - timedelta(days=1))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four cities, two of which cannot all be forecast."""
    return prepared(tmp_path_factory.mktemp("fleet") / "store", [GRID], [station_city()], [SHORT], [EARLY], layout=LAYOUT)


@pytest.fixture(scope="module")
def windows(store: Store) -> Windows:
    """All of the store."""
    return Windows(store, "all", WINDOW, POI)


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory: pytest.TempPathFactory) -> Forecaster:
    """A tiny model."""
    return load_forecaster(small_model(tmp_path_factory.mktemp("fleet") / "model").folder)[0].eval()


@pytest.fixture(scope="module")
def planned(windows: Windows) -> Plan:
    """Four tiles a shard, at the instant the longer cities end."""
    return plan(windows, {30: REQUEST}, minute(), 4)


def minute() -> int:
    """When the grid's city ends."""
    return int((np.datetime64(GRID.start, "m") + 40 * np.timedelta64(30, "m")).astype(int))


def table_of(data: bytes) -> pa.Table:
    """A shard's rows."""
    return pq.read_table(io.BytesIO(data))


def test_a_plan_holds_every_tile_once_and_the_stations_that_have_no_window(planned: Plan, windows: Windows) -> None:
    assert [shard.name for shard in planned.shards] == [f"forecast-{i:05d}.parquet" for i in range(len(planned.shards))]
    assert max(len(shard.rows) for shard in planned.shards) == 4
    rows = [row for shard in planned.shards for row in shard.rows]
    assert len(rows) == len(set(rows)) == planned.tiles
    names = windows.site_names(np.array(rows))
    assert sorted(names[names != ""]) == sorted([*GRID.sites, *station_city().sites])
    refused = {(failure.city, failure.unique_id): failure.reason for failure in planned.failures}
    assert set(refused) == {(city.name, site) for city in (SHORT, EARLY) for site in city.sites}
    assert refused["hamlet", "site 00"] == "ends 32 steps before the issue time, expected measurements up to it"
    assert refused["earlyville", "site 01"] == "ends 48 steps before the issue time, expected measurements up to it"


def test_a_series_without_enough_history_is_told(windows: Windows) -> None:
    reasons = {failure.city: failure.reason for failure in plan(windows, {30: REQUEST}, None, 4).failures}
    assert reasons == {"hamlet": "8 steps before the issue time, expected at least 12 steps of history"}


def test_a_shard_is_the_same_bytes_in_any_batch_and_says_what_it_is(
    planned: Plan, windows: Windows, forecaster: Forecaster, tmp_path: Path
) -> None:
    shard = planned.shards[0]
    data, facts = shard_bytes(forecaster, windows, shard, REQUEST, "run")
    again, _ = shard_bytes(forecaster, windows, shard, replace(REQUEST, batch=1), "run")
    assert data == again
    file = Location.of(tmp_path / shard.name)
    file.write_bytes(data)
    assert read_facts(file) == facts
    assert facts.fingerprint == "run" and not facts.failures
    assert facts.stations == table_of(data)["unique_id"].to_pandas().nunique()
    whole = forecast_table(forecaster, windows, np.array(shard.rows), np.array(shard.starts), REQUEST)
    assert table_of(data).to_pylist() == whole.to_pylist()


def test_with_a_hop_every_slot_is_drawn_from_a_window_but_that_slot(windows: Windows, forecaster: Forecaster) -> None:
    """As a model that was trained one step ahead is to be asked; the rollout written out gives the same numbers."""
    request = replace(REQUEST, hop=1)
    assert request.history(WINDOW) == WINDOW - 1
    (shard, *_) = plan(windows, {30: request}, minute(), 2).shards
    rows, starts = np.array(shard.rows), np.array(shard.starts)
    table = forecast_table(forecaster, windows, rows, starts, request)
    batch = windows.batch(windows.cut(rows, starts, WINDOW - 1, REQUEST.horizon))
    draws = rollout(forecaster, batch, WINDOW, REQUEST.sampler, draws=2, hop=1).draws[..., -4:, :]
    there = torch.from_numpy(windows.site_names(rows) != "")
    assert table["mean"].to_pylist() == draws.double().mean(dim=1)[:, 0].transpose(1, 2)[there].flatten().tolist()
    assert table["mean"].to_pylist() != forecast_table(forecaster, windows, rows, starts, REQUEST)["mean"].to_pylist()
    with pytest.raises(ValueError, match=f"hop: {WINDOW}, expected less than the window's {WINDOW} slots"):
        plan(windows, {30: replace(REQUEST, hop=WINDOW)}, minute(), 2)


@pytest.mark.parametrize("damage", ["cut short", "no facts", "absent"])
def test_what_is_no_whole_shard_counts_as_missing(
    planned: Plan, windows: Windows, forecaster: Forecaster, tmp_path: Path, damage: str
) -> None:
    data, _ = shard_bytes(forecaster, windows, planned.shards[0], REQUEST, "run")
    file = Location.of(tmp_path / "shard.parquet")
    if damage == "cut short":
        file.write_bytes(data[:-7])
    elif damage == "no facts":
        file.write_table(table_of(data).replace_schema_metadata(None))
    assert read_facts(file) is None


def test_a_tile_that_cannot_be_read_costs_its_stations_only(store: Store, windows: Windows, forecaster: Forecaster, tmp_path: Path) -> None:
    request = replace(REQUEST, batch=16)
    rows, starts = issue_windows(Windows(store_of(tmp_path, "both"), "all", WINDOW, POI), request, None, 30)
    damaged = Windows(store_of(tmp_path, "both"), "all", WINDOW, POI)
    index = damaged.store.index
    lost = [shard for shard in index.shards if "stationville" in shard]
    assert len(lost) == 1
    path = Path(str(damaged.store.location)) / lost[0]
    path.write_bytes(path.read_bytes()[:200])
    table, failures, _ = station_forecasts(forecaster, damaged, rows, starts, request)
    assert set(table["unique_id"].to_pylist()) == set(GRID.sites) and set(table["city"].to_pylist()) == {"gridton"}
    assert {(failure.city, failure.unique_id) for failure in failures} == {("stationville", "")}  # names cannot be read either
    assert all("truncated or corrupt" in failure.reason for failure in failures)
    with pytest.raises(ValueError, match=r"stationville/.*truncated or corrupt"):
        forecast_table(forecaster, damaged, rows, starts, request)


def store_of(folder: Path, name: str) -> Store:
    """A store of two whole cities, prepared where it is not there yet."""
    return prepared(folder / name, [GRID], [station_city()], layout=LAYOUT)


def test_a_station_without_a_finite_forecast_is_left_out(
    windows: Windows, forecaster: Forecaster, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = planned.shards[0]
    rows, starts = np.array(shard.rows), np.array(shard.starts)
    whole = forecast_table(forecaster, windows, rows, starts, REQUEST)
    finish = forecaster.finish

    def spoil(batch: object, draws: torch.Tensor) -> object:
        forecast = finish(batch, draws)  # type: ignore[arg-type]
        forecast.draws[0, 0, 0, -1, 2] = torch.inf
        return forecast

    monkeypatch.setattr(forecaster, "finish", spoil)
    table, failures, _ = station_forecasts(forecaster, windows, rows, starts, replace(REQUEST, batch=16))
    (failure,) = failures
    assert failure.reason == "its forecast is not finite, expected numbers" and failure.unique_id == windows.site_names(rows)[0, 2]
    kept = whole.to_pandas()
    kept = kept[~((kept["unique_id"] == failure.unique_id) & (kept["city"] == failure.city))]
    assert table.to_pandas().astype({"unique_id": str, "city": str}).to_dict("list") == kept.astype(
        {"unique_id": str, "city": str}
    ).to_dict("list")


def test_faults_of_the_machine_are_raised(windows: Windows, forecaster: Forecaster, planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(forecaster, "finish", break_down)
    with pytest.raises(RuntimeError, match="CUDA error"):
        shard_bytes(forecaster, windows, planned.shards[0], REQUEST, "run")


def test_stations_without_a_measurement_are_counted(forecaster: Forecaster, tmp_path: Path) -> None:
    city = station_city()
    city.traffic[:, -20:, 1] = np.nan
    windows = Windows(prepared(tmp_path / "store", [city], layout=LAYOUT), "all", WINDOW, POI)
    rows, starts = issue_windows(windows, REQUEST, None, 30)
    table, failures, unmeasured = station_forecasts(forecaster, windows, rows, starts, REQUEST)
    assert unmeasured == 1 and not failures and set(table["unique_id"].to_pylist()) == set(city.sites)


def test_a_summary_adds_up() -> None:
    bad = [Failure(city="a", place="p", unique_id=str(i), reason=reason) for i, reason in enumerate(["x", "x", "y"])]
    facts = [ShardFacts("run", 16, 2, (bad[0],)), ShardFacts("run", 10, 0, (bad[2],))]
    told = summary(Plan((), (bad[1],)), facts, draws=20)
    assert told == {
        "stations": 26,
        "stations_without_measurement": 2,
        "failed": 3,
        "reasons": {"x": 2, "y": 1},
        "shards": 0,
        "draws": 520,
    }
    assert json.dumps(told)
    table = table_of_failures(bad)
    assert table.column_names == ["city", "place", "unique_id", "reason"] and table["unique_id"].to_pylist() == ["0", "1", "2"]
    assert table_of_failures([]).schema == table.schema


def test_stations_that_the_source_left_out_are_reported(tmp_path: Path) -> None:
    times = pd.date_range("2024-05-06", periods=40, freq="30min")
    frame = pd.DataFrame({"unique_id": np.repeat(["bad", "good"], 40), "ds": np.tile(times, 2), "y": 5.0})
    frame.loc[3, "y"] = -1.0
    city = next(LongTable(frame, faulty="skip").read("operator"))
    windows = Windows(prepared(tmp_path / "store", [city], layout=LAYOUT), "all", WINDOW, POI)
    planned = plan(windows, {30: REQUEST}, None, 4)
    (failure,) = planned.failures
    assert (failure.city, failure.unique_id) == ("operator", "bad") and "-1, expected a value >= 0" in failure.reason
    assert planned.tiles == 1
