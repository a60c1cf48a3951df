"""A fleet forecast from start to end: stations a second, what Ray and files cost over the bare model loop, and memory as the fleet doubles.

python benchmarks/fleet.py [--stations 10000] [--draws 20] [--preset small] [--repeats 1] [--json figures.json] [--quick]

`stations_per_s`: `raytraffic forecast` as a user runs it, from the start of its process (Ray included) to the manifest, two workers of
one thread. `end_to_end_ratio`: its time over that of the bare loop, two processes of one thread that hold the model and the batches
already and only call it, on the same stations. `memory_ratio_2x`: peak memory of all its processes, together, with twice the stations;
looking at memory costs time, so it is measured in runs of their own (of one sampler step, which changes no memory).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import torch
import tyro
from measure import PeakMemory, spread, write_figures

from raytraffic import registry
from raytraffic.checkpoint import load_forecaster, save_forecaster
from raytraffic.config import ForecastConfig
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.forecasting import ForecastRequest, issue_windows
from raytraffic.rollout import rollout
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity
from raytraffic.store import Layout, open_store, prepare_store
from raytraffic.types import TrafficBatch
from raytraffic.windows import windows_for

HOURS = 16
STEP_MINUTES = 30
WORKERS = 2


@dataclass
class Memory:
    """Peak memory (MB) of one fleet forecast: of the driver and of all processes."""

    driver_mb: float
    all_mb: float


def main(
    stations: int = 10_000,
    draws: int = 20,
    preset: str = "small",
    steps: int = 10,
    repeats: int = 1,
    json: Path | None = None,
    quick: bool = False,
) -> None:
    """Measure a fleet forecast.

    Args:
        stations: Stations of the fleet, rounded up to whole synthetic cities of 40 x 50 cells; memory is compared with twice as many.
        draws: Draws of every station.
        preset: The model, with random weights.
        steps: Sampler steps.
        repeats: Runs of forecast and bare loop, in turn.
        json: Where the figures are written.
        quick: Few stations and a tiny model: shows that it runs, measures nothing.
    """
    grid = (8, 8) if quick else (40, 50)
    cities = max(1, -(-stations // (grid[0] * grid[1]))) if not quick else 1
    preset, draws, steps = ("tiny", 2, 2) if quick else (preset, draws, steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _fleet(folder / "once", cities, grid)
        _fleet(folder / "twice", 2 * cities, grid)
        _model(folder / "model", preset)
        settings = (draws, steps)
        runs, bare = [], []
        for repeat in range(repeats):
            runs.append(_forecast(folder, folder / "once", folder / f"out-{repeat}", *settings, None))
            bare.append(_bare(folder / "model", folder / "once", *settings))
            print(f"repeat {repeat + 1} of {repeats}: forecast {runs[-1]:.1f} s, bare loop {bare[-1]:.1f} s", flush=True)
        memory = []
        for fleet in ("once", "twice"):
            memory.append(Memory(0.0, 0.0))
            _forecast(folder, folder / fleet, folder / f"out-{fleet}", draws, 1, memory[-1])
            print(f"{fleet} the stations: {memory[-1]}", flush=True)
    count = cities * grid[0] * grid[1]
    write_figures(
        {
            "stations": float(count),
            "draws": float(draws),
            **spread("stations_per_s", [count / seconds for seconds in runs]),
            **spread("seconds", runs),
            **spread("bare_loop_seconds", bare),
            **spread("end_to_end_ratio", [seconds / alone for seconds, alone in zip(runs, bare, strict=True)]),
            "peak_mb_driver": memory[0].driver_mb,
            "peak_mb_all": memory[0].all_mb,
            "peak_mb_driver_2x": memory[1].driver_mb,
            "peak_mb_all_2x": memory[1].all_mb,
            "memory_ratio_2x": memory[1].all_mb / memory[0].all_mb,
        },
        json,
    )


def _fleet(folder: Path, cities: int, grid: tuple[int, int]) -> None:
    source = SyntheticCities([SyntheticCity(name=f"city-{i:03d}", grid=grid, days=8, step_minutes=STEP_MINUTES) for i in range(cities)])
    prepare_store((source.read(name) for name in source.names()), Location.of(folder), Layout())


def _model(folder: Path, preset: str) -> None:
    torch.manual_seed(0)
    config = registry.model("uomo").preset(preset)
    save_forecaster(folder, registry.model("uomo").build(config).state_dict(), "uomo", config, {})


def _forecast(folder: Path, store: Path, out: Path, draws: int, steps: int, memory: Memory | None) -> float:
    """Seconds of the whole command, as a process of its own, whose `memory` is watched."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    options = {"checkpoint": folder / "model", "store": store, "out": out, "hours": HOURS, "draws": draws, "steps": steps}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))] + ["--workers", str(WORKERS)]
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "raytraffic.cli", "forecast", *words], env=environment, stdout=subprocess.DEVNULL)
    if memory is not None:
        _watch(process, memory)
    status = process.wait()
    seconds = time.monotonic() - began
    if status:
        raise RuntimeError(f"forecast: exit status {status}, expected 0")
    return seconds


def _watch(process: subprocess.Popen[bytes], memory: Memory) -> None:
    """Notes the most memory until the process ends."""
    peak = PeakMemory()
    while process.poll() is None:
        peak.sample(process.pid)
        with suppress(psutil.Error):
            memory.driver_mb = max(memory.driver_mb, psutil.Process(process.pid).memory_full_info().pss / 1e6)
        time.sleep(0.5)
    memory.all_mb = peak.mb
    print(peak)


def _bare(model: Path, store: Path, draws: int, steps: int) -> float:
    """Seconds of nothing but the model, in as many processes as the forecast has workers; loading and cutting are not counted."""
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        return max(pool.map(_share, [(model, store, draws, steps, i) for i in range(WORKERS)]))


def _share(task: tuple[Path, Path, int, int, int]) -> float:
    model, store, draws, steps, number = task
    torch.set_num_threads(1)
    forecaster, _, config = load_forecaster(model)
    windows = windows_for(open_store(store), "all", config)
    batch_size = ForecastConfig(checkpoint="", out="").batch
    request = ForecastRequest(horizon=HOURS * 60 // STEP_MINUTES, draws=draws)
    rows, starts = issue_windows(windows, request, None, STEP_MINUTES)
    batches: list[TrafficBatch] = []
    for at in range(0, len(rows), batch_size):
        if (at // batch_size) % WORKERS == number:
            part = slice(at, at + batch_size)
            columns = windows.cut(np.array(rows[part]), np.array(starts[part]), request.history(windows.window), request.horizon)
            batches.append(windows.batch(columns))
    began = time.monotonic()
    for batch in batches:
        rollout(forecaster, batch, windows.window, Sampler("dpm++", steps), draws, 0)
    return time.monotonic() - began


if __name__ == "__main__":
    tyro.cli(main)
