"""Published app-usage records: who used which app, when, at which base station, and how many bytes that took.

The layout that is the default is that of the Tsinghua App Usage Dataset (Yu et al., "Smartphone App Usage Prediction Using Points of
Interest", IMWUT 2018), as programs that others have published read it::

    App_usage_trace.txt   user, time (yyyymmddHHMMSS, local), base station, app, bytes; spaces between, no header
    base_poi.txt          base station, and counts of POI in the 17 categories of LSDM's Table II in their order; tabs, with a header
    App2Category.txt      app, category; tabs, no header
    Categorys.txt         category, its English name (one of 20); tabs, no header

Any other file, column, delimiter, header or format of time can be said. The data are for research only, and none are kept here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from raytraffic.environment.poi import LSDM_CATEGORIES
from raytraffic.files import Location
from raytraffic.sources.city import City
from raytraffic.sources.delimited import Chunk, Column, Layout, read_chunks
from raytraffic.sources.series import check_name
from raytraffic.sources.session_parameters import SERVICE_CATEGORIES
from raytraffic.sources.trace_sums import Ids, TraceSums

__all__ = ["PUBLISHED_CATEGORY", "AppLayout", "AppUsage", "CategoryLayout", "StationLayout", "TimeFormat", "TraceLayout"]

#: yyyymmddHHMMSS in local time, or seconds or milliseconds since 1970-01-01 UTC.
TimeFormat = Literal["digits", "seconds", "milliseconds"]

#: The category of LSDM's Table I for each of the 20 published ones; it has 10 of them, the others go where they are nearest.
PUBLISHED_CATEGORY: Mapping[str, str] = {
    **{name: name for name in SERVICE_CATEGORIES},
    "Shopping": "Lifestyle",  # Table I names Meituan there
    "Health & Fitness": "Lifestyle",
    "Infant & Mom": "Lifestyle",
    "Sports": "Lifestyle",
    "Books": "Entertainment",  # read for pleasure
    "References": "News",  # read for information
    "Education": "Utilities",
    "Business": "Utilities",
    "Finance": "Utilities",
    "Weather": "Utilities",
}


@dataclass(frozen=True, kw_only=True)
class TraceLayout(Layout):
    """The records: their columns by name, or by number from 1."""

    file: str = "App_usage_trace.txt"
    delimiter: str = " "
    user: Column = 1
    time: Column = 2
    station: Column = 3
    app: Column = 4
    bytes: Column = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(*self.columns)

    @property
    def columns(self) -> tuple[Column, ...]:
        """All five."""
        return self.user, self.time, self.station, self.app, self.bytes


@dataclass(frozen=True, kw_only=True)
class StationLayout(Layout):
    """The base stations and the counts of POI around each, in the order of LSDM's Table II."""

    file: str = "base_poi.txt"
    header: bool = True
    station: Column = 1
    poi: tuple[Column, ...] = tuple(range(2, 2 + len(LSDM_CATEGORIES)))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(self.station, *self.poi)
        if len(self.poi) != len(LSDM_CATEGORIES):
            raise ValueError(f"poi of {self.file!r}: {len(self.poi)} columns, expected {len(LSDM_CATEGORIES)}, those of {LSDM_CATEGORIES}")


@dataclass(frozen=True, kw_only=True)
class AppLayout(Layout):
    """The apps and the category of each."""

    file: str = "App2Category.txt"
    app: Column = 1
    category: Column = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(self.app, self.category)


@dataclass(frozen=True, kw_only=True)
class CategoryLayout(Layout):
    """The categories and the name of each."""

    file: str = "Categorys.txt"
    category: Column = 1
    name: Column = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(self.category, self.name)


