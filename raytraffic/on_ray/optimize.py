"""From a forecast to a decision on the cluster: one task a deployment, and pieces of cells through Ray Data for sleep control."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from raytraffic.config import to_json
from raytraffic.config.decisions import OptimizeConfig, SleepSettings
from raytraffic.decisions.deployment import DeploymentPlan, DeploymentProblem
from raytraffic.decisions.deployment_program import plan
from raytraffic.decisions.outcome import LEVEL, Decision, Deployed, Slept, deployed, plan_table, proof_json, schedule_table, slept
from raytraffic.decisions.problems import (
    FORECAST,
    REAL,
    Installed,
    deployment_problem,
    installed,
    last_week,
    sleep_problem,
    standing,
    strategy_demands,
    strategy_weights,
)
from raytraffic.decisions.reading import Demand, read_demand, read_values, station_types
from raytraffic.decisions.site_tables import read_per_site
from raytraffic.decisions.sleep import sleep_terms
from raytraffic.decisions.sleep_chain import schedule
from raytraffic.decisions.solver import Proof, SolverLimits
from raytraffic.files import Location
from raytraffic.lease import held
from raytraffic.on_ray.cluster import connect, dataset
from raytraffic.on_ray.progress import Stage
from raytraffic.report.decisions import deployment_report, sleep_report

__all__ = ["optimize"]

_PIECE_ENTRIES = 4_000_000  # (draw, cell, slot) of a piece of cells: some tens of megabytes


def optimize(config: OptimizeConfig) -> Location:
    """Decides, judges the decision, writes table, summary and report into `out` and returns it; an earlier decision there is replaced.

    Raises ValueError, before anything is computed, for files and settings that do not fit each other.
    """
    began = time.monotonic()
    out = Location.of(config.out)
    demand = read_demand(config.forecast, config.cities, config.service)
    real = None if config.real is None else read_values(config.real, demand.sites, demand.slots, config.service)
    past = None if config.history is None else last_week(config.history, demand, config.service)
    places = None if config.sites is None else read_per_site(config.sites, demand.sites, ("lat", "lon"))
    weights = {} if config.weights is None else strategy_weights(config.weights, demand.sites)
    demands = strategy_demands(demand, real, past, weights)
    with held(out):
        if config.problem == "deployment":
            built = _deployment(config, demand, real, demands)
            out.child("plan.parquet").write_table(plan_table(built))
            _write_summary(config, built, {"spent": built.plan.spent, "built": int(built.plan.built.sum())}, began)
            deployment_report(out, built, places, to_json(config))
        else:
            scheduled = _sleep(config, demand, real, demands)
            out.child("schedule.parquet").write_table(schedule_table(scheduled))
            _write_summary(config, scheduled, {"overloaded_slots": int(scheduled.overloaded.sum())}, began)
            sleep_report(out, scheduled, to_json(config))
    return out


def _write_summary(config: OptimizeConfig, found: Decision, figures: Mapping[str, float], began: float) -> None:
    """Status, gap and seconds of the solver, the objective's terms, and the measures of every strategy."""
    terms = {row.name: row.promised for row in found.judged if row.strategy == FORECAST}
    told = {
        "problem": config.problem,
        "sites": len(found.demand.sites),
        "slots": len(found.demand.slots),
        "step_minutes": found.demand.step_minutes,
        "draws": len(found.demand.draws),
        **proof_json(found.proofs[FORECAST]),
        **figures,
        **terms,
        "interval_level": LEVEL,
        "strategies": {name: proof_json(one) for name, one in found.proofs.items()},
        "measures": [asdict(row) for row in found.judged],
        "seconds": time.monotonic() - began,
        "config": to_json(config),
    }
    Location.of(config.out).child("summary.json").write_bytes(json.dumps(told, indent=1).encode())


