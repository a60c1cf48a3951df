r"""Eq. 12 as an integer programme whose size does not grow with draws and slots.

For fixed stations the best y is min(c_i, U), with c_i the capacity of grid i, so grid i contributes on average over the draws

    V_i(c) = mean_s sum_t ( (1 + beta) min(c, U_sit) - beta U_sit )

which is concave and grows until c reaches the grid's peak. A plan can only reach the capacities a_i0 < a_i1 < ... that whole stations
add up to, so the polygon through (a_ij, V_i(a_ij)) is V_i wherever it is asked for. With slopes v_ij over widths d_ij the programme is

    max  sum_ij v_ij f_ij - sum_ik T alpha_k b_ik     0 <= f_ij <= d_ij,   sum_j f_ij <= sum_k C_k b_ik,   b_ik whole, and the budgets

As slopes fall, the segments fill in order by themselves. A CVaR is the least of all weighted means of the draws whose weights are at
most 1 / ((1 - a) S) each. The programme knows some of these weights q and maximises theta with

    theta <= sum_s q_s Z_s      for every q known so far

so it is optimistic: after each solution the weights of its own worst draws are added, until they were known (Kuenzi-Bay and Mayer 2006).
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pulp
from numpy.typing import NDArray

from raytraffic.decisions.deployment import ROUNDING, DeploymentPlan, DeploymentProblem, deployment_terms, tail_weights
from raytraffic.decisions.solver import Proof, SolverLimits, maximise

__all__ = ["plan"]

_TOLERANCE = 1e-6  # of the solver, absolute: of one largest station over one slot
_DIGITS = 9  # capacities, in units of the largest, that agree to so many digits are the same


def plan(problem: DeploymentProblem, limits: SolverLimits | None = None) -> DeploymentPlan:
    """The best stations per grid within the limits; where time runs out, the best found so far (a greedy plan at least).

    The result is the same whatever unit demand and capacities share. Raises ValueError when several station types without a grid
    limit can be combined in too many ways.
    """
    began = time.monotonic()
    limits = limits or SolverLimits()
    segments = _segments(problem, limits.segments)
    baseline = _objective(problem, np.zeros_like(problem.standing))
    program = _Program(problem, segments, _greedy(problem, segments), baseline / segments.unit)
    best, bound, known = program.built(), np.inf, False
    worth = _objective(problem, best)
    while not known:
        status, optimistic = maximise(program.model, limits, began)
        bound = min(bound, optimistic * segments.unit + baseline)
        built = program.built()
        if (found := _objective(problem, built)) >= worth:
            best, worth = built, found
        if bound - worth <= _TOLERANCE * segments.unit:  # the solver's figures are rounded
            bound = worth
        known = status == "time limit" or bound - worth <= limits.gap * abs(worth - baseline) or program.knows_tail()
    return DeploymentPlan(
        stations=problem.standing + best,
        built=best,
        spent=float((best @ _prices(problem)).sum()),
        terms=deployment_terms(problem, problem.standing + best),
        proof=Proof(status=status, objective=worth, bound=bound, seconds=time.monotonic() - began, baseline=baseline),
    )


def _objective(problem: DeploymentProblem, built: NDArray[np.int64]) -> float:
    """What the problem maximises, by Eq. 12 itself: mean, CVaR or their mixture over the draws."""
    values = deployment_terms(problem, problem.standing + built).objective
    if problem.cvar is None:
        return float(values.mean())
    tail = float(tail_weights(values, problem.cvar.level) @ values)
    return (1 - problem.cvar.weight) * float(values.mean()) + problem.cvar.weight * tail


@dataclass(frozen=True, kw_only=True, eq=False)
class _Segments:
    """The polygons of V_i, capacities in units of `unit`, the largest capacity of a station."""

    unit: float
    capacities: NDArray[np.float64]
    """(types,) C."""
    peaks: NDArray[np.float64]
    """(grids,) capacity beyond the existing one that serves every draw and slot."""
    points: list[NDArray[np.float64]]
    """Per grid a_i0 = 0 < a_i1 < ...: capacity added to the existing one."""
    served: list[NDArray[np.float64]]
    """Per grid (draws or 1, points): demand served at each point, per draw or on average."""
    offered: NDArray[np.float64]
    """(draws or 1,) demand of all grids."""


def _segments(problem: DeploymentProblem, most: int) -> _Segments:
    unit = float(problem.capacities.max())
    capacities = problem.capacities / unit
    standing = problem.standing @ capacities
    peaks = np.maximum(problem.demand.max(axis=(0, 2)) / unit - standing, 0.0)
    points = _reachable(capacities, _room(problem), peaks, most)
    per_draw = problem.cvar is not None and problem.cvar.weight > 0
    served = []
    for i, added in enumerate(points):
        demand = np.asarray(problem.demand[:, i], dtype=np.float64) / unit
        table = np.stack([np.minimum(demand, standing[i] + capacity).sum(axis=1) for capacity in added], axis=1)
        served.append(table if per_draw else table.mean(axis=0, keepdims=True))
    offered = np.array([draw.sum(dtype=np.float64) for draw in problem.demand]) / unit
    return _Segments(
        unit=unit,
        capacities=capacities,
        peaks=peaks,
        points=points,
        served=served,
        offered=offered if per_draw else offered.mean(keepdims=True),
    )


def _room(problem: DeploymentProblem) -> NDArray[np.int64]:
    """(grids,) stations that can be built in each grid at most."""
    return problem.headroom if problem.most_stations is None else np.minimum(problem.headroom, problem.most_stations)


def _most(problem: DeploymentProblem, segments: _Segments) -> NDArray[np.int64]:
    """(grids, types) stations to build at most: unless a number is prescribed, none beyond what covers a grid's peak, always idle."""
    room = np.broadcast_to(_room(problem)[:, None], (problem.grids, len(segments.capacities)))
    if problem.exactly:
        return room
    # Compared before they are whole numbers: what covers a peak with tiny stations may exceed any.
    return np.minimum(room, np.ceil(segments.peaks[:, None] / segments.capacities - ROUNDING)).astype(np.int64)


