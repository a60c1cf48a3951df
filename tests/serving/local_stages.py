"""The service in this process: stages that load models by their key and compute in a thread, small models and cities, and requests."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import uvicorn

from raytraffic import registry
from raytraffic.checkpoint import load_forecaster, save_forecaster
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.forecaster import Forecaster
from raytraffic.serving.admission import Admission
from raytraffic.serving.cities import Cities
from raytraffic.serving.limits import Limits
from raytraffic.serving.models import ServedModel, served_model
from raytraffic.serving.planner import Answer, Wanted, decide_by
from raytraffic.serving.query import METADATA
from raytraffic.serving.service import Expired, ForecastService
from raytraffic.sources.city import City
from raytraffic.store import Layout
from raytraffic.types import Forecast, TrafficBatch

POI = ("bank", "park")
WINDOW = 16
#: Calls of few rows: a small model is not kept busy by many.
SAMPLER = Sampler("dpm++", 3, rows=8)
#: Runs whose overlap holds a window.
LAYOUT = Layout(run_steps=32, overlap_steps=WINDOW, row_group_rows=2)


class LocalPlanner:
    """`Planner` without a cluster, in a thread; `asked` are the decisions that were wanted of it."""

    def __init__(self) -> None:
        self.asked: list[Wanted] = []

    async def decide(self, wanted: Wanted, deadline: float) -> Answer:
        """See raytraffic.serving.planner.Planner."""
        self.asked.append(wanted)
        answer = await asyncio.to_thread(decide_by, wanted, deadline)
        if answer is None:
            raise Expired
        return answer


class LocalStages:
    """`Stages` without a cluster: the whole forecast in one thread of this process; `calls` counts those that were begun."""

    def __init__(self) -> None:
        self.calls = 0
        self._forecasters: dict[str, Forecaster] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-stages")

    async def forecast(self, model: ServedModel, batch: TrafficBatch, sampler: Sampler, draws: int, seed: int, deadline: float) -> Forecast:
        """See raytraffic.serving.service.Stages."""
        gone = False

        def stop() -> bool:
            return gone or time() >= deadline

        arguments = (model, batch, sampler, draws, seed, stop)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._forecast, *arguments)
        except InterruptedError:
            raise Expired from None
        finally:
            gone = True

    def _forecast(self, model: ServedModel, batch: TrafficBatch, sampler: Sampler, draws: int, seed: int, stop: Any) -> Forecast:
        if stop():
            raise InterruptedError
        self.calls += 1
        forecaster = self.forecaster(model)
        embedded = forecaster.embed(batch)
        with torch.no_grad():
            condition = forecaster.condition(embedded, guided=sampler.guidance != 1)
        return forecaster.draw(embedded, condition, sampler, draws, seed, stop)

    def forecaster(self, model: ServedModel) -> Forecaster:
        """The loaded model of a key."""
        if model.key not in self._forecasters:
            self._forecasters[model.key] = load_forecaster(model.folder)[0].eval()
        return self._forecasters[model.key]


def small_model(folder: Path, name: str = "tiny", seed: int = 3, model: str = "uomo", **changes: Any) -> ServedModel:
    """A tiny model of short windows, every parameter off its initial value, saved and named as a server would; `changes` of its preset."""
    config: Any = replace(registry.model(model).preset("tiny"), window=WINDOW, poi_categories=POI)
    config = replace(config, forecaster=replace(config.forecaster, sampler=SAMPLER), **changes)
    torch.manual_seed(seed)
    forecaster = registry.model(model).build(config).eval()
    with torch.no_grad():
        for parameter in forecaster.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_forecaster(Location.of(folder), forecaster.state_dict(), model, config, {})
    return served_model(name, str(folder))


def service_of(*models: ServedModel, store: Path | None = None, **settings: Any) -> ForecastService:
    """A service of some models, the first the default one; `settings` are fields of ForecastService."""
    parts = {
        "cities": Cities(None if store is None else str(store)),
        "limits": Limits(),
        "stages": LocalStages(),
        "admission": Admission(most_wait_s=1e6, most_requests=64),
        "planner": LocalPlanner(),
    }
    return ForecastService(models={model.name: model for model in models}, **(parts | settings))


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """An ASGI application over HTTP on a free port of this machine; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def until(condition: Callable[[], bool]) -> None:
    """Waits until it is so."""
    deadline = monotonic() + 60
    while not condition():
        assert monotonic() < deadline
        sleep(0.005)


def grid_city(name: str = "gridton", steps: int = 40, grid: tuple[int, int] = (6, 6), services: Sequence[str] = ("traffic",)) -> City:
    """A city of 30-minute slots on a grid that no whole number of tiles covers: some slots unmeasured, one cell dead."""
    city = station_city(name, steps, grid[0] * grid[1], services)
    city.traffic[:, :, -1] = 0.0
    return replace(city, grid=grid)


