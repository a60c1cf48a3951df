"""The planner under load: how long clients wait for decisions, what of that is the solver, and what forecasts pay for it meanwhile.

python benchmarks/planner.py [--preset small] [--seconds 30] [--clients 1 2 4] [--repeats 5] [--json figures.json] [--quick]

The application runs on a Ray cluster of this process's own; clients are coroutines of this process and ask again as soon as they are
answered. A request holds the draws it is decided on: `sleep` 200 cells x a week of hours x 20 draws, `deployment` 64 grids x a day x 20.

    <route>_p50_ms_<clients>, _p99_ms_, _per_s_   latency of answers, and how many of them a second
    <route>_solver_share_<clients>                the solver's seconds, as the answers tell them, over the clients' seconds of waiting
    <route>_solver_busy_<clients>                 the same over the seconds of the clock: how busy the solver keeps its one replica
    forecast_p50_ms_alone_<route>, _beside_       latency of one client's forecasts of 16 stations, alone and while two other clients decide
    forecast_beside_<route>_ratio                 the latter over the former, of blocks in turn; the median with `_low` and `_high`
"""

from __future__ import annotations

import asyncio
import json as json_module
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import tyro
from decisions import demand
from measure import spread, write_figures
from serving import Answers, body_of, checkpoint, closed_loop, deployed, local_cluster, percentile

from raytraffic.on_ray.serve import ServeArgs

#: What clients that decide beside forecasts number.
_DECIDING = 2


@dataclass(frozen=True)
class Load:
    """Requests for one kind of decision."""

    route: str
    body: bytes


@dataclass
class Decided:
    """What clients were answered: seconds of waiting, and those of them that the solver says were its own."""

    waited: list[float] = field(default_factory=list)
    solving: list[float] = field(default_factory=list)


def sleep_load(cells: int, slots: int, draws: int) -> Load:
    """Sleep control of `cells` by the hour."""
    return Load("sleep", _body(cells, slots, draws, {"rrus": 8, "rru_capacity": 30.0, "served_share": 0.9, "least_active": 1}))


def deployment_load(grids: int, slots: int, draws: int) -> Load:
    """A deployment of two kinds of station within a budget."""
    types = {"small": {"capacity": 50.0, "price": 1.0}, "large": {"capacity": 120.0, "price": 1.9}}
    return Load("deployment", _body(grids, slots, draws, {"station_types": types, "money": grids / 2, "grid_limit": 8}))


def _body(places: int, slots: int, draws: int, problem: dict[str, Any]) -> bytes:
    """A request whose draws are those of benchmarks/decisions.py."""
    values = demand(np.random.default_rng(7), draws, places, slots, 24).astype(float).round(2)
    hours = np.datetime64("2024-03-04T00:00") + np.arange(slots) * np.timedelta64(1, "h")
    drawn = {
        "unique_id": [f"s{i}" for i in range(places) for _ in range(slots)],
        "ds": [str(hour) for hour in hours] * places,
        "draws": values.transpose(1, 2, 0).reshape(-1, draws).tolist(),
    }
    return json_module.dumps({"draws": drawn, **problem}).encode()


async def decisions(url: str, load: Load, clients: int, seconds: float) -> Decided:
    """So many clients, each asking again as soon as it is answered; ValueError for an answer other than 200."""
    found = Decided()
    end = time.monotonic() + seconds
    headers = {"Content-Type": "application/json"}

    async def client(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            async with session.post(f"{url}/v1/{load.route}", data=load.body, headers=headers) as answer:
                content = await answer.read()
                if answer.status != 200:
                    raise ValueError(f"{load.route}: answer {answer.status} {content[:200]!r}, expected 200")
            found.waited.append(time.monotonic() - began)
            found.solving.append(json_module.loads(content)["solver_seconds"])

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return found


def under_load(url: str, load: Load, clients: int, seconds: float) -> dict[str, float]:
    """Latency, answers a second, and the solver's shares, of so many clients."""
    began = time.monotonic()
    found = asyncio.run(decisions(url, load, clients, seconds))
    elapsed = time.monotonic() - began
    return {
        f"{load.route}_p50_ms_{clients}": 1000 * percentile(found.waited, 50),
        f"{load.route}_p99_ms_{clients}": 1000 * percentile(found.waited, 99),
        f"{load.route}_per_s_{clients}": len(found.waited) / elapsed,
        f"{load.route}_solver_share_{clients}": sum(found.solving) / sum(found.waited),
        f"{load.route}_solver_busy_{clients}": sum(found.solving) / elapsed,
    }


async def _beside(url: str, body: bytes, load: Load, seconds: float) -> list[float]:
    """Seconds of one client's forecasts while others decide."""
    deciding = asyncio.create_task(decisions(url, load, _DECIDING, seconds))
    answers = await closed_loop(url, body, 1, seconds)
    await deciding
    return _answered(answers)


def _answered(answers: Answers) -> list[float]:
    """Seconds of all answers; ValueError unless they are all good."""
    bad = [status for status in answers.status if status != 200]
    if bad:
        raise ValueError(f"forecast: answers {sorted(set(bad))}, expected 200 alone")
    return answers.good


def forecasts_beside(url: str, load: Load, seconds: float, repeats: int) -> dict[str, float]:
    """What forecasts pay while decisions are made: blocks alone and beside, in turn; what comes first turns round every time."""
    body = body_of(16)
    alone, beside = [], []
    for repeat in range(repeats):
        for decided in (False, True) if repeat % 2 == 0 else (True, False):
            if decided:
                beside.append(statistics.median(asyncio.run(_beside(url, body, load, seconds))))
            else:
                alone.append(statistics.median(_answered(asyncio.run(closed_loop(url, body, 1, seconds)))))
    ratios = [busy / quiet for busy, quiet in zip(beside, alone, strict=True)]
    return {
        f"forecast_p50_ms_alone_{load.route}": 1000 * statistics.median(alone),
        f"forecast_p50_ms_beside_{load.route}": 1000 * statistics.median(beside),
        **spread(f"forecast_beside_{load.route}_ratio", ratios),
    }


def main(
    preset: str = "small",
    seconds: float = 30.0,
    clients: tuple[int, ...] = (1, 2, 4),
    repeats: int = 5,
    json: Path | None = None,
    quick: bool = False,
) -> None:
    """Load the planner.

    Args:
        preset: The served model of the forecasts (random weights: its speed is a trained one's).
        seconds: Of every number of clients, and of every block of forecasts a third of it.
        clients: Clients at a time.
        repeats: Blocks of forecasts alone and beside decisions.
        json: Where the figures are written.
        quick: Seconds and tiny sizes: shows that it runs, measures nothing.
    """
    loads = [sleep_load(200, 168, 20), deployment_load(64, 24, 20)]
    if quick:
        preset, seconds, clients, repeats = "tiny", 1.0, (1,), 1
        loads = [sleep_load(10, 24, 2), deployment_load(8, 4, 2)]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, local_cluster():
        folder = checkpoint(Path(name) / "model", preset)
        with deployed(ServeArgs(checkpoints={"uomo": str(folder)}, most_wait_s=1e6)) as url:
            for load in loads:
                figures[f"{load.route}_body_mb"] = len(load.body) / 1e6
                asyncio.run(decisions(url, load, 1, 0.01))  # the first is the slowest
                for number in clients:
                    figures |= under_load(url, load, number, seconds)
            asyncio.run(closed_loop(url, body_of(16), 1, min(seconds, 3.0)))
            for load in loads:
                figures |= forecasts_beside(url, load, seconds / 3, repeats)
    write_figures(figures, json)


if __name__ == "__main__":
    tyro.cli(main)
