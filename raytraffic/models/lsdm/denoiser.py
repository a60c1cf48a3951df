"""LSDM's denoiser (IV-B, IV-C, Fig. 4-5): a token a patch of slots of a service, through 2-D attention; every user by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raytraffic.models.lsdm.conditioner import FIELDS
from raytraffic.models.lsdm.patching import in_patches
from raytraffic.nn.embeddings import LevelEmbedding, sinusoids
from raytraffic.nn.transformer import AdaLNOutput
from raytraffic.nn.two_way import TwoWayBlock
from raytraffic.types import Condition

if TYPE_CHECKING:
    from raytraffic.models.lsdm.config import LsdmConfig

__all__ = ["LsdmDenoiser"]


class LsdmDenoiser(nn.Module):
    """Predicts the process's target (b, c, t, s) from noisy hidden entries; known entries reach it through the condition."""

    def __init__(self, config: LsdmConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.token = nn.Linear(config.patch * (1 + FIELDS), config.hidden)
        self.service = nn.Embedding(config.services, config.hidden)
        self.level = LevelEmbedding(config.hidden)
        self.blocks = nn.ModuleList(
            TwoWayBlock(config.hidden, config.heads, across=config.attention == "2d", dropout=config.dropout) for _ in range(config.depth)
        )
        self.output = AdaLNOutput(config.hidden, config.patch)

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        b, c, t, s = x.shape
        assert condition.field is not None and condition.tokens is not None
        history = condition.field.unflatten(1, (c, FIELDS))
        entries = torch.cat((x[:, :, None] * ~condition.known[:, :, None], history), dim=2)
        patches = in_patches(entries.permute(0, 3, 4, 1, 2), self.patch).permute(0, 3, 1, 4, 2, 5).flatten(4)
        # Counted back from the last, so that a shorter history ends where a longer one does.
        position = sinusoids(torch.arange(patches.shape[2], device=x.device).flip(0), self.service.embedding_dim)
        tokens = self.token(patches) + self.service.weight + position[:, None] + condition.tokens.transpose(1, 2)[:, :, :, None]
        vector = self.level(level)[:, None, None]
        vector = vector if condition.vector is None else vector + condition.vector
        tokens, vector = tokens.flatten(0, 1), vector.transpose(1, 2).expand(b, s, -1, -1).flatten(0, 1)
        for block in self.blocks:
            tokens = block(tokens, vector)
        # Patches that share a vector are the tokens of one row.
        answer = self.output(tokens.reshape(vector.shape[0] * vector.shape[1], -1, tokens.shape[-1]), vector.flatten(0, 1))
        return answer.reshape(*patches.shape[:4], self.patch).permute(0, 3, 2, 4, 1).flatten(2, 3)[:, :, -t:]
