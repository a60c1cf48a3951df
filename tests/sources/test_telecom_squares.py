"""The nearest station of every square, by brute force on the Earth; where the areas' squares lie is told by test_telecom_italia."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod

from raytraffic.sources.telecom_squares import Points, nearest


def metres_from(longitude: float, latitude: float, points: Points) -> np.ndarray:
    """(n,) geodesic distances."""
    n = len(points.latitude)
    return np.asarray(Geod(ellps="WGS84").inv(np.full(n, longitude), np.full(n, latitude), points.longitude, points.latitude)[2])


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 9))
def test_a_square_belongs_to_the_station_that_is_nearest_on_the_earth(seed: int, squares: int, stations: int) -> None:
    """By geodesic distances, some kilometres of a city: only stations that some square belongs to are left, and their sums lose nothing."""
    random = np.random.default_rng(seed)
    here, there = (Points(45.4 + random.random(n) / 20, 9.1 + random.random(n) / 20) for n in (squares, stations))
    ids = [f"bs{i}" for i in range(stations)]
    found = nearest(here, ids, there)
    used = [ids.index(name) for name in found.ids]
    for i, number in enumerate(found.station.tolist()):
        metres = metres_from(here.longitude[i], here.latitude[i], there)
        assert metres[used[number]] <= metres.min() + 0.1
    for place, station in zip(found.xy, used, strict=True):
        metres = metres_from(there.longitude[station], there.latitude[station], there)
        np.testing.assert_allclose(np.linalg.norm(found.xy - place, axis=1), metres[used], atol=0.5)
    assert sorted(set(found.station.tolist())) == list(range(len(found.ids))) and found.xy.shape == (len(found.ids), 2)
    traffic = random.random((2, 3, squares), dtype=np.float32)
    summed = found.summed(traffic)
    for station in range(len(found.ids)):
        np.testing.assert_allclose(summed[:, :, station], traffic[:, :, found.station == station].sum(axis=2), rtol=1e-5)
