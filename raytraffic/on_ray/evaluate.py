"""Evaluation through Ray Data: actors score a checkpoint and the simple rules on chunks of windows; sums merge to one table."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import ray.data
import torch
from rich.console import Console
from rich.table import Table

from raytraffic.baselines import rules_for
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
from raytraffic.windows import Windows, windows_for

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
    board = Scoreboard()
    pool = ray.data.ActorPoolStrategy(size=min(config.workers, len(items)))
    with Stage("evaluate", sum(len(item["rows"]) for item in items)) as stage:
        scored = dataset(items).map_batches(
            _Scorer, fn_constructor_args=(config,), batch_size=1, compute=pool, num_cpus=1, num_gpus=1 if config.gpu else 0
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


class _Scorer:
    """Holds the model and scores chunks."""

    def __init__(self, config: EvaluateConfig) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.sampler = Sampler(config.method, config.steps)
        self.device = torch.device("cuda" if config.gpu else "cpu")
        self.forecaster, self.model, self.model_config = load_forecaster(config.checkpoint)
        self.forecaster.to(self.device)
        store = open_store(config.store)
        self.windows = {split: windows_for(store, split, self.model_config) for split in config.splits}

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
            forecast = self.forecaster.forecast(batch, self.sampler, config.draws, config.seed)
            batch, forecast = batch.to("cpu"), replace(forecast, draws=forecast.draws.cpu(), known=forecast.known.cpu())
            board.update(batch, forecast, model=self.model, cities=cities, split=split, task=task)
            for rule in rules_for(TASKS[task]):
                board.update(batch, rule.forecast(batch, config.draws, config.seed), model=rule.name, cities=cities, split=split, task=task)
        return {"board": [board.to_json()], "windows": [len(rows)], "split": [split], "task": [task]}


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
