"""Preparation of many cities through Ray Data: cities and measurements a second with one CPU and with two, and peak memory.

python benchmarks/preparation.py [--cities 200] [--repeats 1] [--json figures.json] [--quick]

`scaling_2_cpus`: time of `raytraffic prepare` on a Ray of one CPU over its time on one of two, the start of Ray left out.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

import ray
import tyro
from measure import PeakMemory, alternate, in_fresh_process, spread, write_figures

from raytraffic.config import PrepareConfig
from raytraffic.on_ray.prepare import prepare


def main(cities: int = 200, repeats: int = 1, json: Path | None = None, quick: bool = False) -> None:
    """Measure preparation.

    Args:
        cities: Synthetic cities of 16 x 16 cells, 28 days of 30 minutes each.
        repeats: Runs with each number of CPUs, in turn.
        json: Where the figures are written.
        quick: Four small cities: shows that it runs, measures nothing.
    """
    cities, form = (4, "grid=8x8&days=8") if quick else (cities, "grid=16x16&days=28")
    sources = tuple(f"synthetic:city-{i:03d}?step=30&{form}" for i in range(cities))
    seconds = alternate({str(cpus): partial(in_fresh_process, _prepare, sources, cpus) for cpus in (1, 2)}, repeats)
    # Looking at the memory of all processes takes time from them: it is done in runs of its own.
    peaks = {cpus: PeakMemory() for cpus in (1, 2)}
    for cpus, peak in peaks.items():
        in_fresh_process(_prepare, sources, cpus, peak=peak)
        print(f"{cpus} CPU: {peak}")
    write_figures(
        {
            "cities": float(cities),
            **spread("cities_per_s_1_cpu", [cities / value for value in seconds["1"]]),
            **spread("cities_per_s_2_cpus", [cities / value for value in seconds["2"]]),
            **spread("scaling_2_cpus", [one / two for one, two in zip(seconds["1"], seconds["2"], strict=True)]),
            "peak_mb_1_cpu": peaks[1].mb,
            "peak_mb_2_cpus": peaks[2].mb,
        },
        json,
    )


def _prepare(sources: tuple[str, ...], cpus: int) -> float:
    """Seconds of a preparation on a Ray of its own."""
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        prepare(PrepareConfig(sources=sources, out=f"{folder}/store"))
        seconds = time.monotonic() - began
    ray.shutdown()
    return seconds


if __name__ == "__main__":
    tyro.cli(main)
