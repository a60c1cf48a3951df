"""LEC-Diff's Figures 4c and 5 as PNG: prediction intervals with the events in them marked, and latency against the number of stations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from raytraffic.report.figures import CURVES, png
from raytraffic.report.plots import fan
from raytraffic.report.style import ACCENT, INK, MUTED, PLOT

__all__ = ["StationForecast", "departures", "interval_panels", "latency_curves"]

Array = NDArray[np.floating]
_EVENTS, _APART_HOURS = 2, 2.0


@dataclass(frozen=True, kw_only=True)
class StationForecast:
    """A station's forecast: truth (t,), which of it was `known`, what is `usual` (t,) at these slots, quantiles (q, t) at `levels`."""

    title: str
    start: datetime
    step_minutes: int
    truth: Array
    known: NDArray[np.bool_]
    usual: Array
    levels: Sequence[float]
    quantiles: Array


def departures(truth: Array, usual: Array, where: NDArray[np.bool_], count: int, apart: int) -> list[int]:
    """The slots where (t,) truth departs most from what is usual, at most `count`, each at least `apart` slots from the others."""
    distance = np.where(where & np.isfinite(truth) & np.isfinite(usual), np.abs(truth - usual), -1.0)
    found: list[int] = []
    for slot in np.argsort(-distance, kind="stable").tolist():
        if len(found) == count or distance[slot] <= 0:
            break
        if all(abs(slot - other) >= apart for other in found):
            found.append(slot)
    return sorted(found)


def interval_panels(examples: Sequence[StationForecast], *, unit: str) -> bytes:
    """A panel a station: median, 50 % and 90 % intervals and truth; ellipses around the hidden slots that depart most from the usual."""
    with mpl.rc_context(PLOT):
        figure = Figure(figsize=(5.6 * len(examples), 3.0), layout="compressed")
        for ax, example in zip(figure.subplots(1, len(examples), squeeze=False)[0], examples, strict=True):
            _interval(ax, example, unit)
        return png(figure)


def _interval(ax: Axes, example: StationForecast, unit: str) -> None:
    fan(
        ax,
        start=example.start,
        step_minutes=example.step_minutes,
        truth=example.truth,
        known=example.known,
        levels=example.levels,
        quantiles=example.quantiles,
        unit=unit,
    )
    ax.set_title(example.title, pad=22)
    hours = example.step_minutes / 60
    slots = departures(example.truth, example.usual, ~example.known, _EVENTS, round(_APART_HOURS / hours))
    bottom, top = ax.get_ylim()
    width, height = max(4.0, 0.04 * len(example.truth)) * hours, 0.22 * (top - bottom)
    for slot in slots:
        centre = (slot * hours, float(example.truth[slot]))
        ax.add_patch(Ellipse(centre, width, height, fill=False, edgecolor=ACCENT, linewidth=1.3, clip_on=False))


def latency_curves(stations: Sequence[int], totals: Mapping[str, Sequence[float]], *, paper: tuple[int, float] | None = None) -> bytes:
    """Left, seconds of a draw of a whole city against its stations, a line a device, beside proportion; right, microseconds a station.

    `paper` is (stations, microseconds a station) of a published figure.
    """
    with mpl.rc_context(PLOT):
        figure = Figure(figsize=(9.0, 3.1), layout="compressed")
        whole, each = figure.subplots(1, 2)
        for (name, seconds), (colour, marker) in zip(totals.items(), CURVES, strict=False):
            style = {"color": colour, "marker": marker, "markersize": 4, "label": name}
            whole.plot(stations, seconds, **style)
            each.plot(stations, [1e6 * total / n for total, n in zip(seconds, stations, strict=True)], **style)
        first = next(iter(totals.values()))[0] / stations[0]
        whole.plot(stations, [first * n for n in stations], color=MUTED, linestyle=":", linewidth=1.1, label="in proportion")
        if paper is not None:
            each.plot([paper[0]], [paper[1]], color=INK, marker="*", markersize=9, linestyle="none", label="paper")
        for ax, label in ((whole, "seconds a draw of one slot"), (each, "microseconds a station and draw")):
            ax.set_xlabel("stations")
            ax.set_ylabel(label)
            ax.set_xlim(0, 1.05 * max(stations))
            ax.set_ylim(0, 1.08 * ax.dataLim.ymax)
            ax.xaxis.set_major_locator(MaxNLocator(6))
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.legend()
        return png(figure)
