"""Correlated noise: variance one everywhere, the correlation it states, and a function of seeds alone."""

from __future__ import annotations

import math

import pytest
import torch

from raytraffic.diffusion.noise import Noise
from raytraffic.masks import GENERATION, SHORT, mask
from raytraffic.randomness import normal
from tests.batches import seasonal_batch

SEEDS = torch.arange(4000)


def draws(noise: Noise, step: int, generation: bool = False) -> torch.Tensor:
    """(4000, 64, 16) noise of 4000 draws of one window."""
    batch = mask(seasonal_batch(1, steps=(step,)), GENERATION if generation else SHORT)
    return noise.draw(batch, SEEDS, 3)[:, 0]


def test_without_a_correlation_time_it_is_white() -> None:
    batch = mask(seasonal_batch(2), SHORT)
    assert torch.equal(Noise().draw(batch, torch.arange(6), 3), normal(torch.arange(6), 3, (1, 64, 16)))


@pytest.mark.parametrize("step", [15, 30, 60])
def test_variance_is_one_and_correlation_falls_with_time(step: int) -> None:
    found = draws(Noise(hours=2.0), step)
    assert float(found.var(dim=0).mean()) == pytest.approx(1.0, abs=0.01)
    assert bool((found.var(dim=0) - 1).abs().max() < 0.15)
    for lag in (1, 4):
        products = (found[:, lag:] * found[:, :-lag]).mean()
        assert float(products) == pytest.approx(math.exp(-lag * step / 60 / 2.0), abs=0.01)
    beside = (found[:, :, 1:] * found[:, :, :-1]).mean()
    assert abs(float(beside)) < 0.01, "cells are independent"


def test_a_cell_without_history_has_a_number_of_its_own() -> None:
    batch = mask(seasonal_batch(1), GENERATION)
    found = Noise(hours=2.0, share=0.9).draw(batch, SEEDS, 3)[:, 0]
    alone = ~batch.known[0, 0].any(dim=0)
    assert 0 < int(alone.sum()) < 16
    far = (found[:, 0] * found[:, -1]).mean(dim=0)
    assert float(far[alone].mean()) == pytest.approx(0.9, abs=0.05)
    assert abs(float(far[~alone].mean())) < 0.03
    assert float(found.var(dim=0)[:, alone].mean()) == pytest.approx(1.0, abs=0.05)


def test_noise_of_a_draw_depends_on_its_seed_alone() -> None:
    batch = mask(seasonal_batch(3), GENERATION)
    seeds = torch.tensor([5, 6, 7, 8, 9, 10])
    together = Noise(hours=2.0, share=0.5).draw(batch, seeds, 3)
    one = Noise(hours=2.0, share=0.5).draw(batch.select(torch.tensor([1])), seeds[2:4], 3)
    assert torch.equal(one, together[2:4])
    assert not torch.equal(Noise(hours=2.0, share=0.5).draw(batch, seeds, 4), together)


@pytest.mark.parametrize(("field", "value"), [("hours", -1.0), ("hours", math.nan), ("share", 1.0), ("share", -0.1)])
def test_impossible_settings_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"noise\.{field}: {value}, expected"):
        Noise(**{field: value})
