"""The ridge blend: an independent least-squares oracle, exact blends come back, nothing leaks, nothing depends on the batch."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from raytraffic.baselines.candidates import first_answer, in_double, last_known, levels, profile_level, same_slot_yesterday
from raytraffic.baselines.ridge import BLENDED, FALLBACK, RidgeBlend, fit
from raytraffic.masks import TASKS, Task, mask
from raytraffic.types import TrafficBatch
from tests.batches import DEAD, seasonal_batch

NEXT = Task("next", "temporal", 1 / 64, 1 / 64)


def masked(task: Task, seed: int, windows: int = 24, steps: tuple[int, ...] = (15, 30, 60)) -> TrafficBatch:
    return mask(seasonal_batch(windows, steps=steps, seed=seed), task, seed)


def test_weights_solve_the_ridge_problem_that_the_module_states() -> None:
    """All entries one slot ahead at one granularity are one group; numpy solves it as ordinary least squares with rows for the penalty."""
    batch, ridge, power = masked(NEXT, 1, steps=(30,)), 0.01, 0.75
    seen = in_double(batch.visible())
    base, _ = first_answer(seen, FALLBACK)
    level = levels(seen)[0].expand_as(base)
    columns = [base]
    for candidate in BLENDED:
        value, found = candidate(seen)
        columns.append(torch.where(found, value - base, 0.0))
    used = batch.hidden & (level > 0)
    weight = (level[used] ** (power - 1)).numpy()
    design = np.stack([column[used].numpy() * weight for column in columns], axis=1)
    target = (batch.traffic.double() - base)[used].numpy() * weight
    penalty = np.sqrt(ridge * (level[used] ** (2 * power)).sum().item()) * np.eye(len(columns))
    expected = np.linalg.lstsq(np.concatenate((design, penalty)), np.concatenate((target, np.zeros(len(columns)))))[0]

    blend = fit([batch], ridge, power)
    assert blend.weights.shape == (1, len(columns))
    assert torch.allclose(blend.weights[0], torch.from_numpy(expected), atol=1e-9)


def blended_truth(batch: TrafficBatch) -> TrafficBatch:
    """The batch with hidden traffic .7 of profile x level + .3 of persistence."""
    seen = batch.visible()
    blend = 0.7 * profile_level(seen)[0] + 0.3 * last_known(seen)[0]
    return replace(batch, traffic=torch.where(batch.hidden, blend, batch.traffic))


@pytest.mark.parametrize("task", ["short", "long"])
def test_a_blend_that_is_exact_comes_back_on_new_windows(task: str) -> None:
    blend = fit([blended_truth(masked(TASKS[task], seed)) for seed in (1, 2)], ridge=1e-9)
    batch = blended_truth(masked(TASKS[task], 3))
    answer = blend.forecast(batch).draws[:, 0]
    assert torch.allclose(answer[batch.hidden], batch.traffic[batch.hidden], rtol=1e-4)


def test_an_exact_candidate_comes_back_where_it_has_an_answer() -> None:
    batch = masked(TASKS["short"], 1, steps=(60,))
    yesterday, found = same_slot_yesterday(batch.visible())
    batch = replace(batch, traffic=torch.where(batch.hidden & found, yesterday, batch.traffic))
    answer = fit([batch], ridge=1e-9).forecast(batch).draws[:, 0]
    assert torch.allclose(answer[batch.hidden], batch.traffic[batch.hidden], rtol=1e-4)


def test_a_strong_penalty_and_an_unseen_granularity_give_the_chain() -> None:
    batch = masked(TASKS["short"], 2)
    expected = first_answer(batch.visible(), FALLBACK)[0]
    for blend in (fit([batch], ridge=1e9), fit([masked(TASKS["short"], 1, steps=(5,))])):
        assert torch.allclose(blend.forecast(batch).draws[:, 0][batch.hidden], expected[batch.hidden], rtol=1e-4)


@pytest.fixture(scope="module")
def fitted() -> dict[str, RidgeBlend]:
    """A blend a task; where a whole tile is hidden there is nothing to scale by, and so nothing to fit."""
    return {name: fit([masked(task, 1), masked(task, 2)]) for name, task in TASKS.items() if name != "whole"}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_contract(fitted: dict[str, RidgeBlend], name: str) -> None:
    """Finite, >= 0, 0 where dead, known entries bit for bit; hidden values (even NaN) change nothing; alone or in a batch the same."""
    batch, blend = masked(TASKS[name], 7, windows=6), fitted["generation" if name == "whole" else name]
    draws = blend.forecast(batch, draws=3, seed=1).draws
    assert draws.shape == (6, 1, 1, 64, 16) and draws.dtype == batch.traffic.dtype
    assert bool(torch.isfinite(draws).all()) and bool((draws >= 0).all())
    assert torch.equal(draws[:, 0][batch.known], batch.traffic[batch.known])
    seen_dead = batch.known[..., DEAD].any(dim=2)
    assert bool((draws[:, 0, :, :, DEAD].amax(dim=2)[seen_dead] == 0).all())
    poisoned = replace(batch, traffic=torch.where(batch.known, batch.traffic, torch.nan))
    assert torch.equal(blend.forecast(poisoned).draws, draws)
    for i in range(6):
        alone = blend.forecast(batch.select(slice(i, i + 1))).draws[0]
        assert torch.allclose(alone, draws[i], rtol=1e-5)


def test_the_order_and_the_size_of_batches_do_not_matter() -> None:
    batch, test = masked(TASKS["short"], 1), masked(TASKS["short"], 2)
    whole = fit([batch]).forecast(test).draws
    parts = fit(batch.select(slice(i, i + 5)) for i in (20, 15, 10, 5, 0)).forecast(test).draws
    assert torch.allclose(whole, parts, rtol=1e-4)


def test_a_fitted_blend_travels_to_other_processes(fitted: dict[str, RidgeBlend]) -> None:
    batch = masked(TASKS["long"], 3)
    assert torch.equal(pickle.loads(pickle.dumps(fitted["long"])).forecast(batch).draws, fitted["long"].forecast(batch).draws)


def test_errors_name_field_value_and_what_was_expected() -> None:
    batch = masked(TASKS["short"], 1)
    with pytest.raises(ValueError, match=r"ridge: 0, expected > 0"):
        fit([batch], ridge=0)
    with pytest.raises(ValueError, match=r"size_power: 2, expected a value in \[0, 1\]"):
        fit([batch], size_power=2)
    with pytest.raises(ValueError, match=r"batches: no hidden entry of a live cell, expected masked training windows"):
        fit([seasonal_batch()])
