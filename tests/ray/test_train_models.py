"""LSDM, LEC-Diff and STOUTER through Ray Train: two workers learn what one learns, and each is fine-tuned with a context it lacked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from raytraffic.checkpoint import load_forecaster
from raytraffic.config import FinetuneConfig, PrepareConfig, TrainConfig
from raytraffic.files import Location
from raytraffic.on_ray.prepare import prepare
from raytraffic.on_ray.train import train
from raytraffic.training_log import read_metrics

pytestmark = pytest.mark.slow

STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, what it is prepared and trained with, and a context that fine-tuning adds."""

    prepared: dict[str, Any]
    trained: dict[str, Any]
    added: tuple[str, ...]


GROUPS = {"tile": (4, 4), "token": (4, 1, 1), "group_stations": True}
STATIONS = "stations:east?stations=48&days=14&step=60"
CASES = {
    "lsdm": Case(
        prepared={"sources": ("services:users?users=24&weeks=2",), "tile": (1, 1), "token": (4, 1, 1), "window": 25},
        trained={"window": 25, "tasks": ("next",), "weights": (1.0,)},
        added=(),  # its environment is a place's, of which this store has no vectors
    ),
    "lec_diff": Case(
        prepared={"sources": (STATIONS,), "window": 32, **GROUPS},
        trained={"window": 32, "tasks": ("short", "long"), "weights": (1.0, 1.0)},
        added=("poi",),
    ),
    "stouter": Case(
        prepared={"sources": (STATIONS,), "window": 168, **GROUPS},
        trained={"window": 168, "tasks": ("generation", "whole"), "weights": (1.0, 1.0)},
        added=("poi",),
    ),
}


@pytest.fixture(scope="module", params=sorted(CASES))
def run(request: pytest.FixtureRequest, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A model's name, its store, and the run directory of one worker."""
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    prepare(PrepareConfig(out=str(folder / "store"), **case.prepared))
    train(settings(request.param, folder / "store", folder / "run"))
    return request.param, folder / "store", folder / "run"


def settings(model: str, store: Path, out: Path, **changes: Any) -> TrainConfig:
    """Some steps of a tiny model without contexts."""
    values = {"preset": "tiny", "steps": STEPS, "batch": 4, "warmup": 2, "validate_every": STEPS, "validation_windows": 8, "contexts": ()}
    return TrainConfig(model=model, store=str(store), out=str(out), **values | CASES[model].trained | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved model."""
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_two_workers_learn_what_one_learns(run: tuple[str, Path, Path], tmp_path: Path) -> None:
    model, store, alone = run
    train(settings(model, store, tmp_path, workers=2))
    ours, theirs = weights(alone / "last"), weights(tmp_path / "last")
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-3, msg=lambda told, name=name: f"{name}: {told}")
    losses = np.array([[row["loss"] for row in read_metrics(Location.of(folder))] for folder in (alone, tmp_path)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert np.isfinite(losses).all()


def test_fine_tuning_goes_on_from_a_checkpoint(run: tuple[str, Path, Path], tmp_path: Path) -> None:
    model, store, base = run
    added = CASES[model].added
    settled = {name: value for name, value in CASES[model].trained.items() if name != "window"}
    config = FinetuneConfig(
        checkpoint=str(base / "best"),
        store=str(store),
        out=str(tmp_path),
        contexts=added,
        trainable="all",
        contrast=0.0,
        steps=3,
        batch=4,
        warmup=1,
        validate_every=3,
        validation_windows=8,
        **settled,
    )
    assert train(config) == Location.of(tmp_path / "best")
    _, name, found = load_forecaster(tmp_path / "best")
    assert (name, found.contexts) == (model, added)
    before, after = weights(base / "best"), weights(tmp_path / "best")
    # What it knew is still there, a little moved; what it is told anew has weights of its own.
    assert before.keys() <= after.keys() and (before.keys() < after.keys()) == bool(added)
    moved = max(float((after[key] - value).abs().max()) for key, value in before.items() if value.is_floating_point())
    assert 0 < moved < 0.1
