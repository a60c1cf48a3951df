"""A run in one process: what it leaves, that it goes on as if nothing had happened, and settings that change nothing of the result."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from raytraffic import registry
from raytraffic.checkpoint import load_forecaster
from raytraffic.config import TrainConfig
from raytraffic.files import Location
from raytraffic.masks import SHORT, mask
from raytraffic.store import open_store
from raytraffic.training import finished, train_alone
from raytraffic.training.settings import selected_windows
from raytraffic.training_log import read_metrics
from tests.store.cities import prepared, tiled_city

WINDOW = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "store"
    prepared(folder, [tiled_city("alpha", places=[f"p{i}" for i in range(6)], steps=120)], [tiled_city("beta", steps=90, step_minutes=60)])
    return folder


def settings(store: Path, out: Path, **changed: object) -> TrainConfig:
    base = {"preset": "tiny", "steps": 12, "batch": 8, "warmup": 4, "validate_every": 4, "window": WINDOW, "split": "place"}
    return TrainConfig(store=str(store), out=str(out), **(base | changed))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert train_alone(settings(store, out)) == Location.of(out / "best")
    return out


@pytest.mark.parametrize("model", sorted(registry.MODELS))
def test_every_model_is_trained_by_the_same_loop_and_goes_on_where_it_was(store: Path, tmp_path: Path, model: str) -> None:
    config = settings(store, tmp_path / "run", model=model, steps=4, validate_every=2, contexts=("poi",))
    best = train_alone(config)
    forecaster, name, chosen = load_forecaster(best)
    assert name == model and chosen.poi_categories in ((), ("bank", "park"))
    windows = selected_windows(config, open_store(store), chosen)
    batch = mask(windows.batch(windows.cut(*(values[:2] for values in windows.evaluation("test", SHORT)))), SHORT)
    draws = forecaster.forecast(batch, replace(forecaster.config.sampler, steps=2), draws=2).draws
    assert torch.isfinite(draws[batch.hidden[:, None].expand_as(draws)]).all()

    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for gone in ("best", "last", "checkpoints/step-00000004"):
        shutil.rmtree(tmp_path / "again" / gone)
    train_alone(replace(config, out=str(tmp_path / "again")))
    again = weights(tmp_path / "again")
    assert all(torch.equal(value, again[name]) for name, value in weights(tmp_path / "run").items())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "last" / "model.safetensors")


def test_a_run_leaves_models_and_metrics(store: Path, run: Path) -> None:
    assert finished(settings(store, run)) and not finished(settings(store, run, steps=13))
    rows = read_metrics(Location.of(run))
    assert [row["step"] for row in rows if row["validation_loss"] is not None] == [4, 8, 12]
    assert (run / "best" / "committed.json").exists() and (run / "report.html").exists()


def test_a_run_that_ended_early_goes_on_to_the_same_weights(store: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for name in ("best", "last", "checkpoints/step-00000012"):
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / "config.json").unlink()
    train_alone(settings(store, tmp_path / "run"))
    again = weights(tmp_path / "run")
    assert all(torch.equal(value, again[name]) for name, value in weights(run).items())


@pytest.mark.parametrize("changed", [{"micro_batch": 2}, {"recompute": True}])
def test_what_saves_memory_changes_nothing_but_rounding(store: Path, run: Path, tmp_path: Path, changed: dict[str, object]) -> None:
    train_alone(settings(store, tmp_path, **changed))
    for name, value in weights(run).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, atol=1e-4, rtol=1e-3)


def test_another_batch_is_another_run(store: Path, run: Path, tmp_path: Path) -> None:
    train_alone(settings(store, tmp_path, batch=4))
    assert any(not torch.allclose(value, weights(tmp_path)[name], atol=1e-3) for name, value in weights(run).items())


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"micro_batch: 3, expected a divisor of a worker's windows \(8\)"):
        train_alone(settings(store, tmp_path, micro_batch=3))


def test_several_workers_are_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers: 2, expected 1 for a run in one process"):
        train_alone(settings(store, tmp_path, workers=2))
