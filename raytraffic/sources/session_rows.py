"""The rows of a session trace as they are read: files in chunks, columns as arrays with a value a row, and rows at fault."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raytraffic.files import Location
from raytraffic.sources.delimited import CHUNK_BYTES, Chunk, Column

__all__ = ["SECOND", "Amounts", "Clock", "Codes", "Faults", "Flags", "Rows", "TimeFormat", "read_rows"]

#: Text that says date and time, or seconds or milliseconds since 1970-01-01 UTC.
TimeFormat = Literal["iso", "seconds", "milliseconds"]

Codes = NDArray[np.int64]
Amounts = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: Microseconds.
SECOND = 1_000_000
_PARQUET, _CSV = (".parquet", ".pq"), (".csv", ".csv.gz")
_PARQUET_ROWS = 1 << 16
_WITH_ZONE = r":\d{2}.*(?:Z|[+-]\d{2}(?::?\d{2})?)$"
#: Times outside of these years are mistyped, or in the wrong unit.
_YEARS = (1971, 2099)
_EARLIEST, _END = (int(np.datetime64(str(year), "us").astype(np.int64)) for year in (_YEARS[0], _YEARS[1] + 1))


class Faults:
    """How many of `rows` are at fault, and the first in each way; without `skip` the first of all is raised."""

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self._found: dict[tuple[str, str], tuple[int, str]] = {}
        self.rows = 0

    def note(self, chunk: Chunk, bad: Flags, column: str, expected: str) -> None:
        """Adds the bad rows (n,) of a chunk, if any."""
        try:
            chunk.refuse(bad, column, expected)
        except ValueError as error:
            if not self._skip:
                raise
            count, first = self._found.get((column, expected), (0, str(error)))
            self._found[column, expected] = (count + int(bad.sum()), first)

    @property
    def reason(self) -> str:
        """How many rows were left out and why; "" where none was."""
        ways = [f"{count} ({first})" for count, first in self._found.values()]
        return f"sessions: left out of {self.rows} rows: {'; '.join(ways)}" if ways else ""


class Clock:
    """Text as instants and these as local time: see `Sessions` for the formats and for `timezone`.

    Whether date-times have a zone is what most of the first ones that are read have.
    """

    def __init__(self, time_format: TimeFormat, timezone: str | None) -> None:
        self._format, self._timezone = time_format, timezone
        self._zoned: bool | None = None if time_format == "iso" else True
        self._offset: int | None = None

    @property
    def expected(self) -> str:
        """What a text has to be."""
        with_zone = "with" if self._zoned else "without"
        kind = f"an ISO 8601 date-time {with_zone} a zone" if self._format == "iso" else f"{self._format} since 1970-01-01 UTC"
        return f"{kind}, between {_YEARS[0]} and {_YEARS[1]}"

    def instants(self, texts: pd.Series) -> tuple[Codes, Flags]:
        """(n,) microseconds since 1970-01-01 00:00 (UTC, or local where date-times have no zone), and which are as expected."""
        if self._format == "iso":
            times, valid = self._parsed(texts)
        else:
            values = numbers(texts) * (SECOND if self._format == "seconds" else SECOND // 1000)
            valid = np.isfinite(values) & (np.abs(values) < _END)
            times = np.where(valid, values, 0).astype(np.int64)
        return times, valid & (times >= _EARLIEST) & (times < _END)

    def local(self, instants: Codes) -> Codes:
        """(n,) microseconds since 1970-01-01 00:00 local: the zone's offset at the first instant that was ever asked for."""
        if self._offset is None:
            self._offset = self._offset_at(int(instants[0]))
        return instants + self._offset

    def _parsed(self, texts: pd.Series) -> tuple[Codes, Flags]:
        zoned = texts.str.contains(_WITH_ZONE).to_numpy(bool)
        if self._zoned is None:
            self._zoned = bool(zoned.mean() > 0.5)
            if self._zoned and self._timezone is None:
                raise ValueError(f"timezone: None, expected an IANA name such as 'Asia/Shanghai' for {texts[zoned].iloc[0]!r}")
        times = pd.to_datetime(texts.where(zoned == self._zoned), format="ISO8601", errors="coerce", utc=self._zoned)
        times = times.dt.tz_localize(None) if self._zoned else times
        return times.to_numpy("datetime64[us]").astype(np.int64), times.notna().to_numpy(bool)

    def _offset_at(self, instant: int) -> int:
        if not self._zoned or self._timezone is None:
            return 0
        ahead = datetime.fromtimestamp(instant / SECOND, ZoneInfo(self._timezone)).utcoffset()
        assert ahead is not None
        return ahead // timedelta(microseconds=1)


