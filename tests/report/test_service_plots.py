"""Pictures of service-level forecasts show what they are given: every service, every line, one scale for truth and forecast."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from raytraffic.report.service_plots import error_by_horizon, error_by_step, service_radar, usage_maps

SERVICES = ("Music", "News", "Social Networking", "Photo & Video")
LINES = {"yesterday": [0.1, 0.2, 0.1, 0.0], "LSDM": [0.5, 0.4, 0.6, 0.3]}


def axes(columns: int = 1, polar: bool = False) -> list[Axes]:
    subplots = Figure(layout="compressed").subplots(1, columns, squeeze=False, subplot_kw={"projection": "polar"} if polar else {})
    return list(subplots[0])


def drawn(ax: Axes) -> None:
    """Lays the picture out, which fails on labels that cannot be drawn."""
    assert ax.figure is not None
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]


def test_a_radar_closes_every_line_and_names_every_service() -> None:
    (ax,) = axes(polar=True)
    service_radar(ax, SERVICES, LINES, label="R²")
    drawn(ax)
    for line, (name, values) in zip(ax.get_lines(), LINES.items(), strict=True):
        assert line.get_label() == name and np.allclose(line.get_ydata(), [*values, values[0]])
        assert np.isclose((line.get_xdata()[-1] - line.get_xdata()[0]) % (2 * np.pi), 0)
    assert [text.get_text().replace("\n", " ") for text in ax.get_xticklabels()] == list(SERVICES)
    assert ax.get_ylim()[0] <= 0 and ax.get_ylim()[1] > 0.6


def test_a_radar_shows_scores_below_zero() -> None:
    (ax,) = axes(polar=True)
    service_radar(ax, SERVICES, {"LSDM": [0.5, -0.4, 0.6, 0.3]}, label="R²")
    assert ax.get_ylim()[0] <= -0.4


def test_truth_and_forecast_share_services_steps_and_colours() -> None:
    left, right = axes(2)
    truth = np.random.default_rng(0).random((4, 12))
    usage_maps((left, right), truth, 10 * truth, SERVICES, unit="bytes", first=3)
    drawn(left)
    images = [next(child for child in ax.get_children() if isinstance(child, AxesImage)) for ax in (left, right)]
    assert [image.get_clim() for image in images] == [(0.0, truth.max())] * 2
    assert np.array_equal(images[0].get_array(), truth) and np.array_equal(images[1].get_array(), 10 * truth)
    assert images[0].get_extent() == [2.5, 14.5, 3.5, -0.5]
    assert [text.get_text() for text in left.get_yticklabels()] == list(SERVICES)


def test_a_user_without_any_usage_has_a_picture() -> None:
    left, right = axes(2)
    usage_maps((left, right), np.zeros((4, 5)), np.zeros((4, 5)), SERVICES, unit="bytes")
    drawn(left)


def test_errors_by_step_begin_at_step_one_and_from_zero() -> None:
    (ax,) = axes()
    error_by_step(ax, {"yesterday": [2.0, 2.0, 2.0], "LSDM": [1.0, 1.1, 1.2]}, label="MSE")
    drawn(ax)
    ours = ax.get_lines()[-1]
    assert ours.get_label() == "LSDM" and list(ours.get_xdata()) == [1, 2, 3] and list(ours.get_ydata()) == [1.0, 1.1, 1.2]
    assert ax.get_ylim()[0] == 0 and ax.get_xlabel() == "steps ahead"
    assert "m" not in "".join(text.get_text() for text in ax.get_yticklabels())


def test_bars_by_horizon_put_the_largest_error_first() -> None:
    (ax,) = axes()
    error_by_horizon(ax, (10, 20), {"Music": [0.1, 0.2], "News": [0.3, 0.9], "Games": [0.2, 0.4]}, label="MSE")
    drawn(ax)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["News", "Games", "Music"]
    assert [bar.get_height() for bar in ax.patches] == [0.3, 0.2, 0.1, 0.9, 0.4, 0.2]


def test_mistakes_are_named() -> None:
    (flat,), (polar,), pair = axes(), axes(polar=True), axes(2)
    with pytest.raises(ValueError, match="ax: Axes, expected polar axes"):
        service_radar(flat, SERVICES, LINES, label="R²")
    with pytest.raises(ValueError, match="services: 2, expected at least 3"):
        service_radar(polar, SERVICES[:2], {"LSDM": [1, 2]}, label="R²")
    with pytest.raises(ValueError, match="LSDM: 3 values, expected one for each of the 4 services"):
        service_radar(polar, SERVICES, {"LSDM": [1, 2, 3]}, label="R²")
    with pytest.raises(ValueError, match="lines: 6, expected one to 5"):
        error_by_step(flat, {str(i): [1.0] for i in range(6)}, label="MSE")
    with pytest.raises(ValueError, match=r"horizons: \[1, 2, 3, 4\], expected one to 3"):
        error_by_horizon(flat, (1, 2, 3, 4), {}, label="MSE")
    with pytest.raises(ValueError, match=r"truth, forecast: shapes \(4, 3\), \(4, 2\) in 2 axes"):
        usage_maps(pair, np.zeros((4, 3)), np.zeros((4, 2)), SERVICES, unit="bytes")
