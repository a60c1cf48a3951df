"""Scores in the form of the papers' tables (UoMo, Tables 1-3): one a task and split, models down, cities across; tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raytraffic.metrics.scoreboard import SCALED
from raytraffic.report.html import Cell, Column, Group, Table

__all__ = ["DECIMALS", "WARNINGS", "Row", "error_column", "markdown_table", "mean", "paper_rows", "paper_tables", "task_tables", "tasks_of"]

Row = Mapping[str, Any]
_TITLES = {"short": "Short-term prediction (Table 1)", "long": "Long-term prediction (Table 2)", "generation": "Generation (Table 3)"}
_FIGURES = {"RMSE": "rmse", "MAE": "mae", "JSD": "jsd", "CRPS": "crps"}
#: What has to be said with the figures of a split.
WARNINGS = {
    "published": (
        "Read with care: the published split repeats the training places in another period, and Shandong's is its training series with "
        "about 1 % of noise. These figures measure memory of places, and on Shandong nothing else."
    )
}


#: Digits of an error on the [0, 1] scale, as in the papers.
DECIMALS = 4


def paper_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that the papers' tables show: hidden entries of all cells on the [0, 1] scale."""
    return [row for row in rows if row["unit"] == SCALED and row["population"] == "all"]


def paper_tables(rows: Sequence[Row]) -> str:
    """Markdown of a scoreboard's rows: hidden entries of all cells on the [0, 1] scale, the best of a column bold and the second italic.

    Models stand in the order of their mean RMSE over cities. CRPS is the fair one of draws; of a rule without a distribution it is its MAE.
    """
    parts = []
    for split, tables in task_tables(rows).items():
        parts += [f"# Split: {split}", *([WARNINGS[split]] if split in WARNINGS else [])]
        for table in tables:
            parts += [f"## {table.caption}", markdown_table(table)]
    return "\n\n".join(parts) + "\n"


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """The tasks of some rows, those of the papers' tables first and in their order."""
    there = {row["task"] for row in rows}
    return [*(task for task in _TITLES if task in there), *sorted(there - set(_TITLES))]


def error_column(name: str) -> Column:
    """A column of errors, the lowest emphasised."""
    return Column(name=name, target=0.0, decimals=DECIMALS)


def task_tables(rows: Sequence[Row], ours: str = "") -> dict[str, list[Table]]:
    """Tables 1-3 of a scoreboard's rows, split by split, the models `ours` set apart."""
    chosen = paper_rows(rows)
    found = {}
    for split in dict.fromkeys(row["split"] for row in chosen):
        here = [row for row in chosen if row["split"] == split]
        found[split] = [_table([row for row in here if row["task"] == task], _TITLES.get(task, task), ours) for task in tasks_of(here)]
    return found


def _table(rows: Sequence[Row], caption: str, ours: str) -> Table:
    cities = sorted({row["city"] for row in rows})
    of = {(row["model"], row["city"]): row for row in rows}
    means = {model: mean([of[model, city]["rmse"] for city in cities if (model, city) in of]) for model, _ in of}
    models = sorted(means, key=lambda model: means[model])
    columns = [(city, title, figure) for city in cities for title, figure in _FIGURES.items()]
    lines = [(model, *(of[model, city][figure] if (model, city) in of else math.nan for city, _, figure in columns)) for model in models]
    return Table(
        caption=caption,
        columns=[Column(name="model"), *(error_column(f"{city} {title}") for city, title, _ in columns)],
        groups=[Group(label="", rows=lines)],
        ours=ours,
    )


def markdown_table(table: Table) -> str:
    """A table as Markdown, one a group under its label: four digits, the best bold, the second italic, "-" for what there is not."""
    head = [column.name for column in table.columns]
    parts = []
    for group in table.groups:
        columns = [_marked([row[j] for row in group.rows], column.target) for j, column in enumerate(table.columns)]
        lines = [head, ["---"] * len(head), *([column[i] for column in columns] for i in range(len(group.rows)))]
        parts += [f"**{group.label}**"] if group.label else []
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts)


def _marked(values: Sequence[Cell], target: float | None) -> list[str]:
    """The cells of a column; floats nearest to the target (of equal four digits, equally near) are bold, the second nearest italic."""
    ranked = [None if target is None or isinstance(value, str) else abs(round(value - target, DECIMALS)) for value in values]
    order = sorted({rank for rank in ranked if rank is not None and not math.isnan(rank)})
    marks: dict[float | None, str] = dict(zip(order, ("**", "*"), strict=False))
    return [_cell(value, marks.get(rank, "")) for value, rank in zip(values, ranked, strict=True)]


def _cell(value: Cell, mark: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{mark}{value:,}{mark}"
    return "-" if math.isnan(value) else f"{mark}{value:.{DECIMALS}f}{mark}"


def mean(values: Sequence[float]) -> float:
    """The mean, NaN of nothing."""
    return sum(values) / len(values) if values else math.nan
