r"""The adaLN-Zero transformer (Peebles & Xie 2023; UoMo Eq. 6): alpha, beta, gamma = F(o); e <- e + alpha A(beta e + gamma).

F is zero at construction, so every block starts as the identity and the output layer as zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["MLP_RATIO", "AdaLNBlock", "AdaLNOutput", "SelfAttention", "ZeroLinear", "initialise", "recompute"]

#: Hidden features of a block's MLP over its width.
MLP_RATIO = 4


class ZeroLinear(nn.Linear):
    """A linear layer that is zero at construction: what it adds begins as nothing, and is learned."""


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens (b, l, d); logits are multiplied by `scale`, 1 / sqrt(features of a head) where it is None."""

    scale: float | None = None

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_features = hidden // heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out(mixed.transpose(1, 2).flatten(2))


class AdaLNBlock(nn.Module):
    """Attention and MLP, each modulated by a condition vector (b, hidden); the identity at construction.

    With `recompute` no activation inside the block is kept for the backward pass, which computes them again.
    """

    recompute: bool = False

    def __init__(self, hidden: int, heads: int, mlp_ratio: int = MLP_RATIO, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden, elementwise_affine=False)
        self.attention = SelfAttention(hidden, heads)
        self.norm2 = nn.LayerNorm(hidden, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(hidden, mlp_ratio * hidden), nn.GELU("tanh"), nn.Linear(mlp_ratio * hidden, hidden))
        self.adaln = ZeroLinear(hidden, 6 * hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            again: Tensor = checkpoint(self._forward, x, vector, use_reentrant=False)
            return again
        return self._forward(x, vector)

    def _forward(self, x: Tensor, vector: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(nn.functional.silu(vector))[:, None].chunk(6, dim=-1)
        x = torch.addcmul(x, gate1, self.dropout(self.attention(_modulate(self.norm1(x), shift1, scale1))))
        return torch.addcmul(x, gate2, self.dropout(self.mlp(_modulate(self.norm2(x), shift2, scale2))))


class AdaLNOutput(nn.Module):
    """The modulated last norm and the output layer (b, l, out); zero at construction."""

    def __init__(self, hidden: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.adaln = ZeroLinear(hidden, 2 * hidden)
        self.out = ZeroLinear(hidden, out)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        shift, scale = self.adaln(nn.functional.silu(vector))[:, None].chunk(2, dim=-1)
        return self.out(_modulate(self.norm(x), shift, scale))


def recompute(model: nn.Module, on: bool = True) -> None:
    """Activation checkpointing of every block of a model, switched on or off: less memory for a second forward pass, and the same loss and
    gradients (dropout draws the same again). It is no part of a model's configuration, and is not saved."""
    for module in model.modules():
        if isinstance(module, AdaLNBlock):
            module.recompute = on


def initialise(model: nn.Module) -> None:
    """Xavier weights and zero biases everywhere; zero where a layer begins as nothing (ZeroLinear), or adaLN-Zero is lost."""
    for module in model.modules():
        if isinstance(module, ZeroLinear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
