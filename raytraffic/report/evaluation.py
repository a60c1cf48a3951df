"""The evaluation report: does the model beat the baselines, by how much, and what do its forecasts look like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from raytraffic.files import Location
from raytraffic.metrics.breakdown import AXES
from raytraffic.metrics.distribution import JSD_BINS
from raytraffic.metrics.scoreboard import PHYSICAL, SCALED
from raytraffic.report.html import Beside, Column, Folded, Gallery, Group, Part, Picture, Section, Table, Text, write_report
from raytraffic.report.plots import coverage_lines, fan, heat_map, metric_bars, picture
from raytraffic.report.tables import tasks_of

__all__ = ["CityMap", "ForecastExample", "evaluation_report"]

Row = Mapping[str, Any]
_POPULATIONS = {"live": "live cells", "all": "all cells"}
_UNITS = {SCALED: "[0,1] scale", PHYSICAL: "physical units"}
#: What is read first; the others stand folded below. Dead cells flatter every score, so live ones come first.
_VIEWS = [(population, unit) for unit in _UNITS for population in _POPULATIONS]
_COLUMNS = {
    "RMSE": ("rmse", 0.0),
    "MAE": ("mae", 0.0),
    "CRPS": ("crps", 0.0),
    "energy": ("energy", 0.0),
    "JSD": ("jsd", 0.0),
    "cov80": ("coverage80", 0.8),
}
_HOW_TO_READ = (
    "Scores are over hidden entries only. RMSE takes the mean over draws, MAE the median. CRPS is the fair estimate from draws; of a rule "
    "without a distribution it is the MAE, and it has no coverage. The energy score judges a cell's whole course at once, and so "
    "whether the slots of a draw fit together; it grows with their number, so it compares within a task only. JSD compares histograms "
    f"of traffic ({JSD_BINS} bins on [0,1], base 2). cov80 is how often the truth lies in the central 80% interval: best is 0.80. "
    "Live cells leave out those without any traffic in a window. The [0,1] scale divides by the city's reference level."
)
_AXIS_LABELS = {
    "horizon": "hours since the cell's latest known slot",
    "hour": "hour of day",
    "load": "the cell's true mean traffic, [0,1] scale",
}
_MOST_LINES = 3
_FEWEST = 100  # entries of which a share has a standard error of 0.04, were they independent
_HOW_TO_READ_INTERVALS = (
    "How often the truth lies in the central 80% interval. Below 80% the intervals are too narrow there, above it they are wider than "
    "they need to be. Horizon and hour are over live cells, load over all; cities are pooled, and bins of fewer than "
    f"{_FEWEST} entries are not drawn. Load is that of the truth: where nothing is known of it, as in generation, even a calibrated "
    "forecast covers the busiest cells less often. breakdown.csv has every city, with CRPS and MAE."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ForecastExample:
    """One site's window to draw as a fan: truth, known (t,), quantiles (q, t) at `quantile_levels`, in `unit`; NaN truth = not measured."""

    city: str
    task: str
    site: str
    step_minutes: int
    start: datetime
    truth: NDArray[np.floating]
    known: NDArray[np.bool_]
    quantile_levels: Sequence[float]
    quantiles: NDArray[np.floating]
    unit: str

    def __post_init__(self) -> None:
        t = len(self.truth)
        expected = {"truth": (t,), "known": (t,), "quantiles": (len(self.quantile_levels), t)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"example {self.site!r}: {name} of shape {getattr(self, name).shape}, expected {shape}")


@dataclass(frozen=True, kw_only=True, eq=False)
class CityMap:
    """A city at one time: forecast (h, w) and, where it is known, truth (h, w), in `unit`; NaN = no cell there."""

    city: str
    time: datetime
    forecast: NDArray[np.floating]
    truth: NDArray[np.floating] | None
    unit: str

    def __post_init__(self) -> None:
        if self.forecast.ndim != 2 or (self.truth is not None and self.truth.shape != self.forecast.shape):
            truth = None if self.truth is None else self.truth.shape
            raise ValueError(f"map of {self.city!r}: forecast {self.forecast.shape}, truth {truth}, expected the same (h, w)")


