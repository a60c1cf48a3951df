"""The service under load: throughput and latency, what the graph costs over a plain call, and what it does at three times its capacity.

python benchmarks/serve_load.py [--preset small] [--seconds 8] [--overload-seconds 60] [--json figures.json]

The application runs on a Ray cluster of this process's own; clients are coroutines of this process. Figures: `rps_<stations>_<clients>`,
`p50_ms_...`, `p99_ms_...`; `graph_overhead_256`, the median time of a request of 256 stations over that of the plain forecast of the same
batch in one process of one thread, asked in turn; of the overload `overload_goodput_ratio` (good answers a second over the most that were
measured without overload), `overload_reject_median_ms`, `overload_p99_ratio` (accepted over one client alone), `overload_rejected_share`,
`retry_after_share`, `other_5xx` and `overload_memory_ratio`.
"""

from __future__ import annotations

import asyncio
import json as json_module
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import tyro
from measure import PeakMemory, write_figures
from serving import Answers, body_of, checkpoint, closed_loop, deployed, local_cluster, open_loop, percentile

from raytraffic.checkpoint import load_forecaster
from raytraffic.on_ray.serve import ServeArgs
from raytraffic.rollout import rollout
from raytraffic.serving.assemble import chunks, sampler_of
from raytraffic.serving.limits import Limits
from raytraffic.serving.models import served_model
from raytraffic.serving.query import read_json

_OVERLOAD_STATIONS = 64


def main(
    preset: str = "small",
    seconds: float = 8.0,
    overload_seconds: float = 60.0,
    repeats: int = 7,
    clients: tuple[int, ...] = (1, 2, 4),
    json: Path | None = None,
    quick: bool = False,
) -> None:
    """Load the service.

    Args:
        preset: The served model (random weights: its speed is a trained one's).
        seconds: Of every combination of stations and clients.
        overload_seconds: Of requests at three times the capacity.
        repeats: Requests of 256 stations that are set against plain calls.
        clients: Clients at a time.
        json: Where the figures are written.
        quick: Seconds and a tiny model: shows that it runs, measures nothing.
    """
    if quick:
        preset, seconds, overload_seconds, repeats, clients = "tiny", 1.0, 2.0, 1, (1,)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, local_cluster():
        folder = checkpoint(Path(name) / "model", preset)
        args = ServeArgs(checkpoints={"uomo": str(folder)}, most_wait_s=1e6, most_requests=1000)
        with deployed(args) as url:
            figures |= overhead(url, folder, repeats)
            for stations in (1, 16, 256):
                for number in clients:
                    found = asyncio.run(closed_loop(url, body_of(stations), number, seconds))
                    figures |= summary(f"{stations}_{number}", found, seconds)
            alone = asyncio.run(closed_loop(url, body_of(_OVERLOAD_STATIONS), 1, 2 * seconds))
            busy = asyncio.run(closed_loop(url, body_of(_OVERLOAD_STATIONS), max(clients), 2 * seconds))
            capacity = max(len(found.good) for found in (alone, busy)) / (2 * seconds)
        # What may wait takes some longer than one request takes alone: enough that requests share calls of the network, and little
        # enough that all that are let in are answered within two such times (requests that share a call take less than their sum).
        wait = 1.6 * statistics.median(alone.good)
        with deployed(args.model_copy(update={"most_wait_s": wait})) as url:
            asyncio.run(closed_loop(url, body_of(_OVERLOAD_STATIONS), 1, seconds))  # the admission learns its rate
            figures |= overload(url, capacity, overload_seconds, alone)
    write_figures(figures, json)


def overhead(url: str, folder: Path, repeats: int) -> dict[str, float]:
    """`graph_overhead_256` with its spread, the direct and the served seconds."""
    body = body_of(256)
    forecaster, _, config = load_forecaster(folder)
    query = read_json(body, Limits(), {"uomo": served_model("uomo", str(folder))})
    (chunk,) = chunks(query, None, (4, 4), 16)
    torch.set_num_threads(1)
    direct, served = [], []
    asyncio.run(closed_loop(url, body, 1, 0.01))  # warm
    for _ in range(repeats):
        began = time.monotonic()
        rollout(forecaster, chunk.batch, config.window, sampler_of(query), query.ask.draws, query.ask.seed)
        direct.append(time.monotonic() - began)
        served += asyncio.run(closed_loop(url, body, 1, 0.01)).good
    ratios = [one / other for one, other in zip(served, direct, strict=True)]
    return {
        "graph_overhead_256": statistics.median(served) / statistics.median(direct),
        "graph_overhead_256_low": min(ratios),
        "graph_overhead_256_high": max(ratios),
        "direct_256_s": statistics.median(direct),
        "served_256_s": statistics.median(served),
    }


def summary(name: str, answers: Answers, seconds: float) -> dict[str, float]:
    """Requests a second and latencies of a closed loop; ValueError where a request was not answered 200."""
    bad = [status for status in answers.status if status != 200]
    if bad:
        raise ValueError(f"{name}: answers {sorted(set(bad))}, expected 200 alone")
    return {
        f"rps_{name}": len(answers.good) / seconds,
        f"p50_ms_{name}": 1000 * percentile(answers.good, 50),
        f"p99_ms_{name}": 1000 * percentile(answers.good, 99),
    }


def overload(url: str, capacity: float, seconds: float, alone: Answers) -> dict[str, float]:
    """Three times the capacity, evenly spaced, for that long."""
    before, after = PeakMemory(), PeakMemory()
    before.sample(os.getpid())
    answers = asyncio.run(open_loop(url, body_of(_OVERLOAD_STATIONS), 3 * capacity, seconds))
    after.sample(os.getpid())
    refused = answers.of(lambda status: status == 503)
    told = [after for status, after in zip(answers.status, answers.retry_after, strict=True) if status == 503]
    print(json_module.dumps({status: answers.status.count(status) for status in sorted(set(answers.status))}))
    return {
        "capacity_rps": capacity,
        "overload_goodput_ratio": len(answers.good) / seconds / capacity,
        "overload_reject_median_ms": 1000 * percentile(refused, 50),
        "overload_p99_ratio": percentile(answers.good, 99) / percentile(alone.good, 99),
        "overload_rejected_share": len(refused) / len(answers.status),
        "retry_after_share": sum(one is not None for one in told) / max(len(told), 1),
        "other_5xx": float(sum((status >= 500 and status != 503) or status == 0 for status in answers.status)),
        "overload_memory_ratio": after.bytes / before.bytes,
    }


if __name__ == "__main__":
    tyro.cli(main)
