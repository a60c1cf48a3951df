"""Training windows through Ray Data: pools of the training order are cut in tasks and streamed, in order, to a worker.

Every worker streams its own slots of every global batch: global sample i goes to the worker of slot i mod batch. So the global
batches are the same for any number of workers, and a stream begins at any step without touching what came before. Cutting
costs a few percent of a core, so its tasks reserve none: a cluster whose every CPU trains still feeds itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import ray.data

from raytraffic.on_ray.cluster import dataset
from raytraffic.windows import Columns, TrainingOrder, Windows

__all__ = ["training_batches"]

_CHUNK = 1024
_PREFETCH = 2
_POOLS_AHEAD = 4


@dataclass(frozen=True)
class _Share:
    """Cuts one worker's samples of a pool; sent to the tasks once."""

    windows: Windows
    order: TrainingOrder
    batch: int
    rank: int
    world: int
    begin: int
    end: int

    def __call__(self, item: Columns) -> Iterator[Columns]:
        """The columns of this worker's windows of the pool that holds sample `item["sample"]`, `_CHUNK` at a time."""
        pool = next(self.order.pools(int(item["sample"][0])))
        rows, starts = pool.samples()
        sample = pool.first + np.arange(len(rows))
        slot = sample % self.batch * self.world // self.batch
        mine = np.flatnonzero((sample >= self.begin) & (sample < self.end) & (slot == self.rank))
        for at in range(0, len(mine), _CHUNK):
            chosen = mine[at : at + _CHUNK]
            columns = self.windows.cut(rows[chosen], starts[chosen])
            yield {name: values for name, values in columns.items() if name not in ("row", "start", "city")} | {"sample": sample[chosen]}


def training_batches(windows: Windows, seed: int, batch: int, rank: int, world: int, begin: int, end: int) -> Iterator[Columns]:
    """One worker's share, `batch / world` windows, of every global batch of the steps begin ... end - 1, in order."""
    share = _Share(windows, windows.training(seed), batch, rank, world, begin * batch, end * batch)
    items = []
    for pool in share.order.pools(share.begin):
        if pool.first >= share.end:
            break
        items.append({"sample": max(pool.first, share.begin)})
    yield from _batches_of(_chunks(items, share), batch // world)


def _chunks(items: list[dict[str, int]], share: _Share) -> Iterator[Columns]:
    """The windows of all pools, some pools at a time: each time an execution of its own that ends by itself.

    A stream over all pools would run ahead of the slower trainer until half of the object store is full, and one that is held
    back by a limit spins its scheduler under this process's GIL (docs/decisions/0009).
    """
    for at in range(0, len(items), _POOLS_AHEAD):
        stream = dataset(items[at : at + _POOLS_AHEAD])
        yield from stream.map_batches(share, batch_size=1, num_cpus=0, compute=ray.data.TaskPoolStrategy(size=1)).iter_batches(
            batch_size=None, prefetch_batches=_PREFETCH
        )


def _batches_of(chunks: Iterator[Columns], size: int) -> Iterator[Columns]:
    """The same rows, `size` at a time."""
    rest: Columns = {}
    for chunk in chunks:
        joined = {name: np.concatenate((rest[name], values)) if rest else values for name, values in chunk.items()}
        rows = len(joined["sample"])
        whole = rows - rows % size
        for at in range(0, whole, size):
            yield {name: values[at : at + size] for name, values in joined.items()}
        rest = {name: values[whole:] for name, values in joined.items()} if rows > whole else {}
