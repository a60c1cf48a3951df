"""UoMo's denoiser (3.2.3): noisy mobile tokens plus condition tokens through adaLN-Zero transformer blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from raytraffic.models.uomo.patching import Patching
from raytraffic.nn.embeddings import LevelEmbedding, grid_positions
from raytraffic.nn.transformer import AdaLNBlock, AdaLNOutput
from raytraffic.types import Condition

if TYPE_CHECKING:
    from raytraffic.models.uomo.config import UomoConfig

__all__ = ["UomoDenoiser"]


class UomoDenoiser(nn.Module):
    """Predicts the process's target (b, c, t, s) from noisy hidden entries; known entries reach it through the condition."""

    def __init__(self, config: UomoConfig) -> None:
        super().__init__()
        self.patching = Patching(config.token)
        width = config.services * config.token[0] * config.token[1] * config.token[2]
        self.token = nn.Linear(width, config.hidden)
        self.level = LevelEmbedding(config.hidden)
        self.blocks = nn.ModuleList(AdaLNBlock(config.hidden, config.heads, dropout=config.dropout) for _ in range(config.depth))
        self.output = AdaLNOutput(config.hidden, width)

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        _, _, t, s = x.shape
        tokens = self.token(self.patching.cut(x * ~condition.known, condition.space))
        nt, nh, nw = self.patching.shape(t, condition.space, s)
        tokens = tokens + condition.tokens + grid_positions(nt, nh, nw, tokens.shape[-1], tokens.device).to(tokens.dtype)
        vector = self.level(level) + condition.vector
        for block in self.blocks:
            tokens = block(tokens, vector)
        return self.patching.join(self.output(tokens, vector), t, condition.space, s)