def _deployment(
    config: OptimizeConfig, demand: Demand, real: NDArray[np.floating] | None, demands: Mapping[str, NDArray[np.floating]]
) -> Deployed:
    """Every strategy's plan, one task each, and what they are worth."""
    types = station_types(config.deployment.station_types)
    existing = standing(config.deployment, list(types), demand.sites)
    problem = deployment_problem(config.deployment, demand.draws, list(types.values()), existing)
    limits = SolverLimits(seconds=config.seconds, gap=config.gap)
    connect()
    tasks = {_planned.remote(replace(problem, demand=wanted), limits): name for name, wanted in demands.items()}
    plans: dict[str, DeploymentPlan] = {}
    with Stage("optimize", len(tasks)) as stage:
        waiting = list(tasks)
        while waiting:
            (ended,), waiting = ray.wait(waiting, num_returns=1)
            plans[tasks[ended]] = ray.get(ended)
            stage.advance(1, tasks[ended])
    return deployed(demand, real, list(types), problem, {name: plans[name] for name in demands})


@ray.remote
def _planned(problem: DeploymentProblem, limits: SolverLimits) -> DeploymentPlan:
    return plan(problem, limits)


def _sleep(config: OptimizeConfig, demand: Demand, real: NDArray[np.floating] | None, demands: Mapping[str, NDArray[np.floating]]) -> Slept:
    """Every strategy's schedule, in pieces of cells, and what they are worth."""
    cells = installed(config.sleep, demand.sites)
    problem = sleep_problem(config.sleep, demand.draws, cells, promise=False)
    items = [item for name, load in demands.items() for item in _pieces(name, load, cells, config.workers)]
    active = {name: np.zeros((problem.cells, problem.slots), dtype=np.int16) for name in demands}
    overloaded = np.zeros((problem.cells, problem.slots), dtype=bool)
    connect()
    began = time.monotonic()
    with Stage("optimize", problem.cells * len(demands)) as stage:
        pool = ray.data.ActorPoolStrategy(size=min(config.workers, len(items)))
        done = dataset(items).map_batches(_Schedules, fn_constructor_args=(config.sleep,), batch_size=1, compute=pool, num_cpus=1)
        for row in done.iter_rows():
            piece = slice(row["first"], row["first"] + len(row["active"]))
            active[row["strategy"]][piece] = row["active"]
            if row["strategy"] == FORECAST:
                overloaded[piece] = row["overloaded"]
            stage.advance(len(row["active"]), row["strategy"])
    seconds = time.monotonic() - began
    made_for = {name: replace(problem, load=load) for name, load in demands.items()}
    objectives = {name: -float(sleep_terms(made_for[name], active[name]).objective.sum(axis=1).mean()) for name in demands}
    proofs = {name: Proof(status="optimal", objective=value, bound=value, seconds=seconds) for name, value in objectives.items()}
    return slept(demand, real, cells, problem, active, proofs, overloaded)


def _pieces(strategy: str, load: NDArray[np.floating], cells: Installed, workers: int) -> Iterator[dict[str, Any]]:
    """Cells in pieces that fit in memory and keep all workers busy; a cell's schedule does not depend on its piece."""
    draws, count, slots = load.shape
    step = max(1, min(math.ceil(count / workers), _PIECE_ENTRIES // (draws * slots)))
    for first in range(0, count, step):
        piece = slice(first, first + step)
        yield {
            "strategy": strategy,
            "first": first,
            "load": load[:, piece],
            "rrus": cells.rrus[piece],
            "rru_capacity": cells.rru_capacity[piece],
        }


class _Schedules:
    """Schedules pieces of cells. Knowing what comes, the upper bound needs no promise to be safe."""

    def __init__(self, settings: SleepSettings) -> None:
        self.settings = settings

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, Any]:
        one = {name: values[0] for name, values in item.items()}
        cells = Installed(rrus=one["rrus"], rru_capacity=one["rru_capacity"])
        found = schedule(sleep_problem(self.settings, one["load"], cells, promise=one["strategy"] != REAL))
        return {
            "strategy": [one["strategy"]],
            "first": [one["first"]],
            "active": found.active[None],
            "overloaded": found.overloaded[None],
        }
