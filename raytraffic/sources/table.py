"""The operator's own tables: traffic in the long format `unique_id, ds, y`, with optional sites, users and POI points.

What is done with time zones, gaps, duplicates, negative values and mixed granularity is said at `LongTable`; whatever
is not covered there raises a ValueError that names the table, the row or station and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raytraffic.sources.city import STEP_MINUTES, City
from raytraffic.sources.gridding import CellGrid, LocalPlane, LongRows, count_in_cells, count_within, sum_into_cells, when

__all__ = ["Columns", "LongTable", "Table"]

_BLANK = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]
_WITH_ZONE = r"\d{2}:\d{2}.*(?:Z|[+-]\d{2}(?::?\d{2})?)$"


class _ToArrow(Protocol):
    """What polars.DataFrame (and other Arrow-backed tables) offer."""

    def to_arrow(self) -> Any: ...


#: A CSV or Parquet file, or a pandas, polars or pyarrow table in memory.
Table: TypeAlias = str | Path | pd.DataFrame | pa.Table | _ToArrow


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns: station, date-time and value of the traffic, its optional service; users; places; POI category."""

    unique_id: str = "unique_id"
    ds: str = "ds"
    y: str = "y"
    service: str = "service"
    users: str = "users"
    lat: str = "lat"
    lon: str = "lon"
    category: str = "category"


