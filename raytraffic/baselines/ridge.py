r"""A ridge blend of the simple rules' candidates c_i (persistence, same slot yesterday, profile x level, borrowed levels ...):

    x = c_0 + sum_i w_i (c_i - c_0) + w_0 c_0,   w = argmin sum_e l_e^{2p} ((x - y) / l_e)^2 + ridge |w|^2 sum_e l_e^{2p}

with c_0 the first answer of a chain (profile x level where there is one), l_e the level of entry e's cell (borrowed from its
tile where the cell has no history) and p `size_power`. So without data the blend is the chain, and a missing c_i is c_0. Each
group of entries (granularity, which candidates exist, lead) has weights of its own, from the normal equations in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from raytraffic.baselines.candidates import (
    Candidate,
    adjacent_mean,
    borrowed_mean,
    borrowed_median,
    cell_mean,
    entry_scale,
    first_answer,
    in_double,
    last_known,
    lead,
    neighbour_mean,
    neighbour_median,
    nothing,
    profile_level,
    profile_recent_level,
    profile_tile_recent_level,
    same_slot_last_week,
    same_slot_yesterday,
    yesterday_recent_level,
)
from raytraffic.types import Forecast, TrafficBatch

__all__ = ["BLENDED", "FALLBACK", "RidgeBlend", "fit"]

#: What an entry's forecast starts from: the first of these that has an answer.
FALLBACK: tuple[Candidate, ...] = (profile_level, cell_mean, borrowed_mean, nothing)
#: What is blended.
BLENDED: tuple[Candidate, ...] = (
    last_known,
    cell_mean,
    same_slot_yesterday,
    same_slot_last_week,
    partial(profile_recent_level, slots=2),
    partial(profile_recent_level, slots=8),
    profile_tile_recent_level,
    yesterday_recent_level,
    neighbour_mean,
    neighbour_median,
    adjacent_mean,
    borrowed_mean,
    borrowed_median,
)
_GROUPED_BY: tuple[Candidate, ...] = (same_slot_yesterday, same_slot_last_week, cell_mean, neighbour_mean)
_LEAD_EDGES = (1, 2, 4, 8, 16, 32)  # upper ends of the lead buckets, in slots; before the first known entry is a bucket too


@dataclass(frozen=True, eq=False)
class RidgeBlend:
    """A fitted blend: `weights` (g, 1 + candidates) float64 of the sorted `groups` (g,) int64; other groups take the chain."""

    groups: Tensor
    weights: Tensor
    name: str = "ridge blend"

    def forecast(self, batch: TrafficBatch, draws: int = 1, seed: int = 0) -> Forecast:
        """One draw whatever `draws` and `seed` are; 0 where every known entry of a cell is zero."""
        seen = in_double(batch.visible())
        features, base = _features(seen)
        group = _groups(seen)
        at = torch.searchsorted(self.groups, group).clamp(max=len(self.groups) - 1)
        fitted = self.groups[at] == group
        blended = base + torch.where(fitted, (features * self.weights[at]).sum(dim=-1), 0.0)
        scale, dead = entry_scale(seen)
        answer = torch.where(dead | (scale <= 0), 0.0, blended.clamp(min=0.0)).to(batch.traffic.dtype)
        return Forecast(draws=torch.where(batch.known, batch.traffic, answer)[:, None], known=batch.known)


def fit(batches: Iterable[TrafficBatch], ridge: float = 3e-3, size_power: float = 0.75) -> RidgeBlend:
    """The blend that fits the hidden entries of masked training windows best; windows of several granularities may mix.

    `size_power` 1 weighs squared errors in traffic units, 0 relative to each cell's level. Raises ValueError when nothing is
    hidden, `ridge` is not positive or `size_power` lies outside [0, 1].
    """
    if ridge <= 0:
        raise ValueError(f"ridge: {ridge}, expected > 0")
    if not 0.0 <= size_power <= 1.0:
        raise ValueError(f"size_power: {size_power}, expected a value in [0, 1]")
    width = 1 + len(BLENDED)
    sums: dict[int, Tensor] = {}
    for batch in batches:
        seen = in_double(batch.visible())
        features, base = _features(seen)
        group = _groups(seen)
        scale, dead = entry_scale(seen)
        used = batch.hidden & ~dead & (scale > 0)
        rows = torch.cat((features, (batch.traffic.double() - base)[..., None], torch.ones_like(base)[..., None]), dim=-1)[used]
        per_level = scale.expand_as(base)[used]
        rows[:, :-1] /= per_level[:, None]
        rows *= per_level[:, None] ** size_power
        group = group[used]
        for number in group.unique().tolist():
            mine = rows[group == number]
            sums[number] = sums.get(number, torch.zeros(width + 2, width + 2, dtype=torch.float64)) + mine.T @ mine
    if not sums:
        raise ValueError("batches: no hidden entry of a live cell, expected masked training windows")
    groups = torch.tensor(sorted(sums))
    gram = torch.stack([sums[number] for number in groups.tolist()])
    penalty = ridge * gram[:, -1:, -1:] * torch.eye(width, dtype=torch.float64)
    return RidgeBlend(groups=groups, weights=torch.linalg.solve(gram[:, :width, :width] + penalty, gram[:, :width, width]))


def _features(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """(b, c, t, s, 1 + candidates) c_0 and the differences from it, and c_0 (b, c, t, s)."""
    base, _ = first_answer(seen, FALLBACK)
    differences = [torch.where(found, value - base, 0.0) for value, found in (candidate(seen) for candidate in BLENDED)]
    return torch.stack((base, *differences), dim=-1), base


def _groups(seen: TrafficBatch) -> Tensor:
    """(b, c, t, s) int64: one number a combination of granularity, existing candidates and lead bucket."""
    group = seen.step_minutes[:, None, None, None].expand(seen.shape).long()
    for candidate in _GROUPED_BY:
        group = 2 * group + candidate(seen)[1]
    slots = lead(seen)
    bucket = torch.where(slots > 0, torch.bucketize(slots, torch.tensor(_LEAD_EDGES)) + 1, 0)
    return group * (len(_LEAD_EDGES) + 2) + bucket
