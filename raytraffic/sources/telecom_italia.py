"""The Telecom Italia Big Data Challenge's call detail records (Nov-Dec 2013, ODbL 1.0) of Milan (doi 10.7910/DVN/EGZHFV) and of Trentino
(doi 10.7910/DVN/QLCABU).

A record is the activity of one square of an area's grid (raytraffic.sources.telecom_squares) in ten minutes, by country code of the other
party, in units proportional to the number of events; what did not happen has no record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raytraffic.files import Location
from raytraffic.sources.city import City
from raytraffic.sources.grid import cell_centres
from raytraffic.sources.resample import resample
from raytraffic.sources.series import check_name
from raytraffic.sources.telecom_squares import AREAS, AreaName, assign

__all__ = ["AGGREGATES", "COLUMNS", "SERVICES", "TelecomItaliaRecords"]

#: The channels, in the order of the files' columns.
SERVICES = ("sms_in", "sms_out", "call_in", "call_out", "internet")
#: What may be asked for beside them: both directions of one kind of event together.
AGGREGATES: Mapping[str, tuple[str, ...]] = {"sms": ("sms_in", "sms_out"), "call": ("call_in", "call_out")}
#: The eight columns of a record; `t_ms` is the begin of the ten minutes in milliseconds since 1970 (UTC).
COLUMNS = ("square_id", "t_ms", "country_code", *SERVICES)

_STEP_MINUTES = 10
_STEP_MS = _STEP_MINUTES * 60_000
#: More entries of a dense (c, t, s) array than this are a mistyped time, not a city.
_MAX_ENTRIES = 2**31
_SUFFIXES = (".txt", ".txt.gz", ".parquet")


@dataclass(frozen=True)
class TelecomItaliaRecords:
    """An area's records, from one file or a folder of them: the original tab-separated text without header (.txt, .txt.gz) or Parquet.

    The 8 COLUMNS, in that order in text and by name in Parquet. Country codes are summed; a square without a record in a
    step had no activity (0), but a step without a record of any square in the files is an outage (NaN). Local time is
    UTC plus the offset that `timezone` has at the first record, throughout: a change to or from summer time neither
    doubles nor loses a slot (November and December have none). `services` are some of SERVICES and AGGREGATES, in their order (None:
    SERVICES). `squares` are the wanted ones (None: all that occur), always sorted. In Milan square = row * 100 + column + 1, row 0 = south;
    there they form a grid, south row first, where they fill a rectangle, otherwise stations; `xy` are metres from the grid's south-west
    corner. In Trentino nothing is worked out from the numbers of squares. `aggregate_minutes` sums to a coarser step.

    With `cells` and `stations` (files, see `telecom_squares.assign`) every square belongs to the nearest base station, and the stations are
    the sites: those that some square belongs to, with `xy` in metres around the squares' middle.

    Memory: 36 bytes for each square and step with a record, and 20 for each square and step.
    """

    path: str | Path
    _: KW_ONLY
    area: AreaName = "milan"
    services: Sequence[str] | None = None
    squares: Sequence[int] | None = None
    cells: str | Path | None = None
    stations: str | Path | None = None
    name: str | None = None
    timezone: str = "Europe/Rome"
    aggregate_minutes: int | None = None

    def __post_init__(self) -> None:
        if self.area not in AREAS:
            raise ValueError(f"area: {self.area!r}, expected one of {sorted(AREAS)}")
        wanted = self._services()
        if not wanted or len(set(wanted)) != len(wanted) or not set(wanted) <= {*SERVICES, *AGGREGATES}:
            raise ValueError(f"services: {list(wanted)}, expected one or more different ones of {[*SERVICES, *AGGREGATES]}")
        if (self.cells is None) != (self.stations is None):
            raise ValueError(f"cells, stations: {self.cells} and {self.stations}, expected both files or neither")
        if self.squares is not None:
            most = AREAS[self.area].squares
            if not self.squares or len(set(self.squares)) != len(self.squares):
                raise ValueError(f"squares: {list(self.squares)}, expected one or more different square ids")
            if not all(1 <= square <= most for square in self.squares):
                raise ValueError(f"squares: {min(self.squares)}..{max(self.squares)}, expected ids in 1..{most}")
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"timezone: {self.timezone!r}, expected an IANA name such as 'Europe/Rome'") from error

    def names(self) -> Sequence[str]:
        """The one name these records were given, by default that of the area."""
        return (self.name or self.area,)

    def _services(self) -> tuple[str, ...]:
        return SERVICES if self.services is None else tuple(self.services)

    def read(self, name: str) -> Iterator[City]:
        """The city, as one record; ValueError names the file, column and row that is not as described."""
        check_name(name, self.names(), self.path)
        parts, steps = self._parts()
        squares = self._squares(parts)
        first, last = int(steps.min()), int(steps.max())
        traffic = self._dense(parts, squares, first, last)
        traffic[:, np.setdiff1d(np.arange(last - first + 1), steps - first)] = np.nan
        try:
            city = City(
                name=name,
                traffic=self._wanted(traffic),
                services=self._services(),
                unit="activity index",
                start=datetime.fromtimestamp(first * _STEP_MS / 1000, ZoneInfo(self.timezone)).replace(tzinfo=None),
                step_minutes=_STEP_MINUTES,
                **self._sites(squares),
            )
            city = city if self.stations is None else self._of_stations(city, squares)
            city = city if self.aggregate_minutes is None else resample(city, self.aggregate_minutes)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        yield city

    def _wanted(self, traffic: NDArray[np.float32]) -> NDArray[np.float32]:
        """(wanted service, time, square) of (service, time, square)."""
        parts = [AGGREGATES.get(name, (name,)) for name in self._services()]
        channels = [[SERVICES.index(part) for part in names] for names in parts]
        if channels == [[i] for i in range(len(SERVICES))]:
            return traffic
        return np.stack([traffic[of].sum(axis=0, dtype=np.float32) for of in channels])

    def _sites(self, squares: NDArray[np.int64]) -> dict[str, Any]:
        """Sites, grid and places of squares."""
        sites = [str(square) for square in squares]
        area = AREAS[self.area]
        if not area.columns:
            return {"sites": sites}
        row, column = np.divmod(squares - 1, area.columns)
        h, w = int(np.ptp(row)) + 1, int(np.ptp(column)) + 1
        return {"sites": sites, "grid": (h, w) if h * w == len(squares) else None, "xy": cell_centres(row, column, area.metres)}

    def _of_stations(self, city: City, squares: NDArray[np.int64]) -> City:
        """The same traffic, by the base station that each square belongs to."""
        assert self.cells is not None and self.stations is not None
        found = assign(squares, self.cells, self.stations)
        return replace(city, traffic=found.summed(city.traffic), sites=found.ids, grid=None, xy=found.xy)

    def _parts(self) -> tuple[dict[Location, pd.DataFrame], NDArray[np.int64]]:
        """Sums over country codes of the wanted squares in each file, and all steps that any record tells of."""
        path = Location.of(self.path)
        files = [each for each in path.list() if each.name.endswith(_SUFFIXES)] if path.is_folder() else [path]
        if not files:
            raise ValueError(f"{path}: no records in the folder, expected files {', '.join(_SUFFIXES)}")
        parts: dict[Location, pd.DataFrame] = {}
        steps = []
        for file in files:
            records = _read_records(file, AREAS[self.area].squares)
            steps.append(records["step"].unique())
            if self.squares is not None:
                records = records[records["square_id"].isin(list(self.squares))]
            sums = records.groupby(["step", "square_id"])[list(SERVICES)].sum()
            parts[file] = sums.astype(np.float32).reset_index()
        return parts, np.unique(np.concatenate(steps)).astype(np.int64)

    def _squares(self, parts: dict[Location, pd.DataFrame]) -> NDArray[np.int64]:
        found = np.unique(np.concatenate([part["square_id"].to_numpy(np.int64) for part in parts.values()]))
        absent = np.setdiff1d(found if self.squares is None else np.array(self.squares), found)
        if len(absent):
            raise ValueError(f"{self.path}: no record of the squares {absent[:5].tolist()}, expected some of each of `squares`")
        return found

    def _dense(self, parts: dict[Location, pd.DataFrame], squares: NDArray[np.int64], first: int, last: int) -> NDArray[np.float32]:
        """(service, time, square) with 0 where no record is; ValueError where two files tell of one square and step."""
        shape = (last - first + 1, len(squares))
        if len(SERVICES) * shape[0] * shape[1] > _MAX_ENTRIES:
            raise ValueError(f"{self.path}: t_ms: spans {shape[0]} steps of {len(squares)} squares, expected fewer (is a time wrong?)")
        traffic = np.zeros((len(SERVICES), *shape), dtype=np.float32)
        told = np.zeros(shape, dtype=bool)
        for file, part in parts.items():
            step, square = part["step"].to_numpy() - first, np.searchsorted(squares, part["square_id"].to_numpy())
            again = told[step, square]
            if again.any():
                row = part.iloc[int(again.argmax())]
                where = f"square_id {int(row['square_id'])} at t_ms {int(row['step']) * _STEP_MS}"
                raise ValueError(f"{file}: {where} is in another file too, expected all records of a square and step in one")
            told[step, square] = True
            for channel, service in enumerate(SERVICES):
                traffic[channel, step, square] = part[service].to_numpy()
        return traffic


def _read_records(path: Location, squares: int) -> pd.DataFrame:
    """The checked records of a file, with their `step` (ten minutes since 1970) in place of t_ms."""
    try:
        records = _read_table(path).to_pandas()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file, expected a file or folder of {', '.join(_SUFFIXES)}") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read, expected the columns {list(COLUMNS)} of a whole file ({error})") from error
    if len(records) == 0:
        raise ValueError(f"{path}: 0 records, expected at least one")
    for column in COLUMNS:
        kinds, expected = ("iuf", "numbers") if column in SERVICES else ("iu", "whole numbers, none of them empty")
        if records[column].dtype.kind not in kinds:
            raise ValueError(f"{path}: column {column!r}: {records[column].dtype}, expected {expected}")
    _expect(records["square_id"].between(1, squares), records, "square_id", f"1..{squares}", path)
    _expect(records["t_ms"] % _STEP_MS == 0, records, "t_ms", f"a whole step of {_STEP_MINUTES} minutes", path)
    for service in SERVICES:
        _expect(~((records[service] < 0) | np.isinf(records[service])), records, service, "a finite value >= 0 or none", path)
    _expect(~records.duplicated(list(COLUMNS[:3])), records, "country_code", "one record a square, step and country", path)
    return records.assign(step=records["t_ms"] // _STEP_MS).drop(columns="t_ms")


def _read_table(path: Location) -> pa.Table:
    if path.name.endswith(".parquet"):
        return pq.read_table(path.path, filesystem=path.filesystem(), columns=list(COLUMNS), partitioning=None)
    kinds = dict.fromkeys(COLUMNS[:3], pa.int64()) | dict.fromkeys(SERVICES, pa.float64())
    with path.open_stream() as stream:
        return pa_csv.read_csv(
            stream,
            read_options=pa_csv.ReadOptions(column_names=list(COLUMNS)),
            parse_options=pa_csv.ParseOptions(delimiter="\t"),
            convert_options=pa_csv.ConvertOptions(column_types=kinds, null_values=[""]),
        )


def _expect(valid: pd.Series, records: pd.DataFrame, column: str, expected: str, path: Location) -> None:
    if not valid.all():
        row = int((~valid).to_numpy().argmax())
        raise ValueError(f"{path}: row {row + 1}, column {column!r}: {records[column].iloc[row]}, expected {expected}")
