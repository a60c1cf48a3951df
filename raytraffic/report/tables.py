"""Scores in the form of the papers' tables (UoMo, Tables 1-3): one a task and split, models down, cities across."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raytraffic.metrics.scoreboard import SCALED

__all__ = ["paper_tables"]

Row = Mapping[str, Any]
_TITLES = {"short": "Short-term prediction (Table 1)", "long": "Long-term prediction (Table 2)", "generation": "Generation (Table 3)"}
_FIGURES = {"RMSE": "rmse", "MAE": "mae", "JSD": "jsd", "CRPS": "crps"}
_WARNINGS = {
    "published": (
        "Read with care: the published split repeats the training places in another period, and Shandong's is its training series with "
        "about 1 % of noise. These figures measure memory of places, and on Shandong nothing else."
    )
}


def paper_tables(rows: Sequence[Row]) -> str:
    """Markdown of a scoreboard's rows: hidden entries of all cells on the [0, 1] scale, the best of a column bold and the second italic.

    Models stand in the order of their mean RMSE over cities. CRPS is the fair one of draws; of a rule without a distribution it is its MAE.
    """
    chosen = [row for row in rows if row["unit"] == SCALED and row["population"] == "all"]
    parts = []
    for split in dict.fromkeys(row["split"] for row in chosen):
        parts += [f"# Split: {split}", *([_WARNINGS[split]] if split in _WARNINGS else [])]
        found = {row["task"] for row in chosen if row["split"] == split}
        for task in [*(task for task in _TITLES if task in found), *sorted(found - set(_TITLES))]:
            parts += [f"## {_TITLES.get(task, task)}", _table([row for row in chosen if (row["split"], row["task"]) == (split, task)])]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    cities = sorted({row["city"] for row in rows})
    of = {(row["model"], row["city"]): row for row in rows}
    mean = {model: _mean([of[model, city]["rmse"] for city in cities if (model, city) in of]) for model, _ in of}
    models = sorted(mean, key=lambda model: mean[model])
    columns = []
    for city in cities:
        for figure in _FIGURES.values():
            values = [of[model, city][figure] if (model, city) in of else math.nan for model in models]
            columns.append(_marked(values))
    head = ["model", *(f"{city} {title}" for city in cities for title in _FIGURES)]
    lines = [head, ["---"] * len(head), *([model, *(column[i] for column in columns)] for i, model in enumerate(models))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _marked(values: Sequence[float]) -> list[str]:
    """Four digits each, the lowest bold, the second lowest italic, "-" for what there is not."""
    ranked = sorted({round(value, 4) for value in values if not math.isnan(value)})
    marks = dict(zip(ranked, ("**", "*"), strict=False))
    return ["-" if math.isnan(value) else f"{(mark := marks.get(round(value, 4), ''))}{value:.4f}{mark}" for value in values]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
