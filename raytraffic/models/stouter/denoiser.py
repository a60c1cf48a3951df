"""STUNet (STOUTER 3): a U-Net over the time of every station, steered at every level by the fused embeddings of slot and station."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raytraffic.models.stouter.conditioner import FIELDS
from raytraffic.models.stouter.fusion import FeatureFusion
from raytraffic.nn.embeddings import LevelEmbedding
from raytraffic.nn.transformer import ZeroLinear
from raytraffic.nn.unet import UNet, group_norm
from raytraffic.types import Condition

if TYPE_CHECKING:
    from raytraffic.models.stouter.config import StouterConfig

__all__ = ["StuNet"]


class StuNet(nn.Module):
    """Predicts the process's target (b, c, t, s) from noisy hidden entries; stations meet in F_s alone."""

    def __init__(self, config: StouterConfig) -> None:
        super().__init__()
        self.temporal, self.station = config.temporal_graph, "poi" in config.contexts
        self.level = LevelEmbedding(config.hidden)
        self.fusions = nn.ModuleList(
            FeatureFusion(config.embedding, config.hidden, width, temporal=self.temporal, station=self.station) for width in config.channels
        )
        self.unet = UNet((1 + FIELDS) * config.services, config.channels, config.blocks)
        self.norm = group_norm(config.channels[0])
        self.output = ZeroLinear(config.channels[0], config.services)

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        b, _, t, s = x.shape
        missing = -t % self.unet.multiple
        assert condition.field is not None
        fields = torch.cat((x * ~condition.known, condition.field), dim=1)
        rows = nn.functional.pad(fields.permute(0, 3, 1, 2).flatten(0, 1), (0, missing))
        contexts = self._contexts(self.level(level) + condition.vector, condition, t, s, missing)
        features = nn.functional.silu(self.norm(self.unet(rows.to(x.dtype), contexts)))[..., :t]
        return self.output(features.transpose(1, 2)).unflatten(0, (b, s)).permute(0, 3, 2, 1)

    def _contexts(self, step: Tensor, condition: Condition, t: int, s: int, missing: int) -> list[Tensor]:
        """The STFFM's (b * s, f, t / 2^i) of every level; F_t of a longer step is the mean over its slots."""
        time, place = None, None
        if self.temporal and condition.tokens is not None:
            time = nn.functional.pad(condition.tokens[:, :t].transpose(1, 2), (0, missing), mode="replicate")
        if self.station and condition.tokens is not None:
            place = condition.tokens[:, -s:]
        contexts = []
        for i, fusion in enumerate(self.fusions):
            slots = (t + missing) >> i
            pooled = None if time is None else nn.functional.avg_pool1d(time, 1 << i).transpose(1, 2)
            contexts.append(fusion(pooled, place, step, slots, s).flatten(0, 1))
        return contexts
