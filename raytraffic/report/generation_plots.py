"""Pictures of generated traffic beside the real: weeks of a station, mean weeks, and autocorrelations; drawn into given axes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from raytraffic.report.style import ACCENT, BANDS, FORECAST, INK, MUTED

__all__ = ["autocorrelations", "generated_week", "mean_weeks"]

Array = NDArray[np.floating]
_QUANTITY = EngFormatter(sep="")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
#: Ours, and up to three others that differ in their strokes as well.
_LINES = ((FORECAST, "-"), (INK, "--"), (MUTED, "-."), ("#009e73", ":"))


def generated_week(
    ax: Axes, *, real: Array, draws: Array, weekday: int, step_minutes: int, title: str, unit: str, legend: bool = True
) -> None:
    """A station's real course (t,) over bands of the draws (n, t), of which the first is drawn as a line; `weekday` 0 is Monday."""
    hours = np.arange(len(real)) * step_minutes / 60
    for level, opacity in BANDS:
        low, high = np.quantile(draws, ((1 - level) / 2, (1 + level) / 2), axis=0)
        ax.fill_between(hours, low, high, color=FORECAST, alpha=opacity, linewidth=0, label=f"{level:.0%}")
    ax.plot(hours, draws[0], color=FORECAST, linewidth=1.0, label="a draw")
    ax.plot(hours, real, color=ACCENT, linewidth=1.2, linestyle=(0, (3, 1.2)), label="real")
    _week_axis(ax, hours, weekday)
    ax.set_ylim(bottom=0)
    ax.set_title(title, loc="right")
    ax.set_ylabel(unit)
    ax.yaxis.set_major_formatter(_QUANTITY)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    if legend:
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=5, handlelength=1.1, columnspacing=0.8, handletextpad=0.35)


def mean_weeks(ax: Axes, *, real: Array, generated: Mapping[str, Array], weekday: int, step_minutes: int) -> None:
    """Mean weeks (t,) relative to their own means: the real one and at most four generated ones, of which the first is ours."""
    hours = np.arange(len(real)) * step_minutes / 60
    ax.plot(hours, real / real.mean(), color=ACCENT, linewidth=2.2, alpha=0.8, label="real")
    for (name, profile), (colour, stroke) in zip(generated.items(), _LINES, strict=False):
        ax.plot(hours, profile / profile.mean(), color=colour, linestyle=stroke, linewidth=1.1, label=name)
    _week_axis(ax, hours, weekday)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("traffic / mean")
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=5, handlelength=1.6, columnspacing=0.8, handletextpad=0.35)


def autocorrelations(ax: Axes, *, real: Array, generated: Mapping[str, Array], step_minutes: int) -> None:
    """Autocorrelations at lags 1, 2, ... slots: the real ones and at most four generated ones, of which the first is ours."""
    hours = (np.arange(len(real)) + 1) * step_minutes / 60
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.plot(hours, real, color=ACCENT, linewidth=2.2, alpha=0.8, label="real")
    for (name, values), (colour, stroke) in zip(generated.items(), _LINES, strict=False):
        ax.plot(hours, values, color=colour, linestyle=stroke, linewidth=1.1, label=name)
    ax.set_xlim(0, hours[-1])
    ax.set_xticks(np.arange(0, hours[-1] + 1, 12))
    ax.set_xlabel("lag, hours")
    ax.set_ylabel("autocorrelation")
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=5, handlelength=1.6, columnspacing=0.8, handletextpad=0.35)


def _week_axis(ax: Axes, hours: Array, weekday: int) -> None:
    """A tick at every midnight with the day that begins there."""
    days = np.arange(0, hours[-1] + 1e-9, 24)
    ax.set_xticks(days, [_DAYS[(weekday + i) % 7] for i in range(len(days))])
    ax.set_xlim(0, hours[-1])
