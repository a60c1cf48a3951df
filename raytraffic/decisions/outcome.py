"""What came of a decision: every strategy's measures as promised and as it really was, and the tables that are handed on.

Gains are measured from deciding nothing (no station built; all radio units always on) to knowing what comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raytraffic.decisions.deployment import DeploymentPlan, DeploymentProblem
from raytraffic.decisions.evaluation import Measures, deployment_measures, interval, side_by_side, sleep_measures
from raytraffic.decisions.problems import ALL_ON, FORECAST, NOTHING_BUILT, REAL, Installed
from raytraffic.decisions.reading import Demand
from raytraffic.decisions.sleep import SleepProblem
from raytraffic.decisions.solver import Proof

__all__ = [
    "LEVEL",
    "Decision",
    "Deployed",
    "Judged",
    "Slept",
    "deployed",
    "judge",
    "plan_table",
    "proof_json",
    "schedule_table",
    "slept",
]

#: Of the intervals over the forecast's draws.
LEVEL = 0.8


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One measure of one strategy."""

    strategy: str
    name: str
    promised: float
    """Mean over the forecast's draws."""
    low: float
    high: float
    """The central interval of `LEVEL` over those draws."""
    real: float | None
    """On what really came, where that is known."""
    gain_share: float | None
    """Of the possible gain; None without real traffic, and where there is none to be had."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """What both problems tell of themselves."""

    demand: Demand
    real: NDArray[np.floating] | None
    """(sites, slots) where known."""
    judged: Sequence[Judged]
    proofs: Mapping[str, Proof]
    """How good each strategy's decision is known to be, on the demand it was made for."""

    def value(self, name: str, strategy: str = FORECAST) -> Judged:
        """A measure of a strategy."""
        return next(row for row in self.judged if (row.strategy, row.name) == (strategy, name))


@dataclass(frozen=True, kw_only=True, eq=False)
class Deployed(Decision):
    """A deployment by the forecast."""

    types: Sequence[str]
    problem: DeploymentProblem
    plan: DeploymentPlan


@dataclass(frozen=True, kw_only=True, eq=False)
class Slept(Decision):
    """A schedule by the forecast."""

    cells: Installed
    problem: SleepProblem
    active: NDArray[np.int16]
    """(cells, slots)"""
    overloaded: NDArray[np.bool_]
    """(cells, slots) where the promise asks for more RRUs than are installed."""


def deployed(
    demand: Demand,
    real: NDArray[np.floating] | None,
    types: Sequence[str],
    problem: DeploymentProblem,
    plans: Mapping[str, DeploymentPlan],
) -> Deployed:
    """What the plans of all strategies are worth by the forecast, and on what really came (sites, slots), beside building nothing."""
    stations = {name: one.stations for name, one in plans.items()} | {NOTHING_BUILT: problem.standing}
    promised = {name: deployment_measures(problem, x) for name, x in stations.items()}
    on_real = None if real is None else replace(problem, demand=real[None])
    judged = None if on_real is None else {name: deployment_measures(on_real, x) for name, x in stations.items()}
    return Deployed(
        demand=demand,
        real=real,
        judged=judge(promised, judged, nothing=NOTHING_BUILT),
        proofs={name: one.proof for name, one in plans.items()},
        types=types,
        problem=problem,
        plan=plans[FORECAST],
    )


def slept(
    demand: Demand,
    real: NDArray[np.floating] | None,
    cells: Installed,
    problem: SleepProblem,
    active: Mapping[str, NDArray[np.int16]],
    proofs: Mapping[str, Proof],
    overloaded: NDArray[np.bool_],
) -> Slept:
    """What the schedules (cells, slots) of all strategies are worth by the forecast, and on what really came, beside all RRUs always on."""
    schedules = {**active, ALL_ON: np.repeat(cells.rrus[:, None], problem.slots, axis=1).astype(np.int16)}
    promised = {name: sleep_measures(problem, x) for name, x in schedules.items()}
    on_real = None if real is None else replace(problem, load=real[None])
    judged = None if on_real is None else {name: sleep_measures(on_real, x) for name, x in schedules.items()}
    return Slept(
        demand=demand,
        real=real,
        judged=judge(promised, judged, nothing=ALL_ON),
        proofs=proofs,
        cells=cells,
        problem=problem,
        active=active[FORECAST],
        overloaded=overloaded,
    )


def proof_json(proof: Proof) -> dict[str, Any]:
    """What is known of a solution; None where there is no bound yet."""
    return {
        "status": proof.status,
        "solver_objective": proof.objective,
        "bound": proof.bound if math.isfinite(proof.bound) else None,
        "gap": proof.gap if math.isfinite(proof.gap) else None,
        "solver_seconds": proof.seconds,
    }


def judge(promised: Mapping[str, Measures], real: Mapping[str, Measures] | None, *, nothing: str) -> list[Judged]:
    """All strategies and measures; `nothing` names the strategy that decides nothing."""
    if real is not None:
        return [
            Judged(
                strategy=row.strategy,
                name=row.name,
                promised=float(promised[row.strategy][row.name].mean()),
                low=interval(promised[row.strategy][row.name], LEVEL)[0],
                high=interval(promised[row.strategy][row.name], LEVEL)[1],
                real=row.real,
                gain_share=row.gain_share,
            )
            for row in side_by_side(real, naive=nothing, best=REAL)
        ]
    return [
        Judged(
            strategy=strategy,
            name=name,
            promised=float(values.mean()),
            low=interval(values, LEVEL)[0],
            high=interval(values, LEVEL)[1],
            real=None,
            gain_share=None,
        )
        for strategy, measures in promised.items()
        for name, values in measures.items()
    ]


def plan_table(found: Deployed) -> pa.Table:
    """One row a site: stations built and standing by type, their capacity, mean demand a slot, and what of it is not served."""
    plan, slots = found.plan, found.problem.slots
    columns = _site_columns(found.demand, 1)
    for k, name in enumerate(found.types):
        columns[f"built_{name}"] = plan.built[:, k]
        columns[f"stations_{name}"] = plan.stations[:, k]
    capacity = plan.stations @ found.problem.capacities
    columns["capacity"] = capacity
    columns["demand"] = plan.terms.offered.mean(axis=0) / slots
    columns["unserved"] = plan.terms.shortfall.mean(axis=0) / slots
    if found.real is not None:
        columns["real_demand"] = found.real.mean(axis=1)
        columns["real_unserved"] = np.maximum(found.real - capacity[:, None], 0).mean(axis=1)
    return pa.table(columns)


def schedule_table(found: Slept) -> pa.Table:
    """One row a site and slot: active RRUs, their capacity, the mean load, and whether the promise asks for more than is installed."""
    columns = _site_columns(found.demand, len(found.demand.slots))
    columns["ds"] = np.tile(found.demand.slots, len(found.demand.sites))
    columns["active"] = found.active.ravel()
    columns["capacity"] = (found.active * found.cells.rru_capacity[:, None]).ravel()
    columns["load"] = found.problem.load.mean(axis=0, dtype=np.float64).ravel()
    columns["overloaded"] = found.overloaded.ravel()
    if found.real is not None:
        columns["real_load"] = found.real.ravel()
    return pa.table(columns)


def _site_columns(demand: Demand, repeats: int) -> dict[str, pa.Array | NDArray[np.generic]]:
    """City and unique_id of every site, each `repeats` times."""
    indices = pa.array(np.repeat(np.arange(len(demand.sites), dtype=np.int32), repeats))
    cities, names = (pa.array(values, pa.string()) for values in zip(*demand.sites, strict=True))
    return {"city": cities.take(indices), "unique_id": names.take(indices)}
