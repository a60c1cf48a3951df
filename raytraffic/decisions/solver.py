"""Integer programmes in PuLP, solved by HiGHS from a feasible start, so that a time limit always leaves a solution."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

import highspy
import pulp

from raytraffic.decisions.validation import check_number, check_whole

__all__ = ["Proof", "SolverLimits", "maximise"]


@dataclass(frozen=True, kw_only=True)
class SolverLimits:
    """When the solver stops."""

    seconds: float = 60.0
    """Time on the clock from the call to the answer; building the model counts, and is not cut short."""
    gap: float = 1e-4
    """Gap between solution and bound, relative to the solution's gain, at which a solution counts as optimal."""
    threads: int = 1
    """Threads of HiGHS; the same solution comes back for the same number."""
    segments: int = 1_000_000
    """Most capacities over all grids that a deployment may choose between: beyond them the programme is refused, for building it alone
    takes minutes and gigabytes."""

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds)
        check_number("gap", self.gap)
        check_whole("threads", self.threads, 1)
        check_whole("segments", self.segments, 1)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How good a solution is known to be."""

    status: Literal["optimal", "time limit"]
    objective: float
    """Of the solution, in the problem's own units."""
    bound: float
    """No decision is better than this; infinite where the time limit came before any bound."""
    seconds: float
    """Time on the clock, building the model included."""
    baseline: float = 0.0
    """The objective of deciding nothing: gaps are relative to the gain over it, as the objective itself may be near zero."""

    @property
    def gap(self) -> float:
        """|bound - objective| / |objective - baseline|; 0 where bound and objective are equal."""
        difference, gain = abs(self.bound - self.objective), abs(self.objective - self.baseline)
        if difference == 0:
            return 0.0
        return difference / gain if gain else math.inf


class _StartedHighs(pulp.HiGHS):
    """PuLP's HiGHS, handed the variables' initial values as its first incumbent and the objective's constant; PuLP passes on neither."""

    def callSolver(self, lp: pulp.LpProblem) -> None:  # noqa: N802  (PuLP's name)
        start = highspy.HighsSolution()
        start.col_value = [float(variable.varValue) for variable in lp.variables()]
        lp.solverModel.setSolution(start)
        lp.solverModel.changeObjectiveOffset(-lp.objective.constant)  # PuLP drops it, and gaps are relative to the whole
        lp.solverModel.run()


def maximise(model: pulp.LpProblem, limits: SolverLimits, began: float) -> tuple[Literal["optimal", "time limit"], float]:
    """Solves a programme in place and returns its status and upper bound.

    Every variable must have an initial value, all together feasible: they stay where the solver finds nothing better before
    `limits.seconds` after `began` (of `time.monotonic`).
    """
    assert model.sense == pulp.LpMaximize
    variables = model.variables()
    start, start_objective = [variable.varValue for variable in variables], pulp.value(model.objective)
    left = limits.seconds - (time.monotonic() - began)
    model.solve(_StartedHighs(msg=False, timeLimit=max(left, 0.0), gapRel=limits.gap, threads=limits.threads))
    status, info = model.solverModel.getModelStatus(), model.solverModel.getInfo()
    assert status in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kTimeLimit), f"{status} of a model with a feasible start"
    found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    if not found or pulp.value(model.objective) < start_objective:
        for variable, value in zip(variables, start, strict=True):
            variable.varValue = value
    # PuLP hands HiGHS the negated objective.
    return ("optimal" if status == highspy.HighsModelStatus.kOptimal else "time limit"), -info.mip_dual_bound
