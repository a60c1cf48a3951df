"""How long decisions take on one core: sleep control of a fleet for a week, and a deployment over many grids and draws.

python benchmarks/decisions.py [--stations 10000] [--grids 2000] [--deployment-draws 100] [--quick] [--json figures.json]

Demand is synthetic: a daily profile with a level, a phase and gamma noise of its own for every cell. The fleet is drawn and solved
`--piece` stations at a time, as jobs over a fleet do, so the whole of its load never exists at once.
"""

from __future__ import annotations

import os

# Before numpy starts its threads: the figures are of one core.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import time
from pathlib import Path

import numpy as np
import tyro
from measure import PeakMemory, in_fresh_process, write_figures
from numpy.typing import NDArray

from raytraffic.decisions.deployment import Cvar, DeploymentProblem, StationType
from raytraffic.decisions.deployment_program import plan
from raytraffic.decisions.sleep import EnergyCosts, SleepProblem, demand_quantile
from raytraffic.decisions.sleep_chain import schedule
from raytraffic.decisions.solver import SolverLimits

_SMALL, _LARGE = StationType(capacity=50.0, price=1.0), StationType(capacity=120.0, price=1.9)


def demand(rng: np.random.Generator, draws: int, places: int, slots: int, slots_per_day: int) -> NDArray[np.float32]:
    """(draws, places, slots) with a mean of some 50 a place, a tenth of the places without any."""
    level = rng.gamma(0.8, 60.0, (places, 1)) * (rng.random((places, 1)) < 0.9)
    phase = rng.normal(0.0, 0.1, (places, 1))
    profile = 1 + 0.8 * np.sin(2 * np.pi * (np.arange(slots) / slots_per_day - 0.25 - phase))
    return (level * profile * rng.gamma(8.0, 1 / 8, (draws, places, slots))).astype(np.float32)


def fleet(stations: int, cells: int, draws: int, piece: int, least_slots: int) -> dict[str, float]:
    """Seconds, switches and energy of sleep control of `stations` x `cells` over a week of 15-minute slots, piece by piece."""
    drawing = solving = switches = energy = always = 0.0
    for first in range(0, stations, piece):
        began = time.perf_counter()
        rng = np.random.default_rng([7, first])
        here = min(piece, stations - first) * cells
        load = demand(rng, draws, here, 672, 96)
        capacity, rrus = np.full(here, 30.0), np.full(here, 8)
        drawing += time.perf_counter() - began
        began = time.perf_counter()
        problem = SleepProblem(
            load=load,
            rru_capacity=capacity,
            rrus=rrus,
            energy=EnergyCosts(per_loaded_rru=0.02, per_active_rru=0.05),
            switch_cost=0.1,
            must_serve=demand_quantile(load, 0.9),
            least_active=1,
            least_on_slots=least_slots,
            least_off_slots=least_slots,
        )
        found = schedule(problem)
        solving += time.perf_counter() - began
        switches += float(found.terms.switches.sum())
        energy += float(found.terms.energy.mean(axis=0).sum())
        always += 8 * 0.05 * here * 672 + 0.02 * float(load.mean(axis=0, dtype=np.float64).sum()) / 30
    return {
        "seconds": solving,
        "drawing_seconds": drawing,
        "switches_per_cell_day": switches / (stations * cells * 7),
        "energy": energy / always,
    }


def deployment(grids: int, draws: int, seconds: float, variant: str) -> dict[str, float]:
    """Seconds and gap of a deployment over two days of 30-minute slots: `plain` (one type), `types` (two, money) or `cvar`."""
    problem = DeploymentProblem(
        demand=demand(np.random.default_rng(11), draws, grids, 96, 48),
        station_types=(_SMALL,) if variant == "plain" else (_SMALL, _LARGE),
        most_stations=grids // 2 if variant == "plain" else None,
        money=None if variant == "plain" else grids / 2,
        grid_limit=np.full(grids, 8),
        cvar=Cvar(level=0.9, weight=0.5) if variant == "cvar" else None,
    )
    began = time.perf_counter()
    found = plan(problem, SolverLimits(seconds=seconds))
    terms = found.terms
    return {
        "seconds": time.perf_counter() - began,
        "gap": found.proof.gap if np.isfinite(found.proof.gap) else 1e9,
        "optimal": float(found.proof.status == "optimal"),
        "served_ratio": float(terms.served.sum() / terms.offered.sum()),
    }


def main(
    stations: int = 10_000,
    cells: int = 1,
    sleep_draws: int = 1,
    least_slots: int = 4,
    piece: int = 500,
    grids: int = 2_000,
    deployment_draws: int = 100,
    seconds: float = 120.0,
    quick: bool = False,
    json: Path | None = None,
) -> None:
    """Measure decisions.

    Args:
        stations: Base stations of the fleet.
        cells: Cells of a station.
        sleep_draws: Draws of the load.
        least_slots: Least time on and off in slots of 15 minutes, beside a run without.
        piece: Stations that are drawn and solved at once.
        grids: Grids of the deployment.
        deployment_draws: Draws of the demand.
        seconds: Time limit of one deployment.
        quick: Tiny sizes; the figures mean nothing.
        json: Where the figures are written.
    """
    if quick:
        stations, piece, grids, deployment_draws = 20, 10, 30, 5
    memory = PeakMemory(every=0.05)
    in_fresh_process(time.sleep, 1.0, peak=memory)
    figures = {"imports_mb": memory.mb}
    for slots in dict.fromkeys((1, least_slots)):
        memory = PeakMemory()
        found = in_fresh_process(fleet, stations, cells, sleep_draws, piece, slots, peak=memory)
        figures |= {f"sleep_least_{slots}_{name}": value for name, value in found.items()}
        figures[f"sleep_least_{slots}_peak_mb"] = memory.mb
    for variant in ("plain", "types", "cvar"):
        memory = PeakMemory()
        found = in_fresh_process(deployment, grids, deployment_draws, seconds, variant, peak=memory)
        figures |= {f"deployment_{variant}_{name}": value for name, value in found.items()}
        figures[f"deployment_{variant}_peak_mb"] = memory.mb
    write_figures(figures, json)


if __name__ == "__main__":
    tyro.cli(main)
