r"""Sleep control (UoMo, Eq. 13): how many of a cell's remote radio units (RRUs) are active in each slot.

    min  Q + W + E          Q = sum_t sum_m max(L_mt - x_mt c0, 0) / L_mt              service that is refused
                            W = sum_t sum_m |x_mt - x_m,t-1|                           wear by switching
                            E = sum_t sum_m P[min(L_mt, x_mt c0)],  P[L] = alpha L + beta L / c0

with L the load, x active RRUs and c0 what one RRU serves. The paper leaves open, and is read here as follows:

- a slot without load refuses nothing: its term of Q is 0;
- the state before the first slot is `initial`; where it is not given the first slot's switches are free;
- P as printed charges only load that is served, so that an idle RRU costs nothing and all RRUs always on is optimal for Q and W
  at no loss in E. What sleeping saves is the power of an active RRU: gamma x is added to E (gamma = 0 is the paper's). Its remaining
  weights are its units: Q counts slots of one cell wholly without service, W has a cost per switch, E has alpha, beta and gamma.

Added to the paper: the mean over S draws of L in Q and E; a load that must be served, x c0 >= `must_serve`, which the q-quantile of the
draws makes a chance constraint (at least share q of them is served wholly, slot by slot); and least times on and off. These hold for
the cell: after RRUs are switched on none is switched off before `least_on_slots` have passed, after RRUs are switched off none is
switched on before `least_off_slots` have. Every single RRU then keeps them too, if the one switched on last is switched off first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raytraffic.decisions.solver import Proof
from raytraffic.decisions.validation import check_counts, check_nonnegative, check_number, check_positive, check_shape, check_whole

__all__ = ["EnergyCosts", "SleepProblem", "SleepSchedule", "SleepTerms", "demand_quantile", "sleep_costs", "sleep_terms"]

_ROUNDING = 1e-9  # share of an RRU by which a load may exceed whole RRUs without needing one more


@dataclass(frozen=True, kw_only=True)
class EnergyCosts:
    """Energy in units of the objective: 1 is as bad as one cell without service for one slot."""

    per_load: float = 0.0
    """alpha: for each unit of load served."""
    per_loaded_rru: float = 0.0
    """beta: for each RRU's worth of load served."""
    per_active_rru: float = 0.0
    """gamma: for each RRU and slot it is active, loaded or not."""

    def __post_init__(self) -> None:
        for name in ("per_load", "per_loaded_rru", "per_active_rru"):
            check_number(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True, eq=False)
class SleepProblem:
    """Cells, their load and what may be done; cells are independent of each other. Raises ValueError naming the field."""

    load: NDArray[np.floating]
    """(draws, cells, slots) L: traffic of each slot; each draw counts the same."""
    rru_capacity: NDArray[np.floating]
    """(cells,) c0: what one RRU serves in a slot, in the unit of the load."""
    rrus: NDArray[np.integer]
    """(cells,) RRUs installed."""
    energy: EnergyCosts
    """alpha, beta and gamma."""
    switch_cost: float = 1.0
    """What switching one RRU on or off costs, in slots of one cell without service."""
    must_serve: NDArray[np.floating] | None = None
    """(cells, slots) load that must be served, as far as the installed RRUs can; nothing where not given."""
    least_active: int = 0
    """RRUs of each cell that never sleep (coverage)."""
    initial: NDArray[np.integer] | None = None
    """(cells,) RRUs active before the first slot, free to switch; where not given the first slot's switches cost nothing."""
    least_on_slots: int = 1
    """Slots from switching on until the cell may switch off."""
    least_off_slots: int = 1
    """Slots from switching off until the cell may switch on."""

    def __post_init__(self) -> None:
        check_shape("load", self.load, "(draws, cells, slots)", (None, None, None))
        check_nonnegative("load", self.load)
        check_shape("rru_capacity", self.rru_capacity, "(cells,)", (self.cells,))
        check_positive("rru_capacity", self.rru_capacity)
        check_shape("rrus", self.rrus, "(cells,)", (self.cells,))
        check_counts("rrus", self.rrus)
        check_number("switch_cost", self.switch_cost)
        if self.must_serve is not None:
            check_shape("must_serve", self.must_serve, "(cells, slots)", (self.cells, self.slots))
            check_nonnegative("must_serve", self.must_serve)
        check_whole("least_active", self.least_active)
        self._check_installed("least_active", np.full(self.cells, self.least_active))
        if self.initial is not None:
            check_shape("initial", self.initial, "(cells,)", (self.cells,))
            check_counts("initial", self.initial)
            self._check_installed("initial", self.initial)
        check_whole("least_on_slots", self.least_on_slots, 1)
        check_whole("least_off_slots", self.least_off_slots, 1)

    def _check_installed(self, name: str, active: NDArray[np.integer]) -> None:
        over = np.flatnonzero(active > self.rrus)
        if over.size:
            first = int(over[0])
            raise ValueError(
                f"{name}: {int(active[first])} for cell {first}, expected at most its {int(self.rrus[first])} rrus "
                f"({over.size} of {self.cells} cells have too few)"
            )

    @property
    def cells(self) -> int:
        """Number of cells."""
        return int(self.load.shape[1])

    @property
    def slots(self) -> int:
        """Number of time slots."""
        return int(self.load.shape[2])

    def of_cells(self, cells: slice) -> SleepProblem:
        """The problem of some of the cells: the solution of a fleet is that of its pieces side by side."""
        return replace(
            self,
            load=self.load[:, cells],
            rru_capacity=self.rru_capacity[cells],
            rrus=self.rrus[cells],
            must_serve=None if self.must_serve is None else self.must_serve[cells],
            initial=None if self.initial is None else self.initial[cells],
        )

    def needed(self) -> NDArray[np.int64]:
        """(cells, slots) RRUs that `must_serve` and `least_active` ask for, whether or not so many are installed."""
        if self.must_serve is None:
            return np.full((self.cells, self.slots), self.least_active, dtype=np.int64)
        serving = np.ceil(self.must_serve / self.rru_capacity[:, None] - _ROUNDING).astype(np.int64)
        return np.maximum(serving, self.least_active)


