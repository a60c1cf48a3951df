"""A caller's forecast of the users: a long table `unique_id, ds, expected_users`, and `city` where several are forecast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raytraffic.sources.faulty import Refused
from raytraffic.sources.sheet import Columns, Sheet, Table

__all__ = ["ExpectedUsers", "read_expected_users"]

#: Names a station: its city and its unique_id.
Station = tuple[str, str]
_MICROSECONDS = 60_000_000


@dataclass(frozen=True, eq=False)
class ExpectedUsers:
    """Users expected at minutes from 1970-01-01 on the wall clock: of a station those in its `rows`, in the order of time."""

    label: str
    minute: NDArray[np.int64]
    users: NDArray[np.float64]
    rows: Mapping[Station, slice]

    def at(self, city: str, sites: Sequence[str], minutes: NDArray[np.int64]) -> NDArray[np.float32]:
        """(t, s) users expected of a city's sites at increasing minutes (t,), NaN where the caller expects nothing."""
        found = np.full((len(minutes), len(sites)), np.nan, dtype=np.float32)
        for i, site in enumerate(sites):
            rows = self.rows.get((city, site), slice(0, 0))
            slot = np.searchsorted(minutes, self.minute[rows])
            there = (slot < len(minutes)) & np.isin(self.minute[rows], minutes)
            found[slot[there], i] = self.users[rows][there]
        return found

    def off(self, station: Station, minutes: NDArray[np.int64]) -> Iterator[str]:
        """The times of a station's rows that are none of these minutes."""
        rows = self.minute[self.rows[station]]
        for minute in rows[~np.isin(rows, minutes)].tolist():
            yield str(np.datetime64(minute, "m"))


def read_expected_users(table: Table, cities: Sequence[str]) -> ExpectedUsers:
    """The table of users of these cities, which are told apart by its column `city`; one alone needs none.

    An empty `expected_users` is no expectation. Raises ValueError, naming the table and the row, for columns that are missing, cities
    that are none of these, times that are no whole minutes of local time, negative numbers, and two rows of a station and time.
    """
    sheet = Sheet(table, "expected_users", ("unique_id", "ds", "expected_users"), Columns(users="expected_users"), Refused(skip=False))
    users = sheet.numbers("expected_users")
    sheet.refuse(users < 0, lambda row: f"row {row + 1}, column 'expected_users': {users[row]:g}, expected a number of at least 0")
    frame = pd.DataFrame({"city": _cities(sheet, cities), "site": sheet.texts("unique_id"), "minute": _minutes(sheet), "users": users})
    twice = frame.duplicated(["city", "site", "minute"]).to_numpy()
    sheet.refuse(twice, lambda row: f"row {row + 1}: the second of {frame['site'][row]!r} at that time, expected one a station and time")
    frame = frame.sort_values(["city", "site", "minute"], ignore_index=True)
    first = np.flatnonzero(~frame.duplicated(["city", "site"]).to_numpy())
    names = zip(frame["city"][first], frame["site"][first], strict=True)
    spans = zip(first.tolist(), [*first[1:].tolist(), len(frame)], strict=True)
    rows = {(str(city), str(site)): slice(begin, end) for (city, site), (begin, end) in zip(names, spans, strict=True)}
    return ExpectedUsers(str(sheet.label), frame["minute"].to_numpy(), frame["users"].to_numpy(), rows)


def _cities(sheet: Sheet, cities: Sequence[str]) -> pd.Index:
    """(n,) the city of every row."""
    if "city" not in sheet.frame.columns:
        if len(cities) != 1:
            raise ValueError(f"{sheet.label}: no column 'city', expected one that says which of {sorted(cities)} a row is of")
        return pd.Index(np.repeat(np.array(cities, dtype=object), len(sheet.frame)))
    found = sheet.texts("city")
    sheet.refuse(~found.isin(cities), lambda row: f"row {row + 1}, column 'city': {found[row]!r}, expected one of {sorted(cities)}")
    return found


def _minutes(sheet: Sheet) -> NDArray[np.int64]:
    """(n,) minutes from 1970-01-01 on the wall clock."""
    times, zoned = sheet.times("ds", "UTC")
    if zoned:
        raise ValueError(f"{sheet.label}: column 'ds' holds date-times with a zone, expected local times without one")
    cells = sheet.frame["ds"]
    sheet.refuse(times % _MICROSECONDS != 0, lambda row: f"row {row + 1}, column 'ds': {cells.iloc[row]}, expected whole minutes")
    return times // _MICROSECONDS
