"""Pictures of generated traffic: what is drawn is what was given, on an axis of the right days."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raytraffic.report.generation_plots import autocorrelations, generated_week, mean_weeks
from raytraffic.report.style import ACCENT, FORECAST


def axes() -> Axes:
    return Figure().subplots()


def line(ax: Axes, label: str) -> np.ndarray:
    return np.asarray(next(each for each in ax.lines if each.get_label() == label).get_ydata())


def test_a_generated_week_shows_the_real_one_a_draw_and_the_bands() -> None:
    rng = np.random.default_rng(0)
    real, draws = rng.random(168), rng.random((50, 168))
    ax = axes()
    generated_week(ax, real=real, draws=draws, weekday=6, step_minutes=60, title="station 1", unit="MB")
    np.testing.assert_array_equal(line(ax, "real"), real)
    np.testing.assert_array_equal(line(ax, "a draw"), draws[0])
    assert [each.get_color() for each in ax.lines] == [FORECAST, ACCENT]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"]
    band = ax.collections[0].get_paths()[0].vertices
    low, high = np.quantile(draws, (0.05, 0.95), axis=0)
    np.testing.assert_allclose((band[:, 1].min(), band[:, 1].max()), (low.min(), high.max()))


def test_mean_weeks_are_relative_to_their_own_means() -> None:
    real = 1 + np.arange(336.0)
    ax = axes()
    mean_weeks(ax, real=real, generated={"ours": 5 * real, "other": np.ones(336)}, weekday=0, step_minutes=30)
    np.testing.assert_allclose(line(ax, "ours"), line(ax, "real"))
    np.testing.assert_allclose(line(ax, "other"), 1)
    assert len(ax.get_xticks()) == 7


def test_autocorrelations_begin_at_the_first_lag() -> None:
    ax = axes()
    autocorrelations(ax, real=np.array([0.9, 0.8]), generated={"ours": np.array([0.5, 0.2])}, step_minutes=30)
    found = next(each for each in ax.lines if each.get_label() == "ours")
    assert np.asarray(found.get_xdata()).tolist() == [0.5, 1.0] and np.asarray(found.get_ydata()).tolist() == [0.5, 0.2]
