"""Users who move, as a request tells of them by the names of places: the windows and bits of a store that has them, and who is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from fastapi.testclient import TestClient

from raytraffic.environment.embeddings import EmbeddingStore, Entry
from raytraffic.forecasting import ForecastRequest, forecast_table, issue_windows
from raytraffic.serving.assemble import Chunk, chunks
from raytraffic.serving.query import Query, read_arrow, read_json
from raytraffic.serving.refused import Refused
from raytraffic.serving.routes import build_api
from raytraffic.serving.service import ForecastService
from raytraffic.store import Layout, Store
from raytraffic.windows import Windows
from tests.serving.local_stages import (
    SAMPLER,
    WINDOW,
    arrow_bytes,
    body_of,
    json_bytes,
    service_of,
    small_model,
    station_city,
)
from tests.store.cities import prepared

FEATURES, USERS, STEPS = 6, 5, 40
#: Of the first five places the environment is known, of the last it is not; nobody is ever at the second.
PLACES = ("home", "nowhere anyone is", "work", "café", "park", "unseen")
RANDOM = np.random.default_rng(8)
PLAIN = replace(station_city("town", STEPS, USERS, ("video", "chat")), users=None, poi=None, poi_categories=())
TOWN = replace(PLAIN, place=RANDOM.choice([-1, 0, 2, 3, 4, 5], (STEPS, USERS)).astype(np.int32), places=PLACES)
ALONE = Layout(token=(4, 1, 1), tile=(1, 1), run_steps=32, overlap_steps=WINDOW, row_group_rows=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The town of users who move, a town of users of whom that is not known, and the environment of the first's places."""
    found = prepared(tmp_path_factory.mktemp("whereabouts") / "store", [TOWN], [replace(PLAIN, name="still")], layout=ALONE)
    images, texts = (RANDOM.normal(size=(len(PLACES) - 1, FEATURES // 2)).astype(np.float32) for _ in range(2))
    embeddings = EmbeddingStore.create(found.location.child("environment"), "an encoder", FEATURES // 2)
    shard = embeddings.write(PLACES[:-1], images, texts)
    embeddings.record({f"town/{place}": Entry(key=place, shard=shard, request="") for place in PLACES[:-1]})
    return found


@pytest.fixture(scope="module")
def service(store: Store, tmp_path_factory: pytest.TempPathFactory) -> ForecastService:
    """A model of users who move, which takes it for known where they will be, and one of stations."""
    folder = tmp_path_factory.mktemp("whereabouts")
    sizes: dict[str, Any] = {"services": 2, "contexts": ("env",), "poi_categories": (), "env_features": FEATURES}
    moves = small_model(folder / "moves", "moves", model="lsdm", patch=3, next_place=True, **sizes)
    stays = small_model(folder / "stays", "stays", services=2)
    return service_of(moves, stays, store=Path(str(store.location)), tile=(1, 1), chunk_tiles=2)


def body(horizon: int = 4, first: int = 0, beyond: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    """The request for the town's users from a slot on, and where they are; `beyond` are the places of all in the forecast slots."""
    assert TOWN.place is not None
    users = [[None if at < 0 else PLACES[at] for at in user] + (beyond or []) for user in TOWN.place[first:].T.tolist()]
    return body_of(TOWN, first, cities=True, draws=2, steps=2, seed=5) | {"horizon": horizon, "places": users, **settings}


@pytest.fixture(scope="module")
def ask(service: ForecastService) -> Callable[..., Query]:
    """The query of `body`."""
    return lambda *arguments, **settings: read_json(json_bytes(body(*arguments, **settings)), service.limits, service.models)


def of(service: ForecastService, query: Query) -> Chunk:
    """All windows of a query."""
    (chunk,) = chunks(query, service.cities.known(query.ask.city), service.tile, 100)
    return chunk


def env(service: ForecastService, query: Query) -> torch.Tensor:
    """(users, slots, features) the environment that the windows of a query have."""
    return of(service, query).batch.context["env"][:, :, 0]


def run(service: ForecastService, query: Query) -> pa.Table:
    """The answer."""
    return asyncio.run(service.table(query, time.time() + 600))


@pytest.mark.parametrize(("horizon", "hop", "told"), [(4, None, True), (4, 1, True), (19, 5, True), (4, None, False)])
def test_the_answer_is_the_fleet_s(
    store: Store, service: ForecastService, ask: Callable[..., Query], horizon: int, hop: int | None, told: bool
) -> None:
    query = ask(horizon, hop=hop, **({} if told else {"places": None}))
    windows = Windows(store, "all", WINDOW, (), environment=True)
    if not told:  # as in a store of which no place is embedded
        windows.surroundings = replace(windows.surroundings, vectors=torch.full_like(windows.surroundings.vectors, torch.nan))
    request = ForecastRequest(horizon=horizon, draws=2, seed=5, sampler=replace(SAMPLER, steps=2), hop=hop)
    rows, starts = issue_windows(windows, request, None, 30)
    mine = store.index.city[rows] == store.index.cities.index("town")
    theirs = windows.batch(windows.cut(rows[mine], starts[mine], request.history(WINDOW), horizon))
    ours = of(service, query).batch
    for name in theirs.context:
        one, other = ours.context[name], theirs.context[name]
        assert one.dtype == other.dtype and torch.equal(one.nan_to_num(-9), other.nan_to_num(-9)), name
    assert bool(ours.context["env"].isnan().all()) is not told
    expected = forecast_table(service.stages.forecaster(query.model), windows, rows[mine], starts[mine], request)  # type: ignore[attr-defined]
    assert run(service, query).to_pylist() == expected.to_pylist()


def test_where_users_are_moves_their_forecast_and_no_one_else_s(service: ForecastService, ask: Callable[..., Query]) -> None:
    places = body()["places"]
    places[2] = ["nowhere anyone is"] * STEPS
    before, after = (run(service, query).to_pandas() for query in (ask(), ask(places=places)))
    moved = before["mean"] != after["mean"]
    assert set(before["unique_id"][moved]) == {TOWN.sites[2]}


def test_places_of_slots_that_are_forecast_are_told(service: ForecastService, ask: Callable[..., Query]) -> None:
    beyond = ["home", "work", "unseen", "home"]
    short, long = env(service, ask()), env(service, ask(beyond=beyond))
    assert torch.equal(short[:, :12].nan_to_num(-9), long[:, :12].nan_to_num(-9)) and bool(short[:, 12:].isnan().all())
    assert torch.equal(long[:, 12], long[:, 15]) and not torch.equal(long[:, 12], long[:, 13]) and bool(long[:, 14].isnan().all())
    assert run(service, ask()).to_pylist() != run(service, ask(beyond=beyond)).to_pylist()


@pytest.mark.parametrize("beyond", [[], ["park"] * 4])
def test_a_history_shorter_than_the_window_leaves_its_begin_unknown(
    service: ForecastService, ask: Callable[..., Query], beyond: list[str]
) -> None:
    whole, part = env(service, ask(beyond=beyond)), env(service, ask(first=STEPS - 5, beyond=beyond))
    assert part.shape == whole.shape == (USERS, WINDOW, FEATURES)
    assert bool(part[:, :7].isnan().all()) and torch.equal(part[:, 7:].nan_to_num(-9), whole[:, 7:].nan_to_num(-9))


def test_in_generation_places_are_those_of_the_slots_of_traffic(service: ForecastService, ask: Callable[..., Query]) -> None:
    query = ask(None, 30, task="generation")
    found = env(service, query)
    assert found.shape[1] == 10 and torch.equal(found[:, -5:].nan_to_num(-9), env(service, ask())[:, 7:12].nan_to_num(-9))
    assert len(run(service, query)) == int(np.isnan(query.traffic).sum())


def test_where_nobody_moves_a_site_s_own_environment_is_looked_up(service: ForecastService) -> None:
    query = read_json(json_bytes(body(city="still", places=None)), service.limits, service.models)
    assert env(service, query).shape == (USERS, 1, FEATURES)


def test_json_and_arrow_are_answered_the_same(service: ForecastService, ask: Callable[..., Query]) -> None:
    asked = body(beyond=["home", "work", "park", "home"])
    theirs = read_arrow(arrow_bytes(asked), service.limits, service.models)
    assert run(service, theirs).to_pylist() == run(service, read_json(json_bytes(asked), service.limits, service.models)).to_pylist()


def test_a_name_that_is_no_place_is_refused_where_it_stands(service: ForecastService) -> None:
    for name in ("cafe", "", TOWN.sites[0], "x" * 500):
        places = body()["places"]
        places[3][7] = places[4][2] = name
        for read, bytes_of in ((read_json, json_bytes), (read_arrow, arrow_bytes)):
            with pytest.raises(Refused) as refused:
                of(service, read(bytes_of(body(places=places)), service.limits, service.models))
            (problem,) = refused.value.problems
            assert problem["loc"] == ["body", "places", 3, 7]
            assert problem["msg"] == f"{name[:40]!r}, expected null or a place of city 'town'"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"city": None}, r"body\.places: given without city, expected the city whose places they are"),
        ({"city": "still"}, r"body\.places\.0\.\d+: '.*', expected null or a place of city 'still'"),
        ({"model": "stays"}, r"body\.places: given, expected none, for model 'stays' does not look at where users are slot by slot"),
        (
            {"first": 3, "places": body()["places"]},
            r"body\.places: 40 slots, expected 37, the slots of traffic, or 41 with those that are fore",
        ),
    ],
)
def test_places_that_mean_nothing_are_refused(service: ForecastService, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        of(service, read_json(json_bytes(body(**changes)), service.limits, service.models))


def test_a_city_without_environment_vectors_has_no_places(service: ForecastService, tmp_path: Path) -> None:
    prepared(tmp_path, [TOWN], layout=ALONE)
    bare = service_of(*service.models.values(), store=tmp_path, tile=(1, 1))
    with pytest.raises(Refused, match=r"body\.places: of city 'town', expected a city whose environment vectors the server has"):
        of(bare, read_json(json_bytes(body()), bare.limits, bare.models))


async def _ready() -> bool:
    return True


def test_over_http_places_are_announced_described_and_refused(service: ForecastService) -> None:
    client = TestClient(build_api(service, _ready))
    assert {model["name"]: model["places"] for model in client.get("/v1/models").json()} == {"moves": True, "stays": False}
    fields = client.get("/openapi.json").json()["paths"]["/v1/forecast"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"places", "hop"} <= set(fields["properties"])
    assert client.post("/v1/forecast", json=body()).status_code == 200
    answer = client.post("/v1/forecast", json=body() | {"places": [["mars"] * STEPS] * USERS})
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["body", "places", 0, 0] and problem["msg"] == "'mars', expected null or a place of city 'town'"


def test_the_explorer_tells_the_model_where_a_user_was(service: ForecastService) -> None:
    """The city's user is asked about two slots before its end: what the store knows of them is the truth, and not told."""
    client = TestClient(build_api(service, _ready))
    issue = str(np.datetime64(TOWN.start, "m") + (STEPS - 2) * np.timedelta64(30, "m"))
    asked = {"station": TOWN.sites[1], "issue": issue, "task": None, "horizon": 4, "draws": 2, "steps": 2, "seed": 5}
    answer = client.post("/v1/cities/town/forecast", json=asked)
    assert answer.status_code == 200, answer.text
    begun = body(first=STEPS - 2 - WINDOW)
    cut = {name: [series[:WINDOW] for series in values] for name, values in begun["traffic"].items()}
    one = of_user(begun | {"traffic": cut, "places": [user[:WINDOW] for user in begun["places"]]}, 1)
    expected = client.post("/v1/forecast", json=one).json()
    assert answer.json()["forecast"] == expected["columns"]
    assert client.post("/v1/forecast", json=one | {"places": None}).json()["columns"] != expected["columns"]


def of_user(asked: dict[str, Any], user: int) -> dict[str, Any]:
    """The request for one user alone."""
    traffic = {name: [values[user]] for name, values in asked["traffic"].items()}
    return asked | {"stations": {"id": [asked["stations"]["id"][user]]}, "traffic": traffic, "places": [asked["places"][user]]}