class Rows:
    """Some rows (n,) of a file, as text by column; what is at fault is noted, from then on not `good`, and its values mean nothing."""

    def __init__(self, chunk: Chunk, texts: pd.DataFrame, faults: Faults) -> None:
        self._chunk, self._texts, self._faults = chunk, texts, faults
        self.good = np.ones(len(texts), dtype=bool)
        faults.rows += len(texts)

    def expect(self, valid: Flags, column: str, expected: str) -> None:
        """Rows that are not valid (n,) are at fault; one that was before is not noted again."""
        self._faults.note(self._chunk, self.good & ~valid, column, expected)
        self.good &= valid

    def texts(self, column: str) -> pd.Series:
        """(n,) text; an empty one is at fault."""
        texts = self._texts[column]
        self.expect((texts != "").to_numpy(bool), column, "a value")
        return texts

    def amounts(self, column: str) -> Amounts:
        """(n,) finite numbers of at least 0."""
        values = numbers(self._texts[column])
        self.expect(np.isfinite(values) & (values >= 0), column, "a number >= 0")
        return values

    def degrees(self, column: str, limit: int) -> Amounts:
        """(n,) degrees in [-limit, limit]."""
        values = numbers(self._texts[column])
        self.expect(np.abs(values) <= limit, column, f"degrees in [-{limit}, {limit}]")
        return values

    def location(self, column: str) -> tuple[Amounts, Amounts]:
        """(n,) latitude and longitude of texts LATITUDE/LONGITUDE in degrees."""
        parts = self._texts[column].str.partition("/")
        latitude, longitude = numbers(parts[0]), numbers(parts[2])
        self.expect((np.abs(latitude) <= 90) & (np.abs(longitude) <= 180), column, "degrees as LATITUDE/LONGITUDE")
        return latitude, longitude

    def times(self, column: str, clock: Clock) -> Codes:
        """(n,) instants of the clock."""
        times, valid = clock.instants(self._texts[column])
        self.expect(valid, column, clock.expected)
        return times

    def times_or(self, other: Codes, column: str, clock: Clock) -> Codes:
        """(n,) instants of the clock, the `other` (n,) where the text is empty."""
        empty = (self._texts[column] == "").to_numpy(bool)
        times, valid = clock.instants(self._texts[column])
        self.expect(valid | empty, column, f"{clock.expected}, or nothing")
        return np.where(empty, other, times)


def numbers(texts: pd.Series) -> Amounts:
    """(n,) NaN where the text is no number."""
    return np.asarray(pd.to_numeric(texts, errors="coerce").to_numpy(np.float64, na_value=np.nan))


def read_rows(path: Location, columns: Sequence[str], faults: Faults) -> Iterator[Rows]:
    """The rows of these columns of a CSV or Parquet file, or of all in a folder in the order of their names, some megabytes at a time.

    ValueError names the file and what is wrong with it: of an unknown kind, without one of the columns, damaged, without rows.
    """
    files = [path]
    if path.is_folder():
        files = [each for each in path.list() if each.name.endswith(_PARQUET + _CSV)]
    if not files:
        raise ValueError(f"{path}: no trace in the folder, expected files {', '.join(_CSV + _PARQUET)}")
    for file in files:
        first = 1
        for batch in _batches(file, columns):
            texts: dict[Column, pa.Array] = {name: batch.column(name).cast(pa.string()).fill_null("") for name in columns}
            frame = pd.DataFrame({name: pd.Series(text.to_pandas(), dtype=str).str.strip() for name, text in texts.items()})
            yield Rows(Chunk(file, first, texts), frame, faults)
            first += len(batch)
        if first == 1:
            raise ValueError(f"{file}: 0 rows, expected at least one")


def _batches(file: Location, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if not file.name.endswith(_PARQUET + _CSV):
        raise ValueError(f"{file}: unknown kind of file, expected {', '.join(_CSV + _PARQUET)} (a workbook is to be saved as one of these)")
    try:
        for batch in _parquet_batches(file, columns) if file.name.endswith(_PARQUET) else _csv_batches(file, columns):
            if len(batch):
                yield batch
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file, expected a trace of sessions") from error
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read, expected a whole CSV or Parquet file ({error})") from error


def _parquet_batches(file: Location, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with file.open_file() as stream, pq.ParquetFile(stream) as parquet:
        _expect_columns(file, columns, parquet.schema_arrow.names)
        yield from parquet.iter_batches(_PARQUET_ROWS, columns=list(columns))


def _csv_batches(file: Location, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with file.open_stream() as stream:
        header = next(csv.reader([stream.readline().decode("utf-8-sig")]), [])
    _expect_columns(file, columns, header)
    with file.open_stream() as stream:
        yield from pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(block_size=CHUNK_BYTES, use_threads=False),
            convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns)),
        )


def _expect_columns(file: Location, columns: Sequence[str], found: Sequence[str]) -> None:
    for column in columns:
        if list(found).count(column) != 1:
            raise ValueError(f"{file}: {list(found).count(column)} columns {column!r}, expected one (it has {list(found)})")
