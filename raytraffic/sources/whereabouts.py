"""Where users who move were, slot by slot, from rows that say at which place some traffic was."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["carried", "most_used", "summed"]

Codes = NDArray[np.int64]
Volumes = NDArray[np.float64]


def most_used(user: Codes, slot: Codes, place: Codes, volume: Volumes, shape: tuple[int, int]) -> NDArray[np.int32]:
    """(t, s) each user's place of most volume in each slot, the least index of equals; -1 where there is no row (n,)."""
    slots, users = shape
    places = int(place.max(initial=0)) + 1
    key, total = summed((slot * users + user) * places + place, volume)
    cell, place = np.divmod(key, places)
    best = np.lexsort((place, -total, cell))
    first = best[np.flatnonzero(np.diff(cell, prepend=-1))]  # the cells are sorted already, so each begins where it did
    out = np.full(slots * users, -1, dtype=np.int32)
    out[cell[first]] = place[first]
    return out.reshape(shape)


def summed(key: Codes, volume: Volumes) -> tuple[Codes, Volumes]:
    """Distinct keys >= 0, sorted, and the sum of the volumes (n,) of each."""
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    return key[first], np.add.reduceat(volume[order], first) if len(first) else volume


def carried(place: NDArray[np.int32], slots: int) -> NDArray[np.int32]:
    """Places (t, s) with each -1 replaced by the last place before it, where that is at most so many slots ago."""
    now = np.arange(len(place))[:, None]
    last = np.maximum.accumulate(np.where(place >= 0, now, -1), axis=0)
    found = np.take_along_axis(place, np.maximum(last, 0), axis=0)
    return np.where((last >= 0) & (now - last <= slots), found, -1).astype(np.int32)
