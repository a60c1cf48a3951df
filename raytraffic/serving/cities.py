"""The cities a server has measured: statistics, stations and slices of their series, read from a prepared store.

Axes: c service, t slot, s cell of a tile, k POI category, p tile. What is read of a city is its newest period.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from threading import RLock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raytraffic.serving.known import CityTiles, KnownCity
from raytraffic.store import CityStatistics, Store, open_store
from raytraffic.windows import RunReader, Windows, environment_features

__all__ = ["HEAT_SLOTS", "Cities", "CityFacts", "CityMap", "Station", "TileSeries"]

#: Slots of all stations of a city that one call reads at most: a week of hours.
HEAT_SLOTS = 168
_WEEK_MINUTES = 7 * 1440
_EPOCH = datetime(1970, 1, 1)
_GRID_TILE = re.compile(r"r(\d{3,})c(\d{3,})")

_Floats = NDArray[np.float32]
_Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CityFacts:
    """A city's newest period: `slots` slots of `step_minutes` from `first_minute` (from 1970-01-01, wall clock); `unit` of its traffic."""

    name: str
    step_minutes: int
    unit: str
    services: tuple[str, ...]
    first_minute: int
    slots: int
    tiles: int

    @property
    def first(self) -> datetime:
        """Local time of the first slot."""
        return _EPOCH + timedelta(minutes=self.first_minute)

    @property
    def last(self) -> datetime:
        """Local time of the last slot."""
        return self.first + timedelta(minutes=(self.slots - 1) * self.step_minutes)

    def slot_of(self, time: datetime) -> int | None:
        """The slot that begins at a naive local time, counted from the first one (it may lie outside); None where none begins then."""
        minutes, rest = divmod(time - self.first, timedelta(minutes=1))
        return None if rest or minutes % self.step_minutes else minutes // self.step_minutes


@dataclass(frozen=True, kw_only=True)
class Station:
    """A station: cell `cell` of tile `tile`, at `x`, `y` of the city's map.

    `mean` is the mean traffic of a slot of the newest week, by service, None where nothing was measured then.
    """

    id: str
    tile: str
    cell: int
    x: float
    y: float
    mean: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class CityMap:
    """The stations of a city; x east and y north are in metres, or schematic cells where the store does not know the place of each."""

    facts: CityFacts
    layout: Literal["metres", "schematic"]
    stations: tuple[Station, ...]

    def station(self, name: str) -> Station | None:
        """The station of this name, or None."""
        return next((station for station in self.stations if station.id == name), None)


@dataclass(frozen=True, kw_only=True, eq=False)
class TileSeries:
    """Slots of one tile: traffic (c, t, s) and users (t, s), NaN where nothing was measured, poi (s,) by category.

    sites (s,) are names, "" where the tile has no cell; cells (s, 2) their rows and columns of the city's grid, where tiles that are no
    grid's have made-up places; None for a lone station, which is a tile by itself. places (t, s) are the names of where users were, None
    where that is unknown.
    """

    sites: tuple[str, ...]
    cells: _Ints | None
    traffic: _Floats
    users: _Floats
    poi: Mapping[str, _Floats]
    places: NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class _Places:
    """Where a city's newest period lies in the index: the tiles' names and first rows (p,), and their sites (p, s).

    tile (p, 2) is row and column of each tile in a grid of tiles, of the city's own grid where `is_grid`.
    """

    tiles: tuple[str, ...]
    first_rows: _Ints
    sites: NDArray[np.object_]
    tile: _Ints
    is_grid: bool

    def lone(self) -> NDArray[np.bool_]:
        """(p,) the tiles that are one station by itself."""
        return (self.sites[:, 0] == np.array(self.tiles, dtype=object)) & (self.sites[:, 1:] == "").all(axis=1)


@dataclass(frozen=True, eq=False)
class _Block:
    """Slots of some tiles: traffic (p, c, t, s), users (p, t, s), poi (p, k, s), xy (p, s, 2), place (p, t, s), -1 unknown."""

    traffic: _Floats
    users: _Floats
    poi: _Floats
    xy: _Floats
    place: _Ints


