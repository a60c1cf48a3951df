"""The recipe of a pre-trained checkpoint, from files to a calibrated model with its card, once and never twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raytraffic.checkpoint import load_forecaster
from raytraffic.config import PretrainConfig
from raytraffic.files import Location
from raytraffic.on_ray.budget import TIMED
from raytraffic.on_ray.pretrain import pretrain
from raytraffic.training_log import read_metrics


def write_city(folder: Path) -> None:
    """A measured city's file: six patches of eight days of 60 minutes, a daily rhythm of every cell's own level."""
    noise = np.random.default_rng(0)
    hours = np.arange(192)
    rhythm = 1.2 + np.sin(2 * np.pi * hours / 24)[None, :, None, None]
    traffic = 100 * rhythm * noise.lognormal(0, 0.7, (6, 1, 4, 4)) * noise.lognormal(0, 0.1, (6, 192, 4, 4))
    arrays = {"traffic": traffic.astype(np.float32), "start_weekday_slot": np.array([0, 0]), "step_minutes": np.array(60)}
    folder.mkdir()
    np.savez(folder / "smallville_train.npz", **arrays)


def contents(out: Path) -> dict[Path, bytes]:
    """Every file of a folder."""
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_checkpoint_with_its_card(cluster: None, tmp_path: Path) -> None:
    write_city(tmp_path / "data")
    config = PretrainConfig(
        data=(f"series:{tmp_path / 'data'}",),
        out=str(tmp_path / "out"),
        minutes=0.001,
        preset="tiny",
        synthetic=("synthetic:toytown?step=60&grid=8x8&days=8",),
        stride=60,
    )
    out = tmp_path / "out"
    assert pretrain(config) == Location.of(out / "model")

    forecaster, model, _ = load_forecaster(out / "model")
    assert model == "uomo" and forecaster.calibration is not None and forecaster.calibration.level == 0.8
    assert load_forecaster(out / "run" / "best")[0].calibration is None
    assert json.loads((out / "plan.json").read_bytes()) == {"preset": "tiny", "steps": TIMED}
    assert read_metrics(Location.of(out / "run"))[-1]["step"] == TIMED and not (out / "run" / "timing").exists()
    card = (out / "model" / "README.md").read_text()
    parameters = sum(parameter.numel() for parameter in forecaster.parameters())
    assert f"{parameters:,} parameters" in card and "> not stated" in card
    assert "| smallville | 60 min | 192 (train) | " in card and "| toytown (synthetic) | 60 min | 192 (" in card
    for task in ("short", "long", "generation"):
        assert f"| smallville | {task} | " in card and f"| toytown (synthetic) | {task} | " in card

    before = contents(out)
    assert pretrain(config) == Location.of(out / "model")
    assert contents(out) == before

    with pytest.raises(ValueError, match=r"config\.json: minutes is 0.001, expected 5"):
        pretrain(replace(config, minutes=5))
    with pytest.raises(ValueError, match="preset: 'huge', expected one of"):
        pretrain(replace(config, preset="huge"))
    assert contents(out) == before

    (out / "plan.json").write_bytes(b'{"preset": "small", "steps": 60}')
    with pytest.raises(ValueError, match=r"plan\.json: preset is 'small', expected 'tiny'"):
        pretrain(config)
    (out / "plan.json").write_bytes(before[out / "plan.json"])

    # Killed while the checkpoint was being calibrated, and again while it was being scored.
    (out / "model" / "committed.json").unlink()
    (out / "evaluation" / "report.html").unlink()
    pretrain(replace(config, licence="ours, for tests"))
    after = contents(out)
    assert "> ours, for tests" in after[out / "model" / "README.md"].decode()
    same = [out / "model" / "model.safetensors", out / "model" / "calibration.json", out / "evaluation" / "scores.json", out / "plan.json"]
    assert all(after[path] == before[path] for path in same)
