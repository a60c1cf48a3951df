r"""LEC-Diff's denoiser: a station's value at one slot through gated residual blocks, as TimeGrad's (Rasul et al. 2021, Fig. 2; WaveNet).

    y      = W_x (u + W_k k) + W_f f          u: features of the value,  k: noise level,  f: what the conditioner tells of station and slot
    r, s   = W_o (sigmoid(y_1) tanh(y_2))     u <- (u + r) / sqrt(2),  the s of all blocks are summed

TimeGrad's convolutions run over the variates of a multivariate series. Stations have no order, and what they have in common comes over the
graph: here they are linear layers, and one station does not see the noise of another.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from raytraffic.nn.embeddings import LevelEmbedding
from raytraffic.nn.transformer import ZeroLinear
from raytraffic.types import Condition

if TYPE_CHECKING:
    from raytraffic.models.lec_diff.config import LecDiffConfig

__all__ = ["GatedBlock", "LecDiffDenoiser"]


class GatedBlock(nn.Module):
    """Residual and skip (r, s, hidden) of features (r, s, hidden), the level's (r, hidden) and the condition's (r, s, hidden)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.level = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, 2 * hidden)
        self.told = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, 2 * hidden)

    def forward(self, u: Tensor, level: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        gate, filtered = (self.value(u + self.level(level)[:, None]) + self.told(told)).chunk(2, dim=-1)
        residual, skip = self.out(gate.sigmoid() * filtered.tanh()).chunk(2, dim=-1)
        return (u + residual) / math.sqrt(2), skip


class LecDiffDenoiser(nn.Module):
    """Predicts the process's target (r, c, 1, s) of rows, one slot of one window each, told by `condition.field` (r, hidden, 1, s)."""

    learning_rate_scale: float = 1.0

    def __init__(self, config: LecDiffConfig) -> None:
        super().__init__()
        self.level = LevelEmbedding(config.hidden)
        self.value = nn.Linear(config.services, config.hidden)
        self.blocks = nn.ModuleList(GatedBlock(config.hidden) for _ in range(config.blocks))
        self.mix = nn.Linear(config.hidden, config.hidden)
        self.out = ZeroLinear(config.hidden, config.services)

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        assert condition.field is not None
        told, k = condition.field[:, :, 0].transpose(1, 2), nn.functional.silu(self.level(level))
        u = nn.functional.silu(self.value(x[:, :, 0].transpose(1, 2)))
        skips = 0.0
        for block in self.blocks:
            u, skip = block(u, k, told)
            skips = skips + skip
        y = nn.functional.silu(self.mix(skips / math.sqrt(len(self.blocks))))
        return self.out(y).transpose(1, 2)[:, :, None]
