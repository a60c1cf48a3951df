"""The operator's own tables: traffic in the long format `unique_id, ds, y`, with optional service and site; sites, users and POI points.

What is done with time zones, gaps, duplicates, negative values, mixed granularity and stations at fault is said at
`LongTable`; whatever is not covered there raises a ValueError that names the table, the row or station and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import compress
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raytraffic.sources.city import STEP_MINUTES, City
from raytraffic.sources.faulty import FaultyStationsError, Label, Refused
from raytraffic.sources.gridding import (
    MICROSECONDS,
    CellGrid,
    LocalPlane,
    LongRows,
    common_steps,
    count_in_cells,
    count_within,
    sum_into_cells,
    when,
)
from raytraffic.sources.sheet import Columns, Sheet, Table
from raytraffic.sources.whereabouts import most_used

__all__ = ["Columns", "LongTable", "Table"]


@dataclass(frozen=True, eq=False)
class LongTable:
    """One city from an operator's tables; the file or frame is only read by `read`.

    `traffic` has a row a station (or user), slot and (where the service column is present) service. Where it has the site column too,
    its rows are of users who move: the site of most traffic in a slot (the first by name of equals) is the user's place there, which is
    unknown where the cell is empty or no row is; it has no meaning with `cell_metres`, and is not read then. `sites` (one row a station:
    place in WGS 84 degrees), `users` (long, like traffic) and `poi` (one row a point) are optional. Without `cell_metres`
    the city consists of stations, sorted by id, and POI are counted within `poi_radius_metres` of each. With it, stations
    are summed into square cells (row 0 = north): a cell is NaN where none of its stations was measured, and always where
    none stands; POI are counted per cell.

    timezone     date-times with a zone are converted to the UTC offset that `timezone` (required then) has at the first
                 instant of the table, and keep that offset throughout: a change to or from summer time neither doubles
                 nor loses a slot. Date-times without a zone are local already. Text must be ISO 8601.
    gaps         slots without a row are NaN ("missing") or "zero"; a row whose value is empty is always NaN.
    duplicates   rows of one station, service and date-time: "error", or their "sum", "mean" or "last".
    negatives    "error", or "missing" (NaN).
    step_minutes None: the step all stations share (a station's step is its most common difference of date-times). Given:
                 stations of a finer step are summed to it (users averaged; NaN unless all finer slots are there), those of
                 a coarser step are an error, except under gaps="zero" where absent rows say nothing about the step.

    Users outside the traffic's period and POI outside the grid are left out; sites without traffic too.
    """

    traffic: Table
    _: KW_ONLY
    sites: Table | None = None
    users: Table | None = None
    poi: Table | None = None
    columns: Columns = field(default_factory=Columns)
    name: str = "operator"
    step_minutes: int | None = None
    timezone: str | None = None
    cell_metres: float | None = None
    poi_radius_metres: float = 500.0
    unit: str = "unknown"
    gaps: Literal["missing", "zero"] = "missing"
    duplicates: Literal["error", "sum", "mean", "last"] = "error"
    negatives: Literal["error", "missing"] = "error"
    faulty: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        choices = {
            "gaps": ("missing", "zero"),
            "duplicates": ("error", "sum", "mean", "last"),
            "negatives": ("error", "missing"),
            "faulty": ("refuse", "skip"),
        }
        for option, valid in choices.items():
            if getattr(self, option) not in valid:
                raise ValueError(f"{option}: {getattr(self, option)!r}, expected one of {valid}")
        if self.step_minutes is not None and self.step_minutes not in STEP_MINUTES:
            raise ValueError(f"step_minutes: {self.step_minutes}, expected one of {STEP_MINUTES}")
        if self.timezone is not None:
            try:
                ZoneInfo(self.timezone)
            except (KeyError, ValueError, OSError) as error:
                raise ValueError(f"timezone: {self.timezone!r}, expected an IANA name such as 'Europe/Rome'") from error
        for option in ("cell_metres", "poi_radius_metres"):
            length = getattr(self, option)
            if length is not None and not (np.isfinite(length) and length > 0):
                raise ValueError(f"{option}: {length}, expected a length > 0")
        if self.sites is None and (self.poi is not None or self.cell_metres is not None):
            raise ValueError("sites: not given, expected the stations' places wherever poi or cell_metres is given")

    def names(self) -> Sequence[str]:
        """The one name this table was given."""
        return (self.name,)

    def read(self, name: str) -> Iterator[City]:
        """The city, as one record; ValueError for another name and for whatever the tables hold that is not covered above.

        It is a FaultyStationsError where the rows of some stations are at fault.
        """
        if name != self.name:
            raise ValueError(f"name: {name!r}, expected {self.name!r}")
        yield _Reading(self).city()


@dataclass(frozen=True, eq=False)
class _Places:
    """The sites table's stations and their degrees (n,)."""

    label: Label
    ids: pd.Index
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]


