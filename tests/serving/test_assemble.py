"""A query's windows and answers are, to the last bit, those of a prepared store that holds the same stations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raytraffic.forecasting import ForecastRequest, draws_table, forecast_table, issue_windows
from raytraffic.randomness import fold_numpy, text_key
from raytraffic.rollout import rollout
from raytraffic.serving.assemble import answer_table, chunks, horizon_of
from raytraffic.serving.cities import Cities
from raytraffic.serving.query import Query, read_json
from raytraffic.serving.refused import Refused
from raytraffic.serving.service import ForecastService
from raytraffic.store import Store
from raytraffic.types import TrafficBatch
from raytraffic.windows import Windows
from tests.serving.local_stages import (
    LAYOUT,
    POI,
    SAMPLER,
    WINDOW,
    LocalStages,
    body_of,
    grid_city,
    json_bytes,
    service_of,
    small_body,
    small_model,
    station_city,
)
from tests.store.cities import prepared, tiled_city

TILE = (4, 4)
GRID, STATIONS = grid_city(), station_city()
#: As `STATIONS`, but measured only since its last six slots.
YOUNG = replace(station_city("youngtown"), traffic=np.where(np.arange(40)[:, None] < 34, np.nan, station_city("youngtown").traffic))
#: As `GRID`, and placed: what a store knows of places beyond its grid is nothing a request could tell.
PLACED = replace(grid_city("placed"), xy=np.random.default_rng(0).random((36, 2)) * 1000)
CITIES = {city.name: city for city in (GRID, STATIONS, YOUNG, PLACED)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All cities, prepared."""
    return prepared(tmp_path_factory.mktemp("assemble") / "store", *([city] for city in CITIES.values()), layout=LAYOUT)


@pytest.fixture(scope="module")
def service(store: Store, tmp_path_factory: pytest.TempPathFactory) -> ForecastService:
    """A tiny model with the cities of the store."""
    return service_of(small_model(tmp_path_factory.mktemp("assemble") / "model"), store=Path(str(store.location)), chunk_tiles=2)


@pytest.fixture(scope="module")
def ask(service: ForecastService) -> Callable[..., Query]:
    """The query for a city's stations."""

    def read(name: str, first: int = 0, last: int | None = None, **settings: Any) -> Query:
        body = body_of(CITIES[name], first, last, cities=True, draws=3, steps=2, seed=5, **settings)
        return read_json(json_bytes(body), service.limits, service.models)

    return read


def windows_of(store: Store) -> Windows:
    """The store as the fleet job sees it."""
    return Windows(store, "all", WINDOW, POI)


def of_city(store: Store, name: str, history: int) -> tuple[np.ndarray, np.ndarray]:
    """Index rows and starts of the windows whose history is a city's last `history` slots, a place at a time."""
    request = ForecastRequest(horizon=WINDOW - history)
    rows, starts = issue_windows(windows_of(store), request, None, 30)
    mine = store.index.city[rows] == store.index.cities.index(name)
    return rows[mine], starts[mine]


def whole(query: Query, cities: Cities, tiles: int) -> TrafficBatch:
    """All windows of a query, assembled `tiles` at a time."""
    parts = list(chunks(query, cities.known(query.ask.city), TILE, tiles))
    assert all(len(part.batch.key) <= tiles for part in parts)
    return TrafficBatch.cat([part.batch for part in parts])


