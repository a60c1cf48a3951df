"""The scoreboard: scores of every model on every city, split and task, on all and on live cells, in two units."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from raytraffic.metrics.scores import ScoredForecast, Scores, score_forecast
from raytraffic.types import Forecast, TrafficBatch

__all__ = ["KEYS", "PHYSICAL", "SCALED", "Scoreboard"]

KEYS = ("model", "city", "split", "task", "population", "unit")
#: Divided by the city's reference, the papers' scale; not clipped, except in the histograms of the JSD.
SCALED = "[0,1]"
PHYSICAL = "physical"

Key = tuple[str, str, str, str, str, str]


class Scoreboard:
    """Scores keyed by (model, city, split, task, population, unit); only hidden and measured entries are scored.

    The population "live" leaves out cells (c, s) of a window whose true traffic is zero over the whole window; "all" has
    them. Rows on the [0, 1] scale exist for windows whose `context["reference"]` (b, c) is known.
    """

    def __init__(self) -> None:
        self._scores: dict[Key, Scores] = {}

    def update(self, batch: TrafficBatch, forecast: Forecast, *, model: str, cities: Sequence[str], split: str, task: str) -> None:
        """Score a forecast of a batch and add it; see `score_forecast` for `cities` and what is refused."""
        self.add(score_forecast(batch, forecast, cities), model=model, split=split, task=task)

    def add(self, scored: ScoredForecast, *, model: str, split: str, task: str) -> None:
        """Add a forecast that is scored already."""
        for i, name in enumerate(scored.cities):
            mine = scored.city == i
            for population, chosen in (("all", mine), ("live", mine & scored.entries.live)):
                part = scored.entries.select(chosen)
                for unit in (PHYSICAL, SCALED):
                    scores = Scores()
                    scores.add(part, scaled=unit == SCALED)
                    if scores.entries:
                        self._scores.setdefault((model, name, split, task, population, unit), Scores()).merge(scores)

    def merge(self, other: Scoreboard) -> None:
        """Add another part's sums; parts must not share a window."""
        for key, scores in other._scores.items():
            self._scores.setdefault(key, Scores()).merge(scores)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a key, sorted: the keys, rmse, rmse_debiased, mae, crps, energy, jsd, coverage50/80/90, entries, cells, windows."""
        return [
            dict(zip(KEYS, key, strict=True))
            | scores.result()
            | {"entries": scores.entries, "cells": scores.cells, "windows": scores.windows}
            for key, scores in sorted(self._scores.items())
        ]

    def to_json(self) -> str:
        """All sums as JSON text, from which `from_json` goes on counting."""
        return json.dumps([{"key": list(key), "scores": asdict(scores)} for key, scores in sorted(self._scores.items())])

    @classmethod
    def from_json(cls, text: str) -> Scoreboard:
        """Undo `to_json`; ValueError when the text holds no scoreboard."""
        board, items = cls(), json.loads(text)
        if not isinstance(items, list):
            raise ValueError(f"scoreboard: a JSON {type(items).__name__}, expected a list of keys with their scores")
        for item in items:
            key = item.get("key") if isinstance(item, dict) else None
            if not isinstance(key, list) or len(key) != len(KEYS) or not all(isinstance(part, str) for part in key):
                raise ValueError(f"scoreboard: key {key!r}, expected {len(KEYS)} texts {list(KEYS)}")
            model, city, split, task, population, unit = key
            board._scores[(model, city, split, task, population, unit)] = Scores.from_dict(item.get("scores"))
        return board