def station_city(name: str = "stationville", steps: int = 40, stations: int = 5, services: Sequence[str] = ("traffic",)) -> City:
    """A city of lone stations, with users and points of interest."""
    random = np.random.default_rng([len(name), steps, stations])
    day = 1.2 + np.sin(np.arange(steps) * 2 * np.pi / 48)
    traffic = random.gamma(4.0, 25.0, (len(services), steps, stations)) * day[:, None]
    traffic[random.random(traffic.shape) < 0.05] = np.nan
    return City(
        name=name,
        traffic=traffic.astype(np.float32),
        services=services,
        start=datetime(2024, 5, 7, 6, 0),
        step_minutes=30,
        sites=[f"site {i:02d}" for i in range(stations)],
        users=random.poisson(20, (steps, stations)).astype(np.float32),
        poi=random.poisson(2, (len(POI), stations)).astype(np.float32),
        poi_categories=POI,
    )


def small_body(**changes: Any) -> dict[str, Any]:
    """A JSON request of two stations, quick to answer."""
    body = {
        "start": "2024-03-04T00:00",
        "step_minutes": 30,
        "stations": {"id": ["a", "b"]},
        "traffic": [[10.0 + i % 7 for i in range(12)], [None, *(3.5 * (i % 5) for i in range(11))]],
        "horizon": 4,
        "draws": 2,
        "steps": 2,
    }
    return body | changes


def body_of(
    city: City, first: int = 0, last: int | None = None, cities: bool = False, places: bool = False, **settings: Any
) -> dict[str, Any]:
    """The JSON request for the stations of a city by their slots first..last; under the city's name with `cities`, where they stand with
    `places`."""
    traffic = {name: _lists(values[first:last]) for name, values in zip(city.services, city.traffic, strict=True)}
    stations: dict[str, Any] = {"id": list(city.sites)}
    if city.grid is not None:
        rows, columns = np.divmod(np.arange(city.shape[2]), city.grid[1])
        stations |= {"row": rows.tolist(), "column": columns.tolist()}
    if city.poi is not None:
        stations["poi"] = dict(zip(city.poi_categories, city.poi.tolist(), strict=True))
    if places and city.xy is not None:
        stations |= {"x": city.xy[:, 0].tolist(), "y": city.xy[:, 1].tolist()}
    begin = np.datetime64(city.start, "m") + first * np.timedelta64(city.step_minutes, "m")
    return {
        "start": str(begin),
        "step_minutes": city.step_minutes,
        "stations": stations,
        "traffic": traffic["traffic"] if list(traffic) == ["traffic"] else traffic,
        "users": None if city.users is None else _lists(city.users[first:last]),
        "city": city.name if cities else None,
        **settings,
    }


def _lists(series: np.ndarray) -> list[list[float | None]]:
    """A list of slots a station of a (t, s) series, null for NaN."""
    return [[None if np.isnan(value) else float(value) for value in station] for station in series.T]


def json_bytes(body: Mapping[str, Any]) -> bytes:
    """A JSON body."""
    return json.dumps(body).encode()


def arrow_table(body: Mapping[str, Any]) -> pa.Table:
    """The table that says what a JSON request says."""
    columns = {"stations", "traffic", "users", "expected_users", "places"}
    stations = body["stations"]
    table: dict[str, Any] = {"id": pa.array(stations["id"], pa.string())}
    table |= {name: pa.array(stations[name], pa.int64()) for name in ("row", "column") if stations.get(name) is not None}
    table |= {name: pa.array(stations[name], pa.float64()) for name in ("x", "y") if stations.get(name) is not None}
    table |= {f"poi.{name}": pa.array(counts, pa.float64()) for name, counts in (stations.get("poi") or {}).items()}
    traffic = body.get("traffic") or {}
    named = {f"traffic.{name}": rows for name, rows in traffic.items()} if isinstance(traffic, Mapping) else {"traffic": traffic}
    named |= {name: body[name] for name in ("users", "expected_users") if body.get(name) is not None}
    table |= {name: pa.array(rows, pa.list_(pa.float64())) for name, rows in named.items()}
    table |= {"places": pa.array(body["places"], pa.list_(pa.string()))} if body.get("places") is not None else {}
    settings = {name: value for name, value in body.items() if name not in columns and value is not None}
    return pa.table(table).replace_schema_metadata({METADATA: json.dumps(settings).encode()})


def stream_bytes(table: pa.Table) -> bytes:
    """An Arrow IPC stream of a table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def arrow_bytes(body: Mapping[str, Any]) -> bytes:
    """The Arrow body that says what a JSON request says."""
    return stream_bytes(arrow_table(body))
