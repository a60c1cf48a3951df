"""Pictures of stations: which slots are marked as events, and figures that are the same bytes again."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from raytraffic.report.station_plots import StationForecast, departures, interval_panels, latency_curves

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_largest_departures_are_marked_apart_from_each_other() -> None:
    truth, usual, where = np.zeros(12), np.zeros(12), np.ones(12, dtype=bool)
    truth[[1, 4, 5, 10]] = [9.0, 5.0, -6.0, 3.0]
    where[1] = False  # known: nothing was forecast there
    assert departures(truth, usual, where, 2, 3) == [5, 10]
    assert departures(truth, usual, where, 5, 1) == [4, 5, 10]
    usual[5] = np.nan
    assert departures(truth, usual, where, 1, 1) == [4]
    assert departures(usual, usual, where, 3, 1) == []


def test_pictures_are_png_and_the_same_again() -> None:
    t = 24
    truth = 50 + 10 * np.sin(np.arange(t))
    truth[20] += 80
    example = StationForecast(
        title="station 3",
        start=datetime(2024, 1, 1),
        step_minutes=60,
        truth=truth,
        known=np.arange(t) < 16,
        usual=np.full(t, 50.0),
        levels=[0.05, 0.25, 0.5, 0.75, 0.95],
        quantiles=truth + np.array([-20, -8, 0, 8, 20])[:, None],
    )
    first = interval_panels([example, example], unit="MB")
    assert first.startswith(PNG) and first == interval_panels([example, example], unit="MB")
    calm = StationForecast(**{**vars(example), "usual": truth})
    assert interval_panels([calm, calm], unit="MB") != first  # no ellipse
    curves = latency_curves([10, 20], {"cpu": [0.1, 0.15]}, paper=(20, 11.3))
    assert curves.startswith(PNG) and curves != latency_curves([10, 20], {"cpu": [0.1, 0.15]})
