"""Kriging: the exact conditional law of its model, from known entries only, whatever their pattern, and generic where nothing is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from raytraffic.kriging import HOURS, LEVEL, MODES, REACH, Nearness, between_cells, cell_distance, generic_modes, krige, variation
from raytraffic.types import Space
from tests.batches import seasonal_batch

STEPS = torch.tensor([15, 60])
T, S = 24, 6


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Residuals and known (2, 1, T, S), modes (2, T, MODES), persistence (2, 5); in the second window cells are known at the same slots."""
    generator = torch.Generator().manual_seed(seed)
    residual = 0.3 * torch.randn(2, 1, T, S, generator=generator)
    known = torch.rand(2, 1, T, S, generator=generator) < 0.6
    known[1] = known[1, :, :, :1]
    known[0, :, :, 2] = False
    modes = 0.2 * torch.randn(2, T, MODES, generator=generator)
    return residual, known, modes, 0.05 * torch.rand(2, 5, generator=generator)


def covariance(modes: NDArray, persistence: NDArray, step: int) -> tuple[NDArray, float]:
    """(T, T) without noise, and the noise's variance."""
    found = modes @ modes.T + LEVEL**2
    for i in range(T):
        for j in range(T):
            found[i, j] += sum(v * np.exp(-abs(i - j) * step / 60 / hours) for v, hours in zip(persistence[1:], HOURS, strict=True))
    return found, float(persistence[0]) + 1e-3


def test_it_is_the_conditional_law_of_each_cell() -> None:
    residual, known, modes, persistence = example()
    mean, deviation = krige(residual, known, modes, persistence, STEPS)
    for b, step in enumerate(STEPS.tolist()):
        whole, noise = covariance(modes[b].double().numpy(), persistence[b].double().numpy(), step)
        for cell in range(S):
            at = np.flatnonzero(known[b, 0, :, cell].numpy())
            gain = whole[:, at] @ np.linalg.inv(whole[np.ix_(at, at)] + noise * np.eye(len(at)))
            expected = gain @ residual[b, 0, at, cell].double().numpy()
            variance = np.diag(whole) - (gain * whole[:, at]).sum(1) + noise
            # float32 solves matrices whose condition number is some hundreds.
            np.testing.assert_allclose(mean[b, 0, :, cell], expected, atol=2e-4)
            np.testing.assert_allclose(deviation[b, 0, :, cell], np.sqrt(variance), rtol=1e-3)


def test_unknown_residuals_change_nothing() -> None:
    residual, known, modes, persistence = example()
    other = torch.where(known, residual, torch.full_like(residual, torch.nan))
    for ours, theirs in zip(krige(other, known, modes, persistence, STEPS), krige(residual, known, modes, persistence, STEPS), strict=True):
        assert torch.equal(ours, theirs) and bool(ours.isfinite().all())


def test_a_cell_of_which_nothing_is_known_is_as_uncertain_as_its_city() -> None:
    residual, known, modes, persistence = example()
    mean, deviation = krige(residual, known, modes, persistence, STEPS)
    assert not bool(mean[0, 0, :, 2].any())
    expected = (modes[0] ** 2).sum(1) + LEVEL**2 + persistence[0].sum() + 1e-3
    torch.testing.assert_close(deviation[0, 0, :, 2], expected.sqrt(), rtol=1e-4, atol=0)
    seen = known[0, 0].any(0)
    assert bool((deviation[0, 0][:, seen] < deviation[0, 0][:, 2:3]).all()), "to know something is to be surer"


def test_cells_and_windows_do_not_depend_on_what_they_are_solved_with() -> None:
    residual, known, modes, persistence = example()
    mean, deviation = krige(residual, known, modes, persistence, STEPS)
    alone = krige(residual[1:, :, :, 3:4], known[1:, :, :, 3:4], modes[1:], persistence[1:], STEPS[1:])
    torch.testing.assert_close(alone[0], mean[1:, :, :, 3:4], rtol=0, atol=1e-5)
    torch.testing.assert_close(alone[1], deviation[1:, :, :, 3:4], rtol=1e-5, atol=0)


