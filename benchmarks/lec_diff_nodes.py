"""LEC-Diff's latency and memory against the number of stations (Fig. 5), on C2TM's real topology or a generated one; without Ray.

python benchmarks/lec_diff_nodes.py [--only latency|memory] [--topology topology_13269_bs.parquet] [--device cuda] [--model small]
                                    [--json figures.json] [--picture latency.png] [--quick]

Stations are the N around the topology's centre, in groups of `--group` with halos of as many hops as the fusion has, so that what is told
of a group is what the whole city would tell; halo stations are drawn too and their time counts. A day of history is heard once, then one
slot is drawn, `--draws` times. Traffic and weights are random: neither changes the time.

us_per_node_draw_N      microseconds a station and draw, of the drawing of a slot; the history apart, in us_per_node_history_N
growth_exponent         of the time of drawing in the stations, by least squares on logarithms: 1 is in proportion
training_peak_mb_N, sampling_peak_mb_N, idle_peak_mb    most memory of a process that takes one training step, group by group, over N
                        stations, that forecasts N stations, and that only imports (cuda: most memory of the device, no idle_peak_mb)
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro
from measure import PeakMemory, in_fresh_process, spread, write_figures

from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.fit import Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster
from raytraffic.graph import Neighbourhood, partition, station_edges, with_halo
from raytraffic.models.lec_diff import build, preset
from raytraffic.report.station_plots import latency_curves
from raytraffic.sources.stations import StationCities, StationCity
from raytraffic.types import Space, TrafficBatch

STATIONS = (500, 1000, 2000, 4000, 8000, 13_269)
PAPER = (8000, 11.3)
_HISTORY = 48
#: A group's windows that are drawn in one call.
_ROWS = 4


def main(
    only: Literal["latency", "memory"] | None = None,
    topology: Path | None = None,
    device: str = "cpu",
    model: str = "small",
    group: int = 256,
    draws: int = 20,
    repeats: int = 3,
    json: Path | None = None,
    picture: Path | None = None,
    quick: bool = False,
) -> None:
    """Measure latency and memory.

    Args:
        only: One part instead of both.
        topology: Table of stations with lon and lat; generated ones if not given.
        device: cpu (one thread) or cuda.
        model: Preset.
        group: Stations of a group, without its halo.
        draws: Draws of the slot.
        repeats: Measurements of each number of stations; figures are medians.
        json: Where the figures are written.
        picture: Where the curves are drawn (PNG).
        quick: Tiny sizes, figures without meaning.
    """
    torch.set_num_threads(1)
    counts = (40, 80) if quick else STATIONS
    if quick:
        model, group, draws, repeats = "tiny", 20, 2, 1
    xy = generated(max(counts)) if topology is None else projected(topology)
    figures: dict[str, float] = {}
    if only != "memory":
        figures |= latency(xy, counts, model, group, draws, repeats, device)
        if picture is not None:
            totals = [figures[f"us_per_node_draw_{n}"] * n / 1e6 for n in counts]
            Location.of(picture).write_bytes(latency_curves(counts, {device: totals}, paper=PAPER))
    if only != "latency":
        figures |= memory(xy[: counts[-1]], model, group, device)
    write_figures(figures, json)


def projected(topology: Path) -> np.ndarray:
    """(n, 2) metres of the topology's stations, the one in the middle first, the farthest last."""
    table = pq.read_table(topology, columns=["lon", "lat"])
    lon, lat = (np.radians(table[name].to_numpy()) for name in ("lon", "lat"))
    xy = 6_371_000 * np.stack(((lon - np.median(lon)) * np.cos(np.median(lat)), lat - np.median(lat)), axis=1)
    return xy[np.argsort(np.linalg.norm(xy, axis=1), kind="stable")]


def generated(stations: int) -> np.ndarray:
    """The same of a generated city."""
    (city,) = StationCities([StationCity(name="nodes", stations=stations, days=1)]).read("nodes")
    assert city.xy is not None
    return city.xy[np.argsort(np.linalg.norm(city.xy - np.median(city.xy, axis=0), axis=1), kind="stable")]


