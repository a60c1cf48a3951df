r"""Context-aware alignment (UoMo 3.3.2): traffic must be easier to denoise beside its own context than beside another block's.

    L = E[(||eps - eps(e, k | y)||^2 - lambda sum_{e'} ||eps - eps(e', k | y)||^2) . m]        (11)

Positive pairs are the windows of a batch with their own users and POI; in a negative pair the context comes from another window
(another spatio-temporal block), with the same noise. As written the second term has no lower bound: a model that ruins the negative
pairs would win. It is bounded here: an error of a negative pair counts up to `margin` times that of its positive pair, whose
gradient is stopped; lambda is `contrast` * log(N + 1) / N for N negatives, so its sum grows with log N as in InfoNCE (10).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from raytraffic.forecaster import Forecaster
from raytraffic.models.uomo.config import UomoConfig, build
from raytraffic.nn.transformer import ZeroLinear
from raytraffic.types import URBAN_CONTEXTS, TrafficBatch

__all__ = ["AlignedForecaster", "Alignment", "add_contexts", "align", "exchanged", "freeze"]


@dataclass(frozen=True)
class Alignment:
    """Weight of the negative pairs (0: none), how many a window has, and up to how many times the positive error they count."""

    contrast: float = 0.05
    negatives: int = 1
    margin: float = 2.0

    def __post_init__(self) -> None:
        if self.contrast < 0 or self.negatives < 1 or self.margin <= 1:
            raise ValueError(f"alignment: {self}, expected contrast >= 0, negatives >= 1, margin > 1")


class AlignedForecaster(nn.Module):
    """A UoMo in context-aware fine-tuning: its `forward` adds the negative pairs of Eq. 11 to the loss of the positive ones."""

    def __init__(self, forecaster: Forecaster, alignment: Alignment) -> None:
        super().__init__()
        self.forecaster = forecaster
        self.alignment = alignment

    def forward(self, batch: TrafficBatch, seeds: Tensor) -> dict[str, Tensor]:
        """As Forecaster.forward, with `negative` (b,): the bounded mean error of a window's negative pairs, which only training has."""
        positive = self.forecaster.objective(batch, seeds)
        n = min(self.alignment.negatives, len(batch.key) - 1)
        loss, negative = positive.mean(), torch.zeros_like(positive)
        if self.training and self.alignment.contrast and n > 0 and set(URBAN_CONTEXTS) & set(batch.context):
            cap = self.alignment.margin * positive.detach()
            for shift in range(1, n + 1):
                other = self.forecaster.objective(exchanged(batch, shift), seeds)
                negative = negative + torch.minimum(other, cap) / n
            loss = loss - self.alignment.contrast * math.log(n + 1) * negative.mean()
        return {"loss": loss, "each": positive.detach(), "negative": negative.detach()}


def exchanged(batch: TrafficBatch, shift: int) -> TrafficBatch:
    """The batch in which window i has the users and POI of window i - shift: negative pairs."""
    context = {name: value.roll(shift, 0) if name in URBAN_CONTEXTS else value for name, value in batch.context.items()}
    return replace(batch, context=context)


def align(forecaster: Forecaster, contrast: float, negatives: int) -> AlignedForecaster:
    """The forecaster with the objective of Eq. 11; ValueError for a negative weight or no negatives."""
    return AlignedForecaster(forecaster, Alignment(contrast, negatives))


def add_contexts(
    forecaster: Forecaster, config: UomoConfig, contexts: tuple[str, ...], poi_categories: tuple[str, ...]
) -> tuple[Forecaster, UomoConfig]:
    """A forecaster that also looks at these contexts, with the weights it had; its answers are the same until it is trained."""
    missing = tuple(name for name in contexts if name not in config.contexts)
    if not missing:
        return forecaster, config
    poi = poi_categories if "poi" in missing else config.poi_categories
    wider = replace(config, contexts=(*config.contexts, *missing), poi_categories=poi)
    model = build(wider)
    weights = model.state_dict() | forecaster.state_dict()
    model.load_state_dict(weights)
    return model, wider


def freeze(forecaster: Forecaster) -> None:
    """Freezes attention, linear and MLP layers (3.3.2); adaptive conditioning, output and context layers go on learning."""
    for name, module in forecaster.named_modules():
        learns = isinstance(module, ZeroLinear) or name.rpartition(".")[2] in ("poi_static", "poi_dynamic")
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(learns)
