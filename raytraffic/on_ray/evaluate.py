"""Evaluation through Ray Data: actors score a checkpoint and the simple rules on chunks of windows; sums merge to one table."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy as np
import ray.data
import torch
from rich.console import Console
from rich.table import Table

from raytraffic.baselines import Baseline, gradient_boosting, ridge, rules_for
from raytraffic.checkpoint import load_forecaster
from raytraffic.config import EvaluateConfig, SplitName, to_json
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.forecaster import Forecaster
from raytraffic.masks import TASKS, mask, named_tasks
from raytraffic.metrics.breakdown import BREAKDOWN_COLUMNS, Breakdown
from raytraffic.metrics.scoreboard import SCALED, Scoreboard
from raytraffic.metrics.scores import score_forecast
from raytraffic.on_ray.cluster import connect, dataset
from raytraffic.on_ray.progress import Stage
from raytraffic.report.evaluation import evaluation_report
from raytraffic.report.examples import city_maps, forecast_examples
from raytraffic.report.tables import paper_tables
from raytraffic.store import open_store
from raytraffic.types import Forecast, TrafficBatch
from raytraffic.windows import Selection, Windows, windows_for

__all__ = ["evaluate"]

_CHUNK = 64


def evaluate(config: EvaluateConfig) -> Location:
    """Writes scores and breakdown (.json, .csv), tables.md and report.html into `out`, prints the table and returns the folder.

    Raises ValueError when the checkpoint does not fit the store, or a split has no window of a task.
    """
    out = Location.of(config.out)
    named_tasks(config.tasks)
    scorer = _Scorer(config)
    items = list(_items(config, scorer.windows))
    connect()
    fitted = _fitted(config, scorer.windows)
    board, breakdown = Scoreboard(), Breakdown()
    pool = ray.data.ActorPoolStrategy(size=min(config.workers, len(items)))
    with Stage("evaluate", sum(len(item["rows"]) for item in items)) as stage:
        scored = dataset(items).map_batches(
            _Scorer, fn_constructor_args=(config, fitted), batch_size=1, compute=pool, num_cpus=1, num_gpus=1 if config.gpu else 0
        )
        for row in scored.iter_rows():
            board.merge(Scoreboard.from_json(row["board"]))
            breakdown.merge(Breakdown.from_json(row["breakdown"]))
            stage.advance(row["windows"], f"{row['split']} {row['task']}")
    rows, parts = board.rows(), breakdown.rows()
    out.child("config.json").write_bytes(json.dumps(to_json(config), indent=1).encode())
    for name, table, columns in (("scores", rows, list(rows[0])), ("breakdown", parts, BREAKDOWN_COLUMNS)):
        out.child(f"{name}.json").write_bytes(json.dumps(table, indent=1).encode())
        out.child(f"{name}.csv").write_bytes(_csv(table, columns))
    out.child("tables.md").write_bytes(paper_tables(rows).encode())
    model, view, sampler = scorer.model, scorer.windows[config.splits[0]], Sampler(config.method, config.steps)
    examples = forecast_examples(model.forecaster, view, config.part, named_tasks(config.tasks), sampler, config.seed)
    maps = city_maps(model.forecaster, view, config.part, sampler, config.seed)
    title = f"{model.name} on {config.store}"
    evaluation_report(rows, examples, out.child("report.html"), model=model.name, breakdown=parts, maps=maps, title=title)
    show(rows)
    return out


def _items(config: EvaluateConfig, windows: Mapping[SplitName, Windows]) -> Iterator[dict[str, Any]]:
    """Chunks of windows, the whole evaluation in a fixed order."""
    for split, view in windows.items():
        for name in config.tasks:
            rows, starts = view.evaluation(config.part, TASKS[name], config.stride)
            if not len(rows):
                raise ValueError(f"split {split!r}, task {name!r}: no {config.part} window, expected at least one; prepare longer series")
            for at in range(0, len(rows), _CHUNK):
                chunk = slice(at, at + _CHUNK)
                yield {"split": split, "task": name, "rows": rows[chunk].tolist(), "starts": starts[chunk].tolist()}


def _fitted(config: EvaluateConfig, windows: Mapping[SplitName, Windows]) -> dict[tuple[str, str], list[Baseline]]:
    """(split, task) -> its fitted baselines, each fitted in a task of its own."""
    wanted = [
        (split, task, kind)
        for split in config.splits
        for task in config.tasks
        for kind in config.fitted
        if kind != "lightgbm" or TASKS[task].kind == "temporal"
    ]
    running = [_fit.remote(windows[split], task, kind, config.seed) for split, task, kind in wanted]
    found: dict[tuple[str, str], list[Baseline]] = {}
    with Stage("fit baselines", len(wanted)) as stage:
        for (split, task, kind), reference in zip(wanted, running, strict=True):
            found.setdefault((split, task), []).append(ray.get(reference))
            stage.advance(1, f"{kind}, {split} {task}")
    return found


@ray.remote(num_cpus=1)
def _fit(windows: Windows, task: str, kind: str, seed: int) -> Baseline:
    """A baseline fitted on one pool of the training order, masked by the task."""
    torch.set_num_threads(1)
    rows, starts = next(windows.training(seed).pools()).samples()
    chunks = (slice(at, at + _CHUNK) for at in range(0, len(rows), _CHUNK))
    batches = (mask(windows.batch(windows.cut(rows[chunk], starts[chunk])), TASKS[task], seed) for chunk in chunks)
    return ridge.fit(batches) if kind == "ridge" else gradient_boosting.fit(batches)


@dataclass(frozen=True)
class _Model:
    """A checkpoint with the windows it takes and the city statistics it is told."""

    forecaster: Forecaster
    name: str
    windows: Mapping[SplitName, Windows]
    told: Mapping[SplitName, Windows]

    @classmethod
    def load(cls, folder: str, config: EvaluateConfig, device: torch.device) -> _Model:
        """The model of a folder on a device."""
        forecaster, name, model_config = load_forecaster(folder)
        store = open_store(config.store)
        told = Selection(share=config.share, seed=config.seed)
        windows = {split: windows_for(store, split, model_config) for split in config.splits}
        seen = windows if config.share == 1 else {split: windows_for(store, split, model_config, told) for split in config.splits}
        return cls(forecaster.to(device), name, windows, seen)

    def forecast(self, batch: TrafficBatch, config: EvaluateConfig) -> Forecast:
        """The forecast of a batch, brought to the CPU."""
        if config.expect_users and "users" in batch.context:
            batch = replace(batch, context={**batch.context, "expected_users": batch.context["users"]})
        sampler = Sampler(config.method, config.steps, guidance=config.guidance)
        forecast = self.forecaster.forecast(batch, sampler, config.draws, config.seed)
        return replace(forecast, draws=forecast.draws.cpu(), known=forecast.known.cpu())


class _Scorer:
    """Holds the models and the fitted baselines, and scores chunks."""

    def __init__(self, config: EvaluateConfig, fitted: Mapping[tuple[str, str], Sequence[Baseline]] = MappingProxyType({})) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.device = torch.device("cuda" if config.gpu else "cpu")
        self.model = _Model.load(config.checkpoint, config, self.device)
        named = (other.partition("=") for other in config.beside)
        self.models = {self.model.name: self.model} | {name: _Model.load(folder, config, self.device) for name, _, folder in named}
        self.fitted = fitted
        self.windows = self.model.windows

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        config, task = self.config, str(item["task"][0])
        split: SplitName = item["split"][0]
        rows, starts = (np.asarray(item[name][0], dtype=np.int64) for name in ("rows", "starts"))
        board, breakdown = Scoreboard(), Breakdown()
        for at in range(0, len(rows), config.batch):
            chunk = slice(at, at + config.batch)

            def batch_of(view: Windows, chunk: slice = chunk) -> TrafficBatch:
                return mask(view.batch(view.cut(rows[chunk], starts[chunk])), TASKS[task], config.seed)

            index = self.windows[split].store.index
            cities = [index.cities[code] for code in index.city[rows[chunk]]]
            # Scores are on the scale of the whole training part, whatever the models are told of it.
            truth = batch_of(self.windows[split])
            for name, forecast in self._forecasts(batch_of, split, task):
                scored = score_forecast(truth, forecast, cities)
                board.add(scored, model=name, split=split, task=task)
                breakdown.add(scored, model=name, split=split, task=task)
        sums = {"board": [board.to_json()], "breakdown": [breakdown.to_json()]}
        return sums | {"windows": [len(rows)], "split": [split], "task": [task]}

    def _forecasts(self, batch_of: Callable[[Windows], TrafficBatch], split: SplitName, task: str) -> Iterator[tuple[str, Forecast]]:
        """Every model's and every rule's forecast of a batch, which `batch_of` cuts from the windows that each is told of."""
        for name, model in self.models.items():
            yield name, model.forecast(batch_of(model.told[split]).to(self.device), self.config)
        seen = batch_of(self.model.told[split])
        for rule in (*rules_for(TASKS[task]), *self.fitted.get((split, task), ())):
            yield rule.name, rule.forecast(seen, self.config.draws, self.config.seed)


def show(rows: list[dict[str, Any]]) -> None:
    """Prints one block a (split, task, city), best CRPS first: live cells, on the papers' [0, 1] scale."""
    table = Table(title="hidden entries of live cells, [0, 1] scale", title_justify="left")
    for name in ("split", "task", "city", "model"):
        table.add_column(name)
    for name in ("RMSE", "MAE", "CRPS", "JSD", "80 % covers"):
        table.add_column(name, justify="right")
    shown = [row for row in rows if row["unit"] == SCALED and row["population"] == "live"]
    for block, found in groupby(sorted(shown, key=_block), key=_block):
        for row in sorted(found, key=lambda row: row["crps"]):
            numbers = [f"{row[name]:.4f}" for name in ("rmse", "mae", "crps", "jsd")]
            covers = "" if math.isnan(row["coverage80"]) else f"{row['coverage80']:.2f}"
            table.add_row(*block, row["model"], *numbers, covers)
        table.add_section()
    Console(width=120).print(table)


def _block(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["split"], row["task"], row["city"]


def _csv(rows: list[dict[str, Any]], columns: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
