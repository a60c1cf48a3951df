"""Pictures of decisions: where stations stand and demand goes unserved, active radio units over the day, strategies side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from raytraffic.report.html import Picture
from raytraffic.report.plots import fan, heat_map, metric_bars, picture
from raytraffic.report.style import ACCENT, COLOUR_MAP, INK, MUTED
from raytraffic.sources.gridding import LocalPlane

__all__ = ["Places", "day_curve", "station_maps", "strategy_bars"]

Array = NDArray[np.floating]
_GRID_NAME = re.compile(r"r(\d+)c(\d+)")
_LEVELS = (0.1, 0.5, 0.9)
_LARGEST = 90.0  # points² of the circle of most stations


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Where sites are: columns and rows of a grid, or metres east and north."""

    xy: NDArray[np.float64]
    """(sites, 2)"""
    grid: bool

    @property
    def drawn(self) -> NDArray[np.float64]:
        """(sites, 2) where they stand in a picture: columns and rows, or kilometres."""
        return self.xy if self.grid else self.xy / 1000

    @classmethod
    def of_names(cls, names: Sequence[str]) -> Places | None:
        """The cells r<row>c<column> that all names say, each once; None where they do not."""
        found = [_GRID_NAME.fullmatch(name) for name in names]
        cells = [(float(one[2]), float(one[1])) for one in found if one is not None]
        if len(cells) < len(names) or len(set(cells)) < len(cells):
            return None
        return cls(xy=np.array(cells), grid=True)

    @classmethod
    def of_degrees(cls, latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> Places:
        """Places (sites,) in degrees, on a plane around them."""
        return cls(xy=LocalPlane.around(latitude, longitude).project(latitude, longitude), grid=False)


def station_maps(
    left: Axes,
    right: Axes,
    places: Places,
    *,
    demand: Array,
    unserved: Array,
    built: NDArray[np.integer],
    existing: NDArray[np.integer],
) -> None:
    """Two maps of sites on one scale: demand (sites,) with the stations that are built and that stood, and the demand left unserved."""
    top = float(demand.max())
    _surface(left, places, demand, title="demand, and stations", top=top, bar=False)
    _surface(right, places, unserved, title="demand left unserved", top=top, bar=True)
    most = max(int(built.max()), int(existing.max()), 1)
    for counts, colour, name in ((existing, "#ffffff" if places.grid else INK, "existing"), (built, ACCENT, "built")):
        there = counts > 0
        if there.any():
            x, y = places.drawn[there].T
            left.scatter(x, y, s=_LARGEST * counts[there] / most, facecolors="none", edgecolors=colour, linewidths=1.4)
            label = f"{name} ({int(counts.sum())})"
            left.scatter([], [], s=_LARGEST / 2, facecolors="none", edgecolors=INK if name == "existing" else ACCENT, label=label)
    handles, labels = left.get_legend_handles_labels()
    if handles and left.figure is not None:
        left.figure.legend(handles, labels, loc="outside lower left", ncols=2, handletextpad=0.3)


def _surface(ax: Axes, places: Places, values: Array, *, title: str, top: float, bar: bool) -> None:
    if places.grid:
        columns, rows = places.drawn.astype(int).T
        cells = np.full((rows.max() + 1, columns.max() + 1), np.nan)
        cells[rows, columns] = values
        heat_map(ax, cells, title=title, unit="", top=top, bar=bar)
        return
    size = min((200.0 / math.sqrt(len(values))) ** 2, 60.0)
    norm = PowerNorm(0.5, vmin=0, vmax=top if top > 0 else 1.0)
    east, north = places.drawn.T
    points = ax.scatter(east, north, c=values, s=size, cmap=COLOUR_MAP, norm=norm, linewidths=0)
    ax.set_title(title)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel("km")
    if bar and ax.figure is not None:
        ax.figure.colorbar(points, ax=ax, format=EngFormatter(sep=""), ticks=MaxNLocator(4))


def day_curve(
    ax: Axes,
    *,
    start: datetime,
    step_minutes: int,
    load: Array,
    active: Array,
    installed: float,
    real: Array | None,
    title: str,
    legend: bool,
) -> None:
    """RRUs over time: the load's draws (n, t) as a fan and the real load (t,), in RRUs' worth, beside active (t,) and installed RRUs."""
    t = load.shape[1]
    fan(
        ax,
        start=start,
        step_minutes=step_minutes,
        truth=np.full(t, np.nan) if real is None else real,
        known=np.zeros(t, dtype=bool),
        levels=_LEVELS,
        quantiles=np.quantile(load, _LEVELS, axis=0),
        unit="RRUs",
        legend=False,
    )
    hours = np.arange(t + 1) * step_minutes / 60
    ax.step(hours, np.append(active, active[-1]), where="post", color=INK, linewidth=1.3, label="active")
    ax.axhline(installed, color=MUTED, linewidth=1.0, linestyle=":", label="installed")
    ax.set_ylim(0, 1.08 * max(installed, float(load.max()) if len(load) == 1 else float(np.quantile(load, _LEVELS[-1], axis=0).max())))
    ax.set_title(title, loc="left" if legend else "center")
    if legend:
        names = {"median": "load, median", "80%": "80% of draws", "truth": "real load", "active": "active", "installed": "installed"}
        handles = [(handle, names[str(name)]) for handle, name in zip(*ax.get_legend_handles_labels(), strict=True) if name in names]
        shown = [(handle, name) for handle, name in handles if real is not None or name != "real load"]
        ax.legend(*zip(*shown, strict=True), loc="lower left", bbox_to_anchor=(-0.02, 1.06), ncols=6, handlelength=1.3, columnspacing=0.9)


def strategy_bars(measures: Mapping[str, Mapping[str, float]], *, ours: str, alt: str, caption: str) -> Picture:
    """Bars of each measure, by its label, over the strategies."""

    def draw(*axes: Axes) -> None:
        for ax, (label, values) in zip(axes, measures.items(), strict=True):
            metric_bars(ax, list(values), list(values.values()), ours=ours, label=label)

    return picture(draw, alt=alt, caption=caption, columns=len(measures), size=(3.4 * len(measures), 2.2))
