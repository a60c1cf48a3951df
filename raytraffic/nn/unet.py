"""A one-dimensional U-Net (Ronneberger et al. 2015) of residual convolution blocks over time; rows never see each other.

Every block adds a context of its level between its two convolutions, the second of which is zero at construction: a block begins as the
identity (or as the projection that its widths ask for).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ResidualBlock", "UNet", "ZeroConv", "group_norm"]

_GROUPS = 8


class ZeroConv(nn.Conv1d):
    """A convolution that is zero at construction: what it adds begins as nothing, and is learned."""

    def reset_parameters(self) -> None:
        """Zero weights, and zero biases."""
        nn.init.zeros_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalises groups of channels over a row's time alone: no statistics of a batch."""
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)


class ResidualBlock(nn.Module):
    """x (r, f, t) -> (r, f', t) with the context (r, f', t) added between its convolutions."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.norm1 = group_norm(fan_in)
        self.conv1 = nn.Conv1d(fan_in, fan_out, 3, padding=1)
        self.norm2 = group_norm(fan_out)
        self.conv2 = ZeroConv(fan_out, fan_out, 3, padding=1)
        self.skip = nn.Identity() if fan_in == fan_out else nn.Conv1d(fan_in, fan_out, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x))) + context
        return self.skip(x) + self.conv2(nn.functional.silu(self.norm2(h)))


class UNet(nn.Module):
    """Features (r, channels[0], t) of inputs (r, fan_in, t); level i has channels[i] and a time step 2^i as long.

    t is a multiple of `multiple`; `contexts` holds one (r, channels[i], t / 2^i) a level.
    """

    def __init__(self, fan_in: int, channels: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(fan_in, channels[0], 3, padding=1)
        pairs = list(itertools.pairwise(channels))
        self.encode = nn.ModuleList(nn.ModuleList(ResidualBlock(width, width) for _ in range(blocks)) for width in channels)
        self.shorten = nn.ModuleList(nn.Conv1d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairs)
        self.lengthen = nn.ModuleList(nn.Conv1d(coarse, fine, 3, padding=1) for fine, coarse in pairs)
        self.decode = nn.ModuleList(
            nn.ModuleList(ResidualBlock(2 * fine if first else fine, fine) for first in [True] + [False] * (blocks - 1))
            for fine, _ in pairs
        )

    @property
    def multiple(self) -> int:
        """What the number of time slots must be a multiple of."""
        return int(2 ** len(self.shorten))

    def forward(self, x: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        x = self.enter(x)
        finer = []
        for level, encode in enumerate(self.encode):
            x = _through(encode, x, contexts[level])
            if level < len(self.shorten):
                finer.append(x)
                x = self.shorten[level](x)
        for level in reversed(range(len(self.lengthen))):
            x = self.lengthen[level](x.repeat_interleave(2, dim=-1))
            x = _through(self.decode[level], torch.cat((x, finer[level]), dim=1), contexts[level])
        return x


def _through(blocks: nn.Module, x: Tensor, context: Tensor) -> Tensor:
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        x = block(x, context)
    return x