def _reachable(
    capacities: NDArray[np.float64], headroom: NDArray[np.int64], peaks: NDArray[np.float64], most_segments: int
) -> list[NDArray[np.float64]]:
    """Per grid the sums of at most `headroom` capacities, ascending, up to the first that covers the peak.

    Sums are found in the order of their size with the fewest stations they take, once for all grids. The first that covers a peak is
    less than the largest capacity, 1, above it: without any one of its stations it would not cover.
    """
    kinds = sorted({round(float(capacity), _DIGITS): float(capacity) for capacity in capacities}.values())
    most, highest = int(headroom.max()), float(peaks[headroom > 0].max(initial=0.0)) + 1
    fewest: dict[float, int] = {0.0: 0}
    queue: list[float] = [0.0]
    sums: list[float] = []
    while queue and queue[0] <= highest and len(sums) <= most_segments + 1:
        total = heapq.heappop(queue)
        sums.append(total)
        for capacity in kinds if fewest[total] < most else ():
            reached = round(total + capacity, _DIGITS)
            if reached not in fewest:
                heapq.heappush(queue, reached)
            fewest[reached] = min(fewest.get(reached, most), fewest[total] + 1)
    found, count = np.array(sums), np.array([fewest[total] for total in sums])
    points, segments = [], 0
    for room, peak in zip(headroom, peaks, strict=True):
        own = found[count <= room]
        own = own[: np.searchsorted(own, peak) + 1]
        segments += len(own) - 1
        if segments > most_segments:
            raise ValueError(
                f"station_types: {len(capacities)} types combine into more than {most_segments} capacities over {len(peaks)} grids, "
                "expected a smaller grid_limit, or capacities that are multiples of one another"
            )
        points.append(own)
    return points