class Cities:
    """What the server knows of cities, from the prepared store in a folder (or s3:// URL), or nothing where there is none.

    Threads may share it; they read one after another. All methods but `names` and `known` want a city of `names`.
    """

    def __init__(self, store: str | None) -> None:
        self._location = store
        self._lock = RLock()
        self._places: dict[str, _Places] = {}
        self._maps: dict[str, CityMap] = {}
        self._known: dict[str, KnownCity] = {}

    @cached_property
    def store(self) -> Store | None:
        """The open store."""
        return None if self._location is None else open_store(self._location)

    @cached_property
    def _statistics(self) -> dict[str, CityStatistics | None]:
        return {} if self.store is None else self.store.statistics("all")

    @property
    def names(self) -> tuple[str, ...]:
        """The cities, sorted."""
        return tuple(sorted(self._statistics))

    def known(self, city: str | None) -> KnownCity | None:
        """What a request for a city is told of it; None for no city. The first call reads where its sites stand.

        Tiles are those of all periods, each as its newest one has it, as in the fleet job (raytraffic.forecasting.issue_windows): a caller
        knows no periods.
        """
        if city is None:
            return None
        with self._lock:
            if city not in self._known:
                index = self._windows.store.index
                series = index.table_of_series()
                mine = np.flatnonzero(series.city == index.cities.index(city))
                oldest_first = mine[np.argsort(index.start_minute[series.first_row[mine]], kind="stable")]
                newest = dict(zip(series.place[oldest_first].tolist(), series.first_row[oldest_first].tolist(), strict=True))
                rows = np.array(list(newest.values()))
                self._known[city] = KnownCity(
                    name=city,
                    statistics=self._statistics[city],
                    tiles=CityTiles(self._windows.site_names(rows), self._site_metres(rows), index.key[rows]),
                    surroundings=self._windows.surroundings if environment_features(self._windows.store) else None,
                    places=frozenset(self._windows.store.places.get(city, ())),
                )
            return self._known[city]

    def _site_metres(self, rows: _Ints) -> _Floats:
        """(n, s, 2) where the sites of the tiles of some index rows stand, NaN where that is unknown."""
        store, index = self._windows.store, self._windows.store.index
        metres = np.empty((len(rows), store.layout.cells, 2), dtype=np.float32)
        for shard in np.unique(index.shard[rows]).tolist():
            mine = np.flatnonzero(index.shard[rows] == shard)
            column = store.location.child(index.shards[shard]).read_table(["xy"]).column("xy")
            metres[mine] = np.concatenate([chunk.to_numpy_ndarray() for chunk in column.chunks])[index.row[rows[mine]]]
        return metres

    def facts(self, city: str) -> CityFacts:
        """What the store's manifest says of a city."""
        store = self._windows.store
        entry = store.manifest["cities"][city]
        newest = entry["periods"][self._newest_period(city)]
        return CityFacts(
            name=city,
            step_minutes=entry["step_minutes"],
            unit=entry["unit"],
            services=store.services,
            first_minute=newest["start_minute"],
            slots=newest["steps"],
            tiles=newest["tiles"],
        )

    def map(self, city: str) -> CityMap:
        """The stations of a city; the first call reads the newest week of every tile."""
        with self._lock:
            if city not in self._maps:
                self._maps[city] = self._map(city)
            return self._maps[city]

    def series(self, city: str, tile: str, first_minute: int, slots: int) -> TileSeries:
        """`slots` slots of a tile from `first_minute` on, NaN before and after its period.

        Raises ValueError for a tile that the city does not have and a minute at which no slot begins.
        """
        facts, places = self.facts(city), self._placed(city)
        if tile not in places.tiles:
            raise ValueError(f"tile: {tile!r}, expected one of city {city}'s {len(places.tiles)} tiles")
        number = places.tiles.index(tile)
        block = self._read(facts, places.first_rows[number : number + 1], _first_slot(facts, first_minute), slots)
        categories = self._windows.poi_categories
        shape = self._windows.store.layout.tile
        inside = np.stack(np.divmod(np.arange(shape[0] * shape[1]), shape[1]), axis=1)
        names = np.array([*self._windows.store.places.get(city, ()), None], dtype=object)
        return TileSeries(
            sites=tuple(places.sites[number]),
            places=names[block.place[0]],
            cells=None if places.lone()[number] else places.tile[number] * shape + inside,
            traffic=block.traffic[0],
            users=block.users[0],
            poi=dict(zip(categories, block.poi[0], strict=True)),
        )

    def heat(self, city: str, service: str, first_minute: int, slots: int) -> _Floats:
        """Traffic (t, stations) of one service at all stations of the city's map, NaN where nothing was measured.

        Raises ValueError for a service that is not there, a minute at which no slot begins and more than HEAT_SLOTS slots.
        """
        facts = self.facts(city)
        if service not in facts.services:
            raise ValueError(f"service: {service!r}, expected one of {list(facts.services)}")
        if not 1 <= slots <= HEAT_SLOTS:
            raise ValueError(f"slots: {slots}, expected 1..{HEAT_SLOTS}")
        places = self._placed(city)
        block = self._read(facts, places.first_rows, _first_slot(facts, first_minute), slots)
        number = {tile: i for i, tile in enumerate(places.tiles)}
        stations = self.map(city).stations
        tile, cell = [number[station.tile] for station in stations], [station.cell for station in stations]
        return block.traffic[tile, facts.services.index(service), :, cell].T

    @cached_property
    def _windows(self) -> Windows:
        """The store's reader and its sites; the length of windows does not matter here."""
        assert self.store is not None, "a city of `names` stands in a store"
        return Windows(self.store, "all", window=1)

    @property
    def _reader(self) -> RunReader:
        return self._windows.reader

    def _newest_period(self, city: str) -> str:
        periods = self._windows.store.manifest["cities"][city]["periods"]
        return str(max(periods, key=lambda name: (periods[name]["start_minute"], name)))

    def _placed(self, city: str) -> _Places:
        with self._lock:
            if city not in self._places:
                index = self._windows.store.index
                series = index.table_of_series()
                period = index.periods.index(self._newest_period(city))
                mine = (series.city == index.cities.index(city)) & (series.period == period)
                first_rows = np.sort(series.first_row[mine])
                tiles = tuple(index.places[place][1] for place in index.place[first_rows].tolist())
                self._places[city] = _Places(tiles, first_rows, self._windows.site_names(first_rows), *_tile_places(tiles))
            return self._places[city]

    def _map(self, city: str) -> CityMap:
        facts, places = self.facts(city), self._placed(city)
        slots = min(facts.slots, _WEEK_MINUTES // facts.step_minutes)
        block = self._read(facts, places.first_rows, facts.slots - slots, slots)
        measured = np.isfinite(block.traffic)
        total = np.where(measured, block.traffic, 0).sum(axis=2, dtype=np.float64)
        count = measured.sum(axis=2)
        there = places.sites != ""
        in_metres = bool(np.isfinite(block.xy[there]).all())
        xy = block.xy if in_metres else self._schematic(places)
        stations: dict[str, Station] = {}
        for p, s in np.argwhere(there).tolist():
            name = str(places.sites[p, s])
            mean = tuple(float(total[p, c, s] / count[p, c, s]) if count[p, c, s] else None for c in range(len(facts.services)))
            x, y = xy[p, s].tolist()
            # A site that a source puts into two tiles is shown in the first.
            stations.setdefault(name, Station(id=name, tile=places.tiles[p], cell=s, x=x, y=y, mean=mean))
        return CityMap(facts=facts, layout="metres" if in_metres else "schematic", stations=tuple(stations.values()))

    def _schematic(self, places: _Places) -> _Floats:
        """(p, s, 2) x and y of cells of side 1, row 0 in the north; tiles that are no neighbours stand apart."""
        shape = self._windows.store.layout.tile
        gap = 0 if places.is_grid else 1
        pitch = (1, 1) if places.lone().all() else (shape[0] + gap, shape[1] + gap)
        row, column = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
        rows, columns = places.tile[:, :1] * pitch[0] + row, places.tile[:, 1:] * pitch[1] + column
        return np.stack((columns, -rows), axis=-1).astype(np.float32)

    def _read(self, facts: CityFacts, first_rows: _Ints, first: int, slots: int) -> _Block:
        """Slots [first, first + slots) of the series whose index rows begin at `first_rows`; no run is read that holds none of them."""
        reader = self._reader
        layout, services = reader.store.layout, len(facts.services)
        p, cells = len(first_rows), layout.cells
        block = _Block(
            traffic=np.full((p, services, slots, cells), np.nan, dtype=np.float32),
            users=np.full((p, slots, cells), np.nan, dtype=np.float32),
            poi=np.zeros((p, len(reader.poi_categories), cells), dtype=np.float32),
            xy=np.full((p, cells, 2), np.nan, dtype=np.float32),
            place=np.full((p, slots, cells), -1, dtype=np.int64),
        )
        wanted = {
            row + run: (number, low, high, run)
            for run, low, high in self._spans(max(first, 0), min(first + slots, facts.slots), facts.slots)
            for number, row in enumerate(first_rows.tolist())
        }
        if not wanted:
            return block
        order = reader.poi_order[int(reader.store.index.city[first_rows[0]])]
        with self._lock:
            for index_row, held in reader.read(np.array(list(wanted))):
                number, low, high, run = wanted[index_row]
                inside, target = slice(low - run * layout.core, high - run * layout.core), slice(low - first, high - first)
                block.traffic[number, :, target] = held.traffic[:, inside]
                block.users[number, target] = held.users[inside]
                block.poi[number, order] = held.poi
                block.xy[number] = held.xy
                if held.place is not None:
                    block.place[number, target] = np.nan_to_num(held.place[inside], nan=-1)
        return block

    def _spans(self, first: int, stop: int, steps: int) -> Iterator[tuple[int, int, int]]:
        """The fewest runs that hold steps [first, stop) of a series of `steps`, each with the steps to take from it."""
        layout = self._windows.store.layout
        while first < stop:
            run = min(first // layout.core, layout.runs(steps) - 1)
            end = min(run * layout.core + layout.run_steps, stop)
            yield run, first, end
            first = end


def _first_slot(facts: CityFacts, first_minute: int) -> int:
    slot, rest = divmod(first_minute - facts.first_minute, facts.step_minutes)
    if rest:
        raise ValueError(f"first_minute: {first_minute}, expected {facts.first_minute} and a multiple of {facts.step_minutes}")
    return slot


def _tile_places(tiles: tuple[str, ...]) -> tuple[_Ints, bool]:
    """(p, 2) row and column of each tile, and whether the names say so (tiles of a grid); else they fill a near-square, row by row."""
    named = [_GRID_TILE.fullmatch(tile) for tile in tiles]
    grid = [(int(match[1]), int(match[2])) for match in named if match]
    if len(grid) == len(tiles):
        return np.array(grid), True
    columns = math.isqrt(len(tiles) - 1) + 1
    return np.stack(np.divmod(np.arange(len(tiles)), columns), axis=1), False
