"""Pictures of service-level forecasts (LSDM Fig. 6-9): radar charts, a user's true and forecast usage, errors by step ahead and horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from raytraffic.report.style import ACCENT, COLOUR_MAP, FORECAST, INK, MUTED

__all__ = ["error_by_horizon", "error_by_step", "service_radar", "usage_maps"]

Array = NDArray[np.floating]
#: 1.2M bytes and an error of 0.08, not one of 80m.
_QUANTITY = FuncFormatter(lambda value, _: f"{value:g}" if abs(value) < 1000 else EngFormatter(sep="")(value))
#: The last line is ours; the others differ in their strokes as well, for print.
_OTHERS = ((ACCENT, "--"), (MUTED, "-."), (INK, ":"), ("#8d6fa8", (0, (5, 1, 1, 1, 1, 1))))
#: Shades of the horizons from the shortest to the longest.
_HORIZONS = ("#a9c4e4", "#5d93c9", FORECAST)
_NAME_LENGTH = 18


def service_radar(ax: Axes, services: Sequence[str], lines: Mapping[str, Sequence[float]], *, label: str) -> None:
    """A closed line over all services for every name (Fig. 6: truth and forecast; Fig. 7: models), the last one ours and filled.

    Raises ValueError on axes that are not polar, with fewer than three services, with more than five lines, or a value a service missing.
    """
    if not isinstance(ax, PolarAxes):
        raise ValueError(f"ax: {type(ax).__name__}, expected polar axes (subplot_kw={{'projection': 'polar'}})")
    if len(services) < 3:
        raise ValueError(f"services: {len(services)}, expected at least 3, or there is no area")
    _expect_lines(lines, len(services), "services")
    angle = 2 * np.pi * np.arange(len(services)) / len(services)
    for name, values, style in _styled(lines):
        closed = np.append(np.asarray(values, dtype=np.float64), values[0])
        ax.plot(np.append(angle, angle[0]), closed, label=name, **style)
    ours = np.asarray(list(lines.values())[-1], dtype=np.float64)
    ax.fill(angle, ours, color=FORECAST, alpha=0.1)
    every = np.concatenate([np.asarray(values, dtype=np.float64) for values in lines.values()])
    low, high = min(0.0, float(np.nanmin(every))), float(np.nanmax(every))
    ax.set_ylim(low, high + 0.06 * (high - low or 1.0))
    ax.set_theta_offset(np.pi / 2)
    ax.set_theta_direction(-1)
    ax.set_xticks(angle, [_in_lines(name) for name in services])
    ax.tick_params(axis="x", pad=7)
    ax.set_rlabel_position(180 / len(services))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(axis="y", labelsize=7)
    ax.spines["polar"].set_visible(False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, title=label, title_fontsize=8)


def usage_maps(axes: Sequence[Axes], truth: Array, forecast: Array, services: Sequence[str], *, unit: str, first: int = 1) -> None:
    """A user's true and forecast usage (c, t) side by side in two axes, on one colour scale; the first column is step `first` ahead.

    The scale is a square root: most of a user's hours are empty, and the rest differ widely. ValueError where shapes disagree.
    """
    if truth.shape != forecast.shape or truth.shape[0] != len(services) or len(axes) != 2:
        raise ValueError(
            f"truth, forecast: shapes {truth.shape}, {forecast.shape} in {len(axes)} axes, expected ({len(services)}, t) twice in two axes"
        )
    top = float(np.nanmax(truth, initial=0.0))
    norm = PowerNorm(0.5, vmin=0, vmax=top if top > 0 else 1.0)
    for ax, values, title in zip(axes, (truth, forecast), ("truth", "forecast"), strict=True):
        extent = (first - 0.5, first + truth.shape[1] - 0.5, len(services) - 0.5, -0.5)
        image = ax.imshow(values, cmap=COLOUR_MAP, norm=norm, aspect="auto", interpolation="nearest", extent=extent)
        ax.set_title(title)
        ax.set_xlabel("steps ahead")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set_yticks(range(len(services)), [_shorten(name) for name in services] if ax is axes[0] else [""] * len(services))
        ax.tick_params(axis="y", length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
    figure = axes[1].figure
    assert figure is not None
    # More than the truth ever was is shown as the most there was, and the bar says so.
    figure.colorbar(image, ax=list(axes), label=unit, format=_QUANTITY, ticks=MaxNLocator(4), extend="max", pad=0.02)


def error_by_step(ax: Axes, lines: Mapping[str, Sequence[float]], *, label: str) -> None:
    """An error over the steps of a recursive forecast, from step 1 (Fig. 8); the last line is ours. ValueError for more than five lines."""
    _expect_lines(lines, max(len(values) for values in lines.values()), "steps")
    for name, values, style in _styled(lines):
        ax.plot(np.arange(1, len(values) + 1), values, label=name, **style)
    ax.set_xlim(0.5, None)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("steps ahead")
    ax.set_ylabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    ax.yaxis.set_major_formatter(_QUANTITY)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3)


def error_by_horizon(ax: Axes, horizons: Sequence[int], bars: Mapping[str, Sequence[float]], *, label: str) -> None:
    """Bars of an error for every service, one a horizon in steps (Fig. 9), the services with the largest error at the longest first.

    ValueError for more than three horizons, or where a service has not one value each.
    """
    if not 1 <= len(horizons) <= len(_HORIZONS):
        raise ValueError(f"horizons: {list(horizons)}, expected one to {len(_HORIZONS)}")
    _expect_values(bars, len(horizons), "horizons")
    order = sorted(bars, key=lambda name: -bars[name][-1])
    width = 0.8 / len(horizons)
    for i, horizon in enumerate(horizons):
        places = np.arange(len(order)) + (i - (len(horizons) - 1) / 2) * width
        colour = _HORIZONS[len(_HORIZONS) - len(horizons) + i]
        ax.bar(places, [bars[name][i] for name in order], width=0.92 * width, color=colour, label=f"up to {horizon} steps")
    ax.set_xticks(np.arange(len(order)), [_shorten(name) for name in order], rotation=35, ha="right", rotation_mode="anchor")
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="x", visible=False)
    ax.set_ylabel(label)
    ax.yaxis.set_major_formatter(_QUANTITY)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.legend(loc="upper right")


def _styled(lines: Mapping[str, Sequence[float]]) -> list[tuple[str, Sequence[float], dict[str, Any]]]:
    """Every line with how it is drawn; the last, ours, lies on top."""
    *others, (ours, values) = lines.items()
    styled: list[tuple[str, Sequence[float], dict[str, Any]]] = [
        (name, line, {"color": colour, "linestyle": stroke, "linewidth": 1.2})
        for (name, line), (colour, stroke) in zip(others, _OTHERS, strict=False)
    ]
    return [*styled, (ours, values, {"color": FORECAST, "linewidth": 1.8})]


def _expect_lines(lines: Mapping[str, Sequence[float]], values: int, of: str) -> None:
    if not 1 <= len(lines) <= len(_OTHERS) + 1:
        raise ValueError(f"lines: {len(lines)}, expected one to {len(_OTHERS) + 1}")
    _expect_values(lines, values, of)


def _expect_values(named: Mapping[str, Sequence[float]], values: int, of: str) -> None:
    for name, line in named.items():
        if len(line) != values:
            raise ValueError(f"{name}: {len(line)} values, expected one for each of the {values} {of}")


def _shorten(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def _in_lines(name: str) -> str:
    """A name over two lines where it has a blank past its middle."""
    return "\n".join(name.split(" ", 1)) if len(name) > 8 else name
