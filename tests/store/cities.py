"""Cities the store's and the windows' tests are made of: small and random."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from raytraffic.files import Location
from raytraffic.sources.city import City
from raytraffic.store import Layout, Store, open_store, prepare_store

#: Runs of 32 steps that overlap by 8, so that short series have several of them.
SMALL = Layout(run_steps=32, overlap_steps=8, row_group_rows=2)


def tiled_city(
    name: str = "alpha",
    period: str = "all",
    places: Sequence[str] = ("p0", "p1", "p2", "p3"),
    steps: int = 100,
    step_minutes: int = 30,
    services: Sequence[str] = ("traffic",),
    users: bool = True,
    poi: Sequence[str] = ("bank", "park"),
    seed: int = 0,
) -> City:
    """A city of given 4 x 4 tiles: cell 3 of each tile is dead, cell 5 absent, one step in 20 was not measured."""
    random = np.random.default_rng([seed, len(name), len(period)])
    cells = 16 * len(places)
    traffic = random.gamma(2.0, 50.0, (len(services), steps, cells)).astype(np.float32)
    traffic[random.random(traffic.shape) < 0.05] = np.nan
    traffic[:, :, 3::16] = 0.0
    tiles = np.arange(cells).reshape(len(places), 16)
    tiles[:, 5] = -1
    return City(
        name=name,
        period=period,
        traffic=traffic,
        services=services,
        start=datetime(2024, 5, 7, 6, 0),
        step_minutes=step_minutes,
        sites=[f"{name}-{i}" for i in range(cells)],
        xy=random.random((cells, 2)) * 1000,
        users=random.poisson(20, (steps, cells)).astype(np.float32) if users else None,
        poi=random.poisson(2, (len(poi), cells)).astype(np.float32) if poi else None,
        poi_categories=poi,
        tiles=tiles,
        tile_shape=(4, 4),
        tile_ids=places,
    )


def series_of(city: City, tile: str) -> np.ndarray:
    """(c, t, 16): the series of one of a tiled city's tiles, NaN where the tile has no cell."""
    assert city.tiles is not None
    assert city.tile_ids is not None
    cells = city.tiles[list(city.tile_ids).index(tile)]
    return np.where(cells >= 0, city.traffic[:, :, np.maximum(cells, 0)], np.nan).astype(np.float32)


def prepared(folder: Path, *cities: Sequence[City], layout: Layout = SMALL) -> Store:
    """A store of these cities (each a sequence of its records), opened."""
    prepare_store(cities, Location.of(folder), layout)
    return open_store(folder)
