"""From points on the Earth to a local metric plane, from there to square cells or stations; and from rows to regular slots.

The plane is the azimuthal equidistant projection (WGS 84) around the points' centroid: distances from the centroid are
exact, and over a city (50 km) all others are right to about 1e-5. x grows eastwards and y northwards, in metres; the
rows of a grid run from north to south and its columns from west to east, like the pixels of a map.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from itertools import compress
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyproj import Proj
from scipy.spatial import cKDTree

from raytraffic.sources.city import STEP_MINUTES
from raytraffic.sources.faulty import FaultyStationsError, Label

__all__ = ["CellGrid", "LocalPlane", "LongRows", "common_steps", "count_in_cells", "count_within", "sum_into_cells", "when"]

#: Microseconds in a minute.
MICROSECONDS = 60_000_000
#: More entries of a dense (c, t, s) array than this are a mistyped date, not a city.
MAX_ENTRIES = 2**32

#: More cells than this are a misplaced site or a cell size in the wrong unit, not a city.
MAX_CELLS = 1_000_000


@dataclass(frozen=True)
class LocalPlane:
    """The metric plane around one place, given in degrees (WGS 84)."""

    latitude: float
    longitude: float

    @classmethod
    def around(cls, latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> LocalPlane:
        """The plane around the centroid of points (n,) in degrees; the centroid is taken on the sphere, so the date line is no seam."""
        assert len(latitude) == len(longitude) > 0
        phi, lam = np.radians(latitude), np.radians(longitude)
        x, y, z = (np.cos(phi) * np.cos(lam)).mean(), (np.cos(phi) * np.sin(lam)).mean(), np.sin(phi).mean()
        return cls(float(np.degrees(np.arctan2(z, np.hypot(x, y)))), float(np.degrees(np.arctan2(y, x))))

    def project(self, latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 2) metres east and north of the centre, for points (n,) in degrees."""
        plane = Proj(proj="aeqd", lat_0=self.latitude, lon_0=self.longitude, datum="WGS84")
        x, y = plane(np.asarray(longitude, dtype=np.float64), np.asarray(latitude, dtype=np.float64))
        return np.stack([np.asarray(x), np.asarray(y)], axis=1)