def _greedy(problem: DeploymentProblem, segments: _Segments) -> NDArray[np.int64]:
    """(grids, types) stations built one at a time where the mean over the draws gains most (per money, where that is bounded).

    Feasible always; optimal with one type and no CVaR, as V_i is concave.
    """
    prices, cost = _prices(problem), _operating_costs(problem) / segments.unit
    room, most, money = _room(problem).copy(), _most(problem, segments), _money(problem)
    worth = [(1 + problem.shortfall_weight) * table.mean(axis=0) for table in segments.served]
    built = np.zeros((problem.grids, len(prices)), dtype=np.int64)
    per_money = (
        np.where(prices > 0, prices, prices.max() * ROUNDING) if prices.max() > 0 and problem.money is not None else np.ones_like(prices)
    )

    def gains(i: int) -> NDArray[np.float64]:
        added = float(built[i] @ segments.capacities)
        more = np.interp(added + segments.capacities, segments.points[i], worth[i])
        gain: NDArray[np.float64] = (more - np.interp(added, segments.points[i], worth[i]) - cost) / per_money
        return gain

    gain = np.stack([gains(i) for i in range(problem.grids)])
    to_build = int(room.sum()) if problem.most_stations is None else problem.most_stations
    for left in range(to_build, 0, -1):
        reserve = (left - 1) * prices.min() if problem.exactly else 0.0
        allowed = np.where((room[:, None] > 0) & (built < most) & (prices + reserve <= money), gain, -np.inf)
        i, k = np.unravel_index(int(allowed.argmax()), allowed.shape)
        if allowed[i, k] == -np.inf or (allowed[i, k] <= 0 and not problem.exactly):
            break
        built[i, k] += 1
        room[i] -= 1
        money -= prices[k]
        gain[i] = gains(int(i))
    return built


class _Program:
    """The PuLP model of the gain over `baseline`, whose variables start at the greedy plan."""

    def __init__(self, problem: DeploymentProblem, segments: _Segments, start: NDArray[np.int64], baseline: float) -> None:
        self.model = pulp.LpProblem("deployment", pulp.LpMaximize)
        self.stations = _station_variables(self.model, problem, segments, start)
        self.fill = _fill_variables(self.model, segments, start)
        self._link(segments)
        self._budgets(problem)
        beta, costs = problem.shortfall_weight, _operating_costs(problem) / segments.unit
        self.operating = [(variable, -cost) for row in self.stations for variable, cost in zip(row, costs, strict=True)]
        # (draws or 1,) what each draw is worth without building, and (draws or 1, segments) what each segment adds to it.
        standing = float((problem.standing @ costs).sum())
        self.base = (1 + beta) * sum(table[:, 0] for table in segments.served) - beta * segments.offered - standing
        self.slopes = (1 + beta) * np.concatenate(
            [np.diff(table) / np.diff(points) for table, points in zip(segments.served, segments.points, strict=True)], axis=1
        )
        self.cvar = problem.cvar if problem.cvar is not None and problem.cvar.weight > 0 else None
        objective, constant = self._weighted(np.full(len(self.base), 1 / len(self.base)))
        if self.cvar is not None:
            self.tail = self.model.add_variable("tail")
            objective = [(variable, (1 - self.cvar.weight) * value) for variable, value in objective] + [(self.tail, self.cvar.weight)]
            constant *= 1 - self.cvar.weight
            self.known_weights: set[bytes] = set()
            self.knows_tail()
        self.model.setObjective(pulp.LpAffineExpression(objective, constant=constant - baseline))

    def knows_tail(self) -> bool:
        """Whether the weights of the solution's worst draws were known, so that its CVaR is what the programme believes; else adds them."""
        if self.cvar is None:
            return True
        fill = np.array([variable.varValue for row in self.fill for variable in row])
        values = self.base + self.slopes @ fill + sum(value * variable.varValue for variable, value in self.operating)
        weights = tail_weights(values, self.cvar.level)
        if weights.tobytes() in self.known_weights:
            return True
        self.known_weights.add(weights.tobytes())
        terms, constant = self._weighted(weights)
        self.model += pulp.LpAffineExpression([(self.tail, 1.0), *((variable, -value) for variable, value in terms)]) <= constant
        self.tail.setInitialValue(float(weights @ values))
        return False

    def _weighted(self, weights: NDArray[np.float64]) -> tuple[list[tuple[pulp.LpVariable, float]], float]:
        """The mean of the draws with these weights (draws or 1,), as a linear expression and its constant."""
        filled = zip((variable for row in self.fill for variable in row), (weights @ self.slopes).tolist(), strict=True)
        return [*filled, *self.operating], float(weights @ self.base)

    def built(self) -> NDArray[np.int64]:
        """(grids, types) the solution's stations to build."""
        return np.array([[round(variable.varValue) for variable in row] for row in self.stations], dtype=np.int64)

    def _link(self, segments: _Segments) -> None:
        """No more capacity is filled than is built."""
        for filled, row in zip(self.fill, self.stations, strict=True):
            if filled:
                capacity = [(variable, -value) for variable, value in zip(row, segments.capacities, strict=True)]
                self.model += pulp.LpAffineExpression([(variable, 1.0) for variable in filled] + capacity) <= 0

    def _budgets(self, problem: DeploymentProblem) -> None:
        """Stations and money over all grids, and the limit of each grid where its types share it."""
        every = [variable for row in self.stations for variable in row]
        if problem.most_stations is not None:
            total = pulp.LpAffineExpression([(variable, 1.0) for variable in every])
            self.model += total == problem.most_stations if problem.exactly else total <= problem.most_stations
        prices = _prices(problem)
        if problem.money is not None and prices.max() > 0:
            # In units of the budget, so that the solver's absolute tolerance means the same for cents and for millions.
            unit = max(problem.money, float(prices.max()))
            spent = [(variable, price / unit) for row in self.stations for variable, price in zip(row, prices, strict=True)]
            self.model += pulp.LpAffineExpression(spent) <= _money(problem) / unit
        if problem.grid_limit is not None and len(prices) > 1:
            for row, room in zip(self.stations, problem.headroom, strict=True):
                self.model += pulp.LpAffineExpression([(variable, 1.0) for variable in row]) <= int(room)


