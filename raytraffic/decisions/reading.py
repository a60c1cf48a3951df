"""What a decision is made from, read from files: a forecast's draws or a long table as demand.

All sites of one decision share their slots: cities of another granularity or another issue time are refused, and are decided on one
after the other by naming them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
from numpy.typing import NDArray

from raytraffic.decisions.deployment import StationType
from raytraffic.decisions.site_tables import Site, check_one_city, site_name
from raytraffic.files import Location

__all__ = ["Demand", "demand_of_table", "read_demand", "read_values", "station_types"]

_TEXTS = ("city", "unique_id", "service")
_MOMENT = pa.timestamp("s")


@dataclass(frozen=True, kw_only=True, eq=False)
class Demand:
    """What every site may want in every slot."""

    sites: tuple[Site, ...]
    """In the order of the forecast."""
    slots: NDArray[np.datetime64]
    """(slots,) their beginnings on the wall clock, evenly spaced."""
    draws: NDArray[np.floating]
    """(draws, sites, slots) in the forecast's unit."""

    @property
    def step_minutes(self) -> float:
        """Length of a slot; of a lone one an hour is assumed."""
        return float((self.slots[1] - self.slots[0]) / np.timedelta64(60, "s")) if len(self.slots) > 1 else 60.0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """The rows (n,) of one service of a file: whose they are, as positions in lists of names, when, and their draws (n, d)."""

    label: str
    cities: list[str]
    city: NDArray[np.int64]
    stations: list[str]
    station: NDArray[np.int64]
    moment: NDArray[np.datetime64]
    values: NDArray[np.floating]

    def of_city(self, name: str) -> _Rows:
        """The rows of one city."""
        if self.cities == [name]:
            return self
        mine = self.city == self.cities.index(name)
        picked = (array[mine] for array in (self.city, self.station, self.moment, self.values))
        city, station, moment, values = picked
        return _Rows(label=self.label, cities=self.cities, city=city, stations=self.stations, station=station, moment=moment, values=values)

    def sites(self) -> list[Site]:
        """Every site once, in the order in which they come."""
        codes = self.city * len(self.stations) + self.station
        found, first = np.unique(codes, return_index=True)
        ordered = found[np.argsort(first)]
        return [(self.cities[code // len(self.stations)], self.stations[code % len(self.stations)]) for code in ordered.tolist()]


def read_demand(path: str, cities: Sequence[str] = (), service: str | None = None) -> Demand:
    """The demand of a forecast's folder (made with --keep-draws), or of one long table `unique_id, ds, y` as a single draw.

    `cities` are those that are read, all if none is named. Raises ValueError naming the file with the site, slot or city at fault: missing,
    double or negative values, slots or numbers of draws that differ, several services and none named.
    """
    location = Location.of(path)
    files = _forecast_shards(location) if location.is_folder() else [location]
    column = "draws" if location.is_folder() else "y"
    return _demand(path, (_read_rows(file, column, service) for file in files), cities)


def demand_of_table(label: str, table: pa.Table, service: str | None = None) -> Demand:
    """The demand of a forecast's table in memory (unique_id, ds, draws, perhaps city and service), called `label` in messages.

    Raises ValueError as `read_demand` does.
    """
    return _demand(label, [_rows_of(label, table, "draws", service)], ())


def _demand(path: str, files: Iterable[_Rows], cities: Sequence[str]) -> Demand:
    """The demand of the rows of all files; see `read_demand`."""
    sites: list[Site] = []
    pieces: list[NDArray[np.floating]] = []
    slots: NDArray[np.datetime64] | None = None
    seen: set[str] = set()
    for rows in files:
        seen |= set(rows.cities)
        for city in rows.cities if not cities else [name for name in rows.cities if name in cities]:
            mine = rows.of_city(city)
            here = _even(mine.label, city, np.unique(mine.moment))
            slots = here if slots is None else slots
            _check_alike(mine, city, here, slots, pieces)
            names = mine.sites()
            pieces.append(_fill(mine, names, slots))
            sites += names
    if unknown := sorted(set(cities) - seen):
        raise ValueError(f"cities: {unknown}, expected some of {sorted(seen)} of {path}")
    if slots is None:
        raise ValueError(f"{path}: no rows, expected a forecast of at least one site")
    if len(set(sites)) < len(sites):
        double = next(site for i, site in enumerate(sites) if site in sites[:i])
        raise ValueError(f"{path}: site {site_name(double)} in more than one file, expected each once")
    return Demand(sites=tuple(sites), slots=slots, draws=np.concatenate(pieces, axis=1))


def read_values(path: str, sites: Sequence[Site], slots: NDArray[np.datetime64], service: str | None = None) -> NDArray[np.float64]:
    """(sites, slots) the values of a long table `unique_id, ds, y` at these sites and slots; other rows are left alone.

    Raises ValueError naming the first site and slot without a value, or with two.
    """
    rows = _read_rows(Location.of(path), "y", service)
    values: NDArray[np.float64] = _fill(rows, sites, slots)[0].astype(np.float64)
    return values


def station_types(texts: Sequence[str]) -> dict[str, StationType]:
    """Station types by name, of texts name=capacity,price,operating_cost (the last two 0 where not given); ValueError for others."""
    found: dict[str, StationType] = {}
    for text in texts:
        name, _, figures = text.partition("=")
        try:
            numbers = [float(figure) for figure in figures.split(",")]
        except ValueError:
            numbers = []
        if not name or not 1 <= len(numbers) <= 3 or name in found:
            raise ValueError(f"station_types: {text!r}, expected name=capacity,price,operating_cost, names differing, as macro=200,1.9,4")
        capacity, price, operating_cost = (*numbers, 0.0, 0.0)[:3]
        try:
            found[name] = StationType(capacity=capacity, price=price, operating_cost=operating_cost)
        except ValueError as error:
            raise ValueError(f"station_types: {text!r}: {error}") from None
    return found


def _forecast_shards(folder: Location) -> Iterator[Location]:
    """The shards of a finished forecast, in order."""
    manifest = folder.child("manifest.json")
    if not manifest.exists():
        raise ValueError(f"{folder}: no manifest.json, expected the folder of a finished `raytraffic forecast`")
    return (folder.child("shards", name) for name in sorted(json.loads(manifest.read_bytes())["shards"]))


def _table(file: Location, wanted: Sequence[str], optional: Sequence[str]) -> pa.Table:
    """Columns of a CSV or Parquet file; ValueError for a file that is neither, or that lacks one that is `wanted`."""
    try:
        if file.name.endswith((".csv", ".csv.gz")):
            texts = pv.ConvertOptions(column_types={**{name: pa.string() for name in _TEXTS}, "ds": _MOMENT})
            with file.open_stream() as stream:
                table = pv.read_csv(stream, convert_options=texts)
        elif file.name.endswith(".parquet"):
            table = file.read_table()
        else:
            raise ValueError(f"{file}: expected a forecast's folder, a .csv or a .parquet file")
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file, expected a forecast's folder, a .csv or a .parquet file") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: {error}, expected a table with columns {list(wanted)}, date-times without a zone") from None
    for name in wanted:
        if name not in table.column_names:
            hint = " (forecast with --keep-draws)" if name == "draws" else ""
            raise ValueError(f"{file}: no column {name!r}{hint}, expected one (it has {table.column_names})")
    return table.select([*wanted, *(name for name in optional if name in table.column_names)])


def _names(file: str, table: pa.Table, name: str) -> tuple[list[str], NDArray[np.int64]]:
    """A column of names as the list of those there are and each row's position in it; "" throughout where there is no such column."""
    if name not in table.column_names:
        return [""], np.zeros(len(table), dtype=np.int64)
    column = table[name].combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    if column.null_count:
        raise ValueError(f"{file}: {column.null_count} rows without {name}, expected one in every row")
    positions: NDArray[np.int64] = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    # Only what occurs: a dictionary may hold names of rows that were filtered away.
    used, first, inverse = np.unique(positions, return_index=True, return_inverse=True)
    order = np.argsort(first)
    names = column.dictionary.to_pylist()
    return [names[used[i]] for i in order], np.argsort(order)[inverse]


def _read_rows(file: Location, column: str, service: str | None) -> _Rows:
    """The rows of one service of a file with `column` of values, a number or a list of draws each."""
    return _rows_of(str(file), _table(file, ("unique_id", "ds", column), ("city", "service")), column, service)


def _rows_of(label: str, table: pa.Table, column: str, service: str | None) -> _Rows:
    """The rows of one service of a table."""
    if "service" in table.column_names and len(table):
        services, which = _names(label, table, "service")
        if (service not in services) if service is not None else len(services) > 1:
            raise ValueError(f"service: {service!r}, expected one of {services} of {label}")
        if len(services) > 1:
            table = table.filter(pa.array(which == services.index(str(service))))
    cities, city = _names(label, table, "city") if len(table) else ([], np.zeros(0, dtype=np.int64))
    stations, station = _names(label, table, "unique_id")
    moment = table["ds"]
    if not pa.types.is_timestamp(moment.type) or moment.type.tz is not None or moment.null_count:
        raise ValueError(f"{label}: column 'ds' of type {moment.type}, expected date-times without a zone in every row")
    return _Rows(
        label=label,
        cities=cities,
        city=city,
        stations=stations,
        station=station,
        moment=moment.cast(_MOMENT).to_numpy(),
        values=_draws(label, table[column]),
    )


def _draws(label: str, column: pa.ChunkedArray) -> NDArray[np.floating]:
    """(n, draws) the values of a column of numbers, or of lists of equal length; what is empty is NaN."""
    one = column.combine_chunks()
    one = one.combine_chunks() if isinstance(one, pa.ChunkedArray) else one
    if pa.types.is_fixed_size_list(one.type) or pa.types.is_list(one.type):
        lengths = np.unique(pc.list_value_length(one).to_numpy(zero_copy_only=False))
        if one.null_count or len(lengths) > 1:
            raise ValueError(f"{label}: {lengths.tolist()} draws a row, expected as many in every row")
        flat: NDArray[np.floating] = one.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(one), -1)
    try:
        numbers: NDArray[np.floating] = one.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{label}: column of type {one.type} ({error}), expected numbers") from None
    return numbers[:, None]


def _even(label: str, city: str, moments: NDArray[np.datetime64]) -> NDArray[np.datetime64]:
    """The slots of a city, if they are evenly spaced."""
    steps = np.diff(moments)
    if len(steps) and (steps != steps[0]).any():
        odd = int(np.argmax(steps != steps[0]))
        raise ValueError(
            f"{label}: after slot {moments[odd]} of city {city!r} comes {moments[odd + 1]}, "
            f"expected one every {steps[0].astype(int) // 60} minutes"
        )
    return moments


def _check_alike(
    rows: _Rows, city: str, here: NDArray[np.datetime64], slots: NDArray[np.datetime64], pieces: Sequence[NDArray[np.floating]]
) -> None:
    """ValueError unless a city has the slots and the draws of those before."""
    if not np.array_equal(here, slots):
        told = [f"{len(these)} slots from {these[0]} to {these[-1]}" for these in (here, slots)]
        raise ValueError(
            f"{rows.label}: city {city!r} has {told[0]}, expected {told[1]} as the sites before; decide on such cities one by one (cities)"
        )
    if pieces and rows.values.shape[1] != len(pieces[0]):
        raise ValueError(f"{rows.label}: {rows.values.shape[1]} draws, expected {len(pieces[0])} as in the files before")


def _fill(rows: _Rows, sites: Sequence[Site], slots: NDArray[np.datetime64]) -> NDArray[np.floating]:
    """(draws, sites, slots) the rows' values at these sites and slots, each of which must have exactly one."""
    wanted = _positions(rows, sites)
    site = wanted[rows.city, rows.station]
    slot = np.searchsorted(slots, rows.moment)
    here = (site >= 0) & (slot < len(slots)) & (slots[np.minimum(slot, len(slots) - 1)] == rows.moment)
    cell = site[here] * len(slots) + slot[here]
    counts = np.bincount(cell, minlength=len(sites) * len(slots))
    values = np.empty((len(sites) * len(slots), rows.values.shape[1]), dtype=rows.values.dtype)
    values[cell] = rows.values[here]
    for bad, told in (
        (counts == 0, "no value"),
        (counts > 1, "more than one value"),
        (~np.isfinite(values).all(axis=1), "a value that is missing or not finite"),
        ((values < 0).any(axis=1), "a negative value"),
    ):
        if bad.any():
            at = int(np.argmax(bad))
            where = f"site {site_name(sites[at // len(slots)])} at {slots[at % len(slots)]}"
            raise ValueError(f"{rows.label}: {told} of {where}, expected one of at least 0 ({bad.sum()} of {bad.size} are so)")
    return np.ascontiguousarray(values.T).reshape(-1, len(sites), len(slots))


def _positions(rows: _Rows, sites: Sequence[Site]) -> NDArray[np.int64]:
    """(cities, stations) of the rows: the position in `sites`, -1 for others."""
    city = {name: i for i, name in enumerate(rows.cities)}
    station = {name: i for i, name in enumerate(rows.stations)}
    found = np.full((max(1, len(city)), max(1, len(station))), -1, dtype=np.int64)
    check_one_city(rows.label, rows.cities, sites)
    for i, (name, unique_id) in enumerate(sites):
        at = city.get(name if rows.cities != [""] else "", -1), station.get(unique_id, -1)
        if min(at) >= 0:
            found[at] = i
    return found
