"""Pictures of a scaling study as PNG: a figure over model size or data, a line an amount of data or a size (UoMo, Figure 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from raytraffic.report.figures import CURVES, legend, png
from raytraffic.report.style import INK, MUTED, PLOT

__all__ = ["Panel", "scaling_curves"]

_PANEL = (3.1, 2.5)  # inches


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Runs by line: (x, y) of each; `law` gives the fitted curve of a line over x, where one was fitted."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    laws: Mapping[str, Callable[[np.ndarray], np.ndarray]]


def scaling_curves(rows: Sequence[Sequence[Panel]], *, x_label: str, y_label: str) -> bytes:
    """Panels in rows; runs are points, the means of the same x are joined, fitted laws are dashed beyond the runs by a factor of two."""
    with mpl.rc_context(PLOT):
        columns = max(len(row) for row in rows)
        figure = Figure(figsize=(_PANEL[0] * columns, 0.4 + _PANEL[1] * len(rows)), layout="compressed")
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for line, panels in zip(axes, rows, strict=True):
            for ax in line[len(panels) :]:
                ax.set_axis_off()
            for ax, panel in zip(line, panels, strict=False):
                _draw(ax, panel)
                ax.set_xlabel(x_label)
            line[0].set_ylabel(y_label)
        legend(figure)
        return png(figure)


def _draw(ax: Axes, panel: Panel) -> None:
    for i, (name, runs) in enumerate(panel.lines.items()):
        colour, marker = CURVES[i % len(CURVES)]
        x, y = (np.array(values, dtype=float) for values in zip(*runs, strict=True))
        places = np.unique(x)
        ax.plot(x, y, marker, color=colour, markersize=3, alpha=0.45)
        ax.plot(
            places, [math.exp(np.log(y[x == place]).mean()) for place in places], color=colour, marker=marker, markersize=4.5, label=name
        )
        if name in panel.laws:
            wide = np.geomspace(places[0] / 1.2, places[-1] * 2, 60)
            ax.plot(wide, panel.laws[name](wide), color=colour, linestyle=(0, (3, 2)), linewidth=1.0)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.tick_params(axis="x", labelrotation=45)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_title(panel.title, color=INK)
    ax.tick_params(colors=MUTED, labelcolor=INK)
