"""Pictures: forecast fans, heat maps, bars of a metric, lines of coverage; drawn into given axes, `picture` makes them an embedded SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from raytraffic.report.html import Picture
from raytraffic.report.style import ACCENT, BANDS, COLOUR_MAP, FORECAST, INK, MUTED, PLOT

__all__ = ["coverage_lines", "fan", "heat_map", "metric_bars", "picture"]

Array = NDArray[np.floating]
_QUANTITY = EngFormatter(sep="")
#: The first line is the model's own; the others differ in their strokes as well, for print.
_LINES = ((FORECAST, "-", "o"), (INK, "--", "s"), (MUTED, "-.", "^"))
_NAME_LENGTH = 28  # letters beside a bar; a longer name would leave no room for the bar


def picture(draw: Callable[..., None], *, alt: str, caption: str, columns: int = 1, size: tuple[float, float] = (4.1, 2.4)) -> Picture:
    """A picture of `size` inches, drawn by `draw(axes...)` into `columns` axes side by side; the same input gives the same bytes."""
    with mpl.rc_context(PLOT):
        figure = Figure(figsize=size, layout="compressed")
        draw(*figure.subplots(1, columns, squeeze=False)[0])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return Picture(source=f"data:image/svg+xml;base64,{encoded}", alt=alt, caption=caption)


def fan(
    ax: Axes,
    *,
    start: datetime,
    step_minutes: int,
    truth: Array,
    known: NDArray[np.bool_],
    levels: Sequence[float],
    quantiles: Array,
    unit: str,
    legend: bool = True,
) -> None:
    """A forecast fan: bands and median of quantiles (q, t) where not `known` (t,), beside the truth (t,) (NaN = not measured).

    Bands are drawn for those of 50, 80 and 90 % whose two quantiles are among `levels`; time is local clock time.
    """
    t = len(truth)
    hours = np.arange(t) * step_minutes / 60
    # A band begins and ends at a known entry, where there is no uncertainty, so that the fan opens from it.
    shown = ~known | np.append(~known[1:], False) | np.insert(~known[:-1], 0, False)
    for level, opacity in BANDS:
        low, high = (_quantile(p, levels, quantiles) for p in ((1 - level) / 2, (1 + level) / 2))
        if low is not None and high is not None:
            label = f"{level:.0%}"
            ax.fill_between(hours, low, high, where=shown.tolist(), color=FORECAST, alpha=opacity, linewidth=0, label=label)
    median = _quantile(0.5, levels, quantiles)
    if median is not None:
        ax.plot(hours, np.where(shown, median, np.nan), color=FORECAST, label="median")
    ax.plot(hours, np.where(known, truth, np.nan), color=INK, linewidth=1.3, label="known" if known.any() else None)
    joined = np.where(shown, truth, np.nan)
    ax.plot(hours, joined, color=ACCENT, linewidth=1.2, linestyle=(0, (3, 1.2)), label="truth")
    if known.any() and not known[int(known.sum()) :].any():
        ax.axvline(hours[known][-1], color=MUTED, linewidth=0.9, linestyle=":")
    _clock_axis(ax, start, hours)
    ax.set_ylim(bottom=0)
    ax.set_ylabel(unit)
    ax.yaxis.set_major_formatter(_QUANTITY)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    if legend:
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=6, handlelength=1.1, columnspacing=0.8, handletextpad=0.35)


def heat_map(ax: Axes, values: Array, *, title: str, unit: str, top: float, bar: bool = True) -> None:
    """A city's traffic (h, w) from 0 to `top` on a square-root colour scale, row 0 on top; NaN cells are left white.

    Traffic is heavy-tailed: on a linear scale all but a few cells would look empty.
    """
    image = ax.imshow(values, cmap=COLOUR_MAP, norm=PowerNorm(0.5, vmin=0, vmax=top if top > 0 else 1.0), interpolation="nearest")
    ax.set_title(title)
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(True)
    if bar and ax.figure is not None:
        ax.figure.colorbar(image, ax=ax, label=unit, format=_QUANTITY, ticks=MaxNLocator(4))


def metric_bars(ax: Axes, names: Sequence[str], values: Sequence[float], *, ours: str, label: str) -> None:
    """Horizontal bars of a metric, the lowest on top, with the value at each bar's end; `ours` in the forecast colour."""
    order = np.argsort(values)[::-1]
    places = np.arange(len(order))
    ax.barh(places, [values[i] for i in order], height=0.68, color=[FORECAST if names[i] == ours else "#b4bcc4" for i in order])
    ax.set_yticks(places, [_shorten(names[i]) for i in order])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="y", visible=False)
    for place, i in zip(places, order, strict=True):
        ax.annotate(f"{values[i]:.3g}", (values[i], place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    ax.set_xlim(0, max([*values, 0.0]) * 1.18 or 1.0)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel(label)


def coverage_lines(ax: Axes, bins: Sequence[str], lines: Mapping[str, Sequence[float]], *, level: float, bottom: float, label: str) -> None:
    """Coverage in every bin, from `bottom` to 1, with the nominal `level`: at most three lines, the first is ours; NaN leaves a gap."""
    places = np.arange(len(bins))
    ax.axhline(level, color=ACCENT, linewidth=1.1, linestyle=":", label=f"{level:.0%}, as it should be")
    # Ours is drawn last, over the others.
    for (name, values), (colour, stroke, marker) in reversed(list(zip(lines.items(), _LINES, strict=False))):
        width = 1.7 if colour == FORECAST else 1.1
        ax.plot(places, values, color=colour, linestyle=stroke, linewidth=width, marker=marker, markersize=3.5, label=_shorten(name))
    shown = slice(None, None, max(1, len(bins) // 8))
    ax.set_xticks(places[shown], [_two_lines(name) for name in bins[shown]])
    ax.set_xlim(-0.4, len(bins) - 0.6)
    ax.set_ylim(bottom, 1.02)
    ax.set_xlabel(label)


def _shorten(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def _two_lines(name: str) -> str:
    """A bin's name, broken after its dash or its last blank where it would touch its neighbours."""
    return name if len(name) <= 5 else name.replace("-", "-\n") if "-" in name else "\n".join(name.rsplit(" ", 1))


def _quantile(p: float, levels: Sequence[float], quantiles: Array) -> Array | None:
    found = [i for i, level in enumerate(levels) if abs(level - p) < 1e-6]
    return quantiles[found[0]] if found else None


def _clock_axis(ax: Axes, start: datetime, hours: Array) -> None:
    """Ticks at round local times, about six of them, with the weekday under each midnight."""
    span = float(hours[-1]) if len(hours) > 1 else 1.0
    every = next((h for h in (1, 2, 3, 6, 12, 24) if span / h <= 6), 24 * max(round(span / 144), 1))
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    offset = (start - midnight) / timedelta(hours=1)
    ticks = np.arange(np.ceil(offset / every) * every, offset + span + 1e-9, every)
    times = [midnight + timedelta(hours=float(tick)) for tick in ticks]
    first = times[0] if times else start
    labels = [f"{at:%H:%M}\n{at:%a}" if at.hour == 0 or at == first else f"{at:%H:%M}" for at in times]
    ax.set_xticks(ticks - offset, labels)
    ax.set_xlim(0, span)