@dataclass(frozen=True, eq=False)
class LongTable:
    """One city from an operator's tables; the file or frame is only read by `read`.

    `traffic` has a row a station, slot and (where the service column is present) service. `sites` (one row a station:
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
    columns: Columns = Columns()
    name: str = "operator"
    step_minutes: int | None = None
    timezone: str | None = None
    cell_metres: float | None = None
    poi_radius_metres: float = 500.0
    unit: str = "unknown"
    gaps: Literal["missing", "zero"] = "missing"
    duplicates: Literal["error", "sum", "mean", "last"] = "error"
    negatives: Literal["error", "missing"] = "error"

    def __post_init__(self) -> None:
        choices = {"gaps": ("missing", "zero"), "duplicates": ("error", "sum", "mean", "last"), "negatives": ("error", "missing")}
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
        """The city, as one record; ValueError for another name and for whatever the tables hold that is not covered above."""
        if name != self.name:
            raise ValueError(f"name: {name!r}, expected {self.name!r}")
        rows = self._rows(self.traffic, "traffic", self.columns.y)
        step = self.step_minutes or rows.step()
        start, slots = rows.period(step)
        traffic = rows.dense(step, absent=self._absent, mean=False)
        dead = np.isnan(traffic).all(axis=(0, 1))
        if dead.any():
            station = rows.ids[int(dead.argmax())]
            raise ValueError(f"{rows.label}: every {self.columns.y} of station {station!r} is missing, expected a measurement")
        users = None if self.users is None else self._users(rows.ids, step, start, slots)
        ids: Sequence[str] = rows.ids
        categories: Sequence[str] = ()
        xy, grid, poi = None, None, None
        if self.sites is not None:
            plane, xy = self._places(rows.ids)
            grid = None if self.cell_metres is None else CellGrid.covering(xy, self.cell_metres)
            if self.poi is not None:
                poi, categories = self._poi(plane, grid, xy)
        if grid is not None and xy is not None:
            cells = grid.cells_of(xy)
            traffic = sum_into_cells(traffic, cells, grid.count)
            users = None if users is None else sum_into_cells(users, cells, grid.count)
            ids = [f"r{row}c{column}" for row in range(grid.shape[0]) for column in range(grid.shape[1])]
            xy = grid.centres()
        yield City(
            name=self.name,
            traffic=traffic.astype(np.float32),
            start=datetime.fromisoformat(str(np.datetime64(start * step, "m"))),
            step_minutes=step,
            sites=ids,
            services=rows.services,
            unit=self.unit,
            grid=None if grid is None else grid.shape,
            xy=xy,
            users=None if users is None else users.astype(np.float32),
            poi=poi,
            poi_categories=categories,
        )

    @property
    def _absent(self) -> float:
        return 0.0 if self.gaps == "zero" else np.nan

    def _users(self, ids: Sequence[str], step: int, start: int, slots: int) -> NDArray[np.float64]:
        """(t, s) users of the traffic's stations and slots."""
        assert self.users is not None
        rows = self._rows(self.users, "users", self.columns.users)
        station = pd.Index(ids).get_indexer(pd.Index(rows.ids))
        if (station < 0).any():
            unknown = rows.ids[int((station < 0).argmax())]
            raise ValueError(f"{rows.label}: unknown station {unknown!r}, expected stations of the traffic")
        own_start, own_slots = rows.period(step)
        begin, end = max(start, own_start), min(start + slots, own_start + own_slots)
        if begin >= end:
            raise ValueError(f"{rows.label}: no {self.columns.ds} lies in the period of the traffic, expected the same period")
        out = np.full((slots, len(ids)), self._absent)
        own = rows.dense(step, absent=self._absent, mean=True)[0]
        out[begin - start : end - start, station] = own[begin - own_start : end - own_start]
        return out

    def _places(self, ids: Sequence[str]) -> tuple[LocalPlane, NDArray[np.float64]]:
        """The plane around the stations and their (s, 2) places on it."""
        assert self.sites is not None
        names = self.columns
        frame, label = _load(self.sites, "sites", (names.unique_id, names.lat, names.lon), names)
        site_ids = pd.Index(_texts(frame, names.unique_id, label))
        if site_ids.has_duplicates:
            raise ValueError(f"{label}: more than one row for station {site_ids[site_ids.duplicated()][0]!r}, expected one")
        latitude, longitude = (_degrees(frame, column, label, limit) for column, limit in ((names.lat, 90), (names.lon, 180)))
        row = site_ids.get_indexer(pd.Index(ids))
        if (row < 0).any():
            unknown = ids[int((row < 0).argmax())]
            raise ValueError(f"{label}: no row for station {unknown!r}, expected one for every station of the traffic")
        plane = LocalPlane.around(latitude[row], longitude[row])
        return plane, plane.project(latitude[row], longitude[row])

    def _poi(self, plane: LocalPlane, grid: CellGrid | None, xy: NDArray[np.float64]) -> tuple[NDArray[np.float32], Sequence[str]]:
        """(k, s) counts in the grid's cells, or around stations (s, 2), and the k categories."""
        assert self.poi is not None
        names = self.columns
        frame, label = _load(self.poi, "poi", (names.lat, names.lon, names.category), names)
        codes, categories = pd.factorize(pd.Index(_texts(frame, names.category, label)), sort=True)
        latitude, longitude = (_degrees(frame, column, label, limit) for column, limit in ((names.lat, 90), (names.lon, 180)))
        points = plane.project(latitude, longitude)
        if grid is None:
            counts = count_within(points, codes.astype(np.int64), len(categories), xy, self.poi_radius_metres)
        else:
            counts = count_in_cells(grid.cells_of(points), codes.astype(np.int64), len(categories), grid.count)
        if not counts.any():
            where = f"within {self.poi_radius_metres:g} m of a station" if grid is None else "in a cell of the grid"
            raise ValueError(f"{label}: no point lies {where}, expected points of the same place (are lat and lon swapped?)")
        return counts, list(categories)

    def _rows(self, table: Table, role: str, value_column: str) -> LongRows:
        """The cleaned rows of a long table."""
        names = self.columns
        frame, label = _load(table, role, (names.unique_id, names.ds, value_column), names)
        station, ids = pd.factorize(pd.Index(_texts(frame, names.unique_id, label)), sort=True)
        service, services = np.zeros(len(frame), dtype=np.int64), pd.Index(["traffic"])
        if role == "traffic" and (names.service in frame.columns or names.service != Columns.service):
            if names.service not in frame.columns:
                raise ValueError(f"{label}: no column {names.service!r}, expected the service's column (it has {list(frame.columns)})")
            service, services = pd.factorize(pd.Index(_texts(frame, names.service, label)), sort=True)
        value = _numbers(frame, value_column, label)
        negative = value < 0
        if self.negatives == "error" and negative.any():
            row = int(negative.argmax())
            where = f"{label}: row {row + 1}, column {value_column!r}"
            raise ValueError(f"{where}: {value[row]:g}, expected a value >= 0 (or negatives='missing')")
        value[negative] = np.nan
        time = _local_times(frame, names.ds, label, self.timezone)
        rows = pd.DataFrame({"station": station, "service": service, "time": time, "value": value})
        rows = self._without_duplicates(rows, label, ids)
        columns = {column: rows[column].to_numpy() for column in rows}
        return LongRows(label=label, ids=list(ids), services=list(services), **columns)

    def _without_duplicates(self, rows: pd.DataFrame, label: str, ids: pd.Index) -> pd.DataFrame:
        key = ["station", "service", "time"]
        again = rows.duplicated(key)
        if not again.any():
            return rows
        if self.duplicates == "error":
            first = rows[again].iloc[0]
            raise ValueError(
                f"{label}: station {ids[int(first['station'])]!r} has more than one row at"
                f" {when(first['time'])}, expected one (or duplicates='sum', 'mean' or 'last')"
            )
        if self.duplicates == "last":
            return rows.drop_duplicates(key, keep="last")
        groups = rows.groupby(key, sort=False)["value"]
        merged = groups.sum(min_count=1) if self.duplicates == "sum" else groups.mean()
        return merged.reset_index()