@dataclass(frozen=True, kw_only=True, eq=False)
class SleepTerms:
    """The terms of Eq. 13, summed over slots."""

    refused: NDArray[np.float64]
    """(draws, cells) Q: slots without service, partly refused slots counting in part."""
    switches: NDArray[np.int64]
    """(cells,) W: RRUs switched on or off."""
    energy: NDArray[np.float64]
    """(draws, cells) E."""
    switch_cost: float
    """What one switch costs."""

    @property
    def objective(self) -> NDArray[np.float64]:
        """(draws, cells) Q + cost of W + E."""
        return self.refused + self.switch_cost * self.switches + self.energy


@dataclass(frozen=True, kw_only=True, eq=False)
class SleepSchedule:
    """How many RRUs are active when."""

    active: NDArray[np.int16]
    """(cells, slots) x."""
    overloaded: NDArray[np.bool_]
    """(cells, slots) where `must_serve` asks for more RRUs than are installed; all of them are active there."""
    terms: SleepTerms
    """What the schedule is worth on the load it was made for."""
    proof: Proof
    """How good it is known to be; its objective is the negated sum over cells of the mean over draws."""


def demand_quantile(draws: NDArray[np.floating], share: float) -> NDArray[np.float64]:
    """(cells, slots) the smallest drawn load that at least `share` (0 < share <= 1) of the draws (n, cells, slots) do not exceed.

    As `must_serve` it is the chance constraint "each slot is served wholly in at least this share of the draws".
    """
    check_shape("draws", draws, "(draws, cells, slots)", (None, None, None))
    check_nonnegative("draws", draws)
    if not 0 < share <= 1:
        raise ValueError(f"share: {share}, expected a share in (0, 1]")
    rank = int(np.ceil(round(share * len(draws), 9)))
    return np.partition(draws, rank - 1, axis=0)[rank - 1].astype(np.float64)


def sleep_terms(problem: SleepProblem, active: NDArray[np.integer]) -> SleepTerms:
    """What active RRUs (cells, slots) are worth on the problem's load, by Eq. 13 itself; ValueError unless they are such counts.

    The counts need not be a solution: a schedule made for one load is judged on another by `replace(problem, load=...)`.
    """
    check_shape("active", active, "(cells, slots)", (problem.cells, problem.slots))
    check_counts("active", active)
    capacity = active * problem.rru_capacity[:, None]
    per_load = problem.energy.per_load + problem.energy.per_loaded_rru / problem.rru_capacity
    standby = problem.energy.per_active_rru * active.sum(axis=1, dtype=np.float64)
    refused, energy = [], []
    # Draw by draw: the load of all draws may be most of the memory there is.
    for load in problem.load:
        served = np.minimum(load, capacity)
        refused.append(np.divide(load - served, load, out=np.zeros_like(served), where=load > 0).sum(axis=1))
        energy.append(per_load * served.sum(axis=1) + standby)
    before = active[:, 0] if problem.initial is None else problem.initial
    steps = np.diff(np.concatenate([before[:, None], active], axis=1).astype(np.int64), axis=1)
    return SleepTerms(
        refused=np.stack(refused), switches=np.abs(steps).sum(axis=1), energy=np.stack(energy), switch_cost=problem.switch_cost
    )


def sleep_costs(problem: SleepProblem) -> NDArray[np.float64]:
    """(cells, slots, 1 + most RRUs) mean over draws of the terms of Q and E at every count x; infinite where x is not allowed."""
    counts = np.arange(int(problem.rrus.max()) + 1)
    costs = np.zeros((problem.cells, problem.slots, len(counts)))
    per_load = (problem.energy.per_load + problem.energy.per_loaded_rru / problem.rru_capacity)[:, None]
    for load in problem.load:
        # Of a load L what is served costs per_load and what is not costs 1 / L: one multiplication of the minimum.
        slope = per_load - np.divide(1.0, load, out=np.zeros(load.shape), where=load > 0)
        for x in counts:
            costs[..., x] += np.minimum(load, x * problem.rru_capacity[:, None]) * slope + (load > 0)
    costs = costs / len(problem.load) + problem.energy.per_active_rru * counts
    installed = problem.rrus[:, None, None]
    allowed = (counts <= installed) & (counts >= np.minimum(problem.needed()[..., None], installed))
    return np.where(allowed, costs, np.inf)
