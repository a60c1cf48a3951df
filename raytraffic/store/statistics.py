r"""What is measured on a city's training part: its reference level and its mean weekly shape.

reference  q = 99.99th percentile of all training entries, dead cells included (the public UoMo release's q), exact and streamed
profile    p[weekday, slot] = mean over live cells of x / mean(x), shrunk to the slot's mean over days with n / (n + SHRINK)
           where n days were seen, 1 where nothing is known, divided by its own mean
level      median over live cells of their mean
modes, persistence   how cells vary about that mean week: raytraffic.store.variation
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytraffic.files import Location
from raytraffic.store.index import StoreIndex
from raytraffic.store.layout import Layout
from raytraffic.store.shards import decode_series
from raytraffic.store.variation import Variation

__all__ = ["CityStatistics", "Statistics", "city_statistics", "clock"]

PERCENTILE = 99.99
SHRINK = 1.0

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CityStatistics:
    """Measured on the training part of one city (c services, units of the traffic).

    reference, level   one a service; profile[weekday][slot] has mean 1; live_share of the measured cells ever carried traffic;
    users_reference    the users' 99.99th percentile, None where users were never measured
    entries            training entries that were measured
    modes              modes[slot] (MODES,) and persistence (1 + len(HOURS),) of raytraffic.kriging, over all services; the latter
                       is empty where no cell was measured for two days
    """

    reference: tuple[float, ...]
    level: tuple[float, ...]
    profile: tuple[tuple[float, ...], ...]
    live_share: float
    users_reference: float | None
    entries: int
    modes: tuple[tuple[float, ...], ...]
    persistence: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> CityStatistics:
        """The inverse of `to_json`."""
        lists = {name: tuple(fields[name]) for name in ("reference", "level", "persistence")}
        tables = {name: tuple(tuple(row) for row in fields[name]) for name in ("profile", "modes")}
        return cls(**{**fields, **lists, **tables})


#: Per city; None where a city has no training part, so that nothing may be measured there.
Statistics = Mapping[str, CityStatistics | None]


def clock(minute: _Ints, step_minutes: int | _Ints) -> tuple[_Ints, _Ints]:
    """Slot of the day and weekday (0 = Monday) of minutes since 1970-01-01, a Thursday."""
    return minute % 1440 // step_minutes, (minute // 1440 + 3) % 7


def city_statistics(
    out: Location, index: StoreIndex, city: str, ranges: Mapping[str, _Ints], layout: Layout
) -> dict[str, CityStatistics | None]:
    """One city's statistics, by name, over the training steps `ranges[name]` (n, 2) of every run of the index.

    None where no training entry was measured; two passes over the city's shards, because cells vary about the week that the first
    one measures.
    """
    rows = index.rows_of(city)
    step = int(index.step_minutes[rows[0]])
    found = {name: _Measured(step, _most_entries(index, train, rows, layout)) for name, train in ranges.items()}

    def parts() -> Iterator[tuple[str, NDArray, NDArray, _Ints]]:
        for first_row, traffic, users in _read_series(out, index, rows, layout):
            for name in found:
                low, high = ranges[name][first_row]
                if low < high:
                    yield name, traffic[:, low:high], users[low:high], index.start_minute[first_row] + np.arange(low, high) * step

    for name, traffic, users, minute in parts():
        found[name].add(traffic, users, minute)
    varied = {name: Variation(step, measured.profile()) for name, measured in found.items()}
    for name, traffic, _, minute in parts():
        varied[name].add(traffic, *clock(minute, step))
    return {name: measured.result(varied[name]) for name, measured in found.items()}


def _most_entries(index: StoreIndex, train: _Ints, rows: _Ints, layout: Layout) -> int:
    first = rows[index.run[rows] == 0]
    return int((train[first, 1] - train[first, 0]).sum()) * layout.cells


def _read_series(out: Location, index: StoreIndex, rows: _Ints, layout: Layout) -> Iterator[tuple[int, NDArray, NDArray]]:
    """(first row, traffic (c, t, s), users (t, s)) of every whole series among `rows`, one row group in memory at a time."""
    traffic: list[NDArray] = []
    users: list[NDArray] = []
    at = 0
    for shard in dict.fromkeys(index.shard[rows].tolist()):
        location = out.child(index.shards[shard])
        metadata = location.read_metadata()
        for group in range(metadata.num_row_groups):
            table = location.read_table(["traffic", "users"], [group], metadata)
            for run_traffic, run_users in zip(*decode_series(table, layout), strict=True):
                row = rows[at]
                traffic.append(run_traffic[:, : index.core_steps[row]])
                users.append(run_users[: index.core_steps[row]])
                at += 1
                if at == len(rows) or index.run[rows[at]] == 0:
                    yield int(row - index.run[row]), np.concatenate(traffic, axis=1), np.concatenate(users)
                    traffic, users = [], []
    assert at == len(rows), f"{at} rows read, the index has {len(rows)}"


class _Measured:
    """Sums over the training series of one city under one split."""

    def __init__(self, step_minutes: int, most_entries: int) -> None:
        self.step_minutes = step_minutes
        self.slots = 1440 // step_minutes
        self.most_entries = most_entries
        self.top: list[_Top] = []
        self.users = _Top(most_entries)
        self.total = np.zeros(7 * self.slots)
        self.count = np.zeros(7 * self.slots)
        self.seen: set[int] = set()
        self.means: list[_Floats] = []

    def add(self, traffic: NDArray, users: NDArray, minute: _Ints) -> None:
        """One series: traffic (c, t, s), users (t, s), the minute of each step."""
        if not self.top:
            self.top = [_Top(self.most_entries) for _ in traffic]
        for top, values in zip(self.top, traffic, strict=True):
            top.add(values)
        self.users.add(users)
        present = np.isfinite(traffic)
        number = present.sum(axis=1)
        mean = np.where(present, traffic, 0.0).sum(axis=1, dtype=np.float64) / np.maximum(number, 1)
        mean[number == 0] = np.nan
        self.means.append(mean)
        live = (present & (mean > 0)[:, None]).transpose(1, 0, 2)
        ratio = np.where(live, traffic.transpose(1, 0, 2) / np.where(mean > 0, mean, 1.0), 0.0).sum(axis=(1, 2))
        slot, weekday = clock(minute, self.step_minutes)
        at = weekday * self.slots + slot
        np.add.at(self.total, at, ratio)
        np.add.at(self.count, at, live.sum(axis=(1, 2)))
        self.seen.update(minute[live.any(axis=(1, 2))].tolist())

    def result(self, variation: Variation) -> CityStatistics | None:
        """The statistics; None when nothing was measured."""
        entries = sum(top.count for top in self.top)
        if not entries:
            return None
        means = np.concatenate(self.means, axis=1)
        live = means > 0
        return CityStatistics(
            reference=tuple(top.percentile() for top in self.top),
            level=tuple(float(np.median(mean[alive])) if alive.any() else 0.0 for mean, alive in zip(means, live, strict=True)),
            profile=tuple(tuple(day) for day in self.profile().tolist()),
            live_share=float(live.sum() / np.isfinite(means).sum()),
            users_reference=self.users.percentile() if self.users.count else None,
            entries=entries,
            modes=tuple(tuple(slot) for slot in variation.modes().tolist()),
            persistence=tuple(value for value in variation.persistence().tolist() if np.isfinite(value)),
        )

    def profile(self) -> _Floats:
        """(7, slots)."""
        total, count = self.total.reshape(7, -1), self.count.reshape(7, -1)
        slot, weekday = clock(np.fromiter(self.seen, np.int64, len(self.seen)), self.step_minutes)
        days = np.bincount(weekday * self.slots + slot, minlength=7 * self.slots).reshape(7, -1)
        by_day = total / np.maximum(count, 1)
        by_slot = np.where(count.sum(0) > 0, total.sum(0) / np.maximum(count.sum(0), 1), 1.0)
        weight = days / (days + SHRINK)
        profile = weight * by_day + (1 - weight) * by_slot
        mean = profile.mean()
        return profile / mean if mean > 0 else np.ones_like(profile)


class _Top:
    """The exact upper percentile of a stream of values of which at most `most` are finite: only the largest ones are kept."""

    def __init__(self, most: int) -> None:
        self.keep = int(np.ceil(most * (1 - PERCENTILE / 100))) + 2
        self.count = 0
        self.values = np.zeros(0)

    def add(self, values: NDArray) -> None:
        """Take the finite values in."""
        finite = values[np.isfinite(values)].astype(np.float64)
        self.count += len(finite)
        joined = np.concatenate((self.values, finite))
        self.values = np.partition(joined, len(joined) - self.keep)[-self.keep :] if len(joined) > self.keep else joined

    def percentile(self) -> float:
        """Linear interpolation between order statistics, as numpy's default."""
        ordered = np.sort(self.values)
        position = (self.count - 1) * (PERCENTILE / 100) - (self.count - len(ordered))
        low = int(np.floor(position))
        high = min(low + 1, len(ordered) - 1)
        return float(ordered[low] + (ordered[high] - ordered[low]) * (position - low))
