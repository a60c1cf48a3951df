"""LSDM, LEC-Diff and STOUTER behind HTTP, each as its own Serve config deploys it: served = whole, bit for bit."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import requests
import torch
import yaml
from ray import serve

from raytraffic import registry
from raytraffic.checkpoint import load_forecaster, save_forecaster
from raytraffic.diffusion.samplers import Sampler
from raytraffic.environment.embeddings import EmbeddingStore, Entry
from raytraffic.files import Location
from raytraffic.forecasting import ForecastRequest, forecast_table, issue_windows
from raytraffic.on_ray.serve import ServeArgs
from raytraffic.sources.city import City
from raytraffic.sources.open import open_source
from raytraffic.sources.stations import ENV_FEATURES, StationCity, environment_vectors
from raytraffic.store import Layout, Store, open_store, prepare_store
from raytraffic.windows import windows_for
from tests.ray.test_serve import CONFIGS, TOKEN, bearer, deploy

pytestmark = pytest.mark.slow

ARROW = "application/vnd.apache.arrow.stream"
DRAWS, STEPS, SEED = 3, 2, 7
WINDOW = 32
Row = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """A service of one model over one store."""

    url: str
    store: Store
    city: City
    checkpoint: Path

    def ask(self, body: dict[str, Any]) -> list[Row]:
        """The answer's rows by station, service and time."""
        settings = {"draws": DRAWS, "keep_draws": True, "steps": STEPS, "seed": SEED}
        headers = bearer(TOKEN) | {"Accept": ARROW}
        answer = requests.post(f"{self.url}/v1/forecast", json=settings | body, headers=headers, timeout=300)
        assert answer.status_code == 200, answer.text
        return in_order(pa.ipc.open_stream(answer.content).read_all())

    def whole(self, horizon: int, hop: int | None, blind: bool = False) -> list[Row]:
        """The whole model's forecast in this process, as the fleet job makes it; `blind`: with no environment vector known."""
        forecaster, _, config = load_forecaster(self.checkpoint)
        windows = windows_for(self.store, "all", config)
        if blind:
            windows.surroundings = replace(windows.surroundings, vectors=torch.full_like(windows.surroundings.vectors, torch.nan))
        sampler = Sampler("dpm++", STEPS, rows=config.forecaster.sampler.rows)
        request = ForecastRequest(horizon=horizon, draws=DRAWS, sampler=sampler, seed=SEED, keep_draws=True, hop=hop)
        rows, starts = issue_windows(windows, request, None, self.city.step_minutes)
        return in_order(forecast_table(forecaster, windows, rows, starts, request))

    def history(self, slots: int) -> dict[str, Any]:
        """The last measurements of all of the city's stations, as a request says them."""
        first = self.city.shape[1] - slots
        start = np.datetime64(self.city.start, "m") + first * np.timedelta64(self.city.step_minutes, "m")
        traffic = {name: lists(series[first:]) for name, series in zip(self.city.services, self.city.traffic, strict=True)}
        return {
            "city": self.city.name,
            "start": str(start),
            "step_minutes": self.city.step_minutes,
            "stations": {"id": list(self.city.sites)},
            "traffic": traffic if len(traffic) > 1 else next(iter(traffic.values())),
        }


def in_order(table: pa.Table) -> list[Row]:
    """A table's rows by station, service and time; texts as such."""
    return sorted(table.to_pylist(), key=lambda row: (row["unique_id"], row["service"], row["ds"]))


def lists(series: np.ndarray) -> list[list[float | None]]:
    """A list of slots a station of a (t, s) series, null for NaN."""
    return [[None if np.isnan(value) else float(value) for value in station] for station in series.T]


def saved(folder: Path, model: str, **changes: Any) -> Path:
    """A tiny checkpoint whose random weights depend on everything they are told."""
    config = replace(registry.model(model).preset("tiny"), **changes)
    torch.manual_seed(0)
    weights = registry.model(model).build(config).state_dict()
    save_forecaster(folder, {name: value + 0.05 * torch.randn_like(value) for name, value in weights.items()}, model, config, {})
    return folder


def prepared(folder: Path, source: str, layout: Layout) -> tuple[Store, City]:
    """A store of one synthetic city, and the city."""
    cities = open_source(source)
    (name,) = cities.names()
    (city,) = cities.read(name)
    prepare_store([[city]], Location.of(folder), layout)
    return open_store(folder), city


def embed(store: Store, vectors: dict[str, np.ndarray]) -> None:
    """The environment vectors of sites or places beside the store, as `raytraffic embed` leaves them: images' and texts' halves."""
    images, texts = np.split(np.stack(list(vectors.values())), 2, axis=1)
    embeddings = EmbeddingStore.create(store.location.child("environment"), "an encoder", images.shape[1])
    shard = embeddings.write(list(vectors), images, texts)
    embeddings.record({name: Entry(key=name, shard=shard, request="") for name in vectors})


@pytest.fixture(scope="module")
def up(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Store, City, Path], Served]]:
    """Deploys the application of a config with another checkpoint and store, on a free port of the loopback interface."""
    token = tmp_path_factory.mktemp("secret") / "token"
    token.write_text(TOKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})

    def deployed(config: str, store: Store, city: City, checkpoint: Path) -> Served:
        (application,) = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["applications"]
        ours = {"checkpoints": {config: str(checkpoint)}, "store": str(store.location), "token_file": str(token)}
        deploy(ServeArgs.model_validate(application["args"] | ours), application["deployments"])
        return Served(f"http://127.0.0.1:{port}", store, city, checkpoint)

    yield deployed
    serve.shutdown()


