"""A caller's forecast of users on its way into a fleet forecast: what is refused of the table, and that each station is told its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from raytraffic.checkpoint import load_forecaster
from raytraffic.diffusion.samplers import Sampler
from raytraffic.fleet import plan, shard_bytes
from raytraffic.forecaster import Forecaster
from raytraffic.forecasting import ForecastRequest, forecast_table
from raytraffic.rollout import rollout
from raytraffic.sources.expected_users import ExpectedUsers, read_expected_users
from raytraffic.store import Store
from raytraffic.windows import Windows
from tests.serving.local_stages import LAYOUT, POI, WINDOW, grid_city, small_model, station_city
from tests.store.cities import prepared

HORIZON = 4
CITIES = ("gridton", "stationville")
END = pd.Timestamp(grid_city().start) + 40 * pd.Timedelta(minutes=30)
SLOTS = pd.date_range(END, periods=HORIZON, freq="30min")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A grid, stations, and a city too short for any history."""
    cities = [[grid_city()], [station_city()], [station_city("hamlet", steps=8, stations=3)]]
    return prepared(tmp_path_factory.mktemp("expected") / "store", *cities, layout=LAYOUT)


@pytest.fixture(scope="module")
def windows(store: Store) -> Windows:
    """All of the store."""
    return Windows(store, "all", WINDOW, POI)


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory: pytest.TempPathFactory) -> Forecaster:
    """A tiny model that looks at a caller's forecast of the users."""
    folder = tmp_path_factory.mktemp("expected") / "model"
    return load_forecaster(small_model(folder, contexts=("users", "expected_users", "poi")).folder)[0].eval()


def frame(city: str, sites: Sequence[str], times: Sequence[pd.Timestamp] = SLOTS, users: float = 1.0) -> pd.DataFrame:
    """A row a site and time, each with users of its own."""
    rows = [(city, site, time, users * (1 + 10 * i + j)) for i, site in enumerate(sites) for j, time in enumerate(times)]
    return pd.DataFrame(rows, columns=["city", "unique_id", "ds", "expected_users"])


def request(expected: pd.DataFrame | None, store: Store, **changes: object) -> ForecastRequest:
    """Four slots of the whole fleet."""
    users = None if expected is None else read_expected_users(expected, store.index.cities)
    wanted = ForecastRequest(horizon=HORIZON, quantiles=(0.5,), draws=2, sampler=Sampler("dpm++", 2), batch=3, expected_users=users)
    return replace(wanted, **changes)  # type: ignore[arg-type]


def by_hand(
    forecaster: Forecaster, windows: Windows, rows: np.ndarray, starts: np.ndarray, told: dict[tuple[str, str, int], float]
) -> list[float]:
    """The means that the whole model answers, told users by (city, site, slot after the history)."""
    batch = windows.batch(windows.cut(rows, starts, WINDOW - HORIZON, HORIZON))
    names, cities = windows.site_names(rows), [windows.store.index.cities[code] for code in windows.store.index.city[rows]]
    expected = torch.full(batch.context["users"].shape, torch.nan)
    for i, city in enumerate(cities):
        for j, site in enumerate(names[i]):
            for slot in range(HORIZON):
                expected[i, WINDOW - HORIZON + slot, j] = told.get((city, site, slot), np.nan)
    batch = replace(batch, context={**batch.context, "expected_users": expected})
    means = forecaster.forecast(batch, Sampler("dpm++", 2), draws=2).draws.double().mean(dim=1)[:, 0, -HORIZON:]
    answers: list[float] = means.transpose(1, 2)[torch.from_numpy(names != "")].flatten().tolist()
    return answers


