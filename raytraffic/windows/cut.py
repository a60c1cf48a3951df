"""Windows cut from the runs of a store: NumPy columns, one row a window, each read from its own run alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raytraffic.kriging import HOURS, MODES
from raytraffic.randomness import fold_numpy
from raytraffic.store import CityStatistics, Statistics, Store
from raytraffic.store.shards import Run, decode
from raytraffic.store.statistics import clock

__all__ = ["Columns", "RunReader", "city_columns", "cut_windows"]

#: Axes n window, c service, t step, k POI category, s cell; see `cut_windows`.
Columns = dict[str, NDArray]

_Ints = NDArray[np.int64]
_FOOTERS = 32


class RunReader:
    """Reads runs of a store by their index row, whole row groups at a time, and keeps the last `cache_bytes` of those asked for.

    One reader belongs to one process. Its users see each shard's footer parsed once while it is among the last few used.
    """

    def __init__(self, store: Store, cache_bytes: int = 256 * 2**20, poi_categories: Sequence[str] | None = None) -> None:
        self.store = store
        #: The k axis of every window: a model's own vocabulary, or the store's union.
        self.poi_categories = tuple(store.poi_categories if poi_categories is None else poi_categories)
        self._cache_bytes = cache_bytes
        self._held_bytes = 0
        self._runs: OrderedDict[int, Run] = OrderedDict()
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        entries = store.manifest["cities"]
        place_of = {name: i for i, name in enumerate(self.poi_categories)}
        own = [entries[city]["poi_categories"] for city in store.index.cities]
        #: By city code: where each of the city's POI categories stands on the k axis, and which of them stand there at all.
        self.poi_order = [np.array([place_of[name] for name in names if name in place_of], dtype=np.int64) for names in own]
        self.poi_known = [np.array([name in place_of for name in names], dtype=bool) for names in own]

    def read(self, rows: _Ints) -> Iterator[tuple[int, Run]]:
        """Each distinct row with its run, in an order that reads every row group once; ValueError when a shard is corrupt."""
        index = self.store.index
        wanted = np.unique(rows)
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(index):
            raise ValueError(f"rows: {wanted[0]}..{wanted[-1]}, expected rows of the index, 0..{len(index) - 1}")
        absent: dict[tuple[int, int], list[int]] = {}
        for row in wanted.tolist():
            run = self._runs.get(row)
            if run is None:
                group = int(index.row[row]) // self.store.layout.row_group_rows
                absent.setdefault((int(index.shard[row]), group), []).append(row)
            else:
                self._runs.move_to_end(row)
                yield row, run
        for (shard, group), members in absent.items():
            yield from self._load(shard, group, members)

    def _load(self, shard: int, group: int, rows: list[int]) -> Iterator[tuple[int, Run]]:
        store = self.store
        location = store.location.child(store.index.shards[shard])
        footer = self._footers.pop(shard, None) or location.read_metadata()
        self._footers[shard] = footer
        if len(self._footers) > _FOOTERS:
            self._footers.popitem(last=False)
        columns = [name for name in ("traffic", "users", "xy", "poi", "place") if name in footer.schema.to_arrow_schema().names]
        table = location.read_table(columns, [group], footer).take(store.index.row[rows] - group * store.layout.row_group_rows)
        for row, run in zip(rows, decode(table, store.layout), strict=True):
            self._keep(row, run)
            yield row, run

    def _keep(self, row: int, run: Run) -> None:
        self._runs[row] = run
        self._held_bytes += run.nbytes
        while self._held_bytes > self._cache_bytes:
            _, oldest = self._runs.popitem(last=False)
            self._held_bytes -= oldest.nbytes


def cut_windows(
    reader: RunReader, rows: _Ints, starts: _Ints, window: int = 64, statistics: Statistics | None = None, horizon: int = 0
) -> Columns:
    """The n windows that start at absolute steps `starts` (n,) in the cores of the index rows `rows` (n,), t = window + horizon.

    The `horizon` steps after a window are the future to forecast: nothing is read there, traffic and users are NaN.

    traffic (n, c, t, s) and users (n, t, s) float32, NaN where nothing was measured (a window may reach past its series' end);
    poi (n, k, s) in the reader's categories, 0 where a city does not know one; xy (n, s, 2) metres or NaN;
    place (n, t, s) index into the city's places, -1 where that is unknown, in stores of users who move;
    clock (n, t, 2) slot of day and weekday; step_minutes, key, city (code of `index.cities`), row, start (n,);
    profile (n, t), reference (n, c), modes (n, t, k) and persistence (n, p) of the city, 1 and NaN where `statistics` know nothing of it.

    Raises ValueError for a window longer than the runs' overlap, or a start outside its run's core.
    """
    store, index = reader.store, reader.store.index
    rows, starts = np.asarray(rows, dtype=np.int64), np.asarray(starts, dtype=np.int64)
    if not 0 < window <= store.layout.overlap_steps:
        raise ValueError(f"window: {window} steps, expected 1..{store.layout.overlap_steps}, the overlap of the store's runs")
    first = index.run[rows] * index.core
    offset = starts - first
    outside = np.flatnonzero((offset < 0) | (offset >= index.core_steps[rows]))
    if len(outside):
        at = outside[0]
        last = first[at] + index.core_steps[rows[at]] - 1
        raise ValueError(f"starts[{at}]: {starts[at]}, expected {first[at]}..{last}, the core of row {rows[at]}")

    step_minutes = index.step_minutes[rows]
    begin = index.start_minute[rows] + offset * step_minutes
    minute = begin[:, None] + np.arange(window + horizon) * step_minutes[:, None]
    slot, weekday = clock(minute, step_minutes[:, None])
    return {
        **_entries(reader, rows, offset, window, horizon),
        "clock": np.stack((slot, weekday), axis=-1),
        "step_minutes": step_minutes,
        "key": fold_numpy(index.key[rows], begin),
        **_measured(store, index.city[rows], slot, weekday, statistics or {}),
        "city": index.city[rows].astype(np.int32),
        "row": rows,
        "start": starts,
    }


def _entries(reader: RunReader, rows: _Ints, offset: _Ints, window: int, horizon: int) -> Columns:
    """What is read from the runs: traffic, users, poi, xy."""
    store, n = reader.store, len(rows)
    cells = store.layout.cells
    traffic = np.full((n, len(store.services), window + horizon, cells), np.nan, dtype=np.float32)
    users = np.full((n, window + horizon, cells), np.nan, dtype=np.float32)
    poi = np.zeros((n, len(reader.poi_categories), cells), dtype=np.float32)
    xy = np.empty((n, cells, 2), dtype=np.float32)
    place = np.full((n, window + horizon, cells), -1, dtype=np.int64) if store.places else None
    order = np.argsort(rows, kind="stable")
    distinct, first = np.unique(rows[order], return_index=True)
    members = dict(zip(distinct.tolist(), np.split(order, first[1:]), strict=True)) if n else {}
    for row, run in reader.read(distinct):
        mine = members[row]
        every = np.lib.stride_tricks.sliding_window_view(run.traffic, window, axis=1)  # (c, starts, s, t)
        traffic[mine, :, :window] = every.transpose(1, 0, 3, 2)[offset[mine]]
        users[mine, :window] = np.lib.stride_tricks.sliding_window_view(run.users, window, axis=0).transpose(0, 2, 1)[offset[mine]]
        in_union = np.zeros(poi.shape[1:], dtype=np.float32)
        city = int(store.index.city[row])
        in_union[reader.poi_order[city]] = run.poi[reader.poi_known[city]]
        poi[mine] = in_union
        xy[mine] = run.xy
        if place is not None and run.place is not None:
            known = np.lib.stride_tricks.sliding_window_view(np.nan_to_num(run.place, nan=-1), window, axis=0)
            place[mine, :window] = known.transpose(0, 2, 1)[offset[mine]]
    return {"traffic": traffic, "users": users, "poi": poi, "xy": xy, **({} if place is None else {"place": place})}


def _measured(store: Store, city: _Ints, slot: _Ints, weekday: _Ints, statistics: Statistics) -> Columns:
    """Profile (n, t), reference (n, c), modes (n, t, MODES) and persistence (n, p) of each window's city."""
    nothing = city_columns(None, slot, weekday, len(store.services))
    for code in np.unique(city):
        mine = city == code
        known = city_columns(statistics.get(store.index.cities[code]), slot[mine], weekday[mine], len(store.services))
        for name, values in known.items():
            nothing[name][mine] = values
    return nothing


def city_columns(known: CityStatistics | None, slot: _Ints, weekday: _Ints, services: int) -> Columns:
    """Profile (n, t), reference (n, c), modes (n, t, MODES) and persistence (n, p) of windows of one city at slots of day (n, t) and
    weekdays (n, t); 1 and NaN where nothing is known of it."""
    n = len(slot)
    if known is None:
        return {
            "profile": np.ones(slot.shape, dtype=np.float32),
            "reference": np.full((n, services), np.nan, dtype=np.float32),
            "modes": np.full((*slot.shape, MODES), np.nan, dtype=np.float32),
            "persistence": np.full((n, 1 + len(HOURS)), np.nan, dtype=np.float32),
        }
    persistence = known.persistence or (np.nan,) * (1 + len(HOURS))
    return {
        "profile": np.array(known.profile, dtype=np.float32)[weekday, slot],
        "reference": np.tile(np.array(known.reference, dtype=np.float32), (n, 1)),
        "modes": np.array(known.modes, dtype=np.float32)[slot],
        "persistence": np.tile(np.array(persistence, dtype=np.float32), (n, 1)),
    }
