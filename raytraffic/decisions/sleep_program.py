r"""Eq. 13 as an integer programme for a few cells: an independent proof of what `sleep_chain` finds for fleets.

With z_mtx = 1 where cell m has x RRUs active in slot t, the terms of Q and E are linear whatever their shape, and so is W:

    min  sum_mtx g_mtx z_mtx + w sum_mt (u_mt + d_mt)      sum_x z_mtx = 1,   X_mt = sum_x x z_mtx,   X_mt - X_m,t-1 = u_mt - d_mt

with g of `sleep.sleep_costs` and u, d >= 0 the RRUs switched on and off. Least times add whether RRUs are switched on or off at all,
r_mt, f_mt in {0, 1} with u <= N r and d <= N f, and exclude a fall within the least time on of a rise, and the other way round:

    r_ms + f_mt <= 1   for t - on < s <= t,      f_ms + r_mt <= 1   for t - off < s <= t
"""

from __future__ import annotations

import time

import numpy as np
import pulp
from numpy.typing import NDArray

from raytraffic.decisions.sleep import SleepProblem, SleepSchedule, sleep_costs, sleep_terms
from raytraffic.decisions.solver import Proof, SolverLimits, maximise

__all__ = ["schedule_by_program"]


def schedule_by_program(problem: SleepProblem, limits: SolverLimits | None = None) -> SleepSchedule:
    """The best schedule within the limits; where time runs out, the best found so far (all RRUs always on at least)."""
    began = time.monotonic()
    model = pulp.LpProblem("sleep", pulp.LpMaximize)
    costs = sleep_costs(problem)
    cells = [_Cell(model, m, problem.of_cells(slice(m, m + 1)), costs[m]) for m in range(problem.cells)]
    model.setObjective(pulp.LpAffineExpression([(variable, -cost) for cell in cells for variable, cost in cell.costs]))
    status, bound = maximise(model, limits or SolverLimits(), began)
    active = np.stack([cell.active() for cell in cells])
    terms = sleep_terms(problem, active)
    objective = -float(terms.objective.mean(axis=0).sum())
    return SleepSchedule(
        active=active,
        overloaded=problem.needed() > problem.rrus[:, None],
        terms=terms,
        # The solver's figures are rounded: a bound below a solution that exists is that solution's objective.
        proof=Proof(status=status, objective=objective, bound=max(bound, objective), seconds=time.monotonic() - began),
    )


class _Cell:
    """The variables and constraints of one cell, starting with all of its RRUs on; `costs` are its terms of the objective."""

    def __init__(self, model: pulp.LpProblem, m: int, problem: SleepProblem, costs: NDArray[np.float64]) -> None:
        self.rrus = int(problem.rrus[0])
        before = self.rrus if problem.initial is None else int(problem.initial[0])
        self.choices: list[dict[int, pulp.LpVariable]] = []
        self.costs: list[tuple[pulp.LpVariable, float]] = []
        self.rises: list[pulp.LpVariable] = []
        self.falls: list[pulp.LpVariable] = []
        for t in range(problem.slots):
            choice = {int(x): _binary(model, f"z_{m}_{t}_{x}", x == self.rrus) for x in np.flatnonzero(np.isfinite(costs[t]))}
            self.choices.append(choice)
            self.costs += [(variable, float(costs[t, x])) for x, variable in choice.items()]
            model += pulp.lpSum(choice.values()) == 1
            if t > 0 or problem.initial is not None:
                last = _count(self.choices[t - 1]) if t > 0 else before
                self._switch(model, f"{m}_{t}", _count(choice) - last, self.rrus - before if t == 0 else 0, problem)

    def active(self) -> NDArray[np.int16]:
        """(slots,) the solution's counts."""
        return np.array([max(choice, key=lambda x: choice[x].varValue) for choice in self.choices], dtype=np.int16)

    def _switch(self, model: pulp.LpProblem, name: str, change: pulp.LpAffineExpression, start: int, problem: SleepProblem) -> None:
        """Splits the change of the count into RRUs switched on and off, and keeps the least times."""
        up, down = model.add_variable(f"u_{name}", lowBound=0), model.add_variable(f"d_{name}", lowBound=0)
        rise, fall = _binary(model, f"r_{name}", start > 0), _binary(model, f"f_{name}", False)
        up.setInitialValue(start)
        down.setInitialValue(0)
        self.costs += [(up, problem.switch_cost), (down, problem.switch_cost)]
        self.rises.append(rise)
        self.falls.append(fall)
        model += change == up - down
        model += up <= self.rrus * rise
        model += down <= self.rrus * fall
        for earlier in self.rises[-problem.least_on_slots :]:
            model += earlier + fall <= 1
        for earlier in self.falls[-problem.least_off_slots : -1]:
            model += earlier + rise <= 1


def _binary(model: pulp.LpProblem, name: str, start: bool) -> pulp.LpVariable:
    variable = model.add_variable(name, cat=pulp.LpBinary)
    variable.setInitialValue(int(start))
    return variable


def _count(choice: dict[int, pulp.LpVariable]) -> pulp.LpAffineExpression:
    return pulp.lpSum(x * variable for x, variable in choice.items())
