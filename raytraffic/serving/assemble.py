"""From a query to the windows a Forecaster takes, a few tiles at a time, and back to a table.

Tiles, keys and what is told of a city are those of a prepared store, so that an answer is, to the last bit, the fleet job's for the same
stations, issue time and seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecasting import ForecastRequest, draws_table
from raytraffic.graph import partition
from raytraffic.randomness import fold_numpy, text_key
from raytraffic.serving.known import CityTiles, KnownCity
from raytraffic.serving.query import Query
from raytraffic.serving.refused import Refused
from raytraffic.serving.whereabouts import check_places
from raytraffic.store.statistics import clock
from raytraffic.store.tiling import tile_name
from raytraffic.types import TrafficBatch
from raytraffic.windows import Columns, city_columns, to_batch

__all__ = ["Chunk", "answer_table", "chunks", "horizon_of", "sampler_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Some tiles of a query as windows (axes: n window, c service, t slot, s cell), and which of their entries are answered.

    sites (n, s) names, "" where a tile has no station; minutes (t,) from 1970-01-01 on the wall clock; answered (n, c, t, s).
    """

    batch: TrafficBatch
    sites: NDArray[np.object_]
    minutes: NDArray[np.int64]
    answered: NDArray[np.bool_]


def horizon_of(query: Query) -> int:
    """Slots after the history; 0 in generation."""
    return query.ask.slots(query.model.window)


def sampler_of(query: Query) -> Sampler:
    """The model's sampler with the steps that were asked for."""
    sampler = query.model.sampler
    return sampler if query.ask.steps is None else replace(sampler, steps=query.ask.steps)


def chunks(query: Query, known: KnownCity | None, tile: tuple[int, int], tiles: int, group_stations: bool = False) -> Iterator[Chunk]:
    """The query's windows, `tiles` at a time; `known` is what the server knows of the query's city. With `group_stations` stations without
    cells are put into tiles of neighbours, as a store that was prepared so has them.

    Raises Refused when the city was measured at another granularity, with other services or other environment vectors, and for places
    that it does not have.
    """
    statistics = None if known is None else known.statistics
    _check_city(query, known)
    if query.places is not None:
        check_places(query.places, query.ask.city, known)
    xy = _metres(query, known)
    names, members = _tiles(query, tile, xy, known, group_stations)
    length = query.traffic.shape[1]
    horizon = horizon_of(query)
    history = length if horizon == 0 else ForecastRequest(horizon=horizon, hop=query.ask.hop).history(query.model.window)
    first = length - history  # < 0: slots of which nothing is known lead the window
    minutes = query.start_minute + (first + np.arange(history + horizon)) * query.ask.step_minutes
    slot, weekday = clock(minutes, query.ask.step_minutes)
    for at in range(0, len(members), tiles):
        cells = members[at : at + tiles]
        sites = np.array(["", *query.ids], dtype=object)[cells + 1]
        n = len(cells)
        traffic = _placed(query.traffic, cells, first, history, horizon)
        columns: Columns = {
            "traffic": traffic,
            "clock": np.tile(np.stack((slot, weekday), axis=-1), (n, 1, 1)),
            "step_minutes": np.full(n, query.ask.step_minutes, dtype=np.int64),
            "key": fold_numpy(_keys(query, names[at : at + tiles], sites, known), np.full(n, minutes[0])),
            "poi": _counts(query, cells),
            "xy": np.concatenate((np.full((1, 2), np.nan, dtype=np.float32), xy))[cells + 1],
            **city_columns(statistics, np.tile(slot, (n, 1)), np.tile(weekday, (n, 1)), len(query.services)),
        }
        users = query.users if query.users is not None else np.full_like(query.traffic[0], np.nan)
        columns["users"] = _placed(users[None], cells, first, history, horizon)[:, 0]
        batch = to_batch(columns, None, None if group_stations else tile)  # a group of stations is no grid
        if "expected_users" in query.model.contexts:  # NaN where none are given, so that requests with and without them share calls
            batch = replace(batch, context={**batch.context, "expected_users": _expected(query, cells, history + horizon)})
        if "env" in query.model.contexts:
            env = _visited(query, cells, first, history + horizon, known) if _move(query, known) else _environment(query, sites, known)
            batch = replace(batch, context={**batch.context, "env": env})
        there = (cells >= 0)[:, None, None]
        asked = np.isnan(traffic) if horizon == 0 else np.arange(history + horizon)[:, None] >= history
        yield Chunk(
            batch=batch,
            sites=sites,
            minutes=minutes,
            answered=np.broadcast_to(there & asked, traffic.shape),
        )


