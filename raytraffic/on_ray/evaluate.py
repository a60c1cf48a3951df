"""Evaluation through Ray Data: actors score a checkpoint and the simple rules on chunks of windows; sums merge to one table."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy as np
import ray.data
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from raytraffic.baselines import Baseline, gradient_boosting, ridge, rules_for
from raytraffic.checkpoint import load_forecaster
from raytraffic.config import EvaluateConfig, SplitName, to_json
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.masks import TASKS, mask, named_tasks
from raytraffic.metrics.scoreboard import SCALED, Scoreboard
from raytraffic.on_ray.cluster import connect, dataset
from raytraffic.on_ray.progress import Stage
from raytraffic.report.evaluation import evaluation_report
from raytraffic.report.examples import city_maps, forecast_examples
from raytraffic.store import open_store
from raytraffic.types import TrafficBatch
from raytraffic.windows import Selection, Windows, windows_for

__all__ = ["evaluate"]

_CHUNK = 64


def evaluate(config: EvaluateConfig) -> Location:
    """Writes scores.json, scores.csv and report.html into `out`, prints the table and returns the folder.

    Raises ValueError when the checkpoint does not fit the store, or a split has no window of a task.
    """
    out = Location.of(config.out)
    named_tasks(config.tasks)
    scorer = _Scorer(config)
    items = list(_items(config, scorer.windows))
    connect()
    fitted = _fitted(config, scorer.windows)
    board = Scoreboard()
    pool = ray.data.ActorPoolStrategy(size=min(config.workers, len(items)))
    with Stage("evaluate", sum(len(item["rows"]) for item in items)) as stage:
        scored = dataset(items).map_batches(
            _Scorer, fn_constructor_args=(config, fitted), batch_size=1, compute=pool, num_cpus=1, num_gpus=1 if config.gpu else 0
        )
        for row in scored.iter_rows():
            board.merge(Scoreboard.from_json(row["board"]))
            stage.advance(row["windows"], f"{row['split']} {row['task']}")
    rows = board.rows()
    out.child("config.json").write_bytes(json.dumps(to_json(config), indent=1).encode())
    out.child("scores.json").write_bytes(json.dumps(rows, indent=1).encode())
    out.child("scores.csv").write_bytes(_csv(rows))
    view, sampler = scorer.windows[config.splits[0]], scorer.sampler
    examples = forecast_examples(scorer.forecaster, view, config.part, named_tasks(config.tasks), sampler, config.seed)
    maps = city_maps(scorer.forecaster, view, config.part, sampler, config.seed)
    evaluation_report(rows, examples, out.child("report.html"), model=scorer.model, maps=maps, title=f"{scorer.model} on {config.store}")
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


class _Scorer:
    """Holds the model and the fitted baselines, and scores chunks."""

    def __init__(self, config: EvaluateConfig, fitted: Mapping[tuple[str, str], Sequence[Baseline]] = MappingProxyType({})) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.sampler = Sampler(config.method, config.steps, guidance=config.guidance)
        self.device = torch.device("cuda" if config.gpu else "cpu")
        self.forecaster, self.model, self.model_config = load_forecaster(config.checkpoint)
        self.forecaster.to(self.device)
        store = open_store(config.store)
        self.fitted = fitted
        self.windows = {split: windows_for(store, split, self.model_config) for split in config.splits}
        told = Selection(share=config.share, seed=config.seed)
        self.told = {split: windows_for(store, split, self.model_config, told) for split in config.splits}

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        config, task = self.config, str(item["task"][0])
        split: SplitName = item["split"][0]
        view = self.windows[split]
        rows, starts = (np.asarray(item[name][0], dtype=np.int64) for name in ("rows", "starts"))
        board = Scoreboard()
        for at in range(0, len(rows), config.batch):
            chunk = slice(at, at + config.batch)
            columns = view.cut(rows[chunk], starts[chunk])
            batch = mask(view.batch(columns).to(self.device), TASKS[task], config.seed)
            cities = [view.store.index.cities[code] for code in columns["city"]]
            seen = self._told(split, batch, rows[chunk], starts[chunk])
            forecast = self.forecaster.forecast(seen, self.sampler, config.draws, config.seed)
            batch, forecast = batch.to("cpu"), replace(forecast, draws=forecast.draws.cpu(), known=forecast.known.cpu())
            board.update(batch, forecast, model=self.model, cities=cities, split=split, task=task)
            seen = seen.to("cpu")
            for rule in (*rules_for(TASKS[task]), *self.fitted.get((split, task), ())):
                board.update(batch, rule.forecast(seen, config.draws, config.seed), model=rule.name, cities=cities, split=split, task=task)
        return {"board": [board.to_json()], "windows": [len(rows)], "split": [split], "task": [task]}

    def _told(self, split: SplitName, batch: TrafficBatch, rows: NDArray[np.int64], starts: NDArray[np.int64]) -> TrafficBatch:
        """The batch with the city statistics that models and rules are told."""
        if self.config.share == 1:
            return batch
        context = self.told[split].batch(self.told[split].cut(rows, starts)).to(batch.traffic.device).context
        return replace(batch, context={**batch.context, "profile": context["profile"], "reference": context["reference"]})


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


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
