"""What a trained model is worth on windows that it was not trained on: its loss at fixed noise, and scores of its forecasts.

Two domains: `in`, the test part of the cities that were trained on, and `out`, that of cities that were held out. A held-out city's
windows come without anything measured in it beforehand; scores are on the scale of its whole training part, as in an evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster
from raytraffic.masks import TASKS, mask, mixture, named_tasks
from raytraffic.metrics.scoreboard import SCALED, Scoreboard
from raytraffic.randomness import derive
from raytraffic.types import TrafficBatch
from raytraffic.windows import Windows

__all__ = ["FIGURES", "Heldout", "fixed_loss"]

#: Figures of every domain and task.
FIGURES = ("crps", "rmse", "mae", "jsd")
_CHUNK = 32
_NOISES = 4


class Mixture(Protocol):
    """The tasks of a training run and their weights."""

    @property
    def tasks(self) -> tuple[str, ...]: ...

    @property
    def weights(self) -> tuple[float, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Heldout:
    """How models are scored: on at most `windows` windows a task and domain, with the same masks, noise and seeds for every model."""

    tasks: tuple[str, ...]
    windows: int
    draws: int
    sampler_steps: int
    cities: tuple[tuple[str, tuple[str, ...]], ...]
    """(domain, its cities)."""

    def figures(self, model: Forecaster, told: Windows, whole: Windows, mixed: Mixture) -> dict[str, float]:
        """`<domain>_loss`, over the mixture of tasks that was trained on, and `<domain>_<task>_<figure>` (rmse debiased) on [0, 1].

        The model is told the statistics of `told`; those of `whole` are the scale. A domain without windows has no figures.
        """
        found: dict[str, float] = {}
        for domain, cities in self.cities:
            rows, starts = self._chosen(whole, "generation", cities)
            if len(rows):
                found[f"{domain}_loss"] = self._loss(model, told, rows, starts, mixed)
            for task in self.tasks:
                found |= {f"{domain}_{task}_{name}": value for name, value in self._scores(model, told, whole, task, cities).items()}
        return found

    def _chosen(self, windows: Windows, task: str, cities: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and starts of evenly spaced windows of these cities' test part."""
        rows, starts = windows.evaluation("test", TASKS[task])
        index = windows.store.index
        mine = np.flatnonzero(np.isin(index.city[rows], [index.cities.index(city) for city in cities]))
        if not len(mine):
            return rows[mine], starts[mine]
        chosen = mine[np.unique(np.linspace(0, len(mine) - 1, self.windows).round().astype(np.int64))]
        return rows[chosen], starts[chosen]

    def _loss(self, model: Forecaster, told: Windows, rows: NDArray[np.int64], starts: NDArray[np.int64], mixed: Mixture) -> float:
        total = 0.0
        for chunk in _chunks(len(rows)):
            batch = told.batch(told.cut(rows[chunk], starts[chunk])).to(_device(model))
            total += float(fixed_loss(model, mixture(batch, named_tasks(mixed.tasks), mixed.weights, seed=-1)).sum())
        return total / len(rows)

    def _scores(self, model: Forecaster, told: Windows, whole: Windows, task: str, cities: Sequence[str]) -> dict[str, float]:
        rows, starts = self._chosen(whole, task, cities)
        board = Scoreboard()
        for chunk in _chunks(len(rows)):

            def batch_of(view: Windows, chunk: slice = chunk) -> TrafficBatch:
                return mask(view.batch(view.cut(rows[chunk], starts[chunk])), TASKS[task], seed=0)

            forecast = model.forecast(batch_of(told).to(_device(model)), Sampler("dpm++", self.sampler_steps), self.draws, seed=0)
            forecast = replace(forecast, draws=forecast.draws.cpu(), known=forecast.known.cpu())
            truth = batch_of(whole)
            board.update(truth, forecast, model="", cities=[""] * len(truth.key), split="", task=task)
        for row in board.rows():
            if row["unit"] == SCALED and row["population"] == "all":
                return {"rmse": row["rmse_debiased"], **{name: row[name] for name in FIGURES if name != "rmse"}}
        return {}


@torch.no_grad()
def fixed_loss(model: Any, batch: TrafficBatch) -> torch.Tensor:
    """(b,) the objective of a masked batch, the mean over a few noise levels and noises that hang on the windows' keys alone."""
    losses = [model(batch, derive(batch.key, i))["each"] for i in range(_NOISES)]
    return torch.stack(losses).mean(0)


def _chunks(count: int) -> Iterator[slice]:
    for at in range(0, count, _CHUNK):
        yield slice(at, min(at + _CHUNK, count))


def _device(model: Forecaster) -> torch.device:
    return next(model.parameters()).device
