r"""Hyperparameters that transfer over widths: maximal update parametrisation (muP, Yang et al. 2022, "Tensor Programs V", Table 3, for
Adam; for diffusion transformers Zheng et al. 2025).

For a weight of n_out x n_in whose counterpart in the same model of the base width is m_out x m_in:

    variance at construction    2 / (m_in + m_out) . m_in / n_in      Xavier's at the base width, then as 1 / fan-in
    learning rate               eta m_in / n_in
    weight decay                lambda n_in / m_in                    AdamW multiplies it by the learning rate, which cancels
    attention's logits          sqrt(d_0) / d . q k                   d, d_0: features of a head here and there

Where the fan-in does not grow (inputs, biases, tables) nothing but the variance differs from the standard parametrisation, and that is the
same at every width. Output layers, whose variance would have to fall faster, are zero at construction. At the base width all is as without
transfer. Only the width transfers: a learning rate that was found at one depth need not be the best at another.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from raytraffic.nn.transformer import SelfAttention, ZeroLinear

__all__ = ["transfer"]


@torch.no_grad()
def transfer(model: nn.Module, base: nn.Module) -> None:
    """Rescales an initialised model as the model `base` of the base width asks for, which may lie on the meta device.

    A layer whose fan-in differs is given `fan_in_ratio`, by which `raytraffic.fit.optimiser` divides its weight's learning rate.
    """
    counterparts = dict(base.named_modules())
    for name, module in model.named_modules():
        counterpart = counterparts[name]
        if isinstance(module, nn.Linear):
            assert isinstance(counterpart, nn.Linear)
            _transfer_linear(module, counterpart)
        elif isinstance(module, SelfAttention):
            assert isinstance(counterpart, SelfAttention)
            head, base_head = module.head_features, counterpart.head_features
            module.scale = None if head == base_head else math.sqrt(base_head) / head


def _transfer_linear(layer: nn.Linear, base: nn.Linear) -> None:
    assert layer.out_features != base.out_features or layer.in_features == base.in_features or isinstance(layer, ZeroLinear), (
        "an output layer is zero at construction"
    )
    ratio = layer.in_features / base.in_features
    wanted = 2 / (base.in_features + base.out_features) / ratio
    layer.weight.mul_(math.sqrt(wanted * (layer.in_features + layer.out_features) / 2))
    if ratio != 1:
        layer.fan_in_ratio = ratio  # type: ignore[assignment]  # a plain number, which the stub of Module does not expect
