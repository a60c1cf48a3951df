"""The whole line on three synthetic cities of different granularity; it fails loudly if the model learnt nothing."""

from __future__ import annotations

import json

from raytraffic.config import EvaluateConfig, ForecastConfig, PrepareConfig, QuickstartConfig, TrainConfig
from raytraffic.files import Location
from raytraffic.metrics.scoreboard import SCALED
from raytraffic.on_ray.evaluate import evaluate
from raytraffic.on_ray.forecast import forecast
from raytraffic.on_ray.prepare import prepare
from raytraffic.on_ray.train import train

__all__ = ["quickstart"]

_CITIES = (
    "synthetic:harbour?step=15&grid=12x12&days=10",
    "synthetic:oldtown?step=30&grid=12x12&days=14",
    "synthetic:valley?step=60&grid=12x12&days=28",
)
_RIVAL = "same slot yesterday"


def quickstart(config: QuickstartConfig) -> Location:
    """Prepares, trains, evaluates and forecasts below `out`; returns the report.

    Raises RuntimeError when the model's CRPS over all cities is no better than the rule `same slot yesterday` in the short-
    or the long-term task.
    """
    out = Location.of(config.out)
    store, run, scores, day = (str(out.child(name)) for name in ("store", "train", "evaluation", "forecast"))
    prepare(PrepareConfig(sources=tuple(f"{city}&seed={config.seed}" for city in _CITIES), out=store, seed=config.seed))
    best = str(train(TrainConfig(store=store, out=run, split="time", steps=config.steps, seed=config.seed)))
    evaluation = evaluate(EvaluateConfig(checkpoint=best, store=store, out=scores, splits=("time",), stride=16, seed=config.seed))
    forecast(ForecastConfig(checkpoint=best, store=store, out=day, hours=24, seed=config.seed))
    _demand_skill(evaluation)
    report = evaluation.child("report.html")
    print(f"The report is {report}; the forecast of the next day is in {day}/shards.", flush=True)
    return report


def _demand_skill(evaluation: Location) -> None:
    rows = [row for row in json.loads(evaluation.child("scores.json").read_bytes()) if (row["unit"], row["population"]) == (SCALED, "live")]
    for task in ("short", "long"):
        crps = {}
        for model in ("uomo", _RIVAL):
            mine = [row for row in rows if (row["model"], row["task"]) == (model, task)]
            crps[model] = sum(row["crps"] * row["entries"] for row in mine) / sum(row["entries"] for row in mine)
        if not crps["uomo"] < crps[_RIVAL]:
            found = f"CRPS of uomo is {crps['uomo']:.4f} in the {task} task"
            raise RuntimeError(f"quickstart: {found}, expected less than the {crps[_RIVAL]:.4f} of {_RIVAL!r}")
        print(f"{task}: CRPS {crps['uomo']:.4f} against {crps[_RIVAL]:.4f} of {_RIVAL!r}", flush=True)
