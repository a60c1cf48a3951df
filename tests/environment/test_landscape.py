"""The land of a synthetic city follows its stated rules, from which traffic and POI follow too, and lies somewhere on the map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import Geod
from scipy.stats import norm, spearmanr

from raytraffic.environment.landscape import BLOCKS, LAND_COVERS, Landscape, landscape
from raytraffic.sources.city import City
from raytraffic.sources.synthetic import LAND_USES, SyntheticCities, SyntheticCity, places_of

CITY = SyntheticCity(name="town", grid=(16, 14), days=7, seed=3)


@pytest.fixture(scope="module")
def land() -> Landscape:
    return landscape(CITY)


@pytest.fixture(scope="module")
def record() -> City:
    (found,) = SyntheticCities([CITY]).read("town")
    return found


def share(land: Landscape, cover: str) -> NDArray[np.float64]:
    return land.shares()[LAND_COVERS.index(cover)]


def test_shapes_and_what_they_hold(land: Landscape) -> None:
    assert land.covers.shape == (16 * BLOCKS, 14 * BLOCKS) and land.built.shape == land.live.shape == land.transport.shape == (16, 14)
    assert set(np.unique(land.covers)) <= set(range(len(LAND_COVERS)))
    np.testing.assert_allclose(land.shares().sum(axis=0), 1)
    assert land.extent == (14 * 500.0, 16 * 500.0)


def test_shares_are_the_stated_ones_to_within_a_block(land: Landscape) -> None:
    places = places_of(CITY)
    activity = dict(zip(LAND_USES, places.mix, strict=True))
    opened = np.array([0.06 + 0.39 * (1 - norm.cdf(d)) if alive else 0.85 for d, alive in zip(places.density, places.live, strict=True)])
    stated = {
        "residential": activity["residential"] * (1 - opened),
        "commercial": 0.75 * activity["leisure"] * (1 - opened),
        "office": activity["business"] * (1 - opened),
        "industrial": activity["transport"] * (1 - opened),
    }
    for cover, expected in stated.items():
        assert np.abs(share(land, cover) - expected).max() <= 1 / BLOCKS**2 + 1e-12
    green = share(land, "water") + share(land, "park")
    assert np.abs(green - opened - 0.25 * activity["leisure"] * (1 - opened)).max() <= 1 / BLOCKS**2
    assert (share(land, "water") <= 0.5 * opened + 1 / BLOCKS**2).all()
    np.testing.assert_allclose(land.built.ravel(), norm.cdf(places.density))
    np.testing.assert_array_equal(land.transport.ravel(), activity["transport"])


def test_land_does_not_depend_on_how_traffic_is_drawn(land: Landscape) -> None:
    again = landscape(replace(CITY, days=3, step_minutes=15, tail=0.3, noise=0.1, users=False))
    np.testing.assert_array_equal(again.covers, land.covers)
    assert (again.seed, again.longitude, again.latitude) == (land.seed, land.longitude, land.latitude)
    for other in (replace(CITY, seed=4), replace(CITY, name="village")):
        assert (landscape(other).covers != land.covers).mean() > 0.3


def test_stations_stand_where_there_is_traffic_and_not_on_open_land(land: Landscape, record: City) -> None:
    np.testing.assert_array_equal(land.live.ravel(), record.traffic[0].sum(axis=0) > 0)
    opened = share(land, "water") + share(land, "park")
    assert opened[~land.live.ravel()].min() > 0.8
    assert opened[land.live.ravel()].mean() < 0.5


def test_denser_land_carries_more_traffic(land: Landscape, record: City) -> None:
    live = land.live.ravel()
    level = record.traffic[0].mean(axis=0)
    # the level is 0.8 density + 0.6 luck: a correlation of 0.8 among all cells, less among those that live
    assert spearmanr(land.built.ravel()[live], level[live]).statistic > 0.55


@pytest.mark.parametrize(("cover", "hours"), [("residential", (20, 23)), ("office", (9, 12)), ("industrial", (7, 9))])
def test_land_sets_the_rhythm_of_weekdays(land: Landscape, record: City, cover: str, hours: tuple[int, int]) -> None:
    hour = (np.arange(CITY.slots) + 0.5) / 2
    chosen = (hour % 24 > hours[0]) & (hour % 24 < hours[1]) & (hour // 24 % 7 < 5)
    traffic, live = record.traffic[0].astype(np.float64), land.live.ravel()
    peak = traffic[chosen].sum(axis=0)[live] / traffic.sum(axis=0)[live]
    statistic = {name: spearmanr(share(land, name)[live], peak).statistic for name in LAND_COVERS[2:]}
    assert statistic[cover] > 0.65
    assert all(statistic[cover] > other + 0.4 for name, other in statistic.items() if name != cover)


@pytest.mark.parametrize(
    ("cover", "category"),
    [("office", "Enterprise"), ("industrial", "Automobile"), ("commercial", "scenic spot"), ("residential", "Local Living")],
)
def test_land_and_points_of_interest_agree(land: Landscape, record: City, cover: str, category: str) -> None:
    assert record.poi is not None
    counts, order = record.poi[list(record.poi_categories).index(category)], np.argsort(share(land, cover))
    little, much = (counts[cells].sum() / record.poi[:, cells].sum() for cells in (order[:56], order[-56:]))
    assert much > 1.5 * little


def test_neighbouring_blocks_are_alike(land: Landscape) -> None:
    cells = land.covers.reshape(16, BLOCKS, 14, BLOCKS)
    alike = (cells[:, 1:] == cells[:, :-1]).mean()
    shuffled = np.random.default_rng(0).permuted(cells.swapaxes(1, 2).reshape(16, 14, -1), axis=2).reshape(16, 14, BLOCKS, BLOCKS)
    assert alike > (shuffled[:, :, 1:] == shuffled[:, :, :-1]).mean() + 0.2


def test_places_on_the_map(land: Landscape, record: City) -> None:
    assert record.xy is not None
    longitude, latitude = land.degrees(record.xy)
    assert np.abs(latitude).max() < 51 and np.abs(longitude).max() < 171
    for i in (0, 13, 100, 223):
        assert land.metres(float(longitude[i]), float(latitude[i])) == pytest.approx(tuple(record.xy[i]), abs=1e-4)
    assert latitude[0] > latitude[-1] and longitude[0] < longitude[13]
    apart = Geod(ellps="WGS84").inv(longitude[0], latitude[0], longitude[13], latitude[13])[2]
    assert apart == pytest.approx(13 * 500, rel=0.01)