class _Reading:
    """One reading of a LongTable: each table is parsed once, then the city is made, again without each lot of stations found at fault."""

    def __init__(self, table: LongTable) -> None:
        self.table = table
        self.refused = Refused(skip=table.faulty == "skip")

    def city(self) -> City:
        """The city of all stations that are not refused."""
        if self.refused.skip:
            # a station at fault in one table is left out of all, so each is parsed before anything is made of one
            _ = self.traffic, self.users, self.places
        while True:
            known = len(self.refused.reasons)
            try:
                return self._city()
            except FaultyStationsError as fault:
                self.refused.note(fault)
                assert len(self.refused.reasons) > known

    @cached_property
    def _traffic_sheet(self) -> Sheet:
        return self._long_sheet(self.table.traffic, "traffic", self.table.columns.y)

    @cached_property
    def traffic(self) -> LongRows:
        """The cleaned rows of the traffic."""
        return self._rows(self._traffic_sheet, self.table.columns.y)

    @cached_property
    def users(self) -> LongRows | None:
        """The cleaned rows of the users, where that table is given."""
        if self.table.users is None:
            return None
        return self._rows(self._long_sheet(self.table.users, "users", self.table.columns.users), self.table.columns.users)

    @cached_property
    def places(self) -> _Places | None:
        """The sites, where that table is given."""
        if self.table.sites is None:
            return None
        names = self.table.columns
        sheet = Sheet(self.table.sites, "sites", (names.unique_id, names.lat, names.lon), names, self.refused)
        assert sheet.station is not None
        ids = sheet.ids[sheet.station]
        sheet.refuse(ids.duplicated(), lambda row: f"more than one row for station {ids[row]!r}, expected one")
        latitude, longitude = sheet.coordinates(names.lat, names.lon)
        kept = ~ids.isin(list(self.refused.reasons))
        return _Places(sheet.label, ids[kept], latitude[kept], longitude[kept])

    def _city(self) -> City:
        """The city of the stations not refused so far; FaultyStationsError where more of them are at fault."""
        table, rows = self.table, self.traffic.without(self.refused.reasons)
        if not rows.ids:
            station, reason = min(self.refused.reasons.items())
            count = len(self.refused.reasons)
            raise ValueError(
                f"{rows.label}: no station is left of {count} at fault, expected at least one that is not ({station!r}: {reason})"
            )
        step = table.step_minutes or rows.step()
        start, slots = rows.period(step)
        traffic = rows.dense(step, absent=self._absent, mean=False)
        place, places = self._place(rows, step)
        self._refuse(
            rows.label,
            rows.ids,
            np.asarray(np.isnan(traffic).all(axis=(0, 1))),
            lambda station: f"every {table.columns.y} of station {station!r} is missing, expected a measurement",
        )
        users = None if self.users is None else self._users_of(self.users, rows.ids, step, start, slots)
        ids: Sequence[str] = rows.ids
        categories: Sequence[str] = ()
        xy, grid, poi = None, None, None
        if self.places is not None:
            plane, xy = self._on_plane(self.places, rows.ids)
            grid = None if table.cell_metres is None else CellGrid.covering(xy, table.cell_metres)
            if table.poi is not None:
                poi, categories = self._poi(table.poi, plane, grid, xy)
        if grid is not None and xy is not None:
            cells = grid.cells_of(xy)
            traffic = sum_into_cells(traffic, cells, grid.count)
            users = None if users is None else sum_into_cells(users, cells, grid.count)
            ids = [f"r{row}c{column}" for row in range(grid.shape[0]) for column in range(grid.shape[1])]
            xy = grid.centres()
        return City(
            name=table.name,
            traffic=traffic.astype(np.float32),
            start=datetime.fromisoformat(str(np.datetime64(start * step, "m"))),
            step_minutes=step,
            sites=ids,
            services=rows.services,
            unit=table.unit,
            grid=None if grid is None else grid.shape,
            xy=xy,
            users=None if users is None else users.astype(np.float32),
            poi=poi,
            poi_categories=categories,
            place=place,
            places=places,
            refused=tuple(sorted(self.refused.reasons.items())),
        )

    @property
    def _absent(self) -> float:
        return 0.0 if self.table.gaps == "zero" else np.nan

    @staticmethod
    def _refuse(label: Label, ids: Sequence[str], bad: NDArray[np.bool_], fault: Callable[[str], str]) -> None:
        """FaultyStationsError for those that are `bad` (s,), if any."""
        if bad.any():
            raise FaultyStationsError.of(label, {station: fault(station) for station in compress(ids, bad)})

    def _users_of(self, rows: LongRows, ids: Sequence[str], step: int, start: int, slots: int) -> NDArray[np.float64]:
        """(t, s) users of the traffic's stations and slots."""
        out = np.full((slots, len(ids)), self._absent)
        rows = rows.without(self.refused.reasons)
        if not rows.ids:
            return out
        station = pd.Index(ids).get_indexer(pd.Index(rows.ids))
        self._refuse(rows.label, rows.ids, station < 0, lambda name: f"unknown station {name!r}, expected stations of the traffic")
        own_start, own_slots = rows.period(step)
        begin, end = max(start, own_start), min(start + slots, own_start + own_slots)
        if begin >= end:
            raise ValueError(f"{rows.label}: no {self.table.columns.ds} lies in the period of the traffic, expected the same period")
        own = rows.dense(step, absent=self._absent, mean=True)[0]
        out[begin - start : end - start, station] = own[begin - own_start : end - own_start]
        return out

    def _on_plane(self, places: _Places, ids: Sequence[str]) -> tuple[LocalPlane, NDArray[np.float64]]:
        """The plane around the stations and their (s, 2) places on it."""
        row = places.ids.get_indexer(pd.Index(ids))
        self._refuse(
            places.label, ids, row < 0, lambda station: f"no row for station {station!r}, expected one for every station of the traffic"
        )
        latitude, longitude = places.latitude[row], places.longitude[row]
        plane = LocalPlane.around(latitude, longitude)
        return plane, plane.project(latitude, longitude)

    def _poi(
        self, table: Table, plane: LocalPlane, grid: CellGrid | None, xy: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], Sequence[str]]:
        """(k, s) counts in the grid's cells, or around stations (s, 2), and the k categories."""
        names, radius = self.table.columns, self.table.poi_radius_metres
        sheet = Sheet(table, "poi", (names.lat, names.lon, names.category), names, self.refused)
        codes, categories = pd.factorize(sheet.texts(names.category), sort=True)
        points = plane.project(*sheet.coordinates(names.lat, names.lon))
        if grid is None:
            counts = count_within(points, codes.astype(np.int64), len(categories), xy, radius)
        else:
            counts = count_in_cells(grid.cells_of(points), codes.astype(np.int64), len(categories), grid.count)
        if not counts.any():
            where = f"within {radius:g} m of a station" if grid is None else "in a cell of the grid"
            raise ValueError(f"{sheet.label}: no point lies {where}, expected points of the same place (are lat and lon swapped?)")
        return counts, list(categories)

    def _long_sheet(self, table: Table, role: str, value_column: str) -> Sheet:
        names = self.table.columns
        return Sheet(table, role, (names.unique_id, names.ds, value_column), names, self.refused)

    def _has(self, sheet: Sheet, field: Literal["service", "site"]) -> bool:
        """Whether an optional column of the traffic is there; ValueError where it is not although it was given a name."""
        name = getattr(self.table.columns, field)
        if name in sheet.frame.columns:
            return True
        if name != getattr(Columns, field):
            raise ValueError(f"{sheet.label}: no column {name!r}, expected the {field}'s column (it has {list(sheet.frame.columns)})")
        return False

    def _place(self, rows: LongRows, step: int) -> tuple[NDArray[np.int32] | None, Sequence[str]]:
        """(t, s) where the users of these rows were, and the names of the places; None where the table says nothing of sites."""
        sheet, names = self._traffic_sheet, self.table.columns
        if self.table.cell_metres is not None or not self._has(sheet, "site"):
            return None, ()
        assert sheet.station is not None
        user = pd.Index(rows.ids).get_indexer(sheet.ids)[sheet.station]
        cells = sheet.frame[names.site]
        told = (cells.notna() & (cells.astype(str) != "")).to_numpy(bool) & (user >= 0)
        code, places = pd.factorize(pd.Index(cells[told].astype(str)), sort=True)
        instant, _ = sheet.times(names.ds, self.table.timezone)
        start, slots = rows.period(step)
        slot = (instant + (rows.time[0] - rows.instant[0])) // (step * MICROSECONDS) - start
        volume = np.nan_to_num(np.maximum(sheet.numbers(names.y), 0.0))
        return most_used(user[told], slot[told], code, volume[told], (slots, len(rows.ids))), list(places)

    def _rows(self, sheet: Sheet, value_column: str) -> LongRows:
        """The cleaned rows of a long table."""
        names, options = self.table.columns, self.table
        assert sheet.station is not None
        service, services = np.zeros(len(sheet.frame), dtype=np.int64), pd.Index(["traffic"])
        if sheet.label.role == "traffic" and self._has(sheet, "service"):
            service, services = pd.factorize(sheet.texts(names.service), sort=True)
        value = sheet.numbers(value_column)
        negative = value < 0
        if options.negatives == "error":
            sheet.refuse(
                negative,
                lambda row: f"row {row + 1}, column {value_column!r}: {value[row]:g}, expected a value >= 0 (or negatives='missing')",
            )
        value[negative] = np.nan
        instant, zoned = sheet.times(names.ds, options.timezone)
        rows = LongRows(
            label=sheet.label,
            ids=list(sheet.ids),
            services=list(services),
            station=sheet.station,
            service=service,
            instant=instant,
            value=value,
            steps=common_steps(sheet.station, instant, len(sheet.ids)),
            zone=ZoneInfo(options.timezone) if zoned and options.timezone is not None else None,
        )
        return self._without_duplicates(rows.without(self.refused.reasons))

    def _without_duplicates(self, rows: LongRows) -> LongRows:
        key = ["station", "service", "instant"]
        frame = pd.DataFrame({column: getattr(rows, column) for column in (*key, "value")})
        again = frame.duplicated(key).to_numpy()
        if not again.any():
            return rows
        if self.table.duplicates == "error":
            self.refused.note(FaultyStationsError.of_rows(rows.label, rows.ids, rows.station, again, lambda row: _twice(rows, row)))
            return rows.without(self.refused.reasons)
        if self.table.duplicates == "last":
            frame = frame.drop_duplicates(key, keep="last")
        else:
            groups = frame.groupby(key, sort=False)["value"]
            frame = (groups.sum(min_count=1) if self.table.duplicates == "sum" else groups.mean()).reset_index()
        return replace(rows, **{column: frame[column].to_numpy() for column in frame})


def _twice(rows: LongRows, row: int) -> str:
    return (
        f"station {rows.ids[rows.station[row]]!r} has more than one row at"
        f" {when(rows.time[row])}, expected one (or duplicates='sum', 'mean' or 'last')"
    )
