"""Web Mercator against closed forms and pyproj."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod, Transformer

from raytraffic.environment.mercator import EARTH_METRES, MAX_LATITUDE, Box, box_around, metres_per_pixel, project, tile_of, unproject

longitudes = st.floats(-180, 180)
latitudes = st.floats(-MAX_LATITUDE, MAX_LATITUDE)


def test_the_world_is_a_square() -> None:
    x, y = project([-180.0, 0.0, 180.0, 0.0, 0.0], [0.0, 0.0, 0.0, MAX_LATITUDE, -MAX_LATITUDE])
    np.testing.assert_allclose(x, [0, 0.5, 1, 0.5, 0.5])
    np.testing.assert_allclose(y, [0.5, 0.5, 0.5, 0, 1], atol=1e-12)


@given(longitudes, latitudes)
def test_projection_is_that_of_epsg_3857(longitude: float, latitude: float) -> None:
    east, north = Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(longitude, latitude)
    x, y = project(longitude, latitude)
    assert float(x - 0.5) * EARTH_METRES == pytest.approx(east, abs=1e-5)
    assert float(0.5 - y) * EARTH_METRES == pytest.approx(north, abs=1e-5)


@given(longitudes, latitudes)
def test_unproject_takes_project_back(longitude: float, latitude: float) -> None:
    back = unproject(*project(longitude, latitude))
    assert float(back[0]) == pytest.approx(longitude, abs=1e-9) and float(back[1]) == pytest.approx(latitude, abs=1e-9)


def test_tiles_by_hand() -> None:
    assert tile_of(0.0, 0.0, 0) == (0, 0)
    assert [tile_of(lon, lat, 1) for lon, lat in ((-1.0, 1.0), (1.0, 1.0), (-1.0, -1.0), (1.0, -1.0))] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert tile_of(13.377704, 52.516275, 17) == (70406, 42987)  # the Brandenburg Gate
    assert tile_of(180.0, -MAX_LATITUDE, 3) == (7, 7)
    assert tile_of(-180.0, MAX_LATITUDE, 3) == (0, 0)


def test_pixels_are_half_as_large_at_the_next_zoom_and_at_60_degrees() -> None:
    assert metres_per_pixel(0.0, 0) == pytest.approx(156543.03392804097)  # of the slippy-map documentation
    assert metres_per_pixel(0.0, 1) == pytest.approx(metres_per_pixel(0.0, 0) / 2)
    assert metres_per_pixel(60.0, 5) == pytest.approx(metres_per_pixel(0.0, 5) / 2)


@given(st.floats(-170, 170), st.floats(-80, 80), st.floats(10, 5000))
def test_a_box_measures_what_was_asked_for_within_the_ellipsoids_0_7_percent(longitude: float, latitude: float, metres: float) -> None:
    box = box_around(longitude, latitude, metres)
    middle_x, middle_y = (box.west + box.east) / 2, (box.north + box.south) / 2
    ends = [unproject(x, y) for x, y in ((box.west, middle_y), (box.east, middle_y), (middle_x, box.north), (middle_x, box.south))]
    (west, east, north, south) = ((float(lon), float(lat)) for lon, lat in ends)
    geod = Geod(ellps="WGS84")
    assert geod.inv(*west, *east)[2] == pytest.approx(metres, rel=0.008)
    assert geod.inv(*north, *south)[2] == pytest.approx(metres, rel=0.008)
    x, y = project(longitude, latitude)
    assert (middle_x, middle_y) == (pytest.approx(float(x)), pytest.approx(float(y)))


def test_a_box_in_pixels() -> None:
    assert Box(0.25, 0.5, 0.5, 0.75).pixels(2) == (256, 512, 512, 768)


@pytest.mark.parametrize(
    ("longitude", "latitude", "metres", "named"),
    [
        (181.0, 0.0, 100.0, r"^longitude: 181.0, expected degrees"),
        (0.0, 86.0, 100.0, r"^latitude: 86.0, expected degrees"),
        (math.nan, 0.0, 100.0, r"^longitude: nan, expected"),
        (0.0, math.nan, 100.0, r"^latitude: nan, expected"),
        (0.0, 0.0, 0.0, r"^metres: 0.0, expected a length > 0"),
        (0.0, 0.0, math.inf, r"^metres: inf, expected a length > 0"),
        (179.9999, 10.0, 500.0, r"^longitude: 179.9999, 500 m around it cross the antimeridian"),
        (-179.9999, 10.0, 500.0, r"^longitude: -179.9999, 500 m around it cross the antimeridian"),
        (0.0, 85.05, 500.0, r"^latitude: 85.05, 500 m around it leave the Web Mercator map"),
        (0.0, -85.05, 500.0, r"^latitude: -85.05, 500 m around it leave the Web Mercator map"),
    ],
)
def test_what_is_no_box_is_refused_by_name(longitude: float, latitude: float, metres: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        box_around(longitude, latitude, metres)
