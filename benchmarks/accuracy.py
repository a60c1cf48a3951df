"""Accuracy on cities of npz series, from scratch: prepare, train the default mode, score it beside simple rules and fitted baselines.

python benchmarks/accuracy.py --data DIR [--train "*_train.npz"] [--eval "*_val.npz"] [--minutes 40] [--json figures.json]

By place: every place of the evaluated files is left out of training. For each city and task, over hidden entries of all cells on the
[0, 1] scale: `<city>_<task>_crps_ratio` and `_rmse_ratio` (of the debiased RMSE, raytraffic.metrics.scores) over the best simple row
(persistence, mean of the known, same slot yesterday and last week, profile x level, neighbour mean and median, zero, ridge blend:
CRPS = MAE; profile + Gaussian), `<city>_<task>_vs_lightgbm` the CRPS over LightGBM's, `<city>_<task>_coverage80` of live cells.
"""

from __future__ import annotations

import fnmatch
import json as json_module
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro
from measure import write_figures

from raytraffic.config import EvaluateConfig, PrepareConfig, TrainConfig
from raytraffic.metrics.scoreboard import SCALED
from raytraffic.on_ray import train as training
from raytraffic.on_ray.budget import steps_within
from raytraffic.on_ray.evaluate import evaluate
from raytraffic.on_ray.prepare import prepare

_LIGHTGBM = "gradient boosting"


def main(
    data: Path,
    train: str = "*_train.npz",
    eval: str = "*_val.npz",
    minutes: float = 40.0,
    preset: str = "small",
    draws: int = 32,
    steps: int = 10,
    stride: int = 1,
    out: Path | None = None,
    json: Path | None = None,
    quick: bool = False,
) -> None:
    """Measure accuracy on cities of npz series.

    Args:
        data: Folder of npz series as `series:` sources have them.
        train: Files trained on; the city's name is what the asterisk stands for.
        eval: Files evaluated; their places are left out of training.
        minutes: CPU minutes of training, on one thread of one worker.
        preset: The model that is trained.
        draws: Draws of every forecast.
        steps: Sampler steps.
        stride: Every n-th window is evaluated.
        out: Where store, run and evaluation are kept; a temporary folder if not given.
        json: Where the figures are written.
        quick: A tiny model and few steps: shows that it runs, measures nothing.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if out is None else out
        staged = stage(data, {"train": train, "val": eval}, folder / "series")
        store = str(folder / "store")
        prepare(PrepareConfig(sources=(f"series:{staged}",), out=store))
        settings = TrainConfig(store=store, out=str(folder / "run"), split="place", preset="tiny" if quick else preset)
        count = 20 if quick else steps_within(settings, minutes)
        best = training.train(replace(settings, steps=count, validate_every=min(count, 500)))
        config = EvaluateConfig(
            checkpoint=str(best),
            store=store,
            out=str(folder / "evaluation"),
            splits=("place",),
            fitted=("ridge",) if quick else ("ridge", "lightgbm"),
            draws=draws,
            steps=steps,
            stride=stride,
        )
        evaluate(config)
        rows = json_module.loads((folder / "evaluation" / "scores.json").read_text())
        write_figures(figures(rows, "uomo") | {"training_steps": float(count)}, json)


def stage(data: Path, patterns: dict[str, str], folder: Path) -> Path:
    """A folder of links `<city>_<period>.npz` to the files of `data` that match each period's pattern; ValueError where none does."""
    folder.mkdir(parents=True, exist_ok=True)
    for period, pattern in patterns.items():
        before, _, after = pattern.partition("*")
        found = [path for path in sorted(data.iterdir()) if fnmatch.fnmatchcase(path.name, pattern)]
        if not found:
            raise ValueError(f"{data}: no file {pattern!r}, expected npz series <city>_{period}.npz or a pattern that finds them")
        for path in found:
            link = folder / f"{path.name.removeprefix(before).removesuffix(after)}_{period}.npz"
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
    return folder


def figures(rows: list[dict[str, Any]], model: str) -> dict[str, float]:
    """The flat figures of an evaluation's rows."""
    found: dict[str, float] = {}
    of = {(row["city"], row["task"], row["population"], row["model"]): row for row in rows if row["unit"] == SCALED}
    for city, task in dict.fromkeys((city, task) for city, task, _, _ in of):
        ours = of[city, task, "all", model]
        simple = [row for (c, t, p, name), row in of.items() if (c, t, p) == (city, task, "all") and name not in (model, _LIGHTGBM)]
        found[f"{city}_{task}_crps_ratio"] = ours["crps"] / min(row["crps"] for row in simple)
        found[f"{city}_{task}_rmse_ratio"] = ours["rmse_debiased"] / min(row["rmse_debiased"] for row in simple)
        found[f"{city}_{task}_coverage80"] = of[city, task, "live", model]["coverage80"]
        if (city, task, "all", _LIGHTGBM) in of:
            found[f"{city}_{task}_vs_lightgbm"] = ours["crps"] / of[city, task, "all", _LIGHTGBM]["crps"]
    return found


if __name__ == "__main__":
    tyro.cli(main)