@pytest.fixture(scope="module")
def lec_diff(up: Callable[..., Served], tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Stations in groups of neighbours, whose environment is embedded."""
    folder = tmp_path_factory.mktemp("lec_diff")
    store, city = prepared(folder / "store", "stations:east?stations=24&days=8&step=30", groups(WINDOW))
    vectors = environment_vectors(StationCity(name="east", stations=24, days=8))
    embed(store, {f"east/{site}": vector for site, vector in vectors.items()})
    sizes = {"window": WINDOW, "contexts": ("env",), "poi_categories": (), "env_features": ENV_FEATURES}
    return up("lec_diff", store, city, saved(folder / "model", "lec_diff", **sizes))


def groups(window: int) -> Layout:
    """Tiles of sixteen neighbouring stations."""
    return Layout.for_windows(window, token=(4, 4, 4), tile=(4, 4), seed=0, group_stations=True)


@pytest.mark.parametrize("hop", [None, 1, 4])
def test_lec_diff_forecasts_the_stations_of_the_store_by_their_environment(lec_diff: Served, hop: int | None) -> None:
    body = lec_diff.history(WINDOW) | {"horizon": 6, "hop": hop}
    answer = lec_diff.ask(body)
    assert answer == lec_diff.whole(6, hop) and len(answer) == 24 * 6
    assert differs(answer, lec_diff.whole(6, hop, blind=True))


def differs(answer: list[Row], other: list[Row]) -> bool:
    """Whether all stations have other draws, those that are silent in both aside."""
    draws = [np.array([row["draws"] for row in rows]) for rows in (answer, other)]
    names = np.array([row["unique_id"] for row in answer])
    live = set(names[(draws[0] > 0).any(axis=1) | (draws[1] > 0).any(axis=1)])
    return len(live) > 1 and set(names[(draws[0] != draws[1]).any(axis=1)]) == live


@pytest.fixture(scope="module")
def lsdm(up: Callable[..., Served], tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Users who move, and the environment of the places that they are at."""
    folder = tmp_path_factory.mktemp("lsdm")
    layout = Layout.for_windows(WINDOW, token=(4, 1, 1), tile=(1, 1), seed=0)
    store, city = prepared(folder / "store", "services:town?users=6&weeks=1&grid=4x4", layout)
    vectors = np.random.default_rng(3).normal(size=(len(city.places), 8)).astype(np.float32)
    embed(store, {f"town/{place}": vector for place, vector in zip(city.places, vectors, strict=True)})
    sizes = {"window": WINDOW, "services": 10, "contexts": ("env",), "poi_categories": (), "env_features": 8}
    return up("lsdm", store, city, saved(folder / "model", "lsdm", **sizes, weights=(0.5, 0.5), next_place=True))


@pytest.mark.parametrize("hop", [None, 1])
def test_lsdm_forecasts_ten_services_of_the_users_of_the_store_where_they_are(lsdm: Served, hop: int | None) -> None:
    city = lsdm.city
    assert city.place is not None
    body = lsdm.history(WINDOW) | {"horizon": 6, "hop": hop}
    places = [[None if at < 0 else city.places[at] for at in user] for user in city.place[-WINDOW:].T.tolist()]
    answer = lsdm.ask(body | {"places": places})
    assert answer == lsdm.whole(6, hop) and len(answer) == 6 * 10 * 6
    assert {row["service"] for row in answer} == set(city.services) and len(city.services) == 10
    nowhere = lsdm.ask(body)
    assert nowhere == lsdm.whole(6, hop, blind=True) and differs(answer, nowhere)
    assert differs(answer, lsdm.ask(body | {"places": [[*user, *[city.places[0]] * 6] for user in places]}))


@pytest.fixture(scope="module")
def stouter(up: Callable[..., Served], tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Stations with POI, a window a week."""
    folder = tmp_path_factory.mktemp("stouter")
    store, city = prepared(folder / "store", "stations:west?stations=20&days=9&step=60", groups(168))
    return up("stouter", store, city, saved(folder / "model", "stouter", poi_categories=city.poi_categories))


def test_stouter_forecasts_the_stations_of_the_store_by_their_neighbourhood(stouter: Served) -> None:
    body = stouter.history(168) | {"horizon": 24}
    poi = dict(zip(stouter.city.poi_categories, np.array(stouter.city.poi).tolist(), strict=True))
    answer = stouter.ask(body | {"stations": body["stations"] | {"poi": poi}})
    assert answer == stouter.whole(24, None) and len(answer) == 20 * 24
    assert differs(answer, stouter.ask(body))


def test_stouter_generates_a_week_of_stations_that_were_never_measured(stouter: Served) -> None:
    def planned(bank: float) -> dict[str, Any]:
        poi = {name: [1.0, 3.0] for name in stouter.city.poi_categories} | {stouter.city.poi_categories[0]: [bank, 0.0]}
        stations = {"id": ["new a", "new b"], "x": [100.0, 700.0], "y": [200.0, 150.0], "poi": poi}
        return {"city": "west", "start": "2024-03-04T00:00", "step_minutes": 60, "task": "generation", "stations": stations}

    answer = stouter.ask(planned(bank=2.0))
    draws = np.array([row["draws"] for row in answer])
    assert [row["unique_id"] for row in answer] == ["new a"] * 168 + ["new b"] * 168 and draws.shape == (336, DRAWS)
    assert np.isfinite(draws).all() and (draws >= 0).all() and draws.std(axis=0).min() > 0
    assert stouter.ask(planned(bank=2.0)) == answer
    assert differs(answer, stouter.ask(planned(bank=40.0)))  # also the neighbour's
    weeks = planned(bank=2.0) | {"traffic": [[None] * 336] * 2}
    assert len(stouter.ask(weeks)) == 2 * 336
