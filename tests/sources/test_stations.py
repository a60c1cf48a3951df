"""Generated cities of stations: the law they are said to have, measured on them, and what their effects change."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime
from typing import Any

import numpy as np
import pytest

from raytraffic.sources.city import City
from raytraffic.sources.open import open_source
from raytraffic.sources.stations import ENV_FEATURES, StationCities, StationCity, coupling_matrix, environment_vectors
from raytraffic.sources.synthetic import law

CITY = StationCity(name="east", stations=60, days=60, nugget=0.0, memory_hours=4.0)


def read(city: StationCity) -> City:
    (found,) = StationCities([city]).read(city.name)
    return found


def disturbance(city: StationCity) -> np.ndarray:
    """(t, s) what is left of log-traffic when the same city without any is taken off."""
    return np.log(read(city).traffic[0]).astype(np.float64) - np.log(read(replace(city, noise=1e-6)).traffic[0])


def test_a_disturbance_follows_its_recursion_and_what_is_left_is_white() -> None:
    """x(t) - phi [(1 - c) x(t - 1) + c W x(t - 1)] is white in time and in space; its own past does not predict x as well."""
    x = disturbance(CITY)
    phi, around = CITY.grid_city.phi, coupling_matrix(CITY)
    assert np.sqrt(np.mean(x**2)) == pytest.approx(CITY.noise, rel=1e-3)
    fresh = x[1:] - phi * (0.2 * x[:-1] + 0.8 * (around @ x[:-1].T).T)
    assert abs(np.corrcoef(fresh[1:].ravel(), fresh[:-1].ravel())[0, 1]) < 0.01
    between = np.corrcoef(fresh.T)[~np.eye(60, dtype=bool)]
    assert abs(between.mean()) < 0.002 and between.std() == pytest.approx(1 / np.sqrt(len(fresh)), rel=0.1)
    slope = np.sum(x[1:] * x[:-1]) / np.sum(x[:-1] ** 2)
    assert np.mean((x[1:] - slope * x[:-1]) ** 2) > 1.1 * np.mean(fresh**2)


def test_without_coupling_stations_are_independent_with_it_neighbours_go_together() -> None:
    alone, coupled = (np.corrcoef(disturbance(replace(CITY, coupling=coupling)).T) for coupling in (0.0, 0.8))
    hears = coupling_matrix(CITY).toarray() > 0
    np.fill_diagonal(hears, False)
    assert abs(alone[hears].mean()) < 0.02 < 0.15 < coupled[hears].mean()


@pytest.mark.parametrize(("effect", "alike"), [(0.0, True), (1.0, False)])
def test_days_have_one_shape_unless_the_environment_has_an_effect(effect: float, alike: bool) -> None:
    quiet = read(replace(CITY, environment_effect=effect, noise=1e-6, days=7)).traffic[0]
    shapes = quiet / quiet.mean(axis=0)
    assert (np.abs(shapes - shapes[:, :1]).max() < 1e-3) == alike


def test_environment_vectors_tell_the_land_and_not_the_effect() -> None:
    """Near vectors, near rhythms; the vectors are the same where there is no effect, and one map serves every city."""
    vectors = np.stack(list(environment_vectors(CITY).values()))
    assert vectors.shape == (60, ENV_FEATURES) and list(environment_vectors(CITY)) == list(read(CITY).sites)
    assert np.array_equal(vectors, np.stack(list(environment_vectors(replace(CITY, environment_effect=0.0, coupling=0.0)).values())))
    quiet = read(replace(CITY, noise=1e-6, days=7)).traffic[0]
    shapes = np.log(quiet / quiet.mean(axis=0)).T
    predictors = np.hstack((vectors, np.ones((60, 1))))
    left = shapes - predictors @ np.linalg.lstsq(predictors, shapes, rcond=None)[0]
    assert left.var() < 0.2 * (shapes - shapes.mean(0)).var()


def test_days_are_those_of_the_land_and_weekends_fall_where_the_calendar_has_them() -> None:
    """With the whole effect and nothing else, log-traffic is the grid city's mean in some cell, and from a Friday on it is Friday's."""
    quiet = replace(CITY, days=21, noise=1e-9, step_minutes=60)
    from_monday = np.log(read(quiet).traffic[0].astype(np.float64))
    away = np.abs(law(quiet.grid_city).mean_log[:, None, :] - from_monday[:, :, None]).max(axis=0)
    assert away.min(axis=1).max() < 1e-5 < np.median(away)
    from_friday = read(replace(quiet, days=10, start=date(2014, 8, 1)))
    assert from_friday.start == datetime(2014, 8, 1)
    np.testing.assert_allclose(np.log(from_friday.traffic[0]), from_monday[4 * 24 : 14 * 24], atol=1e-5)


def test_the_same_fields_give_the_same_city_and_adding_noise_moves_no_station() -> None:
    one, again, other = read(CITY), read(CITY), read(replace(CITY, seed=1))
    assert np.array_equal(one.traffic, again.traffic) and not np.array_equal(one.xy, other.xy)
    louder = read(replace(CITY, noise=0.5, coupling=0.1))
    assert np.array_equal(one.xy, louder.xy) and np.array_equal(one.poi, louder.poi)


def test_the_source_by_its_name() -> None:
    source = open_source("stations:east?stations=60&days=60&nugget=0&memory_hours=4&step=30")
    (found,) = source.read("east")
    assert np.array_equal(found.traffic, read(CITY).traffic)
    with pytest.raises(ValueError, match=r"name: 'west', expected one of \['east'\]"):
        next(source.read("west"))


@pytest.mark.parametrize(("field", "value"), [("coupling", 1.5), ("environment_effect", -0.1), ("stations", 0), ("noise", 0.0)])
def test_mistakes_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: {value}, expected"):
        StationCity(name="east", **{field: value})


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match=r"cities: names \['east', 'east'\], expected each of them once"):
        StationCities([CITY, CITY])
