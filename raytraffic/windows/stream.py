"""Training batches as a worker streams them: its own slots of every global batch, cut from the pools of the training order.

Global sample i goes to the worker of slot i mod batch, so the global batches are the same for any number of workers, and a stream begins
at any step without touching what came before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from raytraffic.windows.cut import Columns
from raytraffic.windows.order import TrainingOrder
from raytraffic.windows.view import Windows

__all__ = ["Share", "local_batches"]

_CHUNK = 1024


@dataclass(frozen=True)
class Share:
    """One worker's share, `batch / world` windows, of every global batch of the steps `first` ... `last` - 1."""

    windows: Windows
    order: TrainingOrder
    batch: int
    rank: int
    world: int
    first: int
    last: int

    def samples(self) -> list[int]:
        """For each pool of the order that is needed, one global sample number in it: all that a process needs to cut its windows."""
        begin, end = self.first * self.batch, self.last * self.batch
        found = []
        for pool in self.order.pools(begin):
            if pool.first >= end:
                break
            found.append(max(pool.first, begin))
        return found

    def cut(self, sample: int) -> Iterator[Columns]:
        """The columns of this worker's windows of the pool that holds a sample, some at a time, with their numbers as `sample`."""
        pool = next(self.order.pools(sample))
        rows, starts = pool.samples()
        number = pool.first + np.arange(len(rows))
        slot = number % self.batch * self.world // self.batch
        mine = np.flatnonzero((number >= self.first * self.batch) & (number < self.last * self.batch) & (slot == self.rank))
        for at in range(0, len(mine), _CHUNK):
            chosen = mine[at : at + _CHUNK]
            columns = self.windows.cut(rows[chosen], starts[chosen])
            yield {name: values for name, values in columns.items() if name not in ("row", "start", "city")} | {"sample": number[chosen]}

    def batches(self, chunks: Iterable[Columns]) -> Iterator[Columns]:
        """The rows of the chunks, one worker's batch at a time."""
        size = self.batch // self.world
        rest: Columns = {}
        for chunk in chunks:
            joined = {name: np.concatenate((rest[name], values)) if rest else values for name, values in chunk.items()}
            rows = len(joined["sample"])
            whole = rows - rows % size
            for at in range(0, whole, size):
                yield {name: values[at : at + size] for name, values in joined.items()}
            rest = {name: values[whole:] for name, values in joined.items()} if rows > whole else {}


def local_batches(share: Share) -> Iterator[Columns]:
    """The share's batches, cut in this process as they are asked for."""
    return share.batches(chunk for sample in share.samples() for chunk in share.cut(sample))
