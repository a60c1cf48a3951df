"""Points of interest: categories mapped, points counted around sites and in cells against brute force, bad rows named."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod

from raytraffic.environment.poi import (
    AMAP_TO_LSDM,
    AMAP_TO_UOMO,
    LSDM_CATEGORIES,
    UOMO_CATEGORIES,
    UOMO_TO_LSDM,
    CategoryMap,
    Points,
    count_around,
    count_per_cell,
    read_points,
)
from raytraffic.files import Location
from raytraffic.sources.gridding import CellGrid, LocalPlane
from raytraffic.sources.sheet import Columns
from raytraffic.sources.synthetic import POI_CATEGORIES as SYNTHETIC_CATEGORIES
from tests.fixtures_s3 import _s3_server, s3_bucket

__all__ = ["_s3_server", "s3_bucket"]

TWO = CategoryMap(categories=("food", "work"), of={"cafe": "food", "bar": "food", "office": "work", "street": None})
FRAME = pd.DataFrame({"lon": [9.0, 9.001, 9.0, 9.002], "lat": [45.0] * 4, "category": ["cafe", "office", "street", "bar"]})


def scattered(count: int, seed: int, categories: int = 3) -> Points:
    generator = np.random.default_rng(seed)
    longitude, latitude = 9 + generator.normal(0, 0.02, count), 45 + generator.normal(0, 0.02, count)
    names = tuple(f"c{i}" for i in range(categories))
    return Points(longitude=longitude, latitude=latitude, category=generator.integers(0, categories, count), categories=names)


def test_categories_are_those_of_the_papers() -> None:
    assert UOMO_CATEGORIES == SYNTHETIC_CATEGORIES
    assert len(LSDM_CATEGORIES) == 17 and LSDM_CATEGORIES[0] == "Medical Care" and LSDM_CATEGORIES[8] == "Entertainment"
    assert LSDM_CATEGORIES[16] == "Other"


def test_counts_of_one_set_of_categories_become_those_of_another() -> None:
    counts = np.arange(30.0).reshape(15, 2)
    out = UOMO_TO_LSDM.regroup(counts, UOMO_CATEGORIES)
    assert out.shape == (17, 2)
    np.testing.assert_array_equal(out.sum(axis=0), counts.sum(axis=0))  # each category of UoMo has a place in LSDM
    at = UOMO_CATEGORIES.index
    expected = counts[at("Enterprise")] + counts[at("Business")] + counts[at("Finance")]
    np.testing.assert_array_equal(out[LSDM_CATEGORIES.index("Business")], expected)


def test_left_out_rest_and_unknown_categories() -> None:
    assert TWO.codes(["bar", "street", "office"]).tolist() == [0, -1, 1]
    np.testing.assert_array_equal(TWO.regroup(np.array([[1.0], [5.0], [2.0]]), ["bar", "street", "office"]), [[1.0], [2.0]])
    assert CategoryMap(categories=("all",), rest="all").codes(["x", "y"]).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"^category: 'gym', 'zoo', expected one of \['bar', 'cafe', 'office', 'street'\]"):
        TWO.codes(["zoo", "bar", "gym"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"categories": ()}, r"^categories: \(\), expected"),
        ({"categories": ("a", "a")}, r"^categories: \('a', 'a'\), expected"),
        ({"categories": ("a",), "of": {"x": "b"}}, r"^of 'x': 'b', expected one of"),
        ({"categories": ("a",), "rest": "b"}, r"^of 'rest': 'b', expected one of"),
    ],
)
def test_a_bad_map_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CategoryMap(**options)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_points_from_files_here_and_in_s3(tmp_path: Path, s3_bucket: str, kind: str) -> None:
    file = tmp_path / f"poi.{kind}"
    FRAME.to_csv(file, index=False) if kind == "csv" else FRAME.to_parquet(file)
    Location.of(f"{s3_bucket}/poi.{kind}").write_bytes(file.read_bytes())
    for table in (FRAME, str(file), f"{s3_bucket}/poi.{kind}"):
        points = read_points(table, TWO)
        assert len(points) == 3 and points.categories == ("food", "work")  # the street is left out
        assert points.category.tolist() == [0, 1, 0] and points.longitude.tolist() == [9.0, 9.001, 9.002]


def test_columns_by_other_names() -> None:
    renamed = FRAME.rename(columns={"lon": "lng", "category": "type"})
    assert len(read_points(renamed, TWO, Columns(lon="lng", category="type"))) == 3


@pytest.mark.parametrize(
    ("row", "column", "value", "named"),
    [
        (1, "lat", 95.0, r"^poi: row 2, column 'lat': 95, expected degrees in \[-90, 90\]"),
        (2, "lon", -200.0, r"^poi: row 3, column 'lon': -200, expected degrees in \[-180, 180\]"),
        (0, "lat", "north", r"^poi: row 1, column 'lat': 'north', expected a finite number"),
        (3, "category", "", r"^poi: row 4, column 'category': empty, expected a value"),
        (3, "category", "gym", r"^poi: column 'category': category: 'gym', expected one of"),
        (0, "lon", None, r"^poi: row 1, column 'lon': nan, expected degrees"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: int, column: str, value: object, named: str) -> None:
    frame = FRAME.astype(object)
    frame.loc[row, column] = value
    with pytest.raises(ValueError, match=named):
        read_points(frame, TWO)
    frame.to_csv(tmp_path / "poi.csv", index=False)
    with pytest.raises(ValueError, match=r"^poi \(.*poi\.csv\): "):
        read_points(str(tmp_path / "poi.csv"), TWO)


def test_a_table_without_the_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"^poi: no column 'category'"):
        read_points(FRAME.drop(columns="category"), TWO)


@given(st.integers(0, 60), st.floats(50, 3000), st.integers(0, 100))
def test_counts_around_sites_are_those_of_geodesics(count: int, radius: float, seed: int) -> None:
    points, sites = scattered(count, seed), scattered(7, seed + 1000)
    found = count_around(points, sites.longitude, sites.latitude, radius)
    assert found.shape == (3, 7)
    geod = Geod(ellps="WGS84")
    for s in range(7):
        start = np.full(count, sites.longitude[s]), np.full(count, sites.latitude[s])
        distance = np.asarray(geod.inv(*start, points.longitude, points.latitude)[2]).reshape(count)
        for k in range(3):
            sure, most = ((distance[points.category == k] <= radius * by).sum() for by in (1 - 1e-4, 1 + 1e-4))
            assert sure <= found[k, s] <= most


def test_a_wider_radius_counts_no_fewer() -> None:
    points, sites = scattered(500, 1), scattered(20, 2)
    counts = [count_around(points, sites.longitude, sites.latitude, radius) for radius in (100.0, 500.0, 1e5)]
    assert (counts[0] <= counts[1]).all() and (counts[1] <= counts[2]).all()
    np.testing.assert_array_equal(counts[2], np.repeat(np.bincount(points.category)[:, None], 20, axis=1))


def test_no_sites_and_points_far_away() -> None:
    points = Points(longitude=np.array([9.0, -171.0]), latitude=np.array([45.0, -45.0]), category=np.array([0, 0]), categories=("a",))
    assert count_around(points, np.array([]), np.array([]), 500.0).shape == (1, 0)
    assert count_around(points, np.array([9.0]), np.array([45.0]), 500.0).tolist() == [[1.0]]  # the other is the antipode


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_of_no_sense_is_refused(radius: float) -> None:
    with pytest.raises(ValueError, match=rf"^radius_metres: {radius}, expected a length > 0"):
        count_around(scattered(3, 0), np.array([9.0]), np.array([45.0]), radius)


def test_sites_of_two_regions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^longitude, latitude: a site lies \d+ km from the sites' centroid"):
        count_around(scattered(3, 0), np.array([9.0, 116.0]), np.array([45.0, 40.0]), 500.0)


def test_counts_in_cells_add_up_to_the_points_of_the_grid() -> None:
    points = scattered(400, 5)
    plane = LocalPlane.around(points.latitude, points.longitude)
    xy = plane.project(points.latitude, points.longitude)
    grid = CellGrid.covering(xy, 700.0)
    counts = count_per_cell(points, plane, grid)
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(points.category))
    half = CellGrid(grid.west, grid.north, grid.cell_metres, (grid.shape[0], grid.shape[1] // 2))
    columns = counts.reshape(3, *grid.shape)[:, :, : grid.shape[1] // 2]
    np.testing.assert_array_equal(count_per_cell(points, plane, half), columns.reshape(3, -1))


def test_ten_thousand_sites_and_a_hundred_thousand_points_take_a_second() -> None:
    points, sites = scattered(100_000, 7, 17), scattered(10_000, 8)
    begin = time.process_time()
    found = count_around(points, sites.longitude, sites.latitude, 500.0)
    took = time.process_time() - begin
    assert found.sum() > 100_000
    assert took < 3  # a quarter of a second was measured for points as spread as Nanchang's; these lie closer


def test_the_points_of_nanchang(shared_data: Path) -> None:
    file = shared_data / "poi_nanchang" / "Nanchang_poi.parquet"
    if not file.is_file():
        pytest.skip(f"{file.name} is not here")
    lsdm, uomo = read_points(file, AMAP_TO_LSDM), read_points(file, AMAP_TO_UOMO)
    assert len(lsdm) == 72_317 and len(uomo) == 72_317 - 14_436  # addresses are no category of UoMo's
    assert (lsdm.category == LSDM_CATEGORIES.index("Medical Care")).sum() == 9510
    cars = 6316 + 2165 + 1271 + 375
    assert (uomo.category == UOMO_CATEGORIES.index("Automobile")).sum() == cars
    assert (lsdm.category == LSDM_CATEGORIES.index("Other")).sum() == 16  # indoor facilities: nothing else is unmapped
    centre = np.array([115.8975]), np.array([28.6707])
    near, all_ = count_around(lsdm, *centre, 1000.0), count_around(lsdm, *centre, 200_000.0)
    assert 100 < near.sum() < 5000
    assert all_.sum() == 72_317