def equal(ours: TrafficBatch, theirs: TrafficBatch) -> None:
    """Every tensor, every key, every context."""
    for name in ("traffic", "known", "clock", "step_minutes", "key"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert one.dtype == other.dtype and torch.equal(torch.nan_to_num(one, -1), torch.nan_to_num(other, -1)), name
    assert ours.space.grid == theirs.space.grid
    assert (ours.space.xy is None) == (theirs.space.xy is None)
    if ours.space.xy is not None and theirs.space.xy is not None:
        assert ours.space.xy.dtype == theirs.space.xy.dtype and torch.equal(ours.space.xy.nan_to_num(-1), theirs.space.xy.nan_to_num(-1))
    assert set(ours.context) == set(theirs.context)
    for name, value in ours.context.items():
        other = theirs.context[name]
        assert value.dtype == other.dtype and torch.equal(value.nan_to_num(-1), other.nan_to_num(-1)), name


def run(service: ForecastService, query: Query) -> pa.Table:
    """The service's answer."""
    return asyncio.run(service.table(query, time.time() + 600))


@pytest.mark.parametrize("horizon", [4, 8])
@pytest.mark.parametrize("first", [0, 20], ids=["long history", "just enough"])
@pytest.mark.parametrize("name", ["gridton", "stationville"])
def test_windows_are_those_of_the_store(
    store: Store, service: ForecastService, ask: Callable[..., Query], name: str, first: int, horizon: int
) -> None:
    rows, starts = of_city(store, name, WINDOW - horizon)
    columns = windows_of(store).cut(rows, starts, WINDOW - horizon, horizon)
    theirs = windows_of(store).batch(columns)
    assert theirs.space.xy is None
    for tiles in (1, 3, 100):
        equal(whole(ask(name, first, horizon=horizon), service.cities, tiles), theirs)


def test_what_comes_before_a_short_history_was_not_measured(store: Store, service: ForecastService, ask: Callable[..., Query]) -> None:
    rows, starts = of_city(store, "youngtown", 12)
    theirs = windows_of(store).batch(windows_of(store).cut(rows, starts, 12, 4))
    ours = whole(ask("youngtown", 34, horizon=4), service.cities, 16)
    assert torch.equal(theirs.known, ours.known) and int(ours.known.sum(2).amax()) <= 6
    users = ours.context["users"].clone()
    assert bool(users[:, :6].isnan().all())
    users[:, :6] = theirs.context["users"][:, :6]  # the store has them; they count only where traffic is known
    equal(replace(ours, context={**ours.context, "users": users}), theirs)


@pytest.mark.parametrize("name", ["gridton", "stationville"])
def test_generation_is_asked_for_the_slots_as_they_are(
    store: Store, service: ForecastService, ask: Callable[..., Query], name: str
) -> None:
    rows, starts = of_city(store, name, WINDOW - 1)
    columns = windows_of(store).cut(rows, starts, WINDOW - 1, 0)
    theirs = windows_of(store).batch(columns)
    query = ask(name, 40 - (WINDOW - 1), task="generation")
    equal(whole(query, service.cities, 3), theirs)
    sites = windows_of(store).site_names(columns["row"])
    there = (sites != "")[:, None, None]
    draws = rollout(service.stages.forecaster(query.model), theirs, WINDOW, replace(SAMPLER, steps=2), 3, 5).draws  # type: ignore[attr-defined]
    expected = draws_table(
        draws,
        answered=np.broadcast_to(there & np.isnan(columns["traffic"]), theirs.shape),
        cities=np.full(len(sites), name, dtype=object),
        sites=sites,
        minutes=theirs_minutes(query, WINDOW - 1, len(sites)),
        services=("traffic",),
        quantiles=(0.1, 0.5, 0.9),
        keep_draws=False,
    )
    answer = run(service, query)
    assert 0 < len(answer) == int(np.isnan(query.traffic).sum())
    assert answer.to_pydict() == expected.to_pydict()


def theirs_minutes(query: Query, slots: int, windows: int) -> np.ndarray:
    """(windows, slots) minutes from 1970-01-01 of a city's last slots."""
    end = np.datetime64(CITIES[str(query.ask.city)].start, "m").astype(np.int64) + 40 * 30
    return np.tile(end + (np.arange(slots) - slots) * 30, (windows, 1))


@pytest.mark.parametrize(("horizon", "hop"), [(4, None), (8, None), (19, None), (4, 2)], ids=["short", "half", "rollout", "hop"])
@pytest.mark.parametrize("name", ["gridton", "stationville", "youngtown", "placed"])
def test_the_answer_is_the_fleet_s(
    store: Store, service: ForecastService, ask: Callable[..., Query], name: str, horizon: int, hop: int | None
) -> None:
    query = ask(name, horizon=horizon, hop=hop, keep_draws=True, quantiles=[0.05, 0.5])
    windows = windows_of(store)
    request = ForecastRequest(
        horizon=horizon, quantiles=(0.05, 0.5), draws=3, keep_draws=True, seed=5, sampler=replace(SAMPLER, steps=2), batch=5, hop=hop
    )
    rows, starts = issue_windows(windows, request, None, 30)
    mine = store.index.city[rows] == store.index.cities.index(name)
    expected = forecast_table(service.stages.forecaster(query.model), windows, rows[mine], starts[mine], request)  # type: ignore[attr-defined]
    answer = run(service, query)
    assert answer.schema.equals(expected.schema)
    assert answer.to_pydict() == expected.to_pydict()
    asked = {(site, slot) for site in CITIES[name].sites for slot in range(horizon)}
    end = np.datetime64(CITIES[name].start) + 40 * np.timedelta64(30, "m")
    slots = ((answer["ds"].to_numpy() - end) // np.timedelta64(30, "m")).tolist()
    assert len(answer) == len(asked) and set(zip(answer["unique_id"].to_pylist(), slots, strict=True)) == asked


@pytest.mark.parametrize(("hop", "calls"), [(None, 1), (1, 6), (4, 2), (6, 1)])
def test_a_hop_is_what_is_drawn_at_a_time(service: ForecastService, ask: Callable[..., Query], hop: int | None, calls: int) -> None:
    """In so many calls of the stages, which is also what the work is counted by; and it is `rollout` with that hop."""
    query = ask("gridton", horizon=6, hop=hop)
    (chunk,) = chunks(query, service.cities.known("gridton"), TILE, 100)
    counting = replace(service, stages=LocalStages(), chunk_tiles=100)
    answer = run(counting, query)
    assert counting.stages.calls == calls  # type: ignore[attr-defined]
    assert counting._work(query, chunk) == len(chunk.sites) * 3 * 2 * calls
    model = service.stages.forecaster(query.model)  # type: ignore[attr-defined]
    draws = rollout(model, chunk.batch, WINDOW, replace(SAMPLER, steps=2), 3, 5, hop).draws
    assert answer.to_pydict() == answer_table(query, chunk, draws).to_pydict()


@pytest.mark.parametrize(("tiles", "at_once"), [(1, 7), (3, 2), (100, 1)])
@pytest.mark.parametrize("horizon", [4, 19])
def test_how_an_answer_is_cut_does_not_change_a_bit(
    service: ForecastService, ask: Callable[..., Query], tiles: int, at_once: int, horizon: int
) -> None:
    query = ask("gridton", horizon=horizon, keep_draws=True)
    other = replace(service, chunk_tiles=tiles, chunks_at_once=at_once)
    assert run(other, query).to_pydict() == run(service, query).to_pydict()


def test_stations_of_one_request_do_not_move_each_other(service: ForecastService, ask: Callable[..., Query]) -> None:
    together = run(service, ask("stationville", horizon=4)).to_pylist()
    one = CITIES["stationville"]
    alone = replace(one, traffic=one.traffic[..., 3:4], sites=one.sites[3:4], users=one.users[:, 3:4], poi=one.poi[:, 3:4])  # type: ignore[index]
    body = body_of(alone, cities=True, draws=3, steps=2, seed=5, horizon=4)
    answer = run(service, read_json(json_bytes(body), service.limits, service.models))
    assert answer.to_pylist() == [row for row in together if row["unique_id"] == "site 03"]


def test_services_keep_their_order(tmp_path: Path) -> None:
    city = station_city("twice", services=("video", "chat"))
    store = prepared(tmp_path / "store", [city], layout=LAYOUT)
    service = service_of(small_model(tmp_path / "model", services=2), store=tmp_path / "store", chunk_tiles=2)
    body = body_of(city, cities=True, draws=3, steps=2, seed=5, horizon=4)
    answer = run(service, read_json(json_bytes(body), service.limits, service.models))
    windows = windows_of(store)
    request = ForecastRequest(horizon=4, draws=3, seed=5, sampler=replace(SAMPLER, steps=2))
    rows, starts = issue_windows(windows, request, None, 30)
    stages = service.stages
    assert isinstance(stages, LocalStages)
    expected = forecast_table(stages.forecaster(service.models["tiny"]), windows, rows, starts, request)
    assert answer.to_pydict() == expected.to_pydict()
    assert answer["service"].unique().to_pylist() == ["video", "chat"]
    with pytest.raises(Refused, match=r"body\.traffic: services"):
        read_json(json_bytes(body | {"traffic": body["traffic"]["chat"]}), service.limits, service.models)


def test_without_a_city_the_history_speaks_alone(service: ForecastService) -> None:
    query = read_json(json_bytes(body_of(STATIONS, horizon=4, draws=2, steps=2)), service.limits, service.models)
    batch = whole(query, service.cities, 16)
    assert bool((batch.context["profile"] == 1).all())
    assert all(bool(batch.context[name].isnan().all()) for name in ("reference", "modes", "persistence"))
    assert run(service, query)["city"].unique().to_pylist() == [""]


def test_a_city_is_asked_for_as_it_was_measured(store: Store, service: ForecastService, ask: Callable[..., Query]) -> None:
    hourly = body_of(STATIONS, horizon=4, cities=True) | {"step_minutes": 60, "start": "2024-05-07T06:00"}
    query = read_json(json_bytes(hourly), service.limits, service.models)
    with pytest.raises(Refused, match=r"body.step_minutes: 60, expected 30, as city stationville was measured"):
        run(service, query)


def test_a_city_is_asked_for_with_its_services(tmp_path: Path, service: ForecastService) -> None:
    prepared(tmp_path / "store", [station_city("twice", services=("video", "chat"))], layout=LAYOUT)
    other = replace(service, cities=Cities(str(tmp_path / "store")))
    query = read_json(json_bytes(small_body(city="twice")), service.limits, service.models)
    with pytest.raises(Refused, match=r"body\.city: 'twice', expected a city that was measured with 1 services"):
        run(other, query)


#: Two periods of places of which only some are in both, the newer first: tiles by their own names, which no grid's are.
PERIODS = [
    replace(
        tiled_city("published", period, places, steps, seed=month),
        start=datetime(2024, month, 7, 6, 0),
        sites=[f"{place}/{cell}" for place in places for cell in range(16)],
    )
    for period, month, places, steps in (("test", 6, ("p2", "p3", "p0"), 50), ("train", 5, ("p0", "p1", "p2"), 60))
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, service: ForecastService) -> tuple[Store, ForecastService]:
    """A store of named periods, and the service beside it."""
    folder = tmp_path_factory.mktemp("published") / "store"
    return prepared(folder, PERIODS, layout=LAYOUT), replace(service, cities=Cities(str(folder)))


def published_body(windows: Windows, row: int, start: int, horizon: int) -> dict[str, Any]:
    """The request for one tile of the store, at any place of a grid: its name is none that a caller could say."""
    columns = windows.cut(np.array([row]), np.array([start]), WINDOW - horizon, horizon)
    sites = windows.site_names(np.array([row]))[0]
    cells = np.flatnonzero(sites != "")
    index = windows.store.index
    minute = int(index.start_minute[row] + (start - index.first_step[row]) * 30)

    def lists(values: np.ndarray) -> list[list[float | None]]:
        return [[None if np.isnan(value) else float(value) for value in values[: WINDOW - horizon, cell]] for cell in cells]

    return {
        "city": "published",
        "start": str(np.datetime64(minute, "m")),
        "step_minutes": 30,
        "stations": {
            "id": sites[cells].tolist(),
            "row": (4 * 7 + cells // 4).tolist(),
            "column": (4 * 3 + cells % 4).tolist(),
            "poi": {name: columns["poi"][0, k, cells].tolist() for k, name in enumerate(windows.poi_categories)},
        },
        "traffic": lists(columns["traffic"][0, 0]),
        "users": lists(columns["users"][0]),
        "horizon": horizon,
        "draws": 3,
        "steps": 2,
        "seed": 5,
    }


def test_a_tile_of_named_periods_has_the_fleet_s_key_and_bits(published: tuple[Store, ForecastService]) -> None:
    store, service = published
    windows = windows_of(store)
    request = ForecastRequest(horizon=4, draws=3, seed=5, sampler=replace(SAMPLER, steps=2))
    rows, starts = issue_windows(windows, request, None, 30)
    names = [store.index.places[place][1] for place in store.index.place[rows].tolist()]
    periods = [store.index.periods[period] for period in store.index.period[rows].tolist()]
    assert dict(zip(names, periods, strict=True)) == {"p0": "test", "p1": "train", "p2": "test", "p3": "test"}
    keys = windows.cut(rows, starts, WINDOW - 4, 4)["key"]
    known = service.cities.known("published")
    for i in range(len(rows)):
        query = read_json(json_bytes(published_body(windows, int(rows[i]), int(starts[i]), 4)), service.limits, service.models)
        (chunk,) = chunks(query, known, TILE, 16)
        assert chunk.batch.key.tolist() == [keys[i]]
        expected = forecast_table(service.stages.forecaster(query.model), windows, rows[i : i + 1], starts[i : i + 1], request)  # type: ignore[attr-defined]
        assert run(service, query).to_pydict() == expected.to_pydict()


def test_tiles_that_no_store_has_are_keyed_by_name(published: tuple[Store, ForecastService]) -> None:
    _, service = published
    known = service.cities.known("published")
    assert known is not None and service.cities.known(None) is None
    sites = np.full(16, "", dtype=object)
    sites[:2] = ["p0/0", "p0/1"]
    whole = known.tiles.key(sites)
    assert whole is not None
    sites[0] = ""
    assert known.tiles.key(sites) == whole  # a part of a tile: who was not measured is not asked for
    sites[2] = "p0/1"
    assert known.tiles.key(sites) is None  # in two cells
    alone = np.array(["p0/1", *[""] * 15], dtype=object)
    assert known.tiles.key(alone) is None  # a station by itself
    query = read_json(json_bytes(small_body(city="published")), service.limits, service.models)
    (chunk,) = chunks(query, known, TILE, 16)
    named = np.array([text_key("published|all|a"), text_key("published|all|b")])
    assert chunk.batch.key.tolist() == fold_numpy(named, np.full(2, chunk.minutes[0])).tolist()


@pytest.fixture(scope="module")
def told(store: Store, tmp_path_factory: pytest.TempPathFactory) -> ForecastService:
    """A model that was trained with a caller's forecast of the users."""
    model = small_model(tmp_path_factory.mktemp("told") / "model", contexts=("users", "expected_users", "poi"))
    return service_of(model, store=Path(str(store.location)), chunk_tiles=2)


def expecting(slots: int, stations: int = 36) -> list[list[float | None]]:
    """Users expected at each station: more from slot to slot, none at the first station, nothing at the last."""
    values: list[list[float | None]] = [[float(3 * i + 10 * slot) for slot in range(slots)] for i in range(stations)]
    return [[0.0] * slots, *values[1:-1], [None] * slots]


@pytest.mark.parametrize("horizon", [4, 19], ids=["short", "rollout"])
def test_expected_users_stand_where_the_answer_does(told: ForecastService, horizon: int) -> None:
    body = body_of(GRID, cities=True, draws=3, steps=2, seed=5, horizon=horizon)
    plain, expected = (
        read_json(json_bytes(one), told.limits, told.models) for one in (body, {**body, "expected_users": expecting(horizon)})
    )
    without, batch = whole(plain, told.cities, 3), whole(expected, told.cities, 3)
    assert bool(without.context["expected_users"].isnan().all())
    users = batch.context["expected_users"]
    assert users.shape == batch.context["users"].shape and bool(users[:, :-horizon].isnan().all())
    sites = np.concatenate([chunk.sites for chunk in chunks(expected, None, TILE, 100)])
    for i, row in enumerate(expecting(horizon)):
        ((tile, cell),) = np.argwhere(sites == GRID.sites[i])
        assert users[tile, -horizon:, cell].nan_to_num(-1).tolist() == [-1.0 if value is None else value for value in row]
    assert bool(users.permute(0, 2, 1)[torch.from_numpy(sites == "")].isnan().all())
    equal(replace(batch, context={**batch.context, "expected_users": without.context["expected_users"]}), without)
    forecaster = told.stages.forecaster(expected.model)  # type: ignore[attr-defined]
    draws = rollout(forecaster, batch, WINDOW, replace(SAMPLER, steps=2), 3, 5).draws
    answer = run(told, expected)
    mean = {(row["unique_id"], row["ds"]): row["mean"] for row in answer.to_pylist()}
    for site in (1, 20, 35):
        ((tile, cell),) = np.argwhere(sites == GRID.sites[site])
        wanted = draws[tile, :, 0, -horizon:, cell].double().mean(0).tolist()
        assert [value for (name, _), value in sorted(mean.items()) if name == GRID.sites[site]] == wanted
    assert answer["mean"].to_pylist() != run(told, plain)["mean"].to_pylist()


def test_who_expects_nothing_is_answered_as_one_who_says_nothing(told: ForecastService) -> None:
    body = body_of(STATIONS, horizon=4, draws=2, steps=2)
    nothing = {**body, "expected_users": [[None] * 4] * 5}
    ours, theirs = (run(told, read_json(json_bytes(one), told.limits, told.models)) for one in (body, nothing))
    assert ours.to_pydict() == theirs.to_pydict()


def test_users_are_expected_in_generation_where_it_answers(told: ForecastService) -> None:
    body = small_body(task="generation", horizon=None)
    expected = expecting(12, stations=3)[:2]
    query = read_json(json_bytes({**body, "expected_users": expected}), told.limits, told.models)
    (chunk,) = chunks(query, None, TILE, 16)
    assert chunk.batch.context["expected_users"][:, :, 0].tolist() == expected
    assert run(told, query)["mean"].to_pylist() != run(told, read_json(json_bytes(body), told.limits, told.models))["mean"].to_pylist()


@pytest.mark.parametrize(("task", "slots"), [("short", 4), ("long", 12), ("generation", 0)])
def test_tasks_are_shares_of_the_window(service: ForecastService, task: str, slots: int) -> None:
    query = read_json(json_bytes(small_body(task=task, horizon=None)), service.limits, service.models)
    assert horizon_of(query) == slots


def test_generation_without_any_history_answers_one_window(service: ForecastService) -> None:
    body = {name: value for name, value in small_body(task="generation", horizon=None).items() if name != "traffic"}
    answer = run(service, read_json(json_bytes(body), service.limits, service.models))
    assert len(answer) == 2 * WINDOW and bool(np.isfinite(answer["mean"].to_numpy()).all())
