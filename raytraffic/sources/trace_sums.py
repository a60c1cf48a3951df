"""Records of users added up as they are read, and made into a City: bytes by hour and service, and where users were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raytraffic.sources.city import City
from raytraffic.sources.delimited import Chunk, Column
from raytraffic.sources.session_parameters import SERVICE_CATEGORIES
from raytraffic.sources.whereabouts import carried, most_used, summed

__all__ = ["Ids", "Rows", "Sums", "TraceSums"]

Codes = NDArray[np.int64]
Volumes = NDArray[np.float64]

#: Bits of a key of 63: a slot of five minutes is less than 2^24 until 2129.
_USER_BITS, _SLOT_BITS, _WHAT_BITS = 22, 24, 17
#: Rows that may wait for being added up; beyond, they are at least half as many as the sums.
_WAITING = 1 << 20
#: More entries of a dense (c, t, s) array than this are a mistyped time, not a city.
_MAX_ENTRIES = 2**32


class Ids:
    """Numbers for names, in the order in which they come; with `closed` no others than the first are taken."""

    def __init__(self, names: Iterable[str] = (), closed: str | None = None) -> None:
        self._number = {name: number for number, name in enumerate(names)}
        self._closed = closed

    @property
    def names(self) -> list[str]:
        """All so far."""
        return list(self._number)

    def of(self, chunk: Chunk, column: Column) -> Codes:
        """(n,) the numbers of a chunk's names."""
        codes, distinct = chunk.coded(column)
        if self._closed is not None:
            chunk.refuse(np.array([name not in self._number for name in distinct])[codes], column, self._closed)
        return np.array([self._number.setdefault(name, len(self._number)) for name in distinct], dtype=np.int64)[codes]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Sums (n,) of `volume` by number of user, time slot since 1970 and number of category or station, `what`."""

    user: Codes
    slot: Codes
    what: Codes
    volume: Volumes

    def where(self, chosen: NDArray[np.bool_]) -> Rows:
        """Those that are so."""
        return Rows(user=self.user[chosen], slot=self.slot[chosen], what=self.what[chosen], volume=self.volume[chosen])


class TraceSums:
    """Bytes of records by user, quarter of an hour and category, and by user, quarter of an hour and station.

    Hours of local time begin with a quarter of an hour of UTC wherever the clock is off it by quarters, as all zones' clocks are today.
    """

    def __init__(self, stations: Ids) -> None:
        self.users, self.stations = Ids(), stations
        self._by_category, self._by_station = Sums(), Sums()

    def add(self, *, user: Codes, quarter: Codes, category: Codes, station: Codes, volume: Volumes) -> None:
        """Adds records (n,): numbers of users and stations, quarters of an hour since 1970-01-01 00:00, and bytes."""
        self._by_category.add(user, quarter, category, volume)
        self._by_station.add(user, quarter, station, volume)

    def city(self, *, name: str, zone: ZoneInfo | None, min_active_hours: int, carry_hours: int) -> City:
        """The records as a City (see AppUsage); quarters are local without a zone. ValueError where no user is left."""
        used, seen = self._by_category.total(), self._by_station.total()
        shift = _offset(int(used.slot.min()), zone)
        first = (int(used.slot.min()) + shift) // 4
        hours = (int(used.slot.max()) + shift) // 4 - first + 1
        kept, refused = self._active(used, shift, min_active_hours)
        entries = len(SERVICE_CATEGORIES) * hours * len(kept)
        if entries > _MAX_ENTRIES:
            span = " to ".join(str(np.datetime64(first + at, "h")) for at in (0, hours - 1))
            raise ValueError(f"{span} makes {entries} entries, expected at most {_MAX_ENTRIES} (is a time misplaced?)")
        column = np.full(len(self.users.names), -1)
        column[kept] = np.arange(len(kept))
        used, seen = (rows.where(column[rows.user] >= 0) for rows in (used, seen))
        cell = (used.what * hours + (used.slot + shift) // 4 - first) * len(kept) + column[used.user]
        places = sorted(self.stations.names)
        rank = pd.Index(places).get_indexer(pd.Index(self.stations.names))
        hour = (seen.slot + shift) // 4 - first
        place = most_used(column[seen.user], hour, rank[seen.what], seen.volume, (hours, len(kept)))
        names = self.users.names
        return City(
            name=name,
            traffic=np.bincount(cell, weights=used.volume, minlength=entries).astype(np.float32).reshape(-1, hours, len(kept)),
            services=SERVICE_CATEGORIES,
            unit="bytes",
            start=np.datetime64(first, "h").astype(datetime),
            step_minutes=60,
            sites=[names[user] for user in kept],
            place=carried(place, carry_hours),
            places=places,
            refused=refused,
        )

    def _active(self, used: Rows, shift: int, least: int) -> tuple[Codes, tuple[tuple[str, str], ...]]:
        """The users (s,) with records in so many hours, by name, and why not the others."""
        names = self.users.names
        active = np.unique((used.user << _SLOT_BITS) | ((used.slot + shift) // 4))
        hours = np.bincount(active >> _SLOT_BITS, minlength=len(names))
        volume = np.bincount(used.user, weights=used.volume, minlength=len(names))
        order = sorted(range(len(names)), key=names.__getitem__)
        refused = [
            (names[user], f"trace: records in {hours[user]} hours ({volume[user]:.0f} bytes), expected at least {least}")
            for user in order
            if hours[user] < least
        ]
        kept = np.array([user for user in order if hours[user] >= least], dtype=np.int64)
        if not len(kept):
            raise ValueError(
                f"no user is left of {len(names)}, expected one with records in at least {least} hours ({refused[0][0]!r}: {refused[0][1]})"
            )
        return kept, tuple(refused)


class Sums:
    """Volumes added up by (user, slot, what); added rows wait until they are many, so that memory follows the sums."""

    def __init__(self) -> None:
        self._parts: list[tuple[Codes, Volumes]] = []
        self._waiting = 0

    def add(self, user: Codes, slot: Codes, what: Codes, volume: Volumes) -> None:
        """Adds rows (n,); ValueError for more users or stations than a key has numbers for."""
        for name, codes, bits in (("users", user, _USER_BITS), ("stations", what, _WHAT_BITS)):
            if codes.max() >= 1 << bits:
                raise ValueError(f"{name}: more than {1 << bits}, expected a part of them at a time")
        key = (user << (_SLOT_BITS + _WHAT_BITS)) | (slot << _WHAT_BITS) | what
        self._parts.append(summed(key, volume))
        self._waiting += len(self._parts[-1][0])
        if self._waiting > max(_WAITING, len(self._parts[0][0])):
            self._add_up()

    def total(self) -> Rows:
        """The sums, one for each key, sorted by user, slot and what."""
        self._add_up()
        key, volume = self._parts[0]
        slot = (key >> _WHAT_BITS) & ((1 << _SLOT_BITS) - 1)
        return Rows(user=key >> (_SLOT_BITS + _WHAT_BITS), slot=slot, what=key & ((1 << _WHAT_BITS) - 1), volume=volume)

    def _add_up(self) -> None:
        keys, volumes = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._parts, self._waiting = [summed(keys, volumes)], 0


def _offset(quarter: int, zone: ZoneInfo | None) -> int:
    """Quarters of an hour by which local time is ahead of UTC at a quarter."""
    if zone is None:
        return 0
    offset = datetime.fromtimestamp(quarter * 900, zone).utcoffset()
    assert offset is not None
    return offset // timedelta(minutes=15)
