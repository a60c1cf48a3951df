"""Tiles of a city: given ones, a cut grid, stations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raytraffic.store import Layout
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


def test_stations_are_grouped_with_their_neighbours_where_that_is_asked_for() -> None:
    city = replace(tiled_city(places=("x",)), tiles=None, tile_shape=None, tile_ids=None)
    east = np.array([5, 2, 11, 8])
    xy = np.stack((np.arange(16.0), np.zeros(16)), axis=1)
    xy[east, 0] += 1000
    tiles = tile_city(replace(city, xy=xy), (2, 2), group_stations=True)
    assert tiles.ids == tuple(city.sites[row[0]] for row in tiles.cells) and len(tiles.ids) == 4
    assert np.array_equal(np.sort(tiles.cells[tiles.cells >= 0]), np.arange(16))
    assert sorted(east) in tiles.cells.tolist()
    assert all((np.diff(row) > 0).all() for row in tiles.cells)


def test_a_group_that_is_not_full_ends_in_absent_cells() -> None:
    city = replace(tiled_city(places=("x",)), tiles=None, tile_shape=None, tile_ids=None)
    tiles = tile_city(city, (2, 3), group_stations=True)
    assert tiles.cells.shape == (3, 6)
    assert sorted((tiles.cells >= 0).sum(axis=1)) == [5, 5, 6]
    assert all((row[(row >= 0).sum() :] == -1).all() for row in tiles.cells)


def test_groups_are_the_same_in_every_period_and_grids_are_cut_as_ever() -> None:
    city = replace(tiled_city(places=("x",)), tiles=None, tile_shape=None, tile_ids=None)
    later = replace(city, period="later", traffic=city.traffic[:, :50] + 1, users=None)
    ours, theirs = (tile_city(one, (2, 2), group_stations=True) for one in (city, later))
    assert ours.ids == theirs.ids and np.array_equal(ours.cells, theirs.cells)
    grid = replace(city, grid=(4, 4))
    assert tile_city(grid, (2, 2), group_stations=True).ids == tile_city(grid, (2, 2)).ids


def test_stations_without_places_cannot_be_grouped() -> None:
    city = replace(tiled_city(places=("x",)), tiles=None, tile_shape=None, tile_ids=None, xy=None)
    with pytest.raises(ValueError, match=r"alpha\.xy: None, expected the stations' places, by which they are grouped"):
        tile_city(city, (2, 2), group_stations=True)


def test_a_manifest_without_the_choice_is_one_that_does_not_group() -> None:
    plain, grouped = Layout(), Layout(group_stations=True)
    assert "group_stations" not in plain.to_json()
    assert Layout.from_json(plain.to_json()) == plain and Layout.from_json(grouped.to_json()) == grouped
    assert Layout.for_windows(128, token=(4, 4, 4), tile=(4, 4), seed=3, group_stations=True).group_stations