@dataclass(frozen=True)
class CellGrid:
    """Square cells of `cell_metres`, `shape` (h, w), whose north-west corner lies at (`west`, `north`) in metres."""

    west: float
    north: float
    cell_metres: float
    shape: tuple[int, int]

    @classmethod
    def covering(cls, xy: NDArray[np.float64], cell_metres: float) -> CellGrid:
        """The smallest grid that holds all points (n, 2); ValueError where it would have more than MAX_CELLS cells."""
        if not (np.isfinite(cell_metres) and cell_metres > 0):
            raise ValueError(f"cell_metres: {cell_metres}, expected a length > 0")
        assert len(xy) > 0
        west, north = float(xy[:, 0].min()), float(xy[:, 1].max())
        h = int((north - float(xy[:, 1].min())) // cell_metres) + 1
        w = int((float(xy[:, 0].max()) - west) // cell_metres) + 1
        if h * w > MAX_CELLS:
            raise ValueError(
                f"cell_metres: {cell_metres:g} makes {h} x {w} cells of sites up to {np.linalg.norm(xy, axis=1).max() / 1000:.0f} km"
                f" from their centroid, expected at most {MAX_CELLS} cells (is a site misplaced?)"
            )
        return cls(west, north, float(cell_metres), (h, w))

    @property
    def count(self) -> int:
        """Number of cells, h * w."""
        return self.shape[0] * self.shape[1]

    def cells_of(self, xy: NDArray[np.float64]) -> NDArray[np.int64]:
        """(n,) row-major cell of each point (n, 2), -1 for a point outside the grid."""
        row = np.floor((self.north - xy[:, 1]) / self.cell_metres)
        column = np.floor((xy[:, 0] - self.west) / self.cell_metres)
        inside = (row >= 0) & (row < self.shape[0]) & (column >= 0) & (column < self.shape[1])
        return np.where(inside, row * self.shape[1] + column, -1.0).astype(np.int64)

    def centres(self) -> NDArray[np.float64]:
        """(h * w, 2) metres: the middle of every cell, row-major from the north-west."""
        row, column = np.divmod(np.arange(self.count), self.shape[1])
        return np.stack([self.west + (column + 0.5) * self.cell_metres, self.north - (row + 0.5) * self.cell_metres], axis=1)


def sum_into_cells(values: NDArray[np.float64], cells: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(..., count): for values (..., s) of stations in `cells` (s,), each cell's sum; NaN where no station of it has a value."""
    assert values.shape[-1] == len(cells) > 0
    order = np.argsort(cells, kind="stable")
    occupied, first = np.unique(cells[order], return_index=True)
    sorted_values = values[..., order]
    measured = np.isfinite(sorted_values)
    total = np.add.reduceat(np.where(measured, sorted_values, 0.0), first, axis=-1)
    out = np.full((*values.shape[:-1], count), np.nan)
    out[..., occupied] = np.where(np.logical_or.reduceat(measured, first, axis=-1), total, np.nan)
    return out


def count_in_cells(cells: NDArray[np.int64], category: NDArray[np.int64], categories: int, count: int) -> NDArray[np.float32]:
    """(k, count): how many points of each category lie in each cell; points (n,) in cell -1 are left out."""
    inside = cells >= 0
    flat = category[inside] * count + cells[inside]
    return np.bincount(flat, minlength=categories * count).reshape(categories, count).astype(np.float32)


def count_within(
    points: NDArray[np.float64], category: NDArray[np.int64], categories: int, stations: NDArray[np.float64], radius_metres: float
) -> NDArray[np.float32]:
    """(k, s): how many points (n, 2) of each category lie at most `radius_metres` from each station (s, 2)."""
    out = np.zeros((categories, len(stations)), dtype=np.float32)
    for k in np.unique(category):
        out[k] = cKDTree(points[category == k]).query_ball_point(stations, radius_metres, return_length=True)
    return out


def common_steps(station: NDArray[np.int64], time: NDArray[np.int64], stations: int) -> NDArray[np.int64]:
    """(s,) most common difference between consecutive distinct times of each station, the smallest of equals; 0 for a single time."""
    order = np.lexsort((time, station))
    owner, gap = station[order][1:], np.diff(time[order])
    counted = (owner == station[order][:-1]) & (gap > 0)
    distinct, code = np.unique(gap[counted], return_inverse=True)
    pairs, seen = np.unique(owner[counted] * max(len(distinct), 1) + code, return_counts=True)
    owner, code = np.divmod(pairs, max(len(distinct), 1))
    best = np.lexsort((code, -seen, owner))
    owner, first = np.unique(owner[best], return_index=True)
    steps = np.zeros(stations, dtype=np.int64)
    steps[owner] = distinct[code[best[first]]]
    return steps


@dataclass(frozen=True, kw_only=True, eq=False)
class LongRows:
    """Rows (n,) of a long table: codes into `ids` and `services`, both sorted, `instant` in microseconds, and `value`.

    Instants count from 1970-01-01 00:00 UTC where there is a `zone`, otherwise from that local time. No two rows share
    station, service and instant. `steps` (s,) are the stations' own (see common_steps).
    """

    label: Label
    ids: Sequence[str]
    services: Sequence[str]
    station: NDArray[np.int64]
    service: NDArray[np.int64]
    instant: NDArray[np.int64]
    value: NDArray[np.float64]
    steps: NDArray[np.int64]
    zone: ZoneInfo | None = None

    @cached_property
    def time(self) -> NDArray[np.int64]:
        """(n,) local wall-clock time in microseconds since 1970-01-01 00:00 local: the zone's offset at the first instant throughout."""
        if self.zone is None:
            return self.instant
        offset = pd.Timestamp(int(self.instant.min()), unit="us", tz="UTC").tz_convert(self.zone).utcoffset()
        return self.instant + offset // timedelta(microseconds=1)

    def without(self, stations: Container[str]) -> LongRows:
        """The rows of all other stations, as they would be if these had never been in the table."""
        kept = np.array([name not in stations for name in self.ids], dtype=bool)
        if kept.all():
            return self
        rows = kept[self.station]
        service = self.service[rows]
        used = np.bincount(service, minlength=len(self.services)) > 0
        return replace(
            self,
            ids=list(compress(self.ids, kept)),
            services=list(compress(self.services, used)),
            station=(np.cumsum(kept) - 1)[self.station[rows]],
            service=(np.cumsum(used) - 1)[service],
            instant=self.instant[rows],
            value=self.value[rows],
            steps=self.steps[kept],
        )

    def step(self) -> int:
        """The step in minutes that all stations share.

        ValueError where no station has one or a day holds no whole number of it; FaultyStationsError for stations of another step
        than most have (of equals the smallest).
        """
        found, seen = np.unique(self.steps[self.steps > 0], return_counts=True)
        if len(found) == 0:
            raise ValueError(f"{self.label}: every station has one date-time only, expected step_minutes to be given")
        if len(found) > 1:
            example = {int(step): int((self.steps == step).argmax()) for step in found}
            common = int(found[seen.argmax()])
            other = np.flatnonzero((self.steps > 0) & (self.steps != common)).tolist()
            faults = {self.ids[i]: self._mixed({common: example[common], int(self.steps[i]): i}) for i in other}
            raise FaultyStationsError.of(self.label, faults, self._mixed(example))
        minutes, rest = divmod(int(found[0]), MICROSECONDS)
        if rest or minutes not in STEP_MINUTES:
            raise ValueError(f"{self.label}: step of {_minutes(found[0])}, expected one of {STEP_MINUTES} (or step_minutes to be given)")
        return minutes

    def _mixed(self, example: Mapping[int, int]) -> str:
        named = [f"{self.ids[i]!r} has {_minutes(step)}" for step, i in sorted(example.items())[:3]]
        return f"steps of {', '.join(named)}, expected one granularity, or step_minutes to be given"

    def period(self, step: int) -> tuple[int, int]:
        """(first slot, number of slots) of `step` minutes, counted from the local midnight that `time` is counted from."""
        return _period(self.time.min(), self.time.max(), step)

    def dense(self, step: int, *, absent: float, mean: bool) -> NDArray[np.float64]:
        """(c, t, s) on the slots of `period(step)`, `absent` (NaN or 0) where no row is.

        Stations of a finer step are summed, or averaged with `mean`, to NaN where a finer slot is NaN. A station may be
        coarser than `step` only where absent rows are 0. FaultyStationsError for those that do not fit, have a time off their step
        or one so far from all others' that the array would have more than MAX_ENTRIES; ValueError where no few stations do.
        """
        target = step * MICROSECONDS
        steps = np.where(self.steps == 0, target, self.steps)
        if absent == 0:
            steps[steps > target] = target
        self._check_fit(steps, step)
        self._check_entries(step)
        start, slots = self.period(step)
        c, s = len(self.services), len(self.ids)
        out = np.empty((c, slots, s))
        for fine in np.unique(steps):
            ratio, members = int(target // fine), np.flatnonzero(steps == fine)
            position = np.zeros(s, dtype=np.int64)
            position[members] = np.arange(len(members))
            mine = steps[self.station] == fine
            dense = np.full((c, slots * ratio, len(members)), absent)
            slot = self.time[mine] // fine - start * ratio
            dense[self.service[mine], slot, position[self.station[mine]]] = self.value[mine]
            parts = dense.reshape(c, slots, ratio, len(members))
            out[:, :, members] = parts.mean(axis=2) if mean else parts.sum(axis=2)
        return out

    def _check_fit(self, steps: NDArray[np.int64], step: int) -> None:
        unfit = np.flatnonzero((step * MICROSECONDS) % steps != 0)
        if len(unfit):
            named = [f"{self.ids[i]!r} has {_minutes(steps[i])}" for i in unfit.tolist()]
            faults = {self.ids[i]: _unfit([name], 1, step) for i, name in zip(unfit.tolist(), named, strict=True)}
            raise FaultyStationsError.of(self.label, faults, _unfit(named[:5], len(unfit), step))
        off = self.time % steps[self.station] != 0
        if off.any():
            raise FaultyStationsError.of_rows(self.label, self.ids, self.station, off, lambda row: self._off(row, steps))

    def _off(self, row: int, steps: NDArray[np.int64]) -> str:
        station = self.station[row]
        return f"station {self.ids[station]!r} at {when(self.time[row])}, expected a whole step of {_minutes(steps[station])}"

    def _check_entries(self, step: int) -> None:
        c, s = len(self.services), len(self.ids)
        _, slots = self.period(step)
        if c * slots * s <= MAX_ENTRIES:
            return
        fault = (
            f"{when(self.time.min())} to {when(self.time.max())} makes {c} x {slots} x {s} entries,"
            f" expected at most {MAX_ENTRIES} (is a date misplaced?)"
        )
        begin, end = np.full(s, self.time.max()), np.full(s, self.time.min())
        np.minimum.at(begin, self.station, self.time)
        np.maximum.at(end, self.station, self.time)
        # a date is misplaced where it lies further from the usual period than that is long, and then only few are
        usual_begin, usual_end = np.median(begin), np.median(end)
        length = usual_end - usual_begin
        near = (begin >= usual_begin - length) & (end <= usual_end + length)
        far = [name for name, is_near in zip(self.ids, near, strict=True) if not is_near]
        if far and len(far) < s / 2 and c * _period(begin[near].min(), end[near].max(), step)[1] * (s - len(far)) <= MAX_ENTRIES:
            raise FaultyStationsError.of(self.label, dict.fromkeys(far, fault))
        raise ValueError(f"{self.label}: {fault}")


def when(microseconds: float) -> str:
    """A local time of LongRows as ISO 8601 text, to the second."""
    return str(np.datetime64(int(microseconds), "us").astype("datetime64[s]"))


def _minutes(microseconds: int) -> str:
    return f"{microseconds / MICROSECONDS:g} minutes"


def _unfit(named: Sequence[str], count: int, step: int) -> str:
    return f"steps of {', '.join(named)} ({count} in all), expected whole parts of {step} minutes"


def _period(first: int, last: int, step: int) -> tuple[int, int]:
    """The slot of `step` minutes that holds the first of two times, and the number of slots to the one that holds the last."""
    begin, end = (int(time) // (step * MICROSECONDS) for time in (first, last))
    return begin, end - begin + 1