def test_every_station_is_told_its_own_users_and_the_others_nothing(windows: Windows, forecaster: Forecaster, store: Store) -> None:
    table = pd.concat([frame("gridton", ["site 02", "site 34"], users=40.0), frame("stationville", ["site 02"], SLOTS[1:3], users=900.0)])
    table = table.sample(frac=1, random_state=0)  # in any order
    told = {(row.city, row.unique_id, list(SLOTS).index(row.ds)): row.expected_users for row in table.itertuples()}
    asked = request(table, store)
    shards = plan(windows, {30: asked}, minute(), 64).shards
    (shard,) = shards
    rows, starts = np.array(shard.rows), np.array(shard.starts)
    answer = forecast_table(forecaster, windows, rows, starts, asked)["mean"].to_pylist()
    assert answer == by_hand(forecaster, windows, rows, starts, told)
    silent = forecast_table(forecaster, windows, rows, starts, request(None, store))
    assert silent["mean"].to_pylist() == by_hand(forecaster, windows, rows, starts, {})
    changed = silent.to_pandas()[np.array(answer) != np.array(silent["mean"].to_pylist())]
    assert set(zip(changed["city"], changed["unique_id"], strict=True)) >= {(city, site) for city, site, _ in told}
    assert "site 00" not in set(changed[changed["city"] == "stationville"]["unique_id"])  # lone stations are tiles of their own
    data, _ = shard_bytes(forecaster, windows, shard, asked, "run")
    assert data == shard_bytes(forecaster, windows, shard, replace(asked, batch=1), "run")[0]


def minute() -> int:
    """When the cities end."""
    return int(END.timestamp()) // 60


def test_users_are_told_to_every_window_of_a_long_horizon(windows: Windows, forecaster: Forecaster, store: Store) -> None:
    horizon = 2 * WINDOW
    times = pd.date_range(END, periods=horizon, freq="30min")
    asked = request(frame("stationville", ["site 03"], times, users=50.0), store, horizon=horizon)
    (shard,) = plan(windows, {30: asked}, minute(), 64).shards
    names = windows.site_names(np.array(shard.rows))
    cities = np.array(store.index.cities)[store.index.city[np.array(shard.rows)]]
    (at,) = np.flatnonzero((names == "site 03").any(axis=1) & (cities == "stationville"))
    rows, starts = np.array(shard.rows)[[at]], np.array(shard.starts)[[at]]
    batch = windows.batch(windows.cut(rows, starts, asked.history(WINDOW), horizon))
    expected = torch.full(batch.context["users"].shape, torch.nan)
    site = int(np.flatnonzero(names[at] == "site 03")[0])
    expected[0, -horizon:, site] = 50.0 * torch.arange(1, horizon + 1)
    batch = replace(batch, context={**batch.context, "expected_users": expected})
    draws = rollout(forecaster, batch, WINDOW, asked.sampler, draws=2).draws[0, :, 0, -horizon:, site]
    answer = forecast_table(forecaster, windows, rows, starts, asked)
    assert answer["mean"].to_pylist() == draws.double().mean(dim=0).tolist()
    silent = forecast_table(forecaster, windows, rows, starts, replace(asked, expected_users=None))
    assert answer["mean"].to_pylist()[-1] != silent["mean"].to_pylist()[-1]


def test_stations_without_a_forecast_do_not_end_the_run(windows: Windows, store: Store) -> None:
    """The short city's stations are failures of the plan, which tells of them."""
    planned = plan(windows, {30: request(frame("hamlet", ["site 00"]), store)}, minute(), 64)
    assert {failure.city for failure in planned.failures} == {"hamlet"}
    with pytest.raises(ValueError, match=r"^expected_users: station 'nowhere' of hamlet, expected stations of the store$"):
        plan(windows, {30: request(frame("hamlet", ["nowhere"]), store)}, minute(), 64)


def test_what_cannot_be_read_does_not_end_the_run_before_it_begins(tmp_path: Path) -> None:
    store = prepared(tmp_path / "store", [grid_city()], [station_city()], layout=LAYOUT)
    for shard in store.index.shards:
        path = Path(str(store.location)) / shard
        path.write_bytes(path.read_bytes()[: 200 if "stationville" in shard else None])
    windows = Windows(store, "all", WINDOW, POI)
    assert plan(windows, {30: request(frame("stationville", ["whoever"]), store)}, minute(), 64).tiles > 4
    with pytest.raises(ValueError, match=r"^expected_users: station 'whoever' of gridton, expected stations of the store$"):
        plan(windows, {30: request(frame("gridton", ["whoever"]), store)}, minute(), 2)


