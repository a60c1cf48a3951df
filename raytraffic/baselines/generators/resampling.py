"""Resampling: a random real week of the training station whose POI are nearest. What a generator must beat to be worth its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raytraffic.baselines.generators.rows import RowScale
from raytraffic.forecaster import rows_of
from raytraffic.randomness import uniform
from raytraffic.types import TrafficBatch

__all__ = ["Resampling", "fit_resampling"]

_STREAM = 120
_WEEK_MINUTES = 7 * 1440


@dataclass(frozen=True, eq=False)
class Resampling:
    """Real weeks (m, c, t), the first slot of the week each of them begins at (m,), and the standardised POI (m, k) of their stations."""

    weeks: Tensor
    begin: Tensor
    poi: Tensor
    scale: RowScale
    name: str = "resampling"

    def generate(self, context: TrafficBatch, draws: int, seed: int) -> Tensor:
        """A week is turned to begin at the window's slot of the week; ValueError for windows of another length or step."""
        b, _, t, s = context.shape
        if t != self.weeks.shape[2] or bool((context.step_minutes * t != _WEEK_MINUTES).any()):
            raise ValueError(f"context: windows of {t} slots, expected whole weeks of {self.weeks.shape[2]} slots as in training")
        asked = self.scale.condition(context)[:, : self.poi.shape[1], 0]
        distance = torch.linalg.vector_norm(asked[:, None] - self.poi, dim=-1)
        nearest = (distance <= distance.amin(dim=1, keepdim=True) + 1e-6).unflatten(0, (b, s))
        window, seeds = rows_of(context, draws, seed)
        chance = uniform(seeds, _STREAM, (s, 1))
        candidates = nearest[window]
        # The k-th candidate, k evenly drawn among them.
        wanted = (chance * candidates.sum(-1, keepdim=True)).floor() + 1
        chosen = (candidates.cumsum(-1) >= wanted).int().argmax(dim=-1)
        slot = torch.arange(t)
        turn = (slot + (_begin(context)[window][:, None, None] - self.begin[chosen][..., None])) % t
        made = self.weeks[chosen].gather(-1, turn[:, :, None].expand(-1, -1, self.weeks.shape[1], -1))
        return made.unflatten(0, (b, draws)).permute(0, 1, 3, 4, 2)


def fit_resampling(batches: Sequence[TrafficBatch]) -> Resampling:
    """The weeks of training windows that were measured throughout; ValueError where there is none, or windows are not weeks."""
    for batch in batches:
        if bool((batch.step_minutes * batch.shape[2] != _WEEK_MINUTES).any()):
            raise ValueError(f"batches: windows of {batch.shape[2]} slots, expected a whole week")
    scale = RowScale.of(batches)
    weeks = torch.cat([batch.traffic.permute(0, 3, 1, 2).flatten(0, 1) for batch in batches])
    begin = torch.cat([_begin(batch).repeat_interleave(batch.shape[3]) for batch in batches])
    poi = torch.cat([scale.condition(batch)[:, : len(scale.poi_mean), 0] for batch in batches])
    whole = torch.isfinite(weeks).all(dim=(1, 2))
    if not bool(whole.any()):
        raise ValueError("batches: no station-week that was measured throughout, expected at least one")
    return Resampling(weeks[whole], begin[whole], poi[whole], scale)


def _begin(batch: TrafficBatch) -> Tensor:
    """(b,) the slot of the week that each window begins at."""
    return batch.clock[:, 0, 1] * (1440 // batch.step_minutes) + batch.clock[:, 0, 0]
