"""What the benchmarks of the service share: the application on a cluster of its own, requests, and clients that load it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import ray
import torch
from ray import serve

from raytraffic import registry
from raytraffic.checkpoint import save_forecaster
from raytraffic.on_ray.serve import ServeArgs, app

__all__ = [
    "APP",
    "Answers",
    "body_of",
    "checkpoint",
    "closed_loop",
    "deployed",
    "local_cluster",
    "open_loop",
    "percentile",
    "with_options",
]

APP = "raytraffic"
STEP = 30


def checkpoint(folder: Path, preset: str, shift: float = 0.0) -> Path:
    """A model whose weights are random (its speed is a trained one's); `shift` tells versions apart."""
    config = registry.model("uomo").preset(preset)
    torch.manual_seed(0)
    forecaster = registry.model("uomo").build(config)
    weights = {name: value + shift + 0.02 * torch.randn_like(value) for name, value in forecaster.state_dict().items()}
    save_forecaster(folder, weights, "uomo", config, {"benchmark": "random weights"})
    return folder


def body_of(stations: int, seed: int = 0, horizon: int = 16, draws: int = 20, steps: int = 10) -> bytes:
    """A request of that many stations on a grid of 16 columns, 48 half-hours of history."""
    random = np.random.default_rng(seed)
    slots = 48
    rhythm = 1.2 + np.sin(2 * np.pi * np.arange(slots) / 48)
    traffic = random.lognormal(4, 1, (stations, 1)) * rhythm * random.lognormal(0, 0.2, (stations, slots))
    body = {
        "start": "2024-03-04T00:00",
        "step_minutes": STEP,
        "stations": {
            "id": [f"s{i}" for i in range(stations)],
            "row": [i // 64 * 4 + i % 16 // 4 for i in range(stations)],  # sixteen after one another are a tile
            "column": [i // 16 % 4 * 4 + i % 4 for i in range(stations)],
        },
        "traffic": traffic.round(2).tolist(),
        "horizon": horizon,
        "draws": draws,
        "steps": steps,
        "seed": seed,
    }
    return json.dumps(body).encode()


def _free_port() -> int:
    """A port of the loopback interface that no one uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def deployed(args: ServeArgs, overrides: dict[str, dict[str, Any]] | None = None) -> Iterator[str]:
    """The application on the cluster that is there, its deployments with other options; yields its URL and ends Serve after it."""
    port = _free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 120})
    serve.run(with_options(app(args), overrides or {}), name=APP)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


def with_options(application: serve.Application, overrides: dict[str, dict[str, Any]]) -> serve.Application:
    """The application whose deployments of these names have other options."""
    gateway = application._bound_deployment
    args, *stages = gateway.init_args
    changed = [_changed(stage._bound_deployment, overrides) for stage in stages]
    return _changed(gateway, overrides, (args, *changed))


def _changed(deployment: Any, overrides: dict[str, dict[str, Any]], arguments: tuple[Any, ...] | None = None) -> serve.Application:
    bound: serve.Application = deployment.options(**overrides.get(deployment.name, {})).bind(*(arguments or deployment.init_args))
    return bound


@contextmanager
def local_cluster(cpus: int = 2) -> Iterator[None]:
    """Ray on this machine, for this process alone."""
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


@dataclass
class Answers:
    """What clients were answered: status, seconds, and when; 0 for a connection that broke."""

    status: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    retry_after: list[str | None] = field(default_factory=list)

    def add(self, status: int, seconds: float, retry_after: str | None) -> None:
        """One answer, now."""
        self.status.append(status)
        self.seconds.append(seconds)
        self.at.append(time.monotonic())
        self.retry_after.append(retry_after)

    def of(self, wanted: Callable[[int], bool]) -> list[float]:
        """Seconds of the answers whose status is wanted."""
        return [seconds for status, seconds in zip(self.status, self.seconds, strict=True) if wanted(status)]

    @property
    def good(self) -> list[float]:
        """Seconds of the answers 200."""
        return self.of(lambda status: status == 200)


def percentile(seconds: list[float], p: float) -> float:
    """NaN where nothing was answered."""
    return float(np.percentile(seconds, p)) if seconds else float("nan")


async def _ask(session: aiohttp.ClientSession, url: str, body: bytes, answers: Answers) -> int:
    began = time.monotonic()
    try:
        async with session.post(f"{url}/v1/forecast", data=body, headers={"Content-Type": "application/json"}) as answer:
            await answer.read()
            answers.add(answer.status, time.monotonic() - began, answer.headers.get("Retry-After"))
            return answer.status
    except (aiohttp.ClientError, TimeoutError):
        answers.add(0, time.monotonic() - began, None)
        return 0


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        yield session


async def closed_loop(
    url: str,
    body: bytes,
    clients: int,
    seconds: float,
    retries: int = 0,
    stop: asyncio.Event | None = None,
    first: Answers | None = None,
) -> Answers:
    """So many clients, each asking again as soon as it is answered; what a retry mends counts as answered, `first` gets first tries."""
    answers, first = Answers(), Answers() if first is None else first
    end = time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < end and not (stop is not None and stop.is_set()):
            tried = Answers()
            for _ in range(1 + retries):
                if await _ask(session, url, body, tried) == 200:
                    break
                await asyncio.sleep(0.2)
            first.add(tried.status[0], tried.seconds[0], tried.retry_after[0])
            answers.add(tried.status[-1], sum(tried.seconds), tried.retry_after[-1])

    async with _session() as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return answers


async def open_loop(url: str, body: bytes, rate: float, seconds: float) -> Answers:
    """`rate` requests a second whatever is answered, evenly spaced."""
    answers = Answers()
    async with _session() as session:
        began = time.monotonic()
        asked = []
        for i in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + i / rate - time.monotonic()))
            asked.append(asyncio.create_task(_ask(session, url, body, answers)))
        await asyncio.gather(*asked)
    return answers