def evaluation_report(
    rows: Sequence[Row],
    examples: Sequence[ForecastExample],
    out: str | Path | Location,
    *,
    model: str,
    breakdown: Sequence[Row] = (),
    maps: Sequence[CityMap] = (),
    title: str = "Evaluation",
) -> Location:
    """Write the report of `Scoreboard.rows()` on how `model` compares with every other model of them, and return where it is.

    `breakdown` are the `Breakdown.rows()` of the same forecasts: where the model's intervals hold, if it has any.
    Raises ValueError when the rows hold no score of `model`.
    """
    if not any(row["model"] == model for row in rows):
        raise ValueError(f"model: {model!r} has no row, expected one of {sorted({row['model'] for row in rows})}")
    present = {(row["population"], row["unit"]) for row in rows}
    views = [view for view in _VIEWS if view in present]
    sections = [Section("Summary", _summary(rows, model, views[0]))]
    splits = dict.fromkeys(row["split"] for row in rows)
    settings = [(split, task) for split in splits for task in tasks_of([row for row in rows if row["split"] == split])]
    for split, task in settings:
        chosen = [row for row in rows if (row["split"], row["task"]) == (split, task)]
        sections.append(Section(f"{task}, {split} split", _scores(chosen, model, views)))
    intervals = _intervals(breakdown, model, settings)
    if intervals:
        sections.append(Section("Where the intervals hold", [Text([_HOW_TO_READ_INTERVALS]), Gallery(intervals, wide=True)]))
    if examples:
        sections.append(Section("Forecasts", [Gallery([_fan(example) for example in examples])]))
    if maps:
        sections.append(Section("City maps", [Gallery([_map(city) for city in maps])]))
    return write_report(out, title, sections)


def _select(rows: Sequence[Row], view: tuple[str, str]) -> list[Row]:
    return [row for row in rows if (row["population"], row["unit"]) == view]


def _summary(rows: Sequence[Row], model: str, view: tuple[str, str]) -> list[Part]:
    chosen = _select(rows, view)
    places = {(row["model"], row["city"], row["split"], row["task"]): float(row["crps"]) for row in chosen}
    ours = {place[1:]: value for place, value in places.items() if place[0] == model}
    lines = []
    for rival in sorted({row["model"] for row in chosen} - {model}):
        pairs = [(value, places[(rival, *place)]) for place, value in ours.items() if (rival, *place) in places]
        wins = sum(mine < theirs for mine, theirs in pairs)
        logs = [math.log(mine / theirs) for mine, theirs in pairs if mine > 0 and theirs > 0]
        lines.append((rival, wins, len(pairs), 1 - math.exp(sum(logs) / len(logs)) if logs else math.nan))
    where = f"{_POPULATIONS[view[0]]}, {_UNITS[view[1]]}"
    if not lines:
        return [Text([f"{model} stands alone in this report: there is no baseline to compare it with."], lead=True), Text([_HOW_TO_READ])]
    lines.sort(key=lambda line: line[3] if math.isfinite(line[3]) else math.inf)
    table = Table(
        caption=f"{model} against the others ({where}), the hardest first; CRPS saved is a geometric mean over cities, splits and tasks",
        columns=[Column(name=name) for name in ("rival", "beaten in", "CRPS saved")],
        groups=[Group(label="", rows=[(rival, f"{wins} of {of}", _percent(saved)) for rival, wins, of, saved in lines])],
    )
    losses = [
        (city, split, task, name)
        for (name, city, split, task), crps in places.items()
        if name != model and crps <= ours.get((city, split, task), -math.inf)
    ]
    return [Text(_verdict(model, lines, losses, where), lead=True), table, Text([_HOW_TO_READ])]


