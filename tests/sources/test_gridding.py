"""Projection, cells, POI counts and regular slots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from raytraffic.sources.gridding import CellGrid, LocalPlane, common_steps, count_in_cells, count_within, sum_into_cells


@pytest.mark.parametrize(("latitude", "longitude"), [(31.2, 121.5), (-33.9, 18.4), (64.1, -21.9), (-17.7, 179.99)])
def test_plane_keeps_geodesic_distances_of_a_city(latitude: float, longitude: float) -> None:
    rng = np.random.default_rng(0)
    lat = latitude + rng.uniform(-0.15, 0.15, 40)
    lon = (longitude + rng.uniform(-0.15, 0.15, 40) + 180) % 360 - 180  # the last place lies across the date line
    xy = LocalPlane.around(lat, lon).project(lat, lon)
    _, _, true = Geod(ellps="WGS84").inv(lon[:-1], lat[:-1], lon[1:], lat[1:])
    # azimuthal equidistant: relative error of the order (distance from the centre / Earth's radius)^2 = (25 / 6371)^2
    np.testing.assert_allclose(np.linalg.norm(np.diff(xy, axis=0), axis=1), true, rtol=2e-5)
    assert np.linalg.norm(xy.mean(axis=0)) < 20  # the centroid is the origin, up to curvature


def test_axes_point_east_and_north() -> None:
    east, north = LocalPlane(45.0, 9.0).project(np.array([45.0, 45.01]), np.array([9.01, 9.0]))
    assert east[0] > 700 and abs(east[1]) < 1
    assert north[1] > 1000 and abs(north[0]) < 1


def test_cells_run_from_the_north_west() -> None:
    xy = np.array([[0.0, 1000.0], [999.0, 1000.0], [0.0, 0.0], [500.0, 500.0]])
    grid = CellGrid.covering(xy, 500.0)
    assert grid.shape == (3, 2)
    assert grid.cells_of(xy).tolist() == [0, 1, 4, 3]
    assert grid.centres()[0].tolist() == [250.0, 750.0]
    outside = np.array([[-1.0, 500.0], [1000.5, 500.0], [10.0, 1000.5], [10.0, -501.0], [np.inf, 0.0]])
    assert grid.cells_of(outside).tolist() == [-1] * 5


@settings(max_examples=50, deadline=None)
@given(
    points=st.lists(st.tuples(st.floats(-2e4, 2e4), st.floats(-2e4, 2e4)), min_size=1, max_size=30),
    cell=st.floats(100, 5000),
)
def test_every_point_falls_into_the_cell_whose_centre_is_within_half_a_cell(points: list[tuple[float, float]], cell: float) -> None:
    xy = np.array(points)
    grid = CellGrid.covering(xy, cell)
    cells = grid.cells_of(xy)
    assert (cells >= 0).all()
    assert (np.abs(grid.centres()[cells] - xy) <= cell / 2 * (1 + 1e-9)).all()


@pytest.mark.parametrize("cell", [0.0, -5.0, np.nan])
def test_cell_size_must_be_a_length(cell: float) -> None:
    with pytest.raises(ValueError, match=r"cell_metres: .*expected a length > 0"):
        CellGrid.covering(np.zeros((1, 2)), cell)


def test_a_misplaced_site_makes_no_enormous_grid() -> None:
    with pytest.raises(ValueError, match=r"up to 9000 km from their centroid.*misplaced"):
        CellGrid.covering(np.array([[0.0, 0.0], [9e6, 0.0], [0.0, 9e6]]), 100.0)


def test_cells_sum_their_stations_and_are_nan_only_where_all_are() -> None:
    nan = np.nan
    values = np.array([[1.0, 2.0, 4.0, 8.0], [nan, 2.0, nan, nan], [0.0, nan, nan, 3.0]])
    cells = np.array([2, 0, 2, 3])
    out = sum_into_cells(values, cells, 5)
    np.testing.assert_array_equal(out, [[2.0, nan, 5.0, 8.0, nan], [2.0, nan, nan, nan, nan], [nan, nan, 0.0, 3.0, nan]])


def test_poi_counts_in_cells() -> None:
    counts = count_in_cells(np.array([0, 0, 2, -1, 0]), np.array([1, 1, 0, 0, 0]), 3, 3)
    assert counts.tolist() == [[1, 0, 1], [2, 0, 0], [0, 0, 0]]


def test_poi_counts_around_stations_equal_the_direct_ones() -> None:
    rng = np.random.default_rng(1)
    points, stations, category = rng.uniform(0, 3000, (300, 2)), rng.uniform(0, 3000, (20, 2)), rng.integers(0, 4, 300)
    near = np.linalg.norm(points[:, None] - stations, axis=-1) <= 500
    expected = np.stack([near[category == k].sum(axis=0) for k in range(5)])
    assert expected.sum() > 100
    np.testing.assert_array_equal(count_within(points, category, 5, stations, 500.0), expected)


def test_common_steps_are_modes_and_the_smallest_of_equals() -> None:
    times = {0: [0, 30, 60, 180], 1: [0, 60, 90], 2: [5], 4: [100, 40, 70, 70]}
    station = np.array([s for s, at in times.items() for _ in at])
    time = np.array([t for at in times.values() for t in at])
    shuffled = np.random.default_rng(0).permutation(len(time))
    assert common_steps(station[shuffled], time[shuffled], 5).tolist() == [30, 30, 0, 0, 30]


def test_real_poi_points_fall_into_one_grid(shared_data: Path) -> None:
    table = pq.read_table(shared_data / "poi_nanchang" / "Nanchang_poi.parquet").to_pandas()
    lat, lon = table["lat"].to_numpy(float), table["lon"].to_numpy(float)
    xy = LocalPlane.around(lat, lon).project(lat, lon)
    grid = CellGrid.covering(xy, 1000.0)
    codes = table["category"].cat.codes.to_numpy(np.int64)
    counts = count_in_cells(grid.cells_of(xy), codes, 15, grid.count)
    assert counts.sum() == len(table) == 72317
    assert 20 < grid.shape[0] < 200 and 20 < grid.shape[1] < 200  # a municipality, in kilometres
