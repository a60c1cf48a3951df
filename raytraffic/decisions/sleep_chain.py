r"""Eq. 13 solved exactly by a dynamic programme over slots, for all cells of a piece at once.

The state of a cell at slot t is the count x of active RRUs and its phase: free, or k slots into its least time on (after a rise) or off
(after a fall). With g_t(x) the slot's terms of Q and E and w the cost of a switch, the cost to go through slot t is

    V_t(x, free)   = g_t(x) + min( V_t-1(x, free), V_t-1(x, last slot of either time) )
    V_t(x, rise 1) = g_t(x) + min_{y < x} w (x - y) + min( V_t-1(y, free), min_k V_t-1(y, rise k) )
    V_t(x, fall 1) = g_t(x) + min_{y > x} w (y - x) + min( V_t-1(y, free), min_k V_t-1(y, fall k) )
    V_t(x, rise k) = g_t(x) + V_t-1(x, rise k - 1),  and so for fall

where a least time of one slot makes "rise 1" the free phase itself. The best predecessor of every state is kept, one slot after the other
in as few bytes as the states need, and the path is read back from the best last state.
"""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from raytraffic.decisions.sleep import SleepProblem, SleepSchedule, SleepTerms, sleep_costs, sleep_terms
from raytraffic.decisions.solver import Proof

__all__ = ["schedule"]

_PIECE_BYTES = 64e6  # of costs and predecessors held at once

#: Best values and the states they came from, each (counts, cells).
Arrival = tuple[NDArray[np.float64], NDArray[np.integer]]


def schedule(problem: SleepProblem, seconds: float = math.inf) -> SleepSchedule:
    """The best schedule of every cell; memory is bounded by pieces of cells, and the result does not depend on them.

    The time is proportional to draws x cells x slots x RRUs, and to the least times. The cells of pieces that have not begun after
    `seconds` keep all RRUs on, which serves what can be served; the proof then says so and knows no bound.
    """
    began = time.monotonic()
    counts = int(problem.rrus.max()) + 1
    states = counts * (problem.least_on_slots + problem.least_off_slots - 1)
    cell_bytes = problem.slots * (3 * 8 * counts + np.min_scalar_type(states).itemsize * states)
    step = max(1, int(_PIECE_BYTES / cell_bytes))
    pieces = [problem.of_cells(slice(first, first + step)) for first in range(0, problem.cells, step)]
    found, late = [], False
    for piece in pieces:
        late = late or time.monotonic() - began >= seconds
        active = np.repeat(piece.rrus[:, None], piece.slots, axis=1).astype(np.int16) if late else _chain(piece)
        found.append((active, sleep_terms(piece, active)))
    terms = SleepTerms(
        refused=np.concatenate([part.refused for _, part in found], axis=1),
        switches=np.concatenate([part.switches for _, part in found]),
        energy=np.concatenate([part.energy for _, part in found], axis=1),
        switch_cost=problem.switch_cost,
    )
    objective = -float(terms.objective.mean(axis=0).sum())
    return SleepSchedule(
        active=np.concatenate([active for active, _ in found]),
        overloaded=np.concatenate([piece.needed() > piece.rrus[:, None] for piece in pieces]),
        terms=terms,
        proof=Proof(
            status="time limit" if late else "optimal",
            objective=objective,
            bound=math.inf if late else objective,
            seconds=time.monotonic() - began,
        ),
    )


def _chain(problem: SleepProblem) -> NDArray[np.int16]:
    """(cells, slots) the best counts of one piece."""
    costs = np.ascontiguousarray(sleep_costs(problem).transpose(1, 2, 0))  # cells last: every operation below runs along them
    slots, counts, cells = costs.shape
    phases = problem.least_on_slots + problem.least_off_slots - 1
    values = np.full((phases, counts, cells), np.inf)
    if problem.initial is None:
        values[0] = 0.0
    else:
        values[0, problem.initial, np.arange(cells)] = 0.0
    came_from = np.zeros((slots, phases * counts, cells), dtype=np.min_scalar_type(phases * counts))
    for t in range(slots):
        if t > 0 or problem.initial is not None:
            values, before = _step(values, problem)
            came_from[t] = before.reshape(phases * counts, cells)
        values += costs[t]
    state = values.reshape(phases * counts, cells).argmin(axis=0)
    active = np.empty((cells, slots), dtype=np.int16)
    for t in range(slots - 1, -1, -1):
        active[:, t] = state % counts
        state = came_from[t, state, np.arange(cells)].astype(np.int64)
    return active


def _step(values: NDArray[np.float64], problem: SleepProblem) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    """Costs (phases, counts, cells) one slot on, without the slot's own, and the state each comes from; ties stay where they are.

    Phase 0 is free, 1 ... on - 1 count a least time on, on ... on + off - 2 a least time off.
    """
    on, off = problem.least_on_slots, problem.least_off_slots
    stay = _stays(values)
    rise = _moves(stay[:on], problem.switch_cost, upwards=True)
    fall = _moves([stay[0], *stay[on:]], problem.switch_cost, upwards=False)
    free = _better(stay[0], rise if on == 1 else stay[on - 1])
    free = _better(free, fall if off == 1 else stay[on + off - 2])
    arrivals = [free]
    if on > 1:
        arrivals += [rise, *stay[1 : on - 1]]
    if off > 1:
        arrivals += [fall, *stay[on : on + off - 2]]
    return np.stack([value for value, _ in arrivals]), np.stack([state for _, state in arrivals])


def _stays(values: NDArray[np.float64]) -> list[Arrival]:
    """Per phase what keeping the count costs: nothing."""
    number = values.shape[0] * values.shape[1]
    states = np.arange(number, dtype=np.min_scalar_type(number)).reshape(*values.shape[:2], 1)
    return [(value, np.broadcast_to(state, value.shape)) for value, state in zip(values, states, strict=True)]


def _moves(leaves: list[Arrival], switch_cost: float, *, upwards: bool) -> Arrival:
    """What reaching each count from a lower (or a higher) one costs, out of any of these phases.

    A move over several counts is one over a single count more: best[x] = w + min(leave[x - 1], best[x - 1]).
    """
    leave, leave_state = leaves[0]
    for phase in leaves[1:]:
        leave, leave_state = _better((leave, leave_state), phase)
    counts = len(leave)
    best, best_state = np.full_like(leave, np.inf), np.zeros_like(leave_state)
    order = range(1, counts) if upwards else range(counts - 2, -1, -1)
    for x in order:
        y = x - 1 if upwards else x + 1
        value, best_state[x] = _better((leave[y], leave_state[y]), (best[y], best_state[y]))
        best[x] = value + switch_cost
    return best, best_state


def _better(first: Arrival, second: Arrival) -> Arrival:
    """The cheaper of two ways to arrive, the first where they cost the same."""
    cheaper = second[0] < first[0]
    return np.where(cheaper, second[0], first[0]), np.where(cheaper, second[1], first[1])
