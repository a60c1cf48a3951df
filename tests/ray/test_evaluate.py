"""Evaluation on a cluster: the scores of one process, with every file of the report."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from raytraffic.baselines import rules_for
from raytraffic.checkpoint import load_forecaster
from raytraffic.config import EvaluateConfig
from raytraffic.diffusion.samplers import Sampler
from raytraffic.masks import TASKS, mask
from raytraffic.metrics.breakdown import Breakdown
from raytraffic.metrics.scoreboard import Scoreboard
from raytraffic.metrics.scores import score_forecast
from raytraffic.on_ray.evaluate import evaluate
from raytraffic.store import open_store
from raytraffic.windows import windows_for

STRIDE, DRAWS, STEPS, BATCH = 12, 4, 2, 16


def expected_rows(checkpoint: Path, store: Path, tasks: tuple[str, ...]) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """The same scores and breakdown without Ray."""
    forecaster, model, config = load_forecaster(checkpoint)
    view = windows_for(open_store(store), "time", config)
    board, breakdown = Scoreboard(), Breakdown()
    for name in tasks:
        rows, starts = view.evaluation("test", TASKS[name], STRIDE)
        for at in range(0, len(rows), BATCH):
            columns = view.cut(rows[at : at + BATCH], starts[at : at + BATCH])
            batch = mask(view.batch(columns), TASKS[name])
            cities = [view.store.index.cities[code] for code in columns["city"]]
            forecasts = {model: forecaster.forecast(batch, Sampler("dpm++", STEPS), DRAWS)}
            forecasts |= {rule.name: rule.forecast(batch, DRAWS, 0) for rule in rules_for(TASKS[name])}
            for who, forecast in forecasts.items():
                scored = score_forecast(batch, forecast, cities)
                board.add(scored, model=who, split="time", task=name)
                breakdown.add(scored, model=who, split="time", task=name)
    return board.rows(), breakdown.rows()


def assert_same(rows: list[dict[str, object]], expected: list[dict[str, object]]) -> None:
    """The rows of two tables are equal, their numbers but for the order of a sum."""
    assert len(rows) == len(expected) > 0
    for ours, theirs in zip(rows, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if isinstance(value, float):
                assert ours[name] == pytest.approx(value, rel=1e-9, nan_ok=True), (theirs, name)
            else:
                assert ours[name] == value, (theirs, name)


def test_scores_are_those_of_one_process(prepared: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ("short", "generation")
    config = EvaluateConfig(
        checkpoint=str(trained / "best"),
        store=str(prepared),
        out=str(tmp_path),
        tasks=tasks,
        draws=DRAWS,
        steps=STEPS,
        stride=STRIDE,
        batch=BATCH,
    )
    evaluate(config)
    rows = json.loads((tmp_path / "scores.json").read_bytes())
    scores, breakdown = expected_rows(trained / "best", prepared, tasks)
    assert_same(rows, scores)
    assert_same(json.loads((tmp_path / "breakdown.json").read_bytes()), breakdown)
    assert {(row["city"], row["task"]) for row in rows} >= {(city, task) for city in ("east", "middle", "west") for task in tasks}
    assert all(math.isfinite(row["crps"]) and row["windows"] > 0 for row in rows)

    with (tmp_path / "scores.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert np.allclose([float(row["crps"]) for row in table], [row["crps"] for row in rows])
    report = (tmp_path / "report.html").read_text()
    assert all(city in report for city in ("east", "middle", "west")) and "http://" not in report.replace("http://www.w3.org", "")
    assert "uomo" in capsys.readouterr().out
