"""Fine-tuning and calibration on a cluster: contexts for a model without them, frozen weights, factors that forecasts then use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from raytraffic.calibration import Calibration
from raytraffic.checkpoint import committed, load_forecaster, read_committed, save_calibration
from raytraffic.config import CalibrateConfig, EvaluateConfig, FinetuneConfig, from_json
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.forecaster import Forecaster
from raytraffic.masks import LONG, SHORT, mask
from raytraffic.on_ray.calibrate import calibrate
from raytraffic.on_ray.evaluate import evaluate
from raytraffic.on_ray.train import train
from raytraffic.store import open_store
from raytraffic.training_log import read_metrics
from raytraffic.types import TrafficBatch
from raytraffic.windows import windows_for
from tests.ray.conftest import settings

SAMPLER = Sampler("dpm++", 2)


@pytest.fixture(scope="module")
def plain(prepared: Path) -> Path:
    """The best model of a run of some steps that knows no context."""
    out = prepared.parent / "plain"
    train(settings(prepared, out, contexts=(), steps=10, warmup=2, validate_every=10))
    return out / "best"


@pytest.fixture(scope="module")
def finetuned(prepared: Path, plain: Path) -> Path:
    """The run directory of its context-aware fine-tuning."""
    out = prepared.parent / "finetuned"
    config = FinetuneConfig(
        store=str(prepared),
        out=str(out),
        checkpoint=str(plain),
        steps=10,
        batch=8,
        warmup=2,
        validate_every=10,
        contexts=("users", "poi"),
        trainable="context",
        contrast=0.1,
        shard="fsdp",
    )
    assert train(config) == Location.of(out / "best")
    return out


def some_windows(store: Path, checkpoint: Path) -> TrafficBatch:
    """Six test windows, the last quarter of each hidden."""
    view = windows_for(open_store(store), "time", load_forecaster(checkpoint)[2])
    rows, starts = view.evaluation("test", SHORT, 20)
    chosen = np.linspace(0, len(rows) - 1, 6).round().astype(np.int64)
    return mask(view.batch(view.cut(rows[chosen], starts[chosen])), SHORT)


def fitted_here(store: Path, forecaster: Forecaster, config: Any) -> Calibration:
    """The calibration of twelve evenly spaced validation windows a task, fitted without Ray."""
    view = windows_for(open_store(store), "time", config)
    pairs = []
    for task in (SHORT, LONG):
        rows, starts = view.evaluation("validation", task)
        chosen = np.linspace(0, len(rows) - 1, 12).round().astype(np.int64)
        batch = mask(view.batch(view.cut(rows[chosen], starts[chosen])), task)
        pairs.append((batch, forecaster.forecast(batch, SAMPLER, draws=9)))
    return Calibration.fit(pairs)


def test_fine_tuning_adds_contexts_and_moves_conditioning_only(prepared: Path, plain: Path, finetuned: Path) -> None:
    _, name, before = load_forecaster(plain)
    forecaster, _, config = load_forecaster(finetuned / "last")
    assert (name, before.contexts, before.poi_categories) == ("uomo", (), ())
    assert set(config.contexts) == {"users", "poi"} and config.poi_categories == open_store(prepared).poi_categories
    old, new = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (plain, finetuned / "last"))
    assert old.keys() < new.keys()
    learns = ("adaln", "output.out", "entries.layers.5")
    for key, value in old.items():
        learnt = any(f".{layer}." in key for layer in learns)
        assert torch.equal(new[key], value) != learnt, key
    added = {key for key in new.keys() - old.keys() if "poi_static" not in key and "poi_dynamic" not in key}
    assert {key.split(".")[1] for key in added} == {"users_token", "poi_token", "entries"}
    assert all(bool(new[key].any()) for key in added), "context layers begin at zero and have learned"
    validated = [row["validation_loss"] for row in read_metrics(Location.of(finetuned)) if row["validation_loss"] is not None]
    assert len(validated) == 1 and np.isfinite(validated[0])
    batch = some_windows(prepared, finetuned / "last")
    users = {**batch.context, "users": batch.context["users"].flip(1)}
    ours, theirs = (forecaster.forecast(TrafficBatch(**{**vars(batch), "context": c}), SAMPLER, 2).draws for c in (batch.context, users))
    assert not torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))


def test_calibration_is_saved_with_the_model_and_used(prepared: Path, finetuned: Path, tmp_path: Path) -> None:
    folder = finetuned / "best"
    batch = some_windows(prepared, folder)
    forecaster = load_forecaster(folder)[0]
    assert forecaster.calibration is None
    before = forecaster.forecast(batch, SAMPLER, draws=9, seed=1).draws
    weights = (folder / "model.safetensors").read_bytes()
    expected = fitted_here(prepared, forecaster, load_forecaster(folder)[2])
    twice = tuple((2.0,) * len(row) for row in expected.above)
    save_calibration(folder, replace(expected, below=twice, above=twice))  # one it has already is replaced, not stretched again
    config = CalibrateConfig(checkpoint=str(folder), store=str(prepared), windows=12, draws=9, steps=2, workers=1)
    assert calibrate(config) == Location.of(folder)

    assert committed(Location.of(folder)) and (folder / "model.safetensors").read_bytes() == weights
    saved = from_json(Calibration, json.loads(read_committed(Location.of(folder), "calibration.json")), "calibration.json")
    calibrated = load_forecaster(folder)[0]
    assert calibrated.calibration == saved and (saved.level, saved.windows) == (0.8, expected.windows)
    for ours, theirs in ((saved.below, expected.below), (saved.above, expected.above)):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-4)
    after = calibrated.forecast(batch, SAMPLER, draws=9, seed=1)
    hidden = batch.hidden[:, None].expand_as(before)
    assert not torch.equal(after.draws[hidden], before[hidden]) and torch.equal(
        after.draws[~hidden].nan_to_num(-1), before[~hidden].nan_to_num(-1)
    )
    calibrate(config)
    assert load_forecaster(folder)[0].calibration == saved, "calibrating again starts from the model, not from its stretched draws"

    scored = EvaluateConfig(
        checkpoint=str(folder),
        store=str(prepared),
        out=str(tmp_path),
        tasks=("short",),
        fitted=("ridge",),
        share=0.0,
        draws=9,
        steps=2,
        stride=60,
        workers=1,
    )
    evaluate(scored)
    rows = json.loads((tmp_path / "scores.json").read_bytes())
    found = {(row["model"], row["city"]) for row in rows}
    assert {(model, city) for model in ("uomo", "ridge blend") for city in ("east", "middle", "west")} <= found
    assert all(np.isfinite(row["crps"]) for row in rows)