def answer_table(query: Query, chunk: Chunk, draws: torch.Tensor) -> pa.Table:
    """The answer's rows for a chunk with draws (n, draws, c, t, s); the columns are those of `forecast_table`."""
    n = len(chunk.sites)
    return draws_table(
        draws,
        answered=chunk.answered,
        cities=np.full(n, query.ask.city or "", dtype=object),
        sites=chunk.sites,
        minutes=np.tile(chunk.minutes, (n, 1)),
        services=query.services,
        quantiles=query.ask.quantiles,
        keep_draws=query.ask.keep_draws,
    )


def _check_city(query: Query, known: KnownCity | None) -> None:
    """Refused unless the city was measured as the query asks for it."""
    if known is None:
        return
    if known.statistics is not None:
        measured = 1440 // len(known.statistics.profile[0])
        if measured != query.ask.step_minutes:
            raise Refused.of(["step_minutes"], query.ask.step_minutes, f"{measured}, as city {query.ask.city} was measured")
        if len(known.statistics.reference) != len(query.services):
            raise Refused.of(["city"], repr(query.ask.city), f"a city that was measured with {len(query.services)} services")
    if query.model.env_features and known.env_features not in (0, query.model.env_features):
        told = f"a city with environment vectors of {query.model.env_features} features, as the model was trained on"
        raise Refused.of(["city"], f"{query.ask.city!r} with {known.env_features}", told)


def _metres(query: Query, known: KnownCity | None) -> NDArray[np.float32]:
    """(stations, 2) where the stations stand: as the query says, else as the server knows, NaN where neither does."""
    if query.xy is not None:
        return query.xy
    return np.full((len(query.ids), 2), np.nan, dtype=np.float32) if known is None else known.tiles.metres(query.ids)


def _environment(query: Query, sites: NDArray[np.object_], known: KnownCity | None) -> torch.Tensor:
    """(n, 1, s, d) the environment vectors of sites (n, s), NaN where the server knows none."""
    if known is None or not known.env_features:
        return torch.full((len(sites), 1, sites.shape[1], query.model.env_features), torch.nan)
    return known.environment(sites)[:, None]


def _move(query: Query, known: KnownCity | None) -> bool:
    """Whether a window says of every slot where users are: as the query does, or as those of the store do, whether or not it is known."""
    return query.places is not None or (known is not None and bool(known.places))


def _visited(query: Query, cells: NDArray[np.int64], first: int, slots: int, known: KnownCity | None) -> torch.Tensor:
    """(n, slots, s, d) the environment vectors of where the users of cells (n, s) are from slot `first` on, NaN where that is unknown."""
    n, s = cells.shape
    if query.places is None:
        return torch.full((n, slots, s, query.model.env_features), torch.nan)
    assert known is not None, "places were checked"
    at = np.full((n, slots, s), -1, dtype=np.int64)
    tile, cell = np.nonzero(cells >= 0)
    spoken = query.places.place[max(first, 0) :, cells[tile, cell]]
    begin = max(-first, 0)
    at[tile, begin : begin + len(spoken), cell] = spoken.T
    return known.environment(np.array([*query.places.names, ""], dtype=object))[torch.from_numpy(at)]