def _station_variables(
    model: pulp.LpProblem, problem: DeploymentProblem, segments: _Segments, start: NDArray[np.int64]
) -> list[list[pulp.LpVariable]]:
    """b_ik within `_most`, starting at `start`."""
    most = _most(problem, segments)
    variables = []
    for i, row in enumerate(start):
        variables.append(
            [model.add_variable(f"b_{i}_{k}", lowBound=0, upBound=int(most[i, k]), cat=pulp.LpInteger) for k in range(len(row))]
        )
        for variable, value in zip(variables[-1], row, strict=True):
            variable.setInitialValue(int(value))
    return variables


def _fill_variables(model: pulp.LpProblem, segments: _Segments, start: NDArray[np.int64]) -> list[list[pulp.LpVariable]]:
    """f_ij in [0, d_ij], filled in order by what `start` builds."""
    variables = []
    for i, points in enumerate(segments.points):
        added, row = float(start[i] @ segments.capacities), []
        for j, (low, high) in enumerate(pairwise(points)):
            variable = model.add_variable(f"f_{i}_{j}", lowBound=0, upBound=float(high - low))
            variable.setInitialValue(float(np.clip(added - low, 0.0, high - low)))
            row.append(variable)
        variables.append(row)
    return variables


def _prices(problem: DeploymentProblem) -> NDArray[np.float64]:
    return np.array([kind.price for kind in problem.station_types])


def _operating_costs(problem: DeploymentProblem) -> NDArray[np.float64]:
    """(types,) T alpha: over all slots."""
    return problem.slots * np.array([kind.operating_cost for kind in problem.station_types])


def _money(problem: DeploymentProblem) -> float:
    """The budget with room for rounding; infinite where there is none."""
    return np.inf if problem.money is None else problem.money * (1 + ROUNDING)