def windows(xy: np.ndarray, group: int, hops: int, slots: int, hidden: int, env: int) -> TrafficBatch:
    """A window a group with its halo, filled up to one size; random traffic, the last `hidden` slots asked for."""
    edges = station_edges(xy, Neighbourhood())
    members = [with_halo(one, edges, hops) for one in partition(xy, group)]
    size = max(map(len, members))
    places = np.full((len(members), size, 2), np.nan, dtype=np.float32)
    for i, one in enumerate(members):
        places[i, : len(one)] = xy[one]
    generator = torch.Generator().manual_seed(0)
    traffic = torch.exp(torch.randn(len(members), 1, slots, size, generator=generator))
    there = torch.isfinite(torch.from_numpy(places)).all(-1)[:, None, None]
    traffic = torch.where(there, traffic, torch.nan)
    known = torch.isfinite(traffic)
    known[:, :, slots - hidden :] = False
    slot = torch.arange(slots)
    clock = torch.stack((slot % 48, slot // 48 % 7), dim=-1).expand(len(members), -1, -1)
    return TrafficBatch(
        traffic=traffic,
        known=known,
        clock=clock,
        step_minutes=torch.full((len(members),), 30),
        key=torch.arange(len(members)),
        space=Space(xy=torch.from_numpy(places)),
        context={"env": torch.randn(len(members), 1, size, env, generator=generator), "profile": torch.ones(len(members), slots)},
    )


def built(model: str) -> tuple[Forecaster, int, int]:
    """A model with environment vectors, its hops, and their features."""
    torch.manual_seed(0)
    config = replace(preset(model), contexts=("env",), env_features=preset(model).env_features or 64)
    return build(config), config.hops, config.env_features


def latency(xy: np.ndarray, counts: tuple[int, ...], model: str, group: int, draws: int, repeats: int, device: str) -> dict[str, float]:
    """us_per_node_draw_N, us_per_node_history_N and growth_exponent."""
    forecaster, hops, env = built(model)
    forecaster = forecaster.eval().to(device)
    sampler = replace(forecaster.config.sampler, rows=_ROWS)
    figures: dict[str, float] = {}
    for count in counts:
        batch = windows(xy[:count], group, hops, _HISTORY + 1, 1, env).to(device)
        timed(forecaster, batch, sampler, 1)  # kernels are chosen and memory is found
        times = np.array([timed(forecaster, batch, sampler, draws) for _ in range(repeats)])
        figures |= spread(f"us_per_node_draw_{count}", (1e6 * times[:, 1] / (count * draws)).tolist())
        figures[f"us_per_node_history_{count}"] = float(np.median(times[:, 0])) * 1e6 / count
        print(f"{count} stations in {len(batch.key)} groups of up to {batch.shape[3]} with halos", flush=True)
    totals = [figures[f"us_per_node_draw_{count}"] * count for count in counts]
    figures["growth_exponent"] = float(np.polyfit(np.log(counts), np.log(totals), 1)[0])
    return figures


@torch.no_grad()
def timed(forecaster: Forecaster, batch: TrafficBatch, sampler: Sampler, draws: int) -> tuple[float, float]:
    """Seconds of the history, and of the draws."""
    marks = [_now(batch)]
    condition = forecaster.condition(batch)
    marks.append(_now(batch))
    forecaster.draw(batch, condition, sampler, draws, 0)
    marks.append(_now(batch))
    return marks[1] - marks[0], marks[2] - marks[1]


def _now(batch: TrafficBatch) -> float:
    if batch.traffic.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def memory(xy: np.ndarray, model: str, group: int, device: str) -> dict[str, float]:
    """The most memory of each kind of work, in a process of its own (cpu) or on the device."""
    figures: dict[str, float] = {}
    works = {"training": train_once, "sampling": sample_once} | ({} if device == "cuda" else {"idle": nothing})
    for name, work in works.items():
        peak = PeakMemory(every=0.05)
        on_device = in_fresh_process(work, xy, model, group, device, peak=peak)
        figures["idle_peak_mb" if name == "idle" else f"{name}_peak_mb_{len(xy)}"] = on_device or peak.mb
    return figures


def train_once(xy: np.ndarray, model: str, group: int, device: str) -> float:
    """One step over all stations, a group's window at a time, their gradients summed; a window is a day and a half."""
    torch.set_num_threads(1)
    forecaster, hops, env = built(model)
    batch = windows(xy, group, hops, _HISTORY + 24, 24, env).to(device)
    step(forecaster.train().to(device), batch, batch.key, optimiser(forecaster, Optimisation()), 0, Optimisation(), micro_batch=1)
    return _device_mb(device)


def sample_once(xy: np.ndarray, model: str, group: int, device: str) -> float:
    """Four draws of half a day for all stations, some groups at a time."""
    torch.set_num_threads(1)
    forecaster, hops, env = built(model)
    batch = windows(xy, group, hops, _HISTORY + 24, 24, env)
    for some in torch.arange(len(batch.key)).split(_ROWS):
        part = batch.select(some).to(device)
        forecaster.eval().to(device).forecast(part, replace(forecaster.config.sampler, rows=_ROWS), draws=4)
    return _device_mb(device)


def nothing(*_: object) -> float:
    """What a process holds that only imports."""
    time.sleep(0.5)  # long enough to be looked at
    return 0.0


def _device_mb(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else 0.0


if __name__ == "__main__":
    tyro.cli(main)
