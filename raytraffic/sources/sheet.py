"""One table of an operator, from a file or from memory: its columns as arrays with a value a row, and whose fault a bad row is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raytraffic.files import Location
from raytraffic.sources.faulty import FaultyStationsError, Label, Refused

__all__ = ["Columns", "Sheet", "Table"]

_BLANK = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]
_WITH_ZONE = r"\d{2}:\d{2}.*(?:Z|[+-]\d{2}(?::?\d{2})?)$"


class _ToArrow(Protocol):
    """What polars.DataFrame (and other Arrow-backed tables) offer."""

    def to_arrow(self) -> Any: ...


#: A CSV or Parquet file, or a pandas, polars or pyarrow table in memory.
Table: TypeAlias = str | Path | pd.DataFrame | pa.Table | _ToArrow


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns: station, date-time and value of the traffic, its optional service and site; users; places; POI category."""

    unique_id: str = "unique_id"
    ds: str = "ds"
    y: str = "y"
    service: str = "service"
    site: str = "site"
    users: str = "users"
    lat: str = "lat"
    lon: str = "lon"
    category: str = "category"


class Sheet:
    """The rows (n,) of a table that has some and the `required` columns; ValueError otherwise.

    Where the station's column is required, each row is its station's, `station` (n,) indexes `ids` (sorted), and a bad row is
    noted in `refused` as its station's fault; what a method returns for such a row means nothing. Rows without an id are
    noted as those of station "". Elsewhere (POI) a bad row is a ValueError.
    """

    def __init__(self, table: Table, role: str, required: Sequence[str], names: Columns, refused: Refused) -> None:
        self.frame, self.label = _load(table, role, required, names)
        self.refused = refused
        self.station: NDArray[np.int64] | None = None
        self.ids = pd.Index([], dtype=str)
        if names.unique_id in required:
            text, empty = self._text(names.unique_id)
            self.station, self.ids = pd.factorize(text, sort=True)
            self._refuse_empty(empty, names.unique_id)

    def refuse(self, bad: NDArray[np.bool_], fault: Callable[[int], str], first: int | None = None) -> None:
        """Refuses the stations of the bad rows (n,), if any: see FaultyStationsError.of_rows."""
        if not bad.any():
            return
        if self.station is None:
            raise ValueError(f"{self.label}: {fault(int(bad.argmax()))}")
        self.refused.note(FaultyStationsError.of_rows(self.label, self.ids, self.station, bad, fault, first))

    def texts(self, column: str) -> pd.Index:
        """(n,) a column as text; an empty cell is refused."""
        text, empty = self._text(column)
        self._refuse_empty(empty, column)
        return text

    def numbers(self, column: str) -> NDArray[np.float64]:
        """(n,) a column's numbers, NaN where it is empty; what is no finite number is refused."""
        cells = self.frame[column]
        values: NDArray[np.float64] = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan, copy=True)
        bad = np.isinf(values) | (np.isnan(values) & cells.notna().to_numpy())
        self.refuse(bad, lambda row: f"{_at(row, column)}: {cells.iloc[row]!r}, expected a finite number")
        return values

    def coordinates(
        self, latitude: str = "lat", longitude: str = "lon", northmost: float = 90
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Latitude and longitude (n,) of the rows, in degrees; what is none, or empty, or farther from the equator is refused."""
        return self._degrees(latitude, northmost), self._degrees(longitude, 180)

    def _degrees(self, column: str, limit: float) -> NDArray[np.float64]:
        """(n,) a column of degrees; what lies outside of [-limit, limit] or is empty is refused."""
        values = self.numbers(column)
        bad = ~(np.abs(values) <= limit)
        self.refuse(bad, lambda row: f"{_at(row, column)}: {values[row]:g}, expected degrees in [-{limit:g}, {limit:g}]")
        return values

    def times(self, column: str, timezone: str | None) -> tuple[NDArray[np.int64], bool]:
        """(n,) microseconds since 1970-01-01 00:00, and whether that is UTC because the date-times have a zone.

        What is no date-time is refused, and so is a station that has a zone (or none) unlike most others. ValueError for
        numbers, and for date-times with a zone where no timezone is given.
        """
        cells = self.frame[column]
        times = cells if cells.dtype.kind == "M" else self._parsed_times(column, timezone)
        self.refuse(times.isna().to_numpy(), lambda row: f"{_at(row, column)}: {cells.iloc[row]!r}, expected an ISO 8601 date-time")
        zoned = times.dt.tz is not None
        if zoned:
            if timezone is None:
                raise ValueError(f"{self.label}: column {column!r} holds date-times with a zone, expected timezone to be given")
            times = times.dt.tz_convert("UTC").dt.tz_localize(None)
        return times.to_numpy("datetime64[us]").astype(np.int64), zoned

    def _parsed_times(self, column: str, timezone: str | None) -> pd.Series:
        """Text as date-times (NaT where it is none), in UTC if it has a zone."""
        cells = self.frame[column]
        if cells.dtype.kind in "iufb":
            raise ValueError(f"{self.label}: column {column!r}: {cells.iloc[0]!r}, a number, expected an ISO 8601 date-time")
        codes, distinct = pd.factorize(self.texts(column))  # a table has few distinct times, and parsing is slow
        text = pd.Series(distinct, dtype=str)
        with_zone = text.str.contains(_WITH_ZONE).to_numpy(bool)
        zoned = bool(with_zone.all())
        if with_zone.any() and not zoned:
            rows = with_zone[codes]
            zoned = self._mostly_zoned(rows, timezone)
            self.refuse(
                rows != zoned,
                lambda row: f"{_at(row, column)}: {cells.iloc[row]!r}, expected all date-times with a zone, or none",
                first=int((rows != rows[0]).argmax()),
            )
            text = text.where(with_zone == zoned)
        return pd.to_datetime(text, format="ISO8601", errors="coerce", utc=zoned).take(codes).reset_index(drop=True)

    def _mostly_zoned(self, rows: NDArray[np.bool_], timezone: str | None) -> bool:
        """Whether more stations have a zone in all of their rows than in none; of equals, whether a timezone is expected."""
        assert self.station is not None
        count = np.bincount(self.station, minlength=len(self.ids))
        zoned = np.bincount(self.station[rows], minlength=len(self.ids))
        sound = ~self.ids.isin(list(self.refused.reasons))
        lead = int(((zoned == count) & sound).sum()) - int(((zoned == 0) & sound).sum())
        return lead > 0 if lead else timezone is not None

    def _text(self, column: str) -> tuple[pd.Index, NDArray[np.bool_]]:
        """A column as text, "" where it is empty, and where that is."""
        text = self.frame[column].astype(str)
        empty = (self.frame[column].isna() | (text == "")).to_numpy(bool)
        return pd.Index(text.mask(empty, "") if empty.any() else text), empty

    def _refuse_empty(self, empty: NDArray[np.bool_], column: str) -> None:
        self.refuse(empty, lambda row: f"{_at(row, column)}: empty, expected a value")


def _at(row: int, column: str) -> str:
    return f"row {row + 1}, column {column!r}"


def _load(table: Table, role: str, required: Sequence[str], names: Columns) -> tuple[pd.DataFrame, Label]:
    """The table as a frame that has rows and the required columns, and what to call it in messages."""
    label = Label(role, str(table) if isinstance(table, str | Path) else None)
    if isinstance(table, str | Path):
        frame = _read_file(Location.of(table), label, names)
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


def _read_file(path: Location, label: Label, names: Columns) -> pd.DataFrame:
    texts = (names.unique_id, names.ds, names.service, names.site, names.category, "city")
    numbers = (names.y, names.users, names.lat, names.lon)
    try:
        if path.name.endswith((".parquet", ".pq")):
            # partitioning=None: a folder named "a=1" is no column of the table
            return pq.read_table(path.path, filesystem=path.filesystem(), partitioning=None).to_pandas()
        if path.name.endswith((".csv", ".csv.gz")):
            # ids stay text ("007", "NA"); only numbers may be blank
            kinds, blank = dict.fromkeys(texts, str), dict.fromkeys(numbers, _BLANK)
            with path.open_stream() as stream:
                return pd.read_csv(stream, dtype=kinds, na_values=blank, keep_default_na=False, low_memory=False)
    except FileNotFoundError as error:
        raise ValueError(f"{label}: no such file, expected a CSV or Parquet file") from error
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{label}: cannot be read, expected a whole CSV or Parquet file ({error})") from error
    raise ValueError(f"{label}: unknown kind of file, expected .csv, .csv.gz, .parquet or .pq")