def test_its_errors_are_as_large_as_it_says() -> None:
    """Courses drawn from the model itself: standardised errors at hidden slots have variance 1 (4,000 cells, so within 5 %)."""
    random = np.random.default_rng(0)
    modes = 0.2 * random.standard_normal((T, MODES))
    persistence = np.array([0.01, 0.02, 0.01, 0.02, 0.01])
    whole, noise = covariance(modes, persistence, 60)
    course = random.multivariate_normal(np.zeros(T), whole + noise * np.eye(T), size=4000).T
    known = torch.zeros(1, 1, T, 4000, dtype=torch.bool)
    known[:, :, :16] = True
    residual = torch.from_numpy(course).float()[None, None]
    mean, deviation = krige(
        residual, known, torch.from_numpy(modes).float()[None], torch.from_numpy(persistence).float()[None], torch.tensor([60])
    )
    error = ((residual - mean) / deviation)[:, :, 16:]
    assert abs(float(error.mean())) < 0.05
    assert float(error.var()) == pytest.approx(1.0, abs=0.05)


def test_a_city_of_which_nothing_is_known_has_the_harmonics_of_a_day() -> None:
    batch = seasonal_batch()
    unknown = replace(batch, context={})
    modes, persistence = variation(unknown)
    assert torch.equal(modes, generic_modes(batch)) and modes.shape == (4, 64, MODES) and bool((persistence > 0).all())
    hourly = int((batch.step_minutes == 60).nonzero()[0, 0])
    torch.testing.assert_close(modes[hourly, :24], modes[hourly, 24:48])
    known, told = variation(batch)
    assert torch.equal(known, batch.context["modes"]) and torch.equal(told, batch.context["persistence"])
    lost = batch.context["persistence"].clone()
    lost[1] = torch.nan
    mixed = variation(replace(batch, context={**batch.context, "persistence": lost}))[1]
    assert torch.equal(mixed[1], persistence[1]) and torch.equal(mixed[0], told[0])


def test_values_of_cells_are_the_conditional_law_in_space() -> None:
    random = np.random.default_rng(0)
    nearness = Nearness(tile=0.5, near=1.2, own=0.3)
    place = random.random((7, 2)) * 4
    distance = np.linalg.norm(place[:, None] - place, axis=-1)
    covariance = nearness.tile + nearness.near * np.exp(-distance / REACH)
    value, seen = random.standard_normal((2, 1, 7)), random.random((2, 1, 7)) < 0.6
    tensors = [torch.from_numpy(array).float() for array in (value, np.full((2, 1, 1), 0.4), distance[None])]
    guess, variance = between_cells(tensors[0], torch.from_numpy(seen), tensors[1], tensors[2], nearness)
    for b in range(2):
        at = np.flatnonzero(seen[b, 0])
        gain = covariance[:, at] @ np.linalg.inv(covariance[np.ix_(at, at)] + nearness.own * np.eye(len(at)))
        np.testing.assert_allclose(guess[b, 0], 0.4 + gain @ (value[b, 0, at] - 0.4), atol=1e-4)
        np.testing.assert_allclose(variance[b, 0], nearness.of_a_cell - (gain * covariance[:, at]).sum(1), atol=1e-4)


def test_distances_are_in_cells_or_in_distances_between_stations() -> None:
    batch = seasonal_batch(2)
    grid = cell_distance(batch)
    assert grid.shape == (1, 16, 16)
    assert grid[0, 0, [1, 5, 15]].tolist() == pytest.approx([1, 2**0.5, 18**0.5])
    line = torch.tensor([[0.0, 0.0], [500.0, 0.0], [1500.0, 0.0], [torch.nan, torch.nan]]).repeat(4, 1)[None, :16].repeat(2, 1, 1)
    line[0, 4:] = torch.nan
    stations = cell_distance(replace(batch, space=Space(xy=line)))
    # Nearest stations of the three are 500, 500 and 1,000 m off.
    assert stations[0, 0, :4].tolist() == pytest.approx([0.0, 1.0, 3.0, torch.inf])
    assert bool((cell_distance(replace(batch, space=Space()))[0] == torch.where(torch.eye(16, dtype=torch.bool), 0.0, torch.inf)).all())
