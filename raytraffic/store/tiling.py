"""Which cells make a tile: tiles a source gives are kept, a grid is cut, a station is a tile of its own or of a group of neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytraffic.graph import partition
from raytraffic.sources.city import City

__all__ = ["Tiles", "tile_city", "tile_name"]


@dataclass(frozen=True, eq=False)
class Tiles:
    """`cells` (m, h * w) index into a city's s cells, -1 where the tile has no cell; `ids` name the m places."""

    ids: tuple[str, ...]
    cells: NDArray[np.int64]


def tile_city(city: City, tile: tuple[int, int], group_stations: bool = False) -> Tiles:
    """The tiles of a city; ValueError when it gives tiles of another shape, or stations without places are to be grouped.

    A grid's tile is named by its row and column of tiles (`r002c013`), a station's by its site; a station takes the first
    cell of its tile and the other cells are absent. With `group_stations` a tile holds up to h * w stations that are
    neighbours (raytraffic.graph.partition), in the source's order from its first cell on, and has the name of the first;
    periods with the same stations have the same tiles.
    """
    if city.tiles is not None:
        if city.tile_shape != tile:
            raise ValueError(f"{city.name}.tile_shape: {city.tile_shape}, expected the store's {tile}")
        assert city.tile_ids is not None
        return Tiles(tuple(city.tile_ids), city.tiles)
    if city.grid is not None:
        return _cut_grid(city.grid, tile)
    groups = _neighbours(city, tile[0] * tile[1]) if group_stations else tuple(np.arange(len(city.sites))[:, None])
    cells = np.full((len(groups), tile[0] * tile[1]), -1, dtype=np.int64)
    for row, group in zip(cells, groups, strict=True):
        row[: len(group)] = group
    return Tiles(tuple(city.sites[int(group[0])] for group in groups), cells)


def _neighbours(city: City, size: int) -> tuple[NDArray[np.int64], ...]:
    if city.xy is None:
        raise ValueError(f"{city.name}.xy: None, expected the stations' places, by which they are grouped")
    return partition(city.xy, size)


def _cut_grid(grid: tuple[int, int], tile: tuple[int, int]) -> Tiles:
    rows, columns = -(-grid[0] // tile[0]), -(-grid[1] // tile[1])
    padded = np.full((rows * tile[0], columns * tile[1]), -1, dtype=np.int64)
    padded[: grid[0], : grid[1]] = np.arange(grid[0] * grid[1]).reshape(grid)
    cells = padded.reshape(rows, tile[0], columns, tile[1]).swapaxes(1, 2).reshape(rows * columns, -1)
    return Tiles(tuple(tile_name(row, column) for row in range(rows) for column in range(columns)), cells)


def tile_name(row: int, column: int) -> str:
    """The name of a grid's tile by its row and column of tiles."""
    return f"r{row:03d}c{column:03d}"
