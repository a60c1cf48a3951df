"""Training windows through Ray Data: pools of the training order are cut in tasks and streamed, in order, to a worker.

Every worker streams its own share (raytraffic.windows.stream). Cutting costs a few percent of a core, so its tasks reserve none: a
cluster whose every CPU trains still feeds itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import ray.data

from raytraffic.on_ray.cluster import dataset
from raytraffic.windows import Columns, Share

__all__ = ["training_batches"]

_PREFETCH = 2
_POOLS_AHEAD = 4


def training_batches(share: Share) -> Iterator[Columns]:
    """A worker's batches, in order."""
    return share.batches(_chunks(share))


class _Cut:
    """Cuts the pool that an item names; sent to the tasks once."""

    def __init__(self, share: Share) -> None:
        self.share = share

    def __call__(self, item: Columns) -> Iterator[Columns]:
        return self.share.cut(int(item["sample"][0]))


def _chunks(share: Share) -> Iterator[Columns]:
    """The windows of all pools, some pools at a time: each time an execution of its own that ends by itself.

    A stream over all pools would run ahead of the slower trainer until half of the object store is full, and one that is held
    back by a limit spins its scheduler under this process's GIL (docs/decisions/0009).
    """
    items = [{"sample": sample} for sample in share.samples()]
    for at in range(0, len(items), _POOLS_AHEAD):
        stream = dataset(items[at : at + _POOLS_AHEAD])
        yield from stream.map_batches(_Cut(share), batch_size=1, num_cpus=0, compute=ray.data.TaskPoolStrategy(size=1)).iter_batches(
            batch_size=None, prefetch_batches=_PREFETCH
        )