def _tiles(
    query: Query, tile: tuple[int, int], xy: NDArray[np.float32], known: KnownCity | None, group_stations: bool
) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the query's tiles, and which station is in each of their cells (m, h * w), -1 for none."""
    stations, size = len(query.ids), tile[0] * tile[1]
    if query.cell is None:
        tiles = None if known is None else known.tiles
        members = _grouped(query, size, xy, tiles) if group_stations else _padded([np.array([i]) for i in range(stations)], size)
        return [query.ids[row[row >= 0][0]] for row in members], members
    of_tile, inside = np.divmod(query.cell, tile)
    places, place = np.unique(of_tile, axis=0, return_inverse=True)
    members = np.full((len(places), tile[0] * tile[1]), -1, dtype=np.int64)
    members[place.reshape(-1), inside[:, 0] * tile[1] + inside[:, 1]] = np.arange(stations)
    return [tile_name(row, column) for row, column in places.tolist()], members


def _grouped(query: Query, size: int, xy: NDArray[np.float32], tiles: CityTiles | None) -> NDArray[np.int64]:
    """Tiles (m, size) of stations: those that stand in tiles of the store stay there, in their cells; of the others neighbours meet."""
    stored: dict[int, NDArray[np.int64]] = {}
    free = []
    for station, name in enumerate(query.ids):
        place = None if tiles is None else tiles.place(name)
        if place is None:
            free.append(station)
        else:
            stored.setdefault(place[0], np.full(size, -1, dtype=np.int64))[place[1]] = station
    new = np.array(free, dtype=np.int64)
    return np.concatenate(
        [*(row[None] for row in stored.values()), _padded([new[group] for group in partition(xy[new].astype(np.float64), size)], size)]
    )


def _padded(groups: Sequence[NDArray[np.int64]], size: int) -> NDArray[np.int64]:
    """(m, size) each group from the first cell on, -1 after it."""
    members = np.full((len(groups), size), -1, dtype=np.int64)
    for row, group in zip(members, groups, strict=True):
        row[: len(group)] = group
    return members


def _keys(query: Query, names: list[str], sites: NDArray[np.object_], known: KnownCity | None) -> NDArray[np.int64]:
    """Of tiles with these names and sites (n, s): those of the store's tiles, or what a store of one period would have."""
    stored = [None if known is None else known.tiles.key(tile) for tile in sites]
    other = [text_key(f"{query.ask.city or ''}|all|{name}") for name in names]
    return np.array([one if key is None else key for key, one in zip(stored, other, strict=True)], dtype=np.int64)


def _expected(query: Query, cells: NDArray[np.int64], slots: int) -> torch.Tensor:
    """(n, slots, s): what the caller expects of the users in the last slots, which are answered, NaN before them and elsewhere."""
    expected = np.full((len(cells), slots, cells.shape[1]), np.nan, dtype=np.float32)
    if query.expected_users is not None:
        tile, cell = np.nonzero(cells >= 0)
        expected[tile, slots - len(query.expected_users) :, cell] = query.expected_users[:, cells[tile, cell]].T
    return torch.from_numpy(expected)


def _placed(series: NDArray[np.float32], cells: NDArray[np.int64], first: int, history: int, horizon: int) -> NDArray[np.float32]:
    """(n, c, t, s) of a (c, length, stations) series from slot `first` on, NaN before its begin, after its end and where no station is."""
    window = np.full((len(cells), len(series), history + horizon, cells.shape[1]), np.nan, dtype=np.float32)
    tile, cell = np.nonzero(cells >= 0)
    known = series[:, max(first, 0) :, cells[tile, cell]]
    window[tile, :, history - known.shape[1] : history, cell] = known.transpose(2, 0, 1)
    return window


def _counts(query: Query, cells: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, k, s) POI counts in the model's categories, 0 where none were given."""
    counts = np.zeros((len(cells), len(query.model.poi_categories), cells.shape[1]), dtype=np.float32)
    tile, cell = np.nonzero(cells >= 0)
    for k, category in enumerate(query.model.poi_categories):
        if category in query.poi:
            counts[tile, k, cell] = query.poi[category][cells[tile, cell]]
    return counts
