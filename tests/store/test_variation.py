"""How cells vary: known modes and persistence are found again, in any unit, and little data says what it cannot say."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from raytraffic.kriging import HOURS, MODES
from raytraffic.store.variation import Variation, _lagged

STEP, DAYS, CELLS = 30, 21, 400
SLOTS = 1440 // STEP


def clock(steps: int) -> tuple[NDArray, NDArray]:
    """Slot and weekday from a Monday on."""
    at = np.arange(steps)
    return at % SLOTS, at // SLOTS % 7


def profile() -> NDArray:
    rhythm = 1 + 0.6 * np.sin(2 * np.pi * np.arange(SLOTS) / SLOTS)
    return np.tile(rhythm, (7, 1)) * np.array([1, 1, 1, 1, 1, 0.8, 0.7])[:, None]


def traffic_of(mode: NDArray, spread: float, hours: float, noise: float, level: float = 100.0) -> NDArray:
    """(1, t, CELLS): r = beta * mode + an Ornstein-Uhlenbeck process + white noise, through x = level * sinh(asinh(profile) + r)."""
    random = np.random.default_rng(0)
    slot, weekday = clock(DAYS * SLOTS)
    keep = np.exp(-STEP / 60 / hours)
    course = np.empty((len(slot), CELLS))
    course[0] = random.standard_normal(CELLS)
    for t in range(1, len(slot)):
        course[t] = keep * course[t - 1] + np.sqrt(1 - keep**2) * random.standard_normal(CELLS)
    residual = random.standard_normal(CELLS) * mode[slot][:, None] + spread * course + noise * random.standard_normal(course.shape)
    return (level * np.sinh(np.arcsinh(profile()[weekday, slot])[:, None] + residual).clip(0))[None]


def measured(traffic: NDArray) -> Variation:
    found = Variation(STEP, profile())
    found.add(traffic, *clock(traffic.shape[1]))
    return found


def test_what_a_city_was_made_of_is_found_again() -> None:
    hour = 2 * np.pi * np.arange(SLOTS) / SLOTS
    mode = 0.15 * np.cos(hour)
    found = measured(traffic_of(mode, spread=0.1, hours=2.5, noise=0.05))
    modes, persistence = found.modes(), found.persistence()
    assert modes.shape == (SLOTS, MODES)
    leading = modes[:, 0]
    assert abs(np.corrcoef(leading, mode)[0, 1]) > 0.97, "a cell's level takes a little of its shape away"
    assert np.linalg.norm(leading) == pytest.approx(np.linalg.norm(mode), rel=0.1)
    assert (np.diff((modes**2).sum(0)) <= 1e-12).all(), "the leading one first"
    assert (modes[np.abs(modes).argmax(0), np.arange(MODES)] >= 0).all(), "signs are settled"
    # Variances of 0.0025 (white) and 0.01 (two hours and a half), with 21 days of evidence about each of 400 cells.
    assert persistence.sum() == pytest.approx(0.0125, rel=0.1)
    assert persistence[0] == pytest.approx(0.0025, rel=0.3)
    assert persistence[1 + HOURS.index(2.5)] == pytest.approx(0.01, rel=0.3)


def test_the_unit_of_traffic_does_not_matter() -> None:
    mode = 0.1 * np.sin(2 * np.pi * np.arange(SLOTS) / SLOTS)
    small, large = (measured(traffic_of(mode, 0.1, 1.0, 0.05, level)[:, : 5 * SLOTS]) for level in (1e-6, 1e9))
    np.testing.assert_allclose(small.modes(), large.modes(), atol=2e-6)
    np.testing.assert_allclose(small.persistence(), large.persistence(), atol=2e-6)


def test_the_order_of_series_does_not_matter() -> None:
    mode = 0.1 * np.sin(2 * np.pi * np.arange(SLOTS) / SLOTS)
    traffic = traffic_of(mode, 0.1, 1.0, 0.05)[:, : 5 * SLOTS, :40]
    parts = [traffic[:, :, :16], traffic[:, :, 16:]]
    one, other = Variation(STEP, profile()), Variation(STEP, profile())
    for first, second in zip(parts, reversed(parts), strict=True):
        one.add(first, *clock(first.shape[1]))
        other.add(second, *clock(second.shape[1]))
    whole = measured(traffic)
    for found in (one, other):
        np.testing.assert_allclose(found.modes(), whole.modes(), atol=2e-6)
        np.testing.assert_allclose(found.persistence(), whole.persistence(), atol=2e-6)


def test_what_was_not_measured_counts_for_nothing() -> None:
    mode = 0.1 * np.sin(2 * np.pi * np.arange(SLOTS) / SLOTS)
    traffic = traffic_of(mode, 0.1, 1.0, 0.05)[:, :, :60]
    gaps = traffic.copy()
    gaps[:, np.random.default_rng(1).random(traffic.shape[1:]) < 0.2] = np.nan
    never = np.full((1, traffic.shape[1], 3), np.nan)
    dead = np.zeros((1, traffic.shape[1], 3))
    whole, holes = measured(traffic), measured(np.concatenate((gaps, never, dead), axis=2))
    np.testing.assert_allclose(holes.modes()[:, 0], whole.modes()[:, 0], atol=0.02)
    np.testing.assert_allclose(holes.persistence().sum(), whole.persistence().sum(), rtol=0.1)


def test_little_data_says_what_it_can() -> None:
    nothing = Variation(STEP, profile())
    nothing.add(np.zeros((1, SLOTS, 4)), *clock(SLOTS))
    assert not nothing.modes().any() and np.isnan(nothing.persistence()).all()
    day = measured(traffic_of(0.2 * np.cos(np.arange(SLOTS) / 5), 0.05, 1.0, 0.02)[:, :SLOTS])
    assert day.modes().any() and np.isnan(day.persistence()).all(), "one day tells how cells differ, not how days do"
    few = Variation(360, np.ones((7, 4)))
    few.add(1 + np.random.default_rng(0).random((1, 40, 5)), np.arange(40) % 4, np.arange(40) // 4 % 7)
    assert few.modes().shape == (4, MODES) and not few.modes()[:, 4:].any()


def test_lagged_products() -> None:
    series = np.random.default_rng(0).standard_normal((50, 3))
    expected = [[(series[: 50 - lag, i] * series[lag:, i]).sum() for i in range(3)] for lag in range(20)]
    np.testing.assert_allclose(_lagged(series, 20), expected, atol=1e-6)
    assert not _lagged(series, 80)[50:].any(), "beyond the series there is no pair, and none goes round its end"