@dataclass(frozen=True, eq=False)
class AppUsage:
    """Records in a folder as one City: bytes of users (s) by hour and by the 10 services of LSDM's Table I, and where users were.

    An hour without a record is 0. The first hour is that of the first record of all, the last that of the last.

    trace, stations, apps, categories   the files; without `stations` places are known by name only; without `categories` the apps'
                      category is its name
    category          which of SERVICE_CATEGORIES a category's name (letters and digits alone are compared) belongs to
    unknown_app       category of apps that the table of apps has not; None refuses them
    time_format       of the trace. Seconds and milliseconds become local time by the UTC offset that `timezone` (required then) has at
                      the first record, throughout: a change to or from summer time neither doubles nor loses an hour. Digits are
                      local already, and take no timezone
    min_active_hours  users with records in fewer hours are left out, named in City.refused with their hours and bytes
    carry_hours       where a user is: the station of most bytes in the hour (the first by name of equals); in hours without a record the
                      last such one, for so many hours; else unknown

    Memory: some megabytes of text, and for each user, quarter of an hour and category, or station, that occurs 16 bytes; while these are
    added up about 100.
    """

    folder: str | Path
    _: KW_ONLY
    name: str = "app-usage"
    trace: TraceLayout = field(default_factory=TraceLayout)
    stations: StationLayout | None = field(default_factory=StationLayout)
    apps: AppLayout = field(default_factory=AppLayout)
    categories: CategoryLayout | None = field(default_factory=CategoryLayout)
    category: Mapping[str, str] = field(default_factory=lambda: PUBLISHED_CATEGORY)
    unknown_app: str | None = None
    time_format: TimeFormat = "digits"
    timezone: str | None = None
    min_active_hours: int = 10
    carry_hours: int = 6

    def __post_init__(self) -> None:
        if self.time_format not in get_args(TimeFormat):
            raise ValueError(f"time_format: {self.time_format!r}, expected one of {get_args(TimeFormat)}")
        if (self.timezone is None) != (self.time_format == "digits"):
            expected = (
                "none for digits, which are local" if self.timezone else f"an IANA name such as 'Asia/Shanghai' for {self.time_format}"
            )
            raise ValueError(f"timezone: {self.timezone!r}, expected {expected}")
        if self.timezone is not None:
            try:
                ZoneInfo(self.timezone)
            except (KeyError, ValueError, OSError) as error:
                raise ValueError(f"timezone: {self.timezone!r}, expected an IANA name such as 'Asia/Shanghai'") from error
        for name, least in (("min_active_hours", 1), ("carry_hours", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least {least}")
        for given in (*self.category.values(), self.unknown_app):
            if given is not None and given not in SERVICE_CATEGORIES:
                raise ValueError(f"category: {given!r}, expected one of {SERVICE_CATEGORIES}")

    def names(self) -> Sequence[str]:
        """The one name these records were given."""
        return (self.name,)

    def read(self, name: str) -> Iterator[City]:
        """The city, as one record; ValueError names the file, row, column and value that is not as described."""
        check_name(name, self.names(), self.folder)
        sums = self._sums()
        try:
            city = sums.city(
                name=self.name,
                zone=None if self.timezone is None else ZoneInfo(self.timezone),
                min_active_hours=self.min_active_hours,
                carry_hours=self.carry_hours,
            )
        except ValueError as error:
            raise ValueError(f"{self._location.child(self.trace.file)}: {error}") from error
        yield city

    def place_poi(self) -> NDArray[np.float32]:
        """(places, 17) counts of POI around the places of City.places by LSDM_CATEGORIES; ValueError without a table of stations."""
        if self.stations is None:
            raise ValueError("stations: None, expected the file of base stations and their POI")
        return self._places[1]

    @property
    def _location(self) -> Location:
        return Location.of(self.folder)

    @cached_property
    def _places(self) -> tuple[list[str], NDArray[np.float32]]:
        """The base stations of that table, sorted, and their POI (p, 17)."""
        layout = self.stations
        assert layout is not None
        ids: list[str] = []
        poi = []
        for chunk in read_chunks(self._location, layout, (layout.station, *layout.poi)):
            ids += _once(chunk, layout.station, ids)
            poi.append(np.stack([chunk.amounts(column) for column in layout.poi], axis=1))
        order = np.argsort(np.array(ids), kind="stable")
        return [ids[i] for i in order], np.concatenate(poi)[order].astype(np.float32)

    def _category_of_app(self) -> dict[str, int]:
        """The index into SERVICE_CATEGORIES of each app of that table."""
        named = {} if self.categories is None else self._pairs(self.categories, self.categories.category, self.categories.name)
        known = {_plain(raw): SERVICE_CATEGORIES.index(name) for raw, name in self.category.items()}
        out = {}
        for app, category in self._pairs(self.apps, self.apps.app, self.apps.category).items():
            if self.categories is not None and category not in named:
                raise ValueError(
                    f"{self._location.child(self.apps.file)}: column {self.apps.category!r}: {category!r} of app {app!r},"
                    f" expected a category of {self.categories.file}"
                )
            name = named.get(category, category)
            if _plain(name) not in known:
                file = self.apps.file if self.categories is None else self.categories.file
                raise ValueError(f"{self._location.child(file)}: category {name!r}, expected one of {sorted(self.category)}")
            out[app] = known[_plain(name)]
        return out

    def _pairs(self, layout: Layout, key: Column, value: Column) -> dict[str, str]:
        """Two columns of a table as a mapping, every key once."""
        out: dict[str, str] = {}
        for chunk in read_chunks(self._location, layout, (key, value)):
            codes, distinct = chunk.coded(value)
            keys = _once(chunk, key, out)
            out.update(zip(keys, (distinct[code] for code in codes), strict=True))
        return out

    def _sums(self) -> TraceSums:
        """The trace, added up by user, hour and category, and by user, hour and station."""
        layout, apps = self.trace, self._category_of_app()
        stations = Ids() if self.stations is None else Ids(self._places[0], closed=f"a base station of {self.stations.file}")
        sums = TraceSums(stations)
        for chunk in read_chunks(self._location, layout, layout.columns):
            codes, distinct = chunk.coded(layout.app)
            unknown = -1 if self.unknown_app is None else SERVICE_CATEGORIES.index(self.unknown_app)
            category = np.array([apps.get(app, unknown) for app in distinct], dtype=np.int64)[codes]
            chunk.refuse(category < 0, layout.app, f"an app of {self.apps.file} (or unknown_app to be given)")
            sums.add(
                user=sums.users.of(chunk, layout.user),
                quarter=_quarters(chunk, layout.time, self.time_format),
                category=category,
                station=stations.of(chunk, layout.station),
                volume=chunk.amounts(layout.bytes),
            )
        return sums


def _once(chunk: Chunk, column: Column, before: Sequence[str] | Mapping[str, str]) -> list[str]:
    """(n,) a chunk's texts of a column; one that is there twice, or was in `before`, is refused."""
    codes, distinct = chunk.coded(column)
    seen = set(before)
    again = np.array([text in seen for text in distinct])[codes]
    first = np.zeros(len(codes), dtype=bool)
    first[np.unique(codes, return_index=True)[1]] = True
    chunk.refuse(again | ~first, column, "every one once")
    return [distinct[code] for code in codes]


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _quarters(chunk: Chunk, column: Column, time_format: TimeFormat) -> NDArray[np.int64]:
    """(n,) whole quarters of an hour since 1970-01-01 00:00, local for digits and UTC for others."""
    value = chunk.whole(column)
    if time_format != "digits":
        seconds = value // 1000 if time_format == "milliseconds" else value
        # a time in the wrong unit lies outside of these years
        bad = (seconds < 10**8) | (seconds >= 10**10)
        chunk.refuse(bad, column, f"{time_format} since 1970-01-01 UTC, between 1973 and 2286")
        return seconds // 900
    date, clock = np.divmod(value, 10**6)
    year, month, day = date // 10**4, date // 100 % 100, date % 100
    hour, minute, second = clock // 10**4, clock // 100 % 100, clock % 100
    months = (np.clip(year, 1970, 2286) - 1970) * 12 + np.clip(month, 1, 12) - 1
    begin, end = ((months + more).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) for more in (0, 1))
    good = (year >= 1970) & (year <= 2286) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= end - begin)
    good &= (hour < 24) & (minute < 60) & (second <= 60)  # a leap second is of its minute
    chunk.refuse(~good, column, "yyyymmddHHMMSS")
    return ((begin + day - 1) * 24 + hour) * 4 + minute // 15
