"""Activation checkpointing of the blocks: less is kept for the backward pass, and nothing of the result changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raytraffic.fit import Optimisation, optimiser, step
from raytraffic.masks import SHORT, mask
from raytraffic.models.uomo import build, preset
from raytraffic.nn.transformer import recompute
from tests.batches import seasonal_batch

SETTINGS = Optimisation(learning_rate=1e-2, warmup=0, steps=10)


def trained(dropout: float, on: bool) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Figures of three steps, and the weights after them."""
    torch.manual_seed(0)
    model = build(replace(preset("tiny"), dropout=dropout)).train()
    recompute(model, on)
    adam, batch = optimiser(model, SETTINGS), mask(seasonal_batch(), SHORT)
    return [step(model, batch, torch.arange(4), adam, done, SETTINGS) for done in range(3)], model.state_dict()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_losses_gradients_and_weights_are_the_same(dropout: float) -> None:
    figures, weights = trained(dropout, on=False)
    again, same = trained(dropout, on=True)
    assert figures == again and all(torch.equal(value, same[name]) for name, value in weights.items())


def kept(work: Callable[[], object]) -> int:
    """Elements of tensors that are kept for the backward pass of `work`."""
    sizes: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        work()
    return sum(sizes.values())


def test_less_is_kept_and_the_switch_turns_back() -> None:
    model, batch, seeds = build(replace(preset("w32"), entries=0)).train(), mask(seasonal_batch(), SHORT), torch.arange(4)
    losses: list[Tensor] = []
    plain = kept(lambda: losses.append(model(batch, seeds)["loss"]))
    recompute(model)
    less = kept(lambda: losses.append(model(batch, seeds)["loss"]))
    recompute(model, on=False)
    assert less < 0.5 * plain
    assert kept(lambda: losses.append(model(batch, seeds)["loss"])) == plain
    assert "recompute" not in str(model.state_dict().keys())


def test_forecasts_do_not_recompute() -> None:
    model, batch = build(preset("tiny")).eval(), mask(seasonal_batch(), SHORT)
    sampler = replace(model.config.sampler, steps=2)
    before = model.forecast(batch, sampler, draws=1).draws
    recompute(model)
    assert torch.equal(model.forecast(batch, sampler, draws=1).draws.nan_to_num(), before.nan_to_num())
