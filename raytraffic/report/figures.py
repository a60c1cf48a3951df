"""The UoMo paper's Figures 4-7 as PNG: grids of forecasts, bars of few-shot errors, errors over the number of parameters."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator

from raytraffic.report.evaluation import ForecastExample
from raytraffic.report.plots import fan
from raytraffic.report.style import ACCENT, FORECAST, INK, MUTED, PLOT

__all__ = ["CURVES", "Bars", "Point", "error_curves", "forecast_grid", "legend", "png", "shot_bars"]

_DPI = 150
_WIDTH, _HEIGHT = 12.0, 2.6  # inches of a picture and of one of its rows
_LEVELS = (0.1, 0.5, 0.9)
_RIVALS = ("#7c858e", "#aab2b9", "#d0d6db")
#: Colour and marker of the first, second, ... curve of a panel.
CURVES = ((FORECAST, "o"), (ACCENT, "s"), ("#009e73", "^"), ("#cc79a7", "D"), (MUTED, "v"), ("#e69f00", "P"), ("#56b4e9", "X"), (INK, "*"))


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One panel of bars: the model's name and its value in each group, NaN for what there is not."""

    title: str
    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A checkpoint of some size; those of the same `data` lie on one curve."""

    name: str
    data: str
    parameters: int


def forecast_grid(rows: Sequence[Sequence[tuple[str, ForecastExample | None]]], *, same_scale: bool = False) -> bytes:
    """Titled forecasts (median and 80 % band beside the truth) in rows of equal length, None left blank (Figures 4 and 6).

    `same_scale` gives the panels of a row one axis of traffic.
    """
    with mpl.rc_context(PLOT):
        figure = Figure(figsize=(_WIDTH, 0.4 + _HEIGHT * len(rows)), layout="compressed")
        axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for line, panels in zip(axes, rows, strict=True):
            for ax, (title, example) in zip(line, panels, strict=True):
                _forecast(ax, title, example)
            if same_scale:
                top = max((ax.get_ylim()[1] for ax, (_, example) in zip(line, panels, strict=True) if example is not None), default=1.0)
                for ax in line:
                    ax.set_ylim(0, top)
        legend(figure)
        return png(figure)


def _forecast(ax: Axes, title: str, example: ForecastExample | None) -> None:
    ax.set_title(title)
    if example is None:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no window with traffic", transform=ax.transAxes, ha="center", color=MUTED)
        return
    chosen = [i for i, level in enumerate(example.quantile_levels) if any(abs(level - wanted) < 1e-6 for wanted in _LEVELS)]
    fan(
        ax,
        start=example.start,
        step_minutes=example.step_minutes,
        truth=example.truth,
        known=example.known,
        levels=[example.quantile_levels[i] for i in chosen],
        quantiles=example.quantiles[chosen],
        unit=example.unit,
        legend=False,
    )


def shot_bars(rows: Sequence[Sequence[Bars]], groups: Sequence[str], *, ours: str) -> bytes:
    """Panels of bars, a group of models for each of `groups` (zero-shot, 5 %, 10 %), our model's with its value (Figure 5)."""
    with mpl.rc_context(PLOT):
        figure = Figure(figsize=(_WIDTH, 0.4 + _HEIGHT * len(rows)), layout="compressed")
        axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for ax, bars in ((ax, bars) for line, panels in zip(axes, rows, strict=True) for ax, bars in zip(line, panels, strict=True)):
            _bars(ax, bars, groups, ours)
        legend(figure)
        return png(figure)


def _bars(ax: Axes, bars: Bars, groups: Sequence[str], ours: str) -> None:
    places = np.arange(len(groups))
    width = 0.8 / len(bars.values)
    rivals = cycle(_RIVALS)
    for i, (name, values) in enumerate(bars.values.items()):
        at = places + (i - (len(bars.values) - 1) / 2) * width
        drawn = ax.bar(at, values, width=width * 0.92, color=FORECAST if name == ours else next(rivals), label=name)
        if name == ours:
            ax.bar_label(drawn, fmt="%.4f", fontsize=7, color=INK, padding=3, rotation=90)  # upright: no wider than its bar
    ax.set_xticks(places, groups)
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="x", visible=False)
    ax.margins(y=0.25)
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
    ax.set_title(bars.title)


def error_curves(points: Sequence[Point], rows: Sequence[Sequence[tuple[str, Sequence[float]]]]) -> bytes:
    """Titled panels of an error of every point over its number of parameters, which is logarithmic (Figure 7)."""
    with mpl.rc_context(PLOT):
        figure = Figure(figsize=(_WIDTH, 0.4 + _HEIGHT * len(rows)), layout="compressed")
        axes = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharex=True)
        for line, panels in zip(axes, rows, strict=True):
            for ax, (title, errors) in zip(line, panels, strict=True):
                _curves(ax, points, errors)
                ax.set_title(title)
        for ax in axes[-1]:
            ax.set_xlabel("parameters")
        if len({point.data for point in points}) > 1:
            legend(figure)
        return png(figure)


def _curves(ax: Axes, points: Sequence[Point], errors: Sequence[float]) -> None:
    for i, data in enumerate(dict.fromkeys(point.data for point in points)):
        mine = sorted((point.parameters, error) for point, error in zip(points, errors, strict=True) if point.data == data)
        colour, marker = CURVES[i % len(CURVES)]
        ax.plot(*zip(*mine, strict=True), color=colour, marker=marker, markersize=4.5, label=data or "all data")
    _name_points(ax, points, errors)
    ax.set_xscale("log")
    sizes = sorted({point.parameters for point in points})
    ax.xaxis.set_major_locator(FixedLocator([size for size, crowded in zip(sizes, _crowded(sizes), strict=True) if not crowded]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(EngFormatter(places=1, sep=""))
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    ax.margins(x=0.12, y=0.25)


def _name_points(ax: Axes, points: Sequence[Point], errors: Sequence[float]) -> None:
    """The name above the highest point of every size, above that of its neighbour where they stand close."""
    found = [(point.parameters, error, point.name) for point, error in zip(points, errors, strict=True) if math.isfinite(error)]
    tops = {size: (error, name) for size, error, name in sorted(found)}
    for (size, (error, name)), crowded in zip(tops.items(), _crowded(list(tops)), strict=True):
        offset = (0, 15 if crowded else 6)
        ax.annotate(name, (size, error), xytext=offset, textcoords="offset points", ha="center", fontsize=7, color=INK)


def _crowded(sizes: Sequence[int]) -> list[bool]:
    """Of sorted sizes, which lie on a logarithmic axis so close to the last uncrowded one that labels would overlap."""
    found, last = [], -math.inf
    for size in sizes:
        found.append(math.log(size) - last < 0.16 * math.log(sizes[-1] / sizes[0]))
        last = last if found[-1] else math.log(size)
    return found


def legend(figure: Figure) -> None:
    """One legend over all panels."""
    found: dict[str, Artist] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(str(label), handle)
    if found:
        figure.legend(list(found.values()), list(found), loc="outside upper left", ncols=len(found), handlelength=1.4, columnspacing=1.2)


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure is the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
