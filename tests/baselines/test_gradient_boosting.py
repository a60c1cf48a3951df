"""Gradient boosting: calibrated where it can be, nothing leaks, nothing depends on the batch, quantiles in order, clear errors."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace

import pytest
import torch

from raytraffic.baselines.gradient_boosting import LEVELS, GradientBoosting, fit
from raytraffic.baselines.simple import ProfileGaussian
from raytraffic.masks import TASKS, Task, mask
from raytraffic.metrics.calibration import coverage
from raytraffic.metrics.distribution import crps
from raytraffic.types import TrafficBatch
from tests.batches import DEAD, seasonal_batch

pytest.importorskip("lightgbm", reason="the extra raytraffic[baselines] is not installed")


def masked(task: Task, seed: int, windows: int = 24, steps: tuple[int, ...] = (30, 60)) -> TrafficBatch:
    batch = seasonal_batch(windows, steps=steps, seed=seed)
    return mask(replace(batch, key=batch.key + 1_000_003 * seed), task, seed)


def small(batches: list[TrafficBatch]) -> GradientBoosting:
    return fit(batches, rounds=12, learning_rate=0.2, leaves=7, min_rows_in_leaf=50, rows=5000)


@pytest.fixture(scope="module")
def fitted() -> dict[str, GradientBoosting]:
    return {name: small([masked(TASKS[name], seed) for seed in (1, 2)]) for name in ("short", "long", "generation", "random")}


@pytest.mark.parametrize("name", ["short", "long", "generation", "random"])
def test_contract(fitted: dict[str, GradientBoosting], name: str) -> None:
    """Finite, >= 0, 0 where dead, known entries bit for bit; hidden values (even NaN) change nothing; alone or in a batch the same."""
    batch, model = masked(TASKS[name], 7, windows=4), fitted[name]
    draws = model.forecast(batch, draws=3, seed=1).draws
    assert draws.shape == (4, 3, 1, 64, 16) and draws.dtype == batch.traffic.dtype
    assert bool(torch.isfinite(draws).all()) and bool((draws >= 0).all())
    known = batch.known[:, None].expand_as(draws)
    assert torch.equal(draws[known], batch.traffic[:, None].expand_as(draws)[known])
    seen_dead = batch.known[..., DEAD].any(dim=2)
    assert bool((draws[..., DEAD].amax(dim=(1, 3))[seen_dead] == 0).all())
    poisoned = replace(batch, traffic=torch.where(batch.known, batch.traffic, torch.nan))
    assert torch.equal(model.forecast(poisoned, draws=3, seed=1).draws, draws)
    for i in range(4):
        alone = model.forecast(batch.select(slice(i, i + 1)), draws=3, seed=1).draws[0]
        assert torch.allclose(alone, draws[i], rtol=1e-5)


@pytest.mark.parametrize("name", ["short", "generation"])
def test_quantiles_never_fall_along_the_levels(fitted: dict[str, GradientBoosting], name: str) -> None:
    batch = masked(TASKS[name], 8)
    quantiles = fitted[name].quantiles(batch)
    assert quantiles.shape == (24, len(LEVELS), 1, 64, 16)
    assert bool((quantiles.diff(dim=1) >= 0).all())


def test_draws_follow_the_quantiles(fitted: dict[str, GradientBoosting]) -> None:
    batch = masked(TASKS["short"], 8, windows=2)
    quantiles, draws = fitted["short"].quantiles(batch), fitted["short"].forecast(batch, draws=400).draws
    for i, level in enumerate(LEVELS):
        below = (draws <= quantiles[:, i : i + 1]).float().mean(dim=1)[batch.hidden & (quantiles[:, 0] > 0)]
        assert below.mean().item() == pytest.approx(level, abs=0.01)  # some 400 entries of 400 draws: a standard error of .001
        assert below.std().item() == pytest.approx((level * (1 - level) / 400) ** 0.5, rel=0.2)  # independent, not stratified


def test_covers_about_as_often_as_it_says_and_beats_the_profile() -> None:
    """Hidden entries of new windows and cells; the noise is 20 % of the level, which is estimated from 48 entries."""
    model = fit([masked(TASKS["short"], seed, windows=48) for seed in (1, 2)], rounds=50, learning_rate=0.1, leaves=7, rows=10_000)
    batch = masked(TASKS["short"], 3, windows=48)
    live = batch.hidden & (batch.traffic > 0)
    draws = model.forecast(batch, draws=40).draws
    for level in (0.5, 0.8):
        assert coverage(batch.traffic, draws, live, level).item() == pytest.approx(level, abs=0.04)
    assert crps(batch.traffic, draws, live) < crps(batch.traffic, ProfileGaussian().forecast(batch, draws=40).draws, live)


def test_draws_depend_on_key_seed_and_index_alone(fitted: dict[str, GradientBoosting]) -> None:
    batch, model = masked(TASKS["long"], 4, windows=4), fitted["long"]
    first = model.forecast(batch, draws=6, seed=1).draws
    assert torch.equal(model.forecast(batch, draws=2, seed=1).draws, first[:, :2])
    assert not torch.equal(model.forecast(batch, draws=6, seed=2).draws, first)
    assert not torch.equal(model.forecast(replace(batch, key=batch.key + 1), draws=6, seed=1).draws, first)
    assert not torch.equal(first[:, 0], first[:, 1])


def test_the_order_and_the_size_of_batches_do_not_change_the_fit() -> None:
    batch = masked(TASKS["short"], 1)
    first, second = small([batch]), small([batch.select(slice(i, i + 8)) for i in (16, 8, 0)])
    test = masked(TASKS["short"], 2)
    assert torch.allclose(first.quantiles(test), second.quantiles(test), rtol=1e-5)


def test_fitted_boosters_travel_to_other_processes(fitted: dict[str, GradientBoosting]) -> None:
    batch = masked(TASKS["long"], 3)
    assert torch.equal(pickle.loads(pickle.dumps(fitted["long"])).forecast(batch).draws, fitted["long"].forecast(batch).draws)


def test_errors_name_field_value_and_what_was_expected(fitted: dict[str, GradientBoosting], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = masked(TASKS["short"], 1)
    with pytest.raises(ValueError, match="draws: 0, expected at least 1"):
        fitted["short"].forecast(batch, draws=0)
    with pytest.raises(ValueError, match=r"step_minutes: \[15\], expected some of \[30, 60\]"):
        fitted["short"].forecast(masked(TASKS["short"], 1, steps=(15,)))
    with pytest.raises(ValueError, match="batches: no hidden entry of a live cell, expected masked training windows"):
        small([seasonal_batch()])
    with pytest.raises(ValueError, match=r"size_power: -1, expected a value in \[0, 1\]"):
        fit([batch], size_power=-1)
    with pytest.raises(ValueError, match="rows: 0, expected at least 1"):
        fit([batch], rows=0)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ImportError, match=r"pip install 'raytraffic\[baselines\]'"):
        small([batch])