def _verdict(
    model: str, lines: Sequence[tuple[str, int, int, float]], losses: Sequence[tuple[str, str, str, str]], where: str
) -> list[str]:
    """One sentence on whether the model wins and by how much, and, where it loses, one that says to whom."""
    hardest, wins, of, saved = lines[0]
    beaten = sum(line[1] == line[2] for line in lines)
    margin = f"{abs(saved):.0%} {'lower' if saved >= 0 else 'higher'}" if math.isfinite(saved) else "not comparable"
    first = (
        f"{model} has a lower CRPS than {'all' if beaten == len(lines) else f'{beaten} of'} {len(lines)} other models in every city, "
        f"split and task ({where}). Its hardest rival is {hardest}: beaten in {wins} of {of}, and {model}'s CRPS is on average {margin}."
    )
    if not losses:
        return [first]
    named = [f"{city}, {task}, {split} split ({name})" for city, split, task, name in losses[:6]]
    more = f", and {len(losses) - 6} more" if len(losses) > 6 else ""
    return [first, f"It does not win: {'; '.join(named)}{more}."]


def _percent(saved: float) -> str:
    return f"{saved:+.1%}" if math.isfinite(saved) else "–"


def _scores(rows: Sequence[Row], model: str, views: Sequence[tuple[str, str]]) -> list[Part]:
    tables = [_table(_select(rows, view), model, view) for view in views]
    bars = [_bars(_select(rows, views[0]), model, city, views[0]) for city in _cities(_select(rows, views[0]))]
    parts: list[Part] = [Beside([tables[0], Gallery(bars)])]
    if len(tables) > 1:
        others = " / ".join(f"{_POPULATIONS[population]}, {_UNITS[unit]}" for population, unit in views[1:])
        parts.append(Folded(f"The same on {others}", tables[1:]))
    return parts


def _cities(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["city"] for row in rows))


def _table(rows: Sequence[Row], model: str, view: tuple[str, str]) -> Table:
    groups = []
    for city in _cities(rows):
        mine = sorted((row for row in rows if row["city"] == city), key=lambda row: (row["crps"], row["model"]))
        label = f"{city}: {mine[0]['windows']:,} windows, {mine[0]['entries']:,} entries"
        groups.append(Group(label=label, rows=[(row["model"], *(float(row[key]) for key, _ in _COLUMNS.values())) for row in mine]))
    return Table(
        caption=f"{_POPULATIONS[view[0]]}, {_UNITS[view[1]]}; the best of each city in bold",
        columns=[Column(name="model"), *(Column(name=name, target=target) for name, (_, target) in _COLUMNS.items())],
        groups=groups,
        ours=model,
    )


def _bars(rows: Sequence[Row], model: str, city: str, view: tuple[str, str]) -> Picture:
    names = [row["model"] for row in rows if row["city"] == city]
    values = [float(row["crps"]) for row in rows if row["city"] == city]
    listed = ", ".join(f"{name} {value:.3g}" for value, name in sorted(zip(values, names, strict=True)))
    return picture(
        partial(metric_bars, names=names, values=values, ours=model, label=f"CRPS, {_UNITS[view[1]]} (lower is better)"),
        alt=f"Bars of the CRPS in {city}: {listed}.",
        caption=f"{city}: CRPS on {_POPULATIONS[view[0]]}",
    )


def _intervals(rows: Sequence[Row], model: str, settings: Sequence[tuple[str, str]]) -> list[Picture]:
    """A picture for each split and task in which the model's draws span the 80 % interval."""
    spanned = [row for row in rows if math.isfinite(row["coverage80"])]
    found = {setting: [row for row in spanned if (row["split"], row["task"]) == setting] for setting in settings}
    return [
        _coverage(chosen, model, f"{task}, {split} split")
        for (split, task), chosen in found.items()
        if math.isfinite(_pooled(chosen, "coverage80", model, "horizon"))
    ]


