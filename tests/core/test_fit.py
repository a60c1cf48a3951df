"""An optimisation step: all its randomness hangs on the seeds of its windows."""

from __future__ import annotations

from dataclasses import replace

import torch

from raytraffic.fit import Optimisation, optimiser, step
from raytraffic.masks import SHORT, mask
from raytraffic.models.uomo import build, preset
from tests.batches import seasonal_batch


def stepped(seeds: torch.Tensor, disturbed: int) -> tuple[float, list[torch.Tensor]]:
    """Loss and weights after three steps of a model with dropout, the global generator left in another state before each."""
    torch.manual_seed(0)
    model = build(replace(preset("tiny"), dropout=0.5))
    settings = Optimisation(steps=10, warmup=0, learning_rate=1e-2)
    adam = optimiser(model, settings)
    batch = mask(seasonal_batch(), SHORT)
    for done in range(3):
        torch.manual_seed(disturbed + done)
        loss = step(model, batch, seeds + done, adam, done, settings)["loss"]
    return loss, [parameter.detach() for parameter in model.parameters()]


def test_a_step_with_dropout_is_a_function_of_its_seeds() -> None:
    seeds = torch.arange(4)
    loss, weights = stepped(seeds, disturbed=1)
    again, same = stepped(seeds, disturbed=99)
    assert loss == again and all(torch.equal(ours, theirs) for ours, theirs in zip(weights, same, strict=True))
    other, _ = stepped(seeds + 7, disturbed=1)
    assert other != loss
