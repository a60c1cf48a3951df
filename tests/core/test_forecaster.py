"""The forecaster's objective: the diffusion sees the scores under the learned marginals and does not move them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raytraffic.forecaster import ForecasterConfig
from raytraffic.masks import GENERATION, SHORT, mixture
from raytraffic.models.uomo import build, preset
from tests.batches import seasonal_batch


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_only_their_crps_moves_the_learned_marginals(weight: float) -> None:
    torch.manual_seed(0)
    model = build(replace(preset("tiny"), forecaster=ForecasterConfig(marginal_weight=weight)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = mixture(seasonal_batch(6), [SHORT, GENERATION], [1.0, 1.0])
    model(batch, torch.arange(6))["loss"].backward()
    of_entries = [p.grad for name, p in model.named_parameters() if name.startswith("conditioner.entries.")]
    of_denoiser = [p.grad for name, p in model.named_parameters() if name.startswith("denoiser.")]
    assert of_entries and all(gradient is not None for gradient in [*of_entries, *of_denoiser])
    assert all(bool(gradient.any()) == (weight > 0) for gradient in of_entries if gradient is not None)
    assert all(bool(gradient.any()) for gradient in of_denoiser if gradient is not None)