def _coverage(rows: Sequence[Row], model: str, where: str) -> Picture:
    """The model's coverage over every axis, beside that of the rivals whose CRPS is lowest."""
    crps = {name: _pooled(rows, "crps", name, "horizon") for name in sorted({row["model"] for row in rows})}
    rivals = sorted(crps.keys() - {model}, key=lambda name: (crps[name] if math.isfinite(crps[name]) else math.inf, name))
    names = [model, *rivals][:_MOST_LINES]
    lines = {
        axis: {name: [_pooled(rows, "coverage80", name, axis, place) for place in places] for name in names}
        for axis, places in AXES.items()
    }
    drawn = [value for panel in lines.values() for values in panel.values() for value in values if math.isfinite(value)]
    bottom = min(0.6, math.floor(10 * min(drawn, default=1.0)) / 10)

    def draw(*axes: Axes) -> None:
        for ax, (axis, panel) in zip(axes, lines.items(), strict=True):
            kept = [i for i in range(len(AXES[axis])) if axis == "hour" or any(math.isfinite(values[i]) for values in panel.values())]
            chosen = {name: [values[i] for i in kept] for name, values in panel.items()}
            coverage_lines(ax, [AXES[axis][i] for i in kept], chosen, level=0.8, bottom=bottom, label=_AXIS_LABELS[axis])
        axes[0].set_ylabel("80% interval covers")
        handles, labels = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=_MOST_LINES + 1)

    overall = "; ".join(f"{name} {_pooled(rows, 'coverage80', name, 'horizon'):.2f}" for name in names)
    return picture(
        draw,
        alt=f"Lines of the coverage of the 80% interval over horizon, hour of day and load ({where}); over all live cells: {overall}.",
        caption=f"{where}: coverage of the 80% interval over horizon, hour of day and load",
        columns=len(lines),
        size=(11.4, 2.7),
    )


def _pooled(rows: Sequence[Row], figure: str, model: str, axis: str, place: str | None = None) -> float:
    """A figure's mean over the entries of all cities in one bin of an axis or in all of them; NaN where there are too few."""
    mine = [row for row in rows if (row["model"], row["axis"]) == (model, axis) and place in (None, row["bin"])]
    chosen = [row for row in mine if math.isfinite(row[figure])]
    entries = sum(row["entries"] for row in chosen)
    return sum(row[figure] * row["entries"] for row in chosen) / entries if entries >= _FEWEST else math.nan


def _fan(example: ForecastExample) -> Picture:
    hidden = int((~example.known).sum())
    return picture(
        partial(
            fan,
            start=example.start,
            step_minutes=example.step_minutes,
            truth=example.truth,
            known=example.known,
            levels=example.quantile_levels,
            quantiles=example.quantiles,
            unit=example.unit,
        ),
        alt=f"Forecast of {hidden} hidden slots of {example.step_minutes} minutes at {example.site} in {example.city}, with the truth.",
        caption=f"{example.city}, {example.task}, {example.site}, from {example.start:%d %b %Y, %H:%M}",
    )


def _map(city: CityMap) -> Picture:
    both = [city.forecast] if city.truth is None else [city.forecast, city.truth]
    finite = np.concatenate([values[np.isfinite(values)] for values in both])
    top = float(finite.max()) if finite.size else 1.0

    def draw(*axes: Axes) -> None:
        for i, (ax, values, name) in enumerate(zip(axes, both, ("forecast", "truth"), strict=False)):
            heat_map(ax, values, title=name, unit=city.unit, top=top, bar=i == len(both) - 1)

    return picture(
        draw,
        alt=f"Heat map of {city.city}: forecast{' beside truth' if city.truth is not None else ''}, up to {top:.3g} {city.unit}.",
        caption=f"{city.city}, {city.time:%d %b %Y, %H:%M} (square-root colour scale)",
        columns=len(both),
    )
