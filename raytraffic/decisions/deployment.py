r"""Base-station deployment (UoMo, Eq. 12): how many stations each grid gets. The problem, its plan and what a plan is worth.

    max  sum_t sum_i ( y_it - beta (U_it - y_it)^+ - alpha x_i )    0 <= y_it <= min(x_i C, U_it),   x_i whole,   sum_i x_i = M

with U demand, y what is served, x stations, C a station's capacity. The paper leaves open, and is read here as follows:

- its bound F_it on what is served is the demand U_it, so (U - y)^+ = U - y, and y = min(x C, U) whenever 1 + beta > 0;
- its cost term, alpha sum_i^M x_i inside the sum over i and t, is alpha x_i of each grid and slot: alpha is what a station costs to
  operate for one slot, in served units (a user served for one slot is worth 1);
- with sum_i x_i = M the cost is a constant. M is therefore the most that are built, unless `exactly` asks for the paper's equality.

Added to the paper, each reducing to it: station types k, so x_i C becomes sum_k x_ik C_k; stations that stand already (they count in
x_i and its cost, not in M); a budget in money for what is built; a limit per grid; and S draws of the demand, where with Z_s the
objective on draw s, weight w and level a

    max  (1 - w) mean_s Z_s + w CVaR_a(Z),     CVaR_a = the mean of the worst share 1 - a of the draws
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raytraffic.decisions.solver import Proof
from raytraffic.decisions.validation import check_counts, check_nonnegative, check_number, check_shape, check_whole

__all__ = ["Cvar", "DeploymentPlan", "DeploymentProblem", "DeploymentTerms", "StationType", "deployment_terms", "tail_weights"]

#: Money is compared with the budget up to this share of it, which is rounding.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class StationType:
    """A kind of base station that can be built."""

    capacity: float
    """C: what it serves in one slot at most, in the unit of the demand (users, or traffic of a slot)."""
    price: float = 0.0
    """Money to build one, in the unit of `DeploymentProblem.money`."""
    operating_cost: float = 0.0
    """alpha: cost of operating one for one slot, in units of demand served for one slot."""

    def __post_init__(self) -> None:
        check_number("capacity", self.capacity)
        if self.capacity == 0:
            raise ValueError("capacity: 0, expected a number above 0")
        check_number("price", self.price)
        check_number("operating_cost", self.operating_cost)


@dataclass(frozen=True, kw_only=True)
class Cvar:
    """How much the bad draws count."""

    level: float = 0.9
    """a: the worst share 1 - level of the draws is averaged; in [0, 1)."""
    weight: float = 1.0
    """w: 0 is the mean over all draws, 1 only the worst ones."""

    def __post_init__(self) -> None:
        if not 0 <= self.level < 1:
            raise ValueError(f"level: {self.level}, expected a share in [0, 1)")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight: {self.weight}, expected a share in [0, 1]")


@dataclass(frozen=True, kw_only=True, eq=False)
class DeploymentProblem:
    """What is to be served, with what, within which bounds.

    Raises ValueError naming the field, or the constraints that no plan can satisfy together.
    """

    demand: NDArray[np.floating]
    """(draws, grids, slots) U: users, or traffic, wanted in each slot; each draw counts the same."""
    station_types: tuple[StationType, ...]
    """What can be built; `existing` and plans have one column for each."""
    shortfall_weight: float = 1.0
    """beta: what a unit of demand that is not served costs, beside not being served."""
    existing: NDArray[np.integer] | None = None
    """(grids, types) stations that stand already; none where not given."""
    most_stations: int | None = None
    """M: stations built at most; unlimited where not given."""
    exactly: bool = False
    """Build `most_stations`, no fewer, as Eq. 12 asks."""
    money: float | None = None
    """Money spent on building at most, in the unit of `StationType.price`; unlimited where not given."""
    grid_limit: NDArray[np.integer] | None = None
    """(grids,) stations of all types, existing ones included, that fit into a grid; unlimited where not given."""
    cvar: Cvar | None = None
    """Weighs the worst draws; the mean over all draws counts where not given."""

    def __post_init__(self) -> None:
        check_shape("demand", self.demand, "(draws, grids, slots)", (None, None, None))
        check_nonnegative("demand", self.demand)
        if not self.station_types:
            raise ValueError("station_types: none given, expected at least one")
        check_number("shortfall_weight", self.shortfall_weight)
        for name, array, axes, shape in (
            ("existing", self.existing, "(grids, types)", (self.grids, len(self.station_types))),
            ("grid_limit", self.grid_limit, "(grids,)", (self.grids,)),
        ):
            if array is not None:
                check_shape(name, array, axes, shape)
                check_counts(name, array)
        if self.most_stations is not None:
            check_whole("most_stations", self.most_stations)
        if self.money is not None:
            check_number("money", self.money)
        self._check_feasible()

    def _check_feasible(self) -> None:
        """Building nothing satisfies every bound but these two; building M satisfies all bounds if the last two hold."""
        if self.grid_limit is not None:
            standing = self.standing.sum(axis=1)
            over = np.flatnonzero(standing > self.grid_limit)
            if over.size:
                first = int(over[0])
                raise ValueError(
                    f"existing: {int(standing[first])} stations in grid {first}, expected at most its grid_limit of "
                    f"{int(self.grid_limit[first])} ({over.size} of {self.grids} grids exceed theirs)"
                )
        if not self.exactly:
            return
        if self.most_stations is None:
            raise ValueError("exactly: True without most_stations, expected the number of stations to build")
        if self.grid_limit is not None and self.most_stations > int(self.headroom.sum()):
            raise ValueError(
                f"most_stations: exactly {self.most_stations} to build, expected at most {int(self.headroom.sum())}: "
                "no more fit under grid_limit beside the existing ones"
            )
        cheapest = min(kind.price for kind in self.station_types) * self.most_stations
        if self.money is not None and cheapest > self.money * (1 + ROUNDING):
            raise ValueError(
                f"money: {self.money:g}, expected at least {cheapest:g}: exactly {self.most_stations} stations "
                "of the cheapest type cost so much"
            )

    @property
    def grids(self) -> int:
        """Number of grids."""
        return int(self.demand.shape[1])

    @property
    def slots(self) -> int:
        """Number of time slots."""
        return int(self.demand.shape[2])

    @property
    def standing(self) -> NDArray[np.int64]:
        """(grids, types) existing stations, zeros where none were given."""
        if self.existing is None:
            return np.zeros((self.grids, len(self.station_types)), dtype=np.int64)
        return self.existing.astype(np.int64)

    @property
    def headroom(self) -> NDArray[np.int64]:
        """(grids,) stations of any type that still fit into each grid; very many where there is no `grid_limit`."""
        if self.grid_limit is None:
            return np.full(self.grids, np.iinfo(np.int32).max, dtype=np.int64)
        return self.grid_limit - self.standing.sum(axis=1)

    @property
    def capacities(self) -> NDArray[np.float64]:
        """(types,) C."""
        return np.array([kind.capacity for kind in self.station_types])


@dataclass(frozen=True, kw_only=True, eq=False)
class DeploymentTerms:
    """The terms of Eq. 12, summed over slots, per draw and grid."""

    offered: NDArray[np.float64]
    """(draws, grids) demand, in unit-slots."""
    served: NDArray[np.float64]
    """(draws, grids) y."""
    operating_cost: NDArray[np.float64]
    """(grids,) alpha x, in served unit-slots."""
    shortfall_weight: float
    """beta."""

    @property
    def shortfall(self) -> NDArray[np.float64]:
        """(draws, grids) demand that is not served."""
        return self.offered - self.served

    @cached_property
    def objective(self) -> NDArray[np.float64]:
        """(draws,) Z: served - beta shortfall - operating cost."""
        value: NDArray[np.float64] = (self.served - self.shortfall_weight * self.shortfall - self.operating_cost).sum(axis=1)
        return value


@dataclass(frozen=True, kw_only=True, eq=False)
class DeploymentPlan:
    """Where stations stand after building."""

    stations: NDArray[np.int64]
    """(grids, types) x, existing ones included."""
    built: NDArray[np.int64]
    """(grids, types) stations to build."""
    spent: float
    """Money for building them."""
    terms: DeploymentTerms
    """What the plan is worth on the demand it was made for."""
    proof: Proof
    """How good it is known to be; its objective is that of the problem (mean or CVaR over the draws)."""


def deployment_terms(problem: DeploymentProblem, stations: NDArray[np.integer]) -> DeploymentTerms:
    """What stations (grids, types) are worth on the problem's demand, by Eq. 12 itself; ValueError unless they are such counts.

    The stations need not be a solution: a plan made for one demand is judged on another by `replace(problem, demand=...)`.
    """
    check_shape("stations", stations, "(grids, types)", (problem.grids, len(problem.station_types)))
    check_counts("stations", stations)
    capacity = (stations @ problem.capacities)[:, None]
    # Draw by draw: the demand of all draws may be most of the memory there is.
    served = np.stack([np.minimum(draw, capacity).sum(axis=1, dtype=np.float64) for draw in problem.demand])
    offered = np.stack([draw.sum(axis=1, dtype=np.float64) for draw in problem.demand])
    per_slot = stations @ np.array([kind.operating_cost for kind in problem.station_types])
    return DeploymentTerms(
        offered=offered, served=served, operating_cost=per_slot * problem.slots, shortfall_weight=problem.shortfall_weight
    )


def tail_weights(values: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """(draws,) the weight of each draw in the CVaR of these values: equal over the lowest share 1 - level, the last of them in part."""
    mass = (1 - level) * len(values)
    weights = np.empty(len(values))
    weights[values.argsort(kind="stable")] = np.clip(mass - np.arange(len(values)), 0.0, 1.0) / mass
    return weights
