"""A training run on one page: what was trained on what, how the losses went, how fast, and what the run's folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from raytraffic.files import Location
from raytraffic.report.html import Column, Folded, Gallery, Group, Picture, Section, Table, Text, write_report
from raytraffic.report.plots import picture
from raytraffic.report.style import ACCENT, FORECAST, MUTED

__all__ = ["training_report"]

_FILES = (
    ("config.json", "the settings; the same command goes on with a run that was interrupted"),
    ("metrics.parquet", "one row every 25 steps: losses, learning rate, gradient norm, windows a second"),
    ("tensorboard/", "the same for TensorBoard"),
    ("checkpoints/", "what the run goes on from: model, optimiser and average, committed with their SHA-256"),
    ("best/", "the averaged weights with the lowest validation loss and their model card: what forecasts are made with"),
    ("last/", "the averaged weights of the last step"),
    ("ray/", "what Ray Train keeps of each launch"),
)


def training_report(
    rows: Sequence[Mapping[str, float]],
    settings: Mapping[str, Any],
    cities: Mapping[str, Mapping[str, Any]],
    out: Location,
    *,
    parameters: int,
) -> Location:
    """Write the report of a run's metric rows (`read_metrics`), settings and the cities of its store, and return where it is.

    Raises ValueError where there is no row.
    """
    if not rows:
        raise ValueError(f"{out}: no row of metrics, expected at least one")
    validated = [row for row in rows if row["validation_loss"] is not None]
    best = min(validated, key=lambda row: row["validation_loss"], default=None)
    last = rows[-1]
    told = [
        f"{settings.get('model', 'A fine-tuned model')} {settings.get('preset', '')}".strip() + f", {parameters:,} parameters, trained for "
        f"{int(last['step']):,} steps of {settings['batch']} windows on the training part of the {settings['split']} split.",
        "There was no validation part: the last model is the best one."
        if best is None or not np.isfinite(best["validation_loss"])
        else f"Lowest validation loss: {best['validation_loss']:.4f} at step {int(best['step']):,}.",
        f"{np.median([row['windows_per_second'] for row in rows]):,.0f} windows a second; "
        f"{np.mean([row['data_wait_share'] for row in rows]):.1%} of the time went by waiting for data.",
    ]
    everything = _table("", ("Setting", "Value"), [(name, str(value)) for name, value in settings.items()])
    sections = [
        Section("Summary", [Text(told, lead=True)]),
        Section("Course", [Gallery([_losses(rows), _rate(rows), _speed(rows)])]),
        Section("Data", [_cities(cities)]),
        Section("This folder", [_table("Files", ("File", "What it is"), _FILES)]),
        Section("Settings", [Folded("All settings", [everything])]),
    ]
    return write_report(out, "Training run", sections)


def _table(caption: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return Table(caption=caption, columns=[Column(name=name) for name in names], groups=[Group(label="", rows=rows)])


def _cities(cities: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for name, city in cities.items():
        periods = city["periods"].values()
        days = sum(period["steps"] * city["step_minutes"] for period in periods) / 1440
        rows.append((name, f"{city['step_minutes']} min", f"{days:.1f}", "yes" if city["has_users"] else "no"))
    return _table("Cities of the store", ("City", "Step", "Days", "Users"), rows)


def _losses(rows: Sequence[Mapping[str, float]]) -> Picture:
    steps = [row["step"] for row in rows]
    seen = [row for row in rows if row["validation_loss"] is not None]

    def draw(ax: Axes) -> None:
        ax.plot(steps, [row["loss"] for row in rows], color=MUTED, label="training")
        ax.plot([row["step"] for row in seen], [row["validation_loss"] for row in seen], "o-", color=FORECAST, label="validation")
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        ax.legend()

    return picture(draw, alt="Training and validation loss over steps", caption="Validation is with averaged weights on fixed windows.")


def _rate(rows: Sequence[Mapping[str, float]]) -> Picture:
    def draw(ax: Axes) -> None:
        ax.plot([row["step"] for row in rows], [row["gradient_norm"] for row in rows], color=ACCENT)
        ax.set_xlabel("step")
        ax.set_ylabel("gradient norm")

    return picture(draw, alt="Gradient norm over steps", caption="Norm of the gradient before it was clipped.")


def _speed(rows: Sequence[Mapping[str, float]]) -> Picture:
    def draw(ax: Axes) -> None:
        ax.plot([row["step"] for row in rows], [row["windows_per_second"] for row in rows], color=FORECAST)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("step")
        ax.set_ylabel("windows a second")

    return picture(draw, alt="Windows a second over steps", caption="Speed; a fall is a busy machine, or a launch with fewer workers.")
