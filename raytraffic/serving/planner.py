"""Decisions as the planner makes them, in a process of its own: a problem, solved within its time, and the answer that is sent.

A solver that runs out of time answers with the best plan it has, and its `status` says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from raytraffic.decisions.deployment import DeploymentProblem
from raytraffic.decisions.deployment_program import plan
from raytraffic.decisions.outcome import LEVEL, Decision, deployed, plan_table, proof_json, slept
from raytraffic.decisions.problems import FORECAST, Installed
from raytraffic.decisions.reading import Demand
from raytraffic.decisions.sleep import SleepProblem
from raytraffic.decisions.sleep_chain import schedule
from raytraffic.decisions.solver import SolverLimits

__all__ = ["Answer", "Deployment", "Planner", "SleepControl", "Wanted", "decide_by"]

#: What is sent, as JSON has it.
Answer = dict[str, Any]
#: Share of the time until a deadline that a solver may take: the rest is for judging and sending what it found.
_SHARE = 0.8


class Wanted(Protocol):
    """A decision that is wanted; it can be sent to another process."""

    def decide(self, seconds: float) -> Answer:
        """The decision, after at most so many seconds of solving; ValueError for a problem that is refused."""
        ...


class Planner(Protocol):
    """Makes decisions, wherever it runs."""

    async def decide(self, wanted: Wanted, deadline: float) -> Answer:
        """`decide_by`. Raises Busy where too many wait, Expired where the wall-clock time `deadline` passes, and ValueError."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Deployment:
    """Where base stations of these `types` are built."""

    demand: Demand
    types: tuple[str, ...]
    problem: DeploymentProblem
    limits: SolverLimits

    def decide(self, seconds: float) -> Answer:
        """See Wanted; `plan` has a row a station."""
        limits = replace(self.limits, seconds=min(seconds, self.limits.seconds))
        found = deployed(self.demand, None, self.types, self.problem, {FORECAST: plan(self.problem, limits)})
        table = plan_table(found)
        return {
            **_told(found),
            "built": int(found.plan.built.sum()),
            "spent": found.plan.spent,
            "plan": {name: table.column(name).to_pylist() for name in table.column_names if name != "city"},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class SleepControl:
    """How many radio units of each cell are active when."""

    demand: Demand
    cells: Installed
    problem: SleepProblem
    seconds: float

    def decide(self, seconds: float) -> Answer:
        """See Wanted; `schedule` has a row a cell, and its active radio units a slot."""
        best = schedule(self.problem, min(seconds, self.seconds))
        found = slept(self.demand, None, self.cells, self.problem, {FORECAST: best.active}, {FORECAST: best.proof}, best.overloaded)
        return {
            **_told(found),
            "ds": [str(slot.astype("datetime64[m]")) for slot in self.demand.slots],
            "schedule": {
                "unique_id": [name for _, name in self.demand.sites],
                "rrus": self.cells.rrus.tolist(),
                "active": found.active.tolist(),
                "overloaded_slots": np.count_nonzero(found.overloaded, axis=1).tolist(),
            },
        }


def _told(found: Decision) -> Answer:
    """What both problems tell: how good the decision is known to be, and what it promises over the draws."""
    measures: dict[str, dict[str, Mapping[str, float]]] = {}
    for row in found.judged:
        measures.setdefault(row.strategy, {})[row.name] = {"mean": row.promised, "low": row.low, "high": row.high}
    return {
        **proof_json(found.proofs[FORECAST]),
        "stations": len(found.demand.sites),
        "slots": len(found.demand.slots),
        "draws": len(found.demand.draws),
        "interval_level": LEVEL,
        "measures": measures,
    }


def decide_by(wanted: Wanted, deadline: float) -> Answer | None:
    """The decision, whose solver stops early enough for the wall-clock time `deadline`; None where that has passed."""
    left = deadline - time.time()
    return wanted.decide(_SHARE * left) if left > 0 else None
