"""Where stations stand and what surrounds them, as the request says or the server's store: the same tiles, bits and vectors as in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from fastapi.testclient import TestClient

from raytraffic.config import ServeConfig
from raytraffic.environment.embeddings import EmbeddingStore, Entry
from raytraffic.forecasting import ForecastRequest, forecast_table, issue_windows
from raytraffic.on_ray.serve import ServeArgs, app, args_of
from raytraffic.randomness import fold_numpy, text_key
from raytraffic.serving.assemble import Chunk, chunks
from raytraffic.serving.cities import Cities
from raytraffic.serving.query import Query, read_json
from raytraffic.serving.refused import Refused
from raytraffic.serving.routes import build_api
from raytraffic.serving.service import ForecastService
from raytraffic.sources.city import City
from raytraffic.store import Layout, Store
from raytraffic.store.tiling import tile_city
from raytraffic.windows import Windows
from tests.serving.local_stages import SAMPLER, WINDOW, body_of, grid_city, json_bytes, service_of, small_model, station_city
from tests.store.cities import prepared

TILE = (2, 2)
GROUPED = Layout(token=(4, 1, 1), tile=TILE, run_steps=32, overlap_steps=WINDOW, row_group_rows=2, group_stations=True)
RANDOM = np.random.default_rng(5)
CITY = replace(station_city("hamlet", stations=10), xy=RANDOM.uniform(-2000, 2000, (10, 2)).astype(np.float32))
#: As it is prepared.
TILES = tile_city(CITY, TILE, group_stations=True)
STORED = replace(CITY, tiles=TILES.cells, tile_shape=TILE, tile_ids=TILES.ids)
PLAIN = replace(CITY, poi=None, poi_categories=())
FEATURES = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The city in tiles of neighbours, with environment vectors of all sites but the third."""
    found = prepared(tmp_path_factory.mktemp("places") / "store", [STORED], layout=GROUPED)
    sites = [f"hamlet/{site}" for i, site in enumerate(CITY.sites) if i != 2]
    images, texts = (RANDOM.normal(size=(len(sites), FEATURES // 2)).astype(np.float32) for _ in range(2))
    embeddings = EmbeddingStore.create(found.location.child("environment"), "an encoder", FEATURES // 2)
    keys = [f"key of {site}" for site in sites]
    shard = embeddings.write(keys, images, texts)
    embeddings.record({site: Entry(key=key, shard=shard, request="") for site, key in zip(sites, keys, strict=True)})
    return found


@pytest.fixture(scope="module")
def service(store: Store, tmp_path_factory: pytest.TempPathFactory) -> ForecastService:
    """A model of graphs over stations, and one that looks at environment vectors."""
    folder = tmp_path_factory.mktemp("places")
    graph = small_model(folder / "graph", "graph", model="stouter")
    scenes = small_model(folder / "scenes", "scenes", model="lsdm", patch=4, contexts=("env",), env_features=FEATURES)
    return service_of(graph, scenes, store=Path(str(store.location)), tile=TILE, group_stations=True, chunk_tiles=2)


@pytest.fixture(scope="module")
def ask(service: ForecastService) -> Callable[..., Query]:
    """The query for stations."""

    def read(city: City = CITY, **settings: Any) -> Query:
        if settings.get("model") == "scenes":
            city = replace(city, poi=None, poi_categories=())  # it looks at no POI
        body = body_of(city, **{"draws": 2, "steps": 2, "seed": 5, "horizon": 4, **settings})
        return read_json(json_bytes(body), service.limits, service.models)

    return read


def some(stations: list[int]) -> City:
    """Some of the city's stations, in this order."""
    return replace(
        CITY,
        traffic=CITY.traffic[..., stations],
        sites=[CITY.sites[i] for i in stations],
        users=CITY.users[:, stations],  # type: ignore[index]
        poi=CITY.poi[:, stations],  # type: ignore[index]
        xy=CITY.xy[stations],  # type: ignore[index]
    )


def of(service: ForecastService, query: Query) -> list[Chunk]:
    """The query's windows, all at a time."""
    return list(chunks(query, service.cities.known(query.ask.city), service.tile, 100, service.group_stations))


def run(service: ForecastService, query: Query) -> pa.Table:
    """The answer."""
    return asyncio.run(service.table(query, time.time() + 600))


@pytest.mark.parametrize("model", ["graph", "scenes"])
def test_the_answer_is_the_fleet_s(store: Store, service: ForecastService, ask: Callable[..., Query], model: str) -> None:
    query = ask(cities=True, model=model)
    windows = Windows(store, "all", WINDOW, query.model.poi_categories, environment=model == "scenes")
    request = ForecastRequest(horizon=4, draws=2, seed=5, sampler=replace(SAMPLER, steps=2), batch=5)
    rows, starts = issue_windows(windows, request, None, 30)
    columns = windows.cut(rows, starts, WINDOW - 4, 4)
    theirs = windows.batch(columns)
    (chunk,) = of(service, query)
    order = [windows.site_names(rows).tolist().index(sites) for sites in chunk.sites.tolist()]
    assert len(rows) == 3 and sorted(order) == [0, 1, 2]
    for name in theirs.context:
        ours, wanted = chunk.batch.context[name], theirs.context[name][order]
        assert ours.dtype == wanted.dtype and torch.equal(ours.nan_to_num(-1), wanted.nan_to_num(-1)), name
    assert chunk.batch.space.xy is not None and theirs.space.xy is not None
    assert torch.equal(chunk.batch.space.xy.nan_to_num(-1), theirs.space.xy[order].nan_to_num(-1))
    assert torch.equal(chunk.batch.key, theirs.key[order]) and chunk.batch.space.grid == theirs.space.grid
    expected = forecast_table(service.stages.forecaster(query.model), windows, rows, starts, request)  # type: ignore[attr-defined]
    ours, wanted = (sorted(table.to_pylist(), key=lambda row: (row["unique_id"], row["ds"])) for table in (run(service, query), expected))
    assert ours == wanted and len(ours) == 10 * 4


async def _ready() -> bool:
    return True


@pytest.mark.parametrize("task", ["short", "generation"])
def test_the_explorer_forecasts_a_station_in_its_group(service: ForecastService, ask: Callable[..., Query], task: str) -> None:
    """Its forecast is the request's for the stations of the store by their names, whatever rows and columns the map puts the group in."""
    issue = np.datetime64(CITY.start, "m") + (24 if task == "generation" else 40) * np.timedelta64(30, "m")
    asked = {"station": CITY.sites[4], "issue": str(issue), "task": task, "draws": 2, "steps": 2, "seed": 5}
    answer = TestClient(build_api(service, _ready)).post("/v1/cities/hamlet/forecast", json=asked)
    assert answer.status_code == 200, answer.text
    if task == "generation":
        hidden = CITY.traffic.copy()
        hidden[..., 4] = np.nan
        body = body_of(replace(CITY, traffic=hidden), 24, cities=True, task=task, draws=2, steps=2, seed=5)
        query = read_json(json_bytes(body), service.limits, service.models)
    else:
        query = ask(cities=True)
    table = run(service, query)
    mine = table.filter(pc.equal(table.column("unique_id"), CITY.sites[4]))
    assert answer.json()["forecast"]["mean"] == mine.column("mean").to_pylist() and len(mine) == (16 if task == "generation" else 4)


def test_stations_of_a_store_s_tile_keep_it_whoever_else_is_asked_for(service: ForecastService, ask: Callable[..., Query]) -> None:
    (whole,), (part,) = (of(service, ask(city, cities=True)) for city in (CITY, some([7, 1, 4])))
    standing = {site: (tile, cell) for tile, row in enumerate(whole.sites) for cell, site in enumerate(row) if site}
    for tile, row in enumerate(part.sites):
        for cell, site in enumerate(row):
            if site:
                there = standing[site]
                assert there[1] == cell and part.batch.key[tile] == whole.batch.key[there[0]]
    assert sorted(site for row in part.sites for site in row if site) == sorted(CITY.sites[i] for i in (1, 4, 7))


def test_stations_that_no_store_has_are_grouped_as_a_store_would(service: ForecastService, ask: Callable[..., Query]) -> None:
    (known,), (new,) = (of(service, ask(**where)) for where in ({"cities": True}, {"places": True}))
    assert {tuple(row) for row in new.sites} == {tuple(row) for row in known.sites}
    assert new.batch.space.xy is not None and known.batch.space.xy is not None
    order = [known.sites.tolist().index(row) for row in new.sites.tolist()]
    assert torch.equal(new.batch.space.xy.nan_to_num(-1), known.batch.space.xy[order].nan_to_num(-1))
    named = np.array([text_key(f"|all|{row[0]}") for row in new.sites])
    assert new.batch.key.tolist() == fold_numpy(named, np.full(3, new.minutes[0])).tolist()


def test_new_stations_of_a_known_city_are_grouped_beside_those_it_has(service: ForecastService, ask: Callable[..., Query]) -> None:
    body = body_of(CITY, cities=True, places=True, horizon=4, draws=2, steps=2)
    body["stations"]["id"] = [*CITY.sites[:6], "new 0", "new 1", "new 2", "new 3"]
    (chunk,) = of(service, read_json(json_bytes(body), service.limits, service.models))
    (known,) = of(service, ask(cities=True))
    rows = [set(row) - {""} for row in chunk.sites.tolist()]
    assert {"new 0", "new 1", "new 2", "new 3"} in rows
    assert [row for row in rows if "new 0" not in row] == [row for row in ({*old} & set(CITY.sites[:6]) for old in known.sites) if row]


def test_who_stands_where_is_as_the_request_says_before_the_store(service: ForecastService, ask: Callable[..., Query]) -> None:
    moved = replace(CITY, xy=CITY.xy + np.float32(100))  # type: ignore[operator]
    (theirs,), (ours,), (nowhere,) = of(service, ask(cities=True)), of(service, ask(moved, cities=True, places=True)), of(service, ask())
    assert ours.batch.space.xy is not None and theirs.batch.space.xy is not None and nowhere.batch.space.xy is None
    torch.testing.assert_close(ours.batch.space.xy, theirs.batch.space.xy + 100, equal_nan=True)
    there = torch.from_numpy(ours.sites != "")
    assert bool(ours.batch.space.xy[there].isfinite().all()) and bool(ours.batch.space.xy[~there].isnan().all())
    assert (nowhere.sites != "").sum(axis=1).tolist() == [1] * 10  # without a place each is alone


def test_a_station_is_alone_where_the_server_does_not_group(service: ForecastService, ask: Callable[..., Query]) -> None:
    (chunk,) = of(replace(service, group_stations=False), ask(places=True))
    assert chunk.sites[:, 0].tolist() == list(CITY.sites) and (chunk.sites[:, 1:] == "").all()
    assert chunk.batch.space.xy is not None and torch.equal(chunk.batch.space.xy[:, 0], torch.from_numpy(CITY.xy))


def test_a_grid_s_stations_stay_in_its_tiles(service: ForecastService, ask: Callable[..., Query]) -> None:
    (chunk,) = of(service, ask(grid_city(steps=40, grid=(4, 4))))
    assert (chunk.sites != "").all() and len(chunk.sites) == 4


def test_whom_the_server_does_not_know_has_no_environment(service: ForecastService, ask: Callable[..., Query]) -> None:
    (known,), (unknown,) = of(service, ask(cities=True, model="scenes")), of(service, ask(places=True, model="scenes"))
    env = known.batch.context["env"]
    assert env.shape == (3, 1, 4, FEATURES) and env.dtype == torch.float32
    lacking = env.isnan().all(-1)[:, 0].numpy()
    np.testing.assert_array_equal(lacking, (known.sites == "") | (known.sites == CITY.sites[2]))
    assert unknown.batch.context["env"].shape == env.shape and bool(unknown.batch.context["env"].isnan().all())
    assert "env" not in of(service, ask(cities=True, model="graph"))[0].batch.context


def test_vectors_of_another_width_are_refused(service: ForecastService, store: Store, tmp_path: Path) -> None:
    other = small_model(tmp_path, "other", model="lsdm", patch=4, contexts=("env",), env_features=FEATURES + 2)
    served = service_of(other, store=Path(str(store.location)), tile=TILE, group_stations=True)
    query = read_json(json_bytes(body_of(PLAIN, cities=True, horizon=4, draws=1)), served.limits, served.models)
    with pytest.raises(Refused, match=r"body\.city: 'hamlet' with 6, expected a city with environment vectors of 8 features"):
        of(served, query)


def test_a_store_without_environment_leaves_all_unknown(service: ForecastService, tmp_path: Path) -> None:
    prepared(tmp_path, [STORED], layout=GROUPED)
    other = replace(service, cities=Cities(str(tmp_path)))
    body = body_of(PLAIN, cities=True, horizon=4, draws=1, steps=1, model="scenes")
    (chunk,) = of(other, read_json(json_bytes(body), service.limits, service.models))
    assert bool(chunk.batch.context["env"].isnan().all())


def test_an_application_groups_as_its_store_does(service: ForecastService, store: Store, tmp_path: Path) -> None:
    checkpoints = {"graph": service.models["graph"].folder}
    with pytest.raises(ValueError, match=r"group_stations: False, expected True as .*store was prepared"):
        app(ServeArgs(checkpoints=checkpoints, store=str(store.location), tile=TILE))
    with pytest.raises(ValueError, match=r"tile: \(4, 4\), expected \(2, 2\) as .*store was prepared"):
        app(ServeArgs(checkpoints=checkpoints, store=str(store.location), group_stations=True))
    assert app(ServeArgs(checkpoints=checkpoints, store=str(store.location), group_stations=True, tile=TILE)) is not None
    tiles = {"tiles": small_model(tmp_path, "tiles").folder}
    with pytest.raises(ValueError, match="group_stations: True with 'tiles', a uomo model, expected False: it takes tiles of a grid"):
        app(ServeArgs(checkpoints=tiles, store=str(store.location), group_stations=True, tile=TILE))
    args = args_of(ServeConfig(checkpoints=(f"graph={checkpoints['graph']}",), store=str(store.location)))
    assert args == ServeArgs(checkpoints=checkpoints, store=str(store.location), group_stations=True, tile=TILE)


def test_an_application_s_tiles_are_its_store_s(service: ForecastService, tmp_path: Path) -> None:
    store = prepared(tmp_path, [replace(CITY, xy=None)], layout=replace(GROUPED, tile=(1, 1), group_stations=False))
    checkpoints = {"scenes": service.models["scenes"].folder}
    with pytest.raises(ValueError, match=r"tile: \(4, 4\), expected \(1, 1\) as .*was prepared"):
        app(ServeArgs(checkpoints=checkpoints, store=str(store.location)))
    assert args_of(ServeConfig(checkpoints=(f"scenes={checkpoints['scenes']}",), store=str(store.location))).tile == (1, 1)
    assert args_of(ServeConfig(checkpoints=("any=where",))).tile == (4, 4)