@pytest.mark.parametrize(("minutes", "told"), [(-30, "2024-05-08T01:30"), (10, "2024-05-08T02:10"), (120, "2024-05-08T04:00")])
def test_users_of_slots_that_are_not_forecast_are_refused(windows: Windows, store: Store, minutes: int, told: str) -> None:
    table = frame("gridton", ["site 07"], [*SLOTS, END + pd.Timedelta(minutes=minutes)])
    message = (
        rf"^expected_users: station 'site 07' of gridton at {told}, expected slots of its forecast, 2024-05-08T02:00 to 2024-05-08T03:30$"
    )
    with pytest.raises(ValueError, match=message):
        plan(windows, {30: request(table, store)}, minute(), 64)


GOOD = frame("gridton", ["a", "b"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (GOOD.drop(columns="expected_users"), r"no column 'expected_users', expected \['unique_id', 'ds', 'expected_users'\]"),
        (GOOD.iloc[:0], r"expected_users: 0 rows, expected at least one"),
        (GOOD.assign(expected_users=-1.5), r"expected_users: row 1, column 'expected_users': -1.5, expected a number of at least 0"),
        (GOOD.assign(expected_users="many"), r"expected_users: row 1, column 'expected_users': 'many', expected a finite number"),
        (GOOD.assign(expected_users=np.inf), r"expected_users: row 1, column 'expected_users': .*inf.*, expected a finite number"),
        (GOOD.assign(ds="noon"), r"expected_users: row 1, column 'ds': 'noon', expected an ISO 8601 date-time"),
        (GOOD.assign(ds=GOOD["ds"].dt.tz_localize("UTC")), r"column 'ds' holds date-times with a zone, expected local times without one"),
        (GOOD.assign(ds=GOOD["ds"] + pd.Timedelta(seconds=5)), r"row 1, column 'ds': 2024-05-08 02:00:05, expected whole minutes"),
        (GOOD.assign(ds=SLOTS[0]), r"expected_users: row 2: the second of 'a' at that time, expected one a station and time"),
        (GOOD.assign(city="atlantis"), r"row 1, column 'city': 'atlantis', expected one of \['gridton', 'stationville'\]"),
        (GOOD.drop(columns="city"), r"no column 'city', expected one that says which of \['gridton', 'stationville'\] a row is of"),
        (GOOD.assign(unique_id=None), r"row 1, column 'unique_id': empty, expected a value"),
    ],
)
def test_a_table_that_is_not_as_described_is_refused(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_expected_users(table, CITIES)


def test_a_file_says_what_a_frame_says_and_one_city_needs_no_column(tmp_path: Path) -> None:
    table = frame("gridton", ["b", "007"]).drop(columns="city")
    table.loc[1, "expected_users"] = np.nan
    table.to_csv(tmp_path / "users.csv", index=False)
    table.to_parquet(tmp_path / "users.parquet")
    minutes = (SLOTS.to_numpy().astype("datetime64[m]")).astype(np.int64)
    wanted = np.array([[1, 11, np.nan], [np.nan, 12, np.nan], [3, 13, np.nan], [4, 14, np.nan]], dtype=np.float32)
    for source in (table, str(tmp_path / "users.csv"), str(tmp_path / "users.parquet")):
        users: ExpectedUsers = read_expected_users(source, ["gridton"])
        np.testing.assert_array_equal(users.at("gridton", ["b", "007", "c"], minutes), wanted)
        np.testing.assert_array_equal(users.at("gridton", ["b"], minutes[1:] - 30), wanted[:3, :1])
        assert np.isnan(users.at("gridton", ["b"], minutes + 15)).all()
        assert np.isnan(users.at("elsewhere", ["b"], minutes)).all()