def _load(table: Table, role: str, required: Sequence[str], names: Columns) -> tuple[pd.DataFrame, str]:
    """The table as a frame that has rows and the required columns, and what to call it in messages."""
    label = f"{role} ({table})" if isinstance(table, str | Path) else role
    if isinstance(table, str | Path):
        frame = _read_file(Path(table), label, names)
    elif isinstance(table, pd.DataFrame):
        frame = table
    elif isinstance(table, pa.Table):
        frame = table.to_pandas()
    elif hasattr(table, "to_arrow"):
        frame = table.to_arrow().to_pandas()
    else:
        raise ValueError(f"{role}: {type(table).__name__}, expected a CSV or Parquet path, or a pandas, polars or pyarrow table")
    for column in required:
        if column not in frame.columns:
            raise ValueError(f"{label}: no column {column!r}, expected {list(required)} (it has {list(frame.columns)})")
    if len(frame) == 0:
        raise ValueError(f"{label}: 0 rows, expected at least one")
    return frame, label


def _read_file(path: Path, label: str, names: Columns) -> pd.DataFrame:
    texts = (names.unique_id, names.ds, names.service, names.category)
    numbers = (names.y, names.users, names.lat, names.lon)
    try:
        if path.name.endswith((".parquet", ".pq")):
            # partitioning=None: a folder named "a=1" is no column of the table
            return pq.read_table(path, partitioning=None).to_pandas()
        if path.name.endswith((".csv", ".csv.gz")):
            # ids stay text ("007", "NA"); only numbers may be blank
            kinds, blank = dict.fromkeys(texts, str), dict.fromkeys(numbers, _BLANK)
            return pd.read_csv(path, dtype=kinds, na_values=blank, keep_default_na=False, low_memory=False)
    except FileNotFoundError as error:
        raise ValueError(f"{label}: no such file, expected a CSV or Parquet file") from error
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{label}: cannot be read, expected a whole CSV or Parquet file ({error})") from error
    raise ValueError(f"{label}: unknown kind of file, expected .csv, .csv.gz, .parquet or .pq")


def _texts(frame: pd.DataFrame, column: str, label: str) -> pd.Index:
    """A column as text, none of it empty."""
    text = frame[column].astype(str)
    empty = (frame[column].isna() | (text == "")).to_numpy()
    if empty.any():
        raise ValueError(f"{label}: row {int(empty.argmax()) + 1}, column {column!r}: empty, expected a value")
    return pd.Index(text)


def _numbers(frame: pd.DataFrame, column: str, label: str) -> NDArray[np.float64]:
    """A column as float64, NaN where it is empty."""
    values: NDArray[np.float64] = pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64, na_value=np.nan, copy=True)
    bad = np.isinf(values) | (np.isnan(values) & frame[column].notna().to_numpy())
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{label}: row {row + 1}, column {column!r}: {frame[column].iloc[row]!r}, expected a finite number")
    return values


def _degrees(frame: pd.DataFrame, column: str, label: str, limit: float) -> NDArray[np.float64]:
    values = _numbers(frame, column, label)
    bad = ~(np.abs(values) <= limit)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{label}: row {row + 1}, column {column!r}: {values[row]:g}, expected degrees in [-{limit:g}, {limit:g}]")
    return values


def _local_times(frame: pd.DataFrame, column: str, label: str, timezone: str | None) -> NDArray[np.int64]:
    """(n,) local wall-clock time in microseconds since 1970-01-01 00:00 local."""
    times = frame[column] if frame[column].dtype.kind == "M" else _parsed_times(frame, column, label)
    if times.isna().any():
        row = int(times.isna().to_numpy().argmax())
        raise ValueError(f"{label}: row {row + 1}, column {column!r}: {frame[column].iloc[row]!r}, expected an ISO 8601 date-time")
    if times.dt.tz is not None:
        if timezone is None:
            raise ValueError(f"{label}: column {column!r} holds date-times with a zone, expected timezone to be given")
        utc = times.dt.tz_convert("UTC")
        times = utc.dt.tz_localize(None) + utc.min().tz_convert(ZoneInfo(timezone)).utcoffset()
    local: NDArray[np.int64] = times.to_numpy("datetime64[us]").astype(np.int64)
    return local


def _parsed_times(frame: pd.DataFrame, column: str, label: str) -> pd.Series:
    """Text as date-times (NaT where it is none), in UTC if all of it has a zone."""
    values = frame[column]
    if values.dtype.kind in "iufb":
        raise ValueError(f"{label}: column {column!r}: {values.iloc[0]!r}, a number, expected an ISO 8601 date-time")
    codes, distinct = pd.factorize(_texts(frame, column, label))  # a table has few distinct times, and parsing is slow
    text = pd.Series(distinct, dtype=str)
    zoned = text.str.contains(_WITH_ZONE).to_numpy(bool)
    if zoned.any() and not zoned.all():
        row = int((zoned[codes] != zoned[codes[0]]).argmax())
        raise ValueError(f"{label}: row {row + 1}, column {column!r}: {values.iloc[row]!r}, expected all date-times with a zone, or none")
    parsed = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=bool(zoned.all()))
    return parsed.take(codes).reset_index(drop=True)
