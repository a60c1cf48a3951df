"""Session traces of base stations: which device was connected to which station, from when to when, and how much traffic that was.

A session's volume v is spread evenly over its time, so that of station s and slot t is

    y(t, s) = sum over the sessions of s of v |[start, end) within t| / (end - start),

all of v in the slot of the start where a session has no end or ends as it starts. Where no volume was recorded, seconds of connection
are counted in its place (v = end - start): divided by the seconds of a slot they are the mean number of open sessions.

The Shanghai Telecom data set (six months of 2014 in 12 workbooks, `data_6.1~6.15.xlsx` and so on, to be saved as CSV or Parquet) is of
this kind, without a volume. Programs that others have published read its columns `month`, `date`, `start time`, `end time`, `latitude`,
`longitude` and `user id`; a tenth of its rows has no place and some end before they start, so it wants `faulty="skip"`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raytraffic.files import Location
from raytraffic.sources.city import STEP_MINUTES, City
from raytraffic.sources.faulty import FaultyStationsError, Refused
from raytraffic.sources.gridding import MAX_ENTRIES, MICROSECONDS, LocalPlane
from raytraffic.sources.series import check_name
from raytraffic.sources.session_rows import SECOND, Amounts, Clock, Codes, Faults, Flags, Rows, TimeFormat, read_rows
from raytraffic.sources.sheet import Columns, Sheet
from raytraffic.sources.trace_sums import Rows as SumRows
from raytraffic.sources.trace_sums import Sums

__all__ = ["PRESETS", "SessionColumns", "Sessions", "spread"]

#: A session that lasts longer has a mistyped end.
_LONGEST_DAYS = 7
#: Stations by their coordinates are told apart to a millionth of a degree, some 10 cm.
_MICRODEGREES, _LATITUDES = 10**6, 10**9


@dataclass(frozen=True, kw_only=True)
class SessionColumns:
    """Names of a trace's columns; None where there is no such column.

    A session's station is told by its id (`station`), by its place (`lat` and `lon`), or by its place in one text LATITUDE/LONGITUDE
    (`location`). Without `volume` seconds of connection are counted, up to `end`.
    """

    start: str = "start"
    end: str | None = None
    volume: str | None = None
    device: str | None = None
    station: str | None = None
    lat: str | None = None
    lon: str | None = None
    location: str | None = None

    def __post_init__(self) -> None:
        if not self.start:
            raise ValueError(f"columns.start: {self.start!r}, expected the name of a column")
        told = [name for name in ("station", "lat", "lon", "location") if getattr(self, name) is not None]
        if told not in (["station"], ["lat", "lon"], ["location"]):
            raise ValueError(f"columns: {told} given, expected either station, or lat and lon, or location")
        if self.end is None and self.volume is None:
            raise ValueError("columns: neither end nor volume given, expected one of them at least")

    @property
    def names(self) -> list[str]:
        """All that are there."""
        fields = (self.start, self.end, self.volume, self.device, self.station, self.lat, self.lon, self.location)
        return [name for name in fields if name is not None]


#: Columns of published traces.
PRESETS: Mapping[str, SessionColumns] = {
    "shanghai_telecom": SessionColumns(start="start time", end="end time", device="user id", lat="latitude", lon="longitude"),
}


@dataclass(frozen=True, eq=False)
class Sessions:
    """One city from a trace with a header: a CSV or Parquet file, or a folder of such files, read in the order of their names.

    The city's stations are those with sessions, sorted by id; those told by their coordinates are named LATITUDE_LONGITUDE. Its slots
    are those from the first to the last instant of any session. A slot without a session of a station is 0, one without a session of
    any station is an outage (NaN). City.users counts the distinct devices of a station and slot where `columns.device` is given.

    columns      what the trace's columns are called
    sites        table of unique_id, lat and lon (WGS 84), a row a station, for stations told by id; without it their places are unknown
    time_format  of start and end. Seconds, milliseconds and date-times with a zone become local time by the UTC offset that `timezone`
                 (required then) has at the first row, throughout: a change to or from summer time neither doubles nor loses a slot.
                 Date-times without a zone are local already. All rows have a zone, or none
    unit         of the volume, "bytes" unless given; without a column of volume it is "connection seconds"
    faulty       "refuse": a row at fault is a ValueError. "skip": it is left out (what is wrong with a session says nothing of the
                 station's others), and City.refused tells under station "" how many were and the first of each kind; stations whose
                 row of `sites` is at fault or not there are left out whole, each with its reason

    At fault is what is empty (but for an end beside a volume) or unreadable, a negative volume, degrees that are none, a time outside
    1971 to 2099, and an end before its start or more than 7 days after it.

    Memory: some megabytes of text, and 16 bytes for each station and slot with a session, or with `columns.device` for each device,
    station and slot (some 100 while these are added up); then the result.
    """

    path: str | Path
    _: KW_ONLY
    columns: SessionColumns
    sites: str | Path | None = None
    name: str = "sessions"
    step_minutes: int = 30
    time_format: TimeFormat = "iso"
    timezone: str | None = None
    unit: str | None = None
    faulty: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        for option, valid in (("time_format", get_args(TimeFormat)), ("faulty", ("refuse", "skip")), ("step_minutes", STEP_MINUTES)):
            if getattr(self, option) not in valid:
                raise ValueError(f"{option}: {getattr(self, option)!r}, expected one of {valid}")
        if self.timezone is not None:
            try:
                ZoneInfo(self.timezone)
            except (KeyError, ValueError, OSError) as error:
                raise ValueError(f"timezone: {self.timezone!r}, expected an IANA name such as 'Asia/Shanghai'") from error
        elif self.time_format != "iso":
            raise ValueError(f"timezone: None, expected an IANA name such as 'Asia/Shanghai' for {self.time_format}")
        if self.sites is not None and self.columns.station is None:
            raise ValueError(f"sites: {str(self.sites)!r}, expected none where stations are told by their coordinates")
        if self.unit is not None and self.columns.volume is None:
            raise ValueError(f"unit: {self.unit!r}, expected none without a column of volume (seconds of connection are counted)")

    def names(self) -> Sequence[str]:
        """The one name this trace was given."""
        return (self.name,)

    def read(self, name: str) -> Iterator[City]:
        """The city, as one record; ValueError names the file, row, column and value that is not as described."""
        check_name(name, self.names(), self.path)
        reading = _Reading(self)
        for rows in read_rows(Location.of(self.path), self.columns.names, reading.faults):
            reading.add(rows)
        yield reading.city()


def spread(start: Codes, end: Codes, volume: Amounts, step: int) -> tuple[Codes, Codes, Amounts]:
    """(m,) the row, the slot (counted from time 0) and the part of the volume of sessions (n,) in each of their slots of length `step`."""
    first = start // step
    count = np.maximum(-(-end // step) - first, 1)
    row = np.repeat(np.arange(len(start)), count)
    slot = np.arange(len(row)) - np.repeat(np.cumsum(count) - count - first, count)
    overlap = np.minimum(end[row], (slot + 1) * step) - np.maximum(start[row], slot * step)
    share = np.divide(overlap, (end - start)[row], out=np.ones(len(row)), where=(end > start)[row])
    return row, slot, volume[row] * share


class _Stations:
    """The stations of a trace and their numbers, in the order in which they come."""

    def __init__(self, columns: SessionColumns) -> None:
        self._columns = columns
        self._numbers: dict[Hashable, int] = {}

    def of(self, rows: Rows) -> Codes:
        """(n,) the numbers of the rows' stations; new stations are of good rows only, and -1 is that of a row at fault."""
        keys = self._keys(rows)
        out = np.full(len(keys), -1)
        out[rows.good] = _numbered(self._numbers, keys[rows.good])
        return out

    def names(self) -> list[str]:
        """Their ids."""
        if self._columns.station is not None:
            return [str(name) for name in self._numbers]
        return [f"{latitude:.6f}_{longitude:.6f}" for latitude, longitude in self.degrees()]

    def degrees(self) -> Amounts:
        """(s, 2) latitude and longitude of stations that are told by them."""
        key = np.array(list(self._numbers), dtype=np.int64)
        latitude = (key + _LATITUDES // 2) // _LATITUDES
        return np.stack((latitude, key - latitude * _LATITUDES), axis=1) / _MICRODEGREES

    def _keys(self, rows: Rows) -> pd.Series:
        """(n,) what tells stations apart: their ids, or their coordinates as one whole number."""
        columns = self._columns
        if columns.station is not None:
            return rows.texts(columns.station)
        if columns.location is not None:
            latitude, longitude = rows.location(columns.location)
        else:
            assert columns.lat is not None and columns.lon is not None
            latitude, longitude = rows.degrees(columns.lat, 90), rows.degrees(columns.lon, 180)
        north, east = (np.where(rows.good, np.rint(degrees * _MICRODEGREES), 0).astype(np.int64) for degrees in (latitude, longitude))
        return pd.Series(north * _LATITUDES + east)


class _Reading:
    """One reading of a trace: its rows added up as they come, and then the city."""

    def __init__(self, source: Sessions) -> None:
        self.source = source
        self.faults = Faults(skip=source.faulty == "skip")
        self._clock = Clock(source.time_format, source.timezone)
        self._stations = _Stations(source.columns)
        self._devices: dict[Hashable, int] = {}
        self._sums = Sums()

    def add(self, rows: Rows) -> None:
        """Adds the rows that are not at fault."""
        columns, step = self.source.columns, self.source.step_minutes * MICROSECONDS
        start, end = self._interval(rows)
        volume = (end - start) / SECOND if columns.volume is None else rows.amounts(columns.volume)
        device = pd.Series(0, index=range(len(start))) if columns.device is None else rows.texts(columns.device)
        station, good = self._stations.of(rows), rows.good
        if not good.any():
            return
        row, slot, part = spread(self._clock.local(start[good]), self._clock.local(end[good]), volume[good], step)
        self._sums.add(_numbered(self._devices, device[good])[row], slot, station[good][row], part)

    def city(self) -> City:
        """The sessions that were added; ValueError where there are none, or where a time makes them too many slots."""
        source, names = self.source, self._stations.names()
        if not names:
            raise ValueError(f"{source.path}: no session is left, expected one that is not at fault ({self.faults.reason})")
        refused = Refused(skip=source.faulty == "skip")
        degrees = self._degrees(names, refused)
        kept = np.array([i for i in np.argsort(np.array(names), kind="stable").tolist() if names[i] not in refused.reasons], dtype=np.int64)
        if not len(kept):
            raise ValueError(f"{source.sites}: no place of any station, expected some ({min(refused.reasons.values())})")
        total, cell, shape = self._cells(kept)
        outage = np.bincount(cell // shape[1], minlength=shape[0]) == 0
        reasons = {"": self.faults.reason, **refused.reasons} if self.faults.reason else refused.reasons
        return City(
            name=source.name,
            traffic=_dense(cell, total.volume, shape, outage)[None],
            start=np.datetime64(int(total.slot.min()) * source.step_minutes, "m").astype(datetime),
            step_minutes=source.step_minutes,
            sites=[names[i] for i in kept],
            unit="connection seconds" if source.columns.volume is None else source.unit or "bytes",
            xy=None if degrees is None else _on_plane(degrees[kept]),
            users=None if source.columns.device is None else _dense(cell, None, shape, outage),
            refused=tuple(sorted(reasons.items())),
        )

    def _interval(self, rows: Rows) -> tuple[Codes, Codes]:
        """(n,) start and end; what has no end ends as it starts."""
        columns = self.source.columns
        start = rows.times(columns.start, self._clock)
        if columns.end is None:
            return start, start
        end = rows.times(columns.end, self._clock) if columns.volume is None else rows.times_or(start, columns.end, self._clock)
        length = np.where(rows.good, end - start, 0)
        longest = _LONGEST_DAYS * 1440 * MICROSECONDS
        rows.expect((length >= 0) & (length <= longest), columns.end, f"a time from the start on, by at most {_LONGEST_DAYS} days")
        return start, end

    def _degrees(self, names: Sequence[str], refused: Refused) -> Amounts | None:
        """(s, 2) latitude and longitude of the stations, meaningless for those refused; None where they are unknown."""
        if self.source.sites is not None:
            return _read_degrees(self.source.sites, names, refused)
        return self._stations.degrees() if self.source.columns.station is None else None

    def _cells(self, kept: Codes) -> tuple[SumRows, Codes, tuple[int, int]]:
        """The sums (n,) of the stations kept (s,), the cell of each in an array from the first to the last slot, and its shape (t, s)."""
        total = self._sums.total()
        column = np.full(int(total.what.max()) + 1, -1)
        column[kept] = np.arange(len(kept))
        total = total.where(column[total.what] >= 0)
        first, last = int(total.slot.min()), int(total.slot.max())
        shape = (last - first + 1, len(kept))
        if shape[0] * shape[1] > MAX_ENTRIES:
            span = " to ".join(str(np.datetime64(slot * self.source.step_minutes, "m")) for slot in (first, last))
            raise ValueError(f"{self.source.path}: {span} makes {shape} entries, expected at most {MAX_ENTRIES} (is a time misplaced?)")
        return total, (total.slot - first) * shape[1] + column[total.what], shape


def _read_degrees(path: str | Path, names: Sequence[str], refused: Refused) -> Amounts:
    """(s, 2) latitude and longitude of stations by their table; a station that is at fault there, twice there or not there is refused."""
    sheet = Sheet(str(path), "sites", ("unique_id", "lat", "lon"), Columns(), refused)
    assert sheet.station is not None
    ids = sheet.ids[sheet.station]
    sheet.refuse(ids.duplicated(), lambda row: f"more than one row for station {ids[row]!r}, expected one")
    degrees = np.stack(sheet.coordinates(), axis=1)
    row = {name: number for number, name in enumerate(ids)}
    absent = sorted(set(names) - set(row))
    if absent:
        faults = {name: f"no row for station {name!r}, expected one for every station of the trace" for name in absent}
        refused.note(FaultyStationsError.of(sheet.label, faults))
    return degrees[[row.get(name, -1) for name in names]]


def _on_plane(degrees: Amounts) -> Amounts:
    """(s, 2) metres around the middle of places (s, 2) in degrees."""
    return LocalPlane.around(*degrees.T).project(*degrees.T)


def _dense(cell: Codes, volume: Amounts | None, shape: tuple[int, int], outage: Flags) -> NDArray[np.float32]:
    """(t, s) the sums of volumes, or the counts, by cell; NaN in an outage (t,)."""
    out = np.bincount(cell, weights=volume, minlength=shape[0] * shape[1]).astype(np.float32).reshape(shape)
    out[outage] = np.nan
    return out


def _numbered(numbers: dict[Hashable, int], keys: pd.Series) -> Codes:
    """(n,) the keys' numbers, in the order in which they come; new ones are added."""
    codes, distinct = pd.factorize(keys)
    return np.array([numbers.setdefault(key, len(numbers)) for key in distinct.tolist()], dtype=np.int64)[codes]
