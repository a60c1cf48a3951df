"""From a query to the windows a Forecaster takes, a few tiles at a time, and back to a table.

Tiles, keys and what is told of a city are those of a prepared store, so that an answer is, to the last bit, the fleet job's for the same
stations, issue time and seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecasting import ForecastRequest, draws_table
from raytraffic.randomness import fold_numpy, text_key
from raytraffic.serving.cities import TileKeys
from raytraffic.serving.query import Query
from raytraffic.serving.refused import Refused
from raytraffic.store import CityStatistics
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


def chunks(query: Query, known: CityStatistics | None, tile: tuple[int, int], tiles: int, keys: TileKeys | None = None) -> Iterator[Chunk]:
    """The query's windows, `tiles` at a time; `known` is what the server measured of the query's city, `keys` how its tiles are keyed.

    Raises Refused when the city was measured at another granularity or with other services.
    """
    if known is not None and len(known.profile[0]) * query.ask.step_minutes != 1440:
        raise Refused.of(
            ["step_minutes"], query.ask.step_minutes, f"{1440 // len(known.profile[0])}, as city {query.ask.city} was measured"
        )
    if known is not None and len(known.reference) != len(query.services):
        raise Refused.of(["city"], repr(query.ask.city), f"a city that was measured with {len(query.services)} services")
    names, members = _tiles(query, tile)
    length = query.traffic.shape[1]
    horizon = horizon_of(query)
    history = length if horizon == 0 else ForecastRequest(horizon=horizon).history(query.model.window)
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
            "key": fold_numpy(_keys(query, names[at : at + tiles], sites, keys), np.full(n, minutes[0])),
            "poi": _counts(query, cells),
            **city_columns(known, np.tile(slot, (n, 1)), np.tile(weekday, (n, 1)), len(query.services)),
        }
        users = query.users if query.users is not None else np.full_like(query.traffic[0], np.nan)
        columns["users"] = _placed(users[None], cells, first, history, horizon)[:, 0]
        batch = to_batch(columns, None, tile)
        if "expected_users" in query.model.contexts:  # NaN where none are given, so that requests with and without them share calls
            batch = replace(batch, context={**batch.context, "expected_users": _expected(query, cells, history + horizon)})
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


def _tiles(query: Query, tile: tuple[int, int]) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the query's tiles, and which station is in each of their cells (m, h * w), -1 for none."""
    stations = len(query.ids)
    if query.cell is None:
        members = np.full((stations, tile[0] * tile[1]), -1, dtype=np.int64)
        members[:, 0] = np.arange(stations)
        return list(query.ids), members
    of_tile, inside = np.divmod(query.cell, tile)
    places, place = np.unique(of_tile, axis=0, return_inverse=True)
    members = np.full((len(places), tile[0] * tile[1]), -1, dtype=np.int64)
    members[place.reshape(-1), inside[:, 0] * tile[1] + inside[:, 1]] = np.arange(stations)
    return [tile_name(row, column) for row, column in places.tolist()], members


def _keys(query: Query, names: list[str], sites: NDArray[np.object_], keys: TileKeys | None) -> NDArray[np.int64]:
    """Of tiles with these names and sites (n, s): those of the store's tiles, or what a store of one period would have."""
    known = [None if keys is None else keys.of(tile) for tile in sites]
    other = [text_key(f"{query.ask.city or ''}|all|{name}") for name in names]
    return np.array([one if key is None else key for key, one in zip(known, other, strict=True)], dtype=np.int64)


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
