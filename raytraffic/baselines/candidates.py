"""Candidates: forecasts one simple idea gives from what is visible of a batch, each with where it has an answer.

Every function takes `batch.visible()` and returns (b, c, t, s) traffic and a bool of the same shape, False where the
idea says nothing (its traffic there means nothing). A window's answer depends on that window alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raytraffic.types import TrafficBatch

__all__ = [
    "Candidate",
    "cell_mean",
    "last_known",
    "levels",
    "neighbour_mean",
    "neighbour_median",
    "nothing",
    "profile_level",
    "same_slot_last_week",
    "same_slot_yesterday",
    "shape",
    "tile_mean",
]

Candidate = Callable[[TrafficBatch], tuple[Tensor, Tensor]]
_SMALLEST_SHAPE = 0.02  # a profile of 0 at night would make a level infinite


def last_known(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The cell's latest known entry before a slot, or its first known one where nothing was known before."""
    t = seen.shape[2]
    slot = torch.arange(t, device=seen.known.device)[:, None]
    before = torch.where(seen.known, slot, -1).cummax(dim=2).values
    first = torch.where(seen.known, slot, t).amin(dim=2, keepdim=True)
    source = torch.where(before >= 0, before, first)
    return seen.traffic.gather(2, source.clamp(max=t - 1)), source < t


def cell_mean(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The mean of the cell's known entries."""
    return _mean(seen, dim=2)


def neighbour_mean(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The mean over the tile's cells that are known at that slot, dead ones among them."""
    return _mean(seen, dim=3)


def neighbour_median(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The median over the tile's cells that are known at that slot, dead ones among them."""
    median = seen.traffic.masked_fill(~seen.known, torch.nan).nanquantile(0.5, dim=3, keepdim=True).expand_as(seen.traffic)
    return median, torch.isfinite(median)


def tile_mean(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The mean over all known entries of the tile."""
    return _mean(seen, dim=(2, 3))


def nothing(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """Zero everywhere."""
    return torch.zeros_like(seen.traffic), torch.ones_like(seen.known)


def same_slot_yesterday(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The same slot of the nearest earlier day on which it is known in the window."""
    return _earlier(seen, days=1)


def same_slot_last_week(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The same slot and weekday of the nearest earlier week in which it is known in the window."""
    return _earlier(seen, days=7)


def profile_level(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The city's mean weekly shape x the cell's known level; no answer without `context["profile"]` or without history."""
    if "profile" not in seen.context:
        return torch.zeros_like(seen.traffic), torch.zeros_like(seen.known)
    level, found = levels(seen)
    return level * shape(seen), found.expand_as(seen.known)


def shape(seen: TrafficBatch) -> Tensor:
    """(b, 1, t, 1): the city's mean weekly shape at the window's slots, 1 where there is none."""
    b, _, t, _ = seen.shape
    profile = seen.context.get("profile", torch.ones(b, t, device=seen.traffic.device))
    return torch.nan_to_num(profile, nan=1.0).clamp(min=_SMALLEST_SHAPE)[:, None, :, None]


def levels(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """(b, c, 1, s): each cell's level = sum of its known traffic / sum of the shape at its known slots, and whether it has any."""
    weight = (seen.known * shape(seen)).sum(dim=2, keepdim=True)
    return seen.traffic.sum(dim=2, keepdim=True) / weight.clamp(min=_SMALLEST_SHAPE), weight > 0


def _mean(seen: TrafficBatch, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    count = seen.known.sum(dim=dim, keepdim=True)
    mean = seen.traffic.sum(dim=dim, keepdim=True) / count.clamp(min=1)
    return mean.expand_as(seen.traffic), (count > 0).expand_as(seen.known)


def _earlier(seen: TrafficBatch, days: int) -> tuple[Tensor, Tensor]:
    """The nearest known entry a whole number of `days` earlier; the slots of a day differ from window to window."""
    value, found = torch.zeros_like(seen.traffic), torch.zeros_like(seen.known)
    t = seen.shape[2]
    for step in seen.step_minutes.unique().tolist():
        rows = (seen.step_minutes == step).nonzero()[:, 0]
        traffic, known = seen.traffic[rows], seen.known[rows]
        best, have = torch.zeros_like(traffic), torch.zeros_like(known)
        period = days * 1440 // int(step)
        for lag in range(period, t, period):
            take = known[:, :, : t - lag] & ~have[:, :, lag:]
            best[:, :, lag:] = torch.where(take, traffic[:, :, : t - lag], best[:, :, lag:])
            have[:, :, lag:] |= take
        value[rows], found[rows] = best, have
    return value, found
