"""Tiles of a city: given ones, a cut grid, stations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raytraffic.store.tiling import tile_city
from tests.store.cities import tiled_city


def test_given_tiles_are_kept() -> None:
    city = tiled_city(places=("x", "y"))
    tiles = tile_city(city, (4, 4))
    assert tiles.ids == ("x", "y")
    assert np.array_equal(tiles.cells, city.tiles)


def test_given_tiles_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha\.tile_shape: \(4, 4\), expected the store's \(2, 2\)"):
        tile_city(tiled_city(), (2, 2))


def test_a_grid_is_cut_and_its_edge_padded() -> None:
    city = replace(tiled_city(places=("x", "y")), tiles=None, tile_shape=None, tile_ids=None, grid=(4, 8))
    tiles = tile_city(city, (3, 4))
    assert tiles.ids == ("r000c000", "r000c001", "r001c000", "r001c001")
    assert np.array_equal(tiles.cells[1].reshape(3, 4)[:, 0], [4, 12, 20])
    assert np.array_equal(tiles.cells[2].reshape(3, 4), [[24, 25, 26, 27], [-1] * 4, [-1] * 4])
    assert sorted(tiles.cells[tiles.cells >= 0]) == list(range(32))


def test_a_station_is_the_first_cell_of_its_own_tile() -> None:
    city = replace(tiled_city(places=("x",)), tiles=None, tile_shape=None, tile_ids=None)
    tiles = tile_city(city, (2, 2))
    assert tiles.ids == tuple(city.sites)
    assert np.array_equal(tiles.cells[:, 0], np.arange(16))
    assert (tiles.cells[:, 1:] == -1).all()
