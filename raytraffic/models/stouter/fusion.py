r"""The Spatio-Temporal Feature Fusion Module (STOUTER 3) of one level of the U-Net:

    context(i, t) = W [F_t(t) (+) F_s(i)] + b + U e_k

for station i, slot t of the level and diffusion step k. W of a concatenation is the sum of a matrix for each part, so the parts are
projected before they meet: T + S rows instead of T S.
"""

from __future__ import annotations

from torch import Tensor, nn

from raytraffic.nn.transformer import ZeroLinear

__all__ = ["FeatureFusion"]


class FeatureFusion(nn.Module):
    """Context (b, s, f, t) of one level from F_t (b, t, d), F_s (b, s, d) and the step's embedding (b, h); None for a part there is not.

    F_s begins as nothing, so that a model without it can be given one and answers as it did.
    """

    def __init__(self, embedding: int, hidden: int, channels: int, *, temporal: bool, station: bool) -> None:
        super().__init__()
        self.temporal = nn.Linear(embedding, channels) if temporal else None
        self.station = ZeroLinear(embedding, channels) if station else None
        self.step = nn.Linear(hidden, channels)

    def forward(self, time: Tensor | None, place: Tensor | None, step: Tensor, slots: int, stations: int) -> Tensor:
        context = self.step(nn.functional.silu(step))[:, None, :, None]
        if self.temporal is not None and time is not None:
            context = context + self.temporal(time).transpose(1, 2)[:, None]
        if self.station is not None and place is not None:
            context = context + self.station(place)[..., None]
        return context.expand(-1, stations, -1, slots)
