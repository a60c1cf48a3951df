"""Which windows, in which order: an endless training order that resumes anywhere, and fixed evaluation windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytraffic.store import Assignment, StoreIndex
from raytraffic.store.splits import Part

__all__ = ["Pool", "TrainingOrder", "evaluation_windows"]

_Ints = NDArray[np.int64]
_RUNS, _WINDOWS = 0, 1  # streams of the order's random numbers


@dataclass(frozen=True, eq=False)
class Pool:
    """Consecutive samples of the training order: all training windows of some runs, shuffled.

    `first` is the global number of its first sample; `rows` are its index rows, of which run i gives the windows that start at
    `low[i] <= start < low[i] + counts[i]`.
    """

    first: int
    rows: _Ints
    low: _Ints
    counts: _Ints
    key: tuple[int, int]

    def __len__(self) -> int:
        return int(self.counts.sum())

    def samples(self) -> tuple[_Ints, _Ints]:
        """Index row and absolute start step of samples first, first + 1, ... of the order."""
        rows, starts = _expand(self.rows, self.low, self.counts)
        shuffled = _permutation(len(rows), self.key)
        return rows[shuffled], starts[shuffled]


class TrainingOrder:
    """An endless order of training windows, a pure function of (index, assignment, window, seed): position in, samples out.

    Pass p takes the training runs in an order drawn for p, joins consecutive ones to pools of at most `pool_windows` windows (at
    least one run), and shuffles each pool, so a reader holds one pool at a time. Every training window of stride 1 comes once a
    pass. Raises ValueError when no training window of this length exists.
    """

    def __init__(self, index: StoreIndex, assignment: Assignment, window: int, seed: int, pool_windows: int = 16384) -> None:
        low, counts = _starts(index, assignment.train[:, 0], assignment.train[:, 1] - window)
        counts = np.where(index.measured, counts, 0)
        self._rows = np.flatnonzero(counts)
        self._low, self._counts = low[self._rows], counts[self._rows]
        self._seed = seed
        self._pool_windows = pool_windows
        #: Training windows, each once a pass.
        self.samples_per_pass = int(self._counts.sum())
        if not self.samples_per_pass:
            raise ValueError(f"window: {window} steps, expected no more than the longest training series of the split has")

    def pools(self, position: int = 0) -> Iterator[Pool]:
        """The pool that holds sample number `position`, and all after it, without end; earlier ones are not computed."""
        turn = position // self.samples_per_pass
        while True:
            for pool in self._pools_of(turn):
                if pool.first + len(pool) > position:
                    yield pool
            turn += 1

    def _pools_of(self, turn: int) -> Iterator[Pool]:
        order = _permutation(len(self._rows), (self._seed, _stream(turn, _RUNS, 0)))
        ends = np.cumsum(self._counts[order])
        at, number = 0, 0
        while at < len(order):
            done = int(ends[at - 1]) if at else 0
            to = max(at + 1, int(np.searchsorted(ends, done + self._pool_windows, side="right")))
            runs = order[at:to]
            key = (self._seed, _stream(turn, _WINDOWS, number))
            yield Pool(turn * self.samples_per_pass + done, self._rows[runs], self._low[runs], self._counts[runs], key)
            at, number = to, number + 1


def evaluation_windows(
    index: StoreIndex, assignment: Assignment, part: Part, known_steps: int, window: int, stride: int
) -> tuple[_Ints, _Ints]:
    """Index rows and absolute start steps of the part's windows, in the index's order, every `stride`-th of each series.

    The first hidden step (start + known_steps) and the last step of each lie in the part's range; the known history may lie
    before it (0 <= known_steps < window, 0 for generation). Raises ValueError for numbers outside these bounds.
    """
    if not 0 <= known_steps < window or stride < 1:
        raise ValueError(f"known_steps, window, stride: {known_steps}, {window}, {stride}, expected 0 <= known_steps < window, stride >= 1")
    ranges = assignment.part(part)
    first = np.maximum(ranges[:, 0] - known_steps, 0)
    low, counts = _starts(index, first, np.where(ranges[:, 0] < ranges[:, 1], ranges[:, 1] - window, -1))
    rows, starts = _expand(np.arange(len(index)), low, np.where(index.measured, counts, 0))
    chosen = (starts - first[rows]) % stride == 0
    return rows[chosen], starts[chosen]


def _starts(index: StoreIndex, first: _Ints, last: _Ints) -> tuple[_Ints, _Ints]:
    """Of each run, the first start in its core that lies in [first, last], and how many there are."""
    low = np.maximum(first, index.first_step)
    high = np.minimum(last + 1, index.first_step + index.core_steps)
    return low, np.maximum(high - low, 0)


def _expand(rows: _Ints, low: _Ints, counts: _Ints) -> tuple[_Ints, _Ints]:
    """(rows, starts) of all windows, row by row."""
    before = np.cumsum(counts) - counts
    return np.repeat(rows, counts), np.repeat(low - before, counts) + np.arange(counts.sum())


def _stream(turn: int, kind: int, number: int) -> int:
    """Distinct for every (turn, kind, number): 31 bits of turn, one of kind, 32 of number."""
    return (turn << 33) | (kind << 32) | number


def _permutation(size: int, key: tuple[int, int]) -> _Ints:
    """Sorts raw Philox words, whose stream NumPy guarantees across versions (its `permutation` it does not)."""
    words = np.random.Philox(key=np.array(key, dtype=np.int64).view(np.uint64)).random_raw(size)
    return np.argsort(words, kind="stable")
