"""Candidates: forecasts one simple idea gives from what is visible of a batch, each with where it has an answer.

Every function takes `batch.visible()` and returns (b, c, t, s) traffic and a bool of the same shape, False where the
idea says nothing (its traffic there means nothing). A window's answer depends on that window alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from raytraffic.types import TrafficBatch

__all__ = [
    "Candidate",
    "adjacent_mean",
    "borrowed_mean",
    "borrowed_median",
    "cell_mean",
    "entry_scale",
    "first_answer",
    "in_double",
    "last_known",
    "lead",
    "levels",
    "neighbour_mean",
    "neighbour_median",
    "nothing",
    "profile_level",
    "profile_recent_level",
    "profile_tile_recent_level",
    "recent_sum",
    "same_slot_last_week",
    "same_slot_yesterday",
    "shape",
    "tile_mean",
    "yesterday_recent_level",
]

Candidate = Callable[[TrafficBatch], tuple[Tensor, Tensor]]
_SMALLEST_SHAPE = 0.02  # a profile of 0 at night would make a level infinite
_LARGEST_RATIO = 4.0  # a day that starts from almost nothing says little of its end


def last_known(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The cell's latest known entry before a slot, or its first known one where nothing was known before."""
    t = seen.shape[2]
    slot, before = _latest_slot(seen)
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


def profile_recent_level(seen: TrafficBatch, slots: int = 8) -> tuple[Tensor, Tensor]:
    """The city's mean weekly shape x the level of the cell's latest `slots` known entries before a slot."""
    traffic, found = recent_sum(seen.traffic, seen.known, slots)
    expected, _ = recent_sum(shape(seen).expand_as(seen.traffic), seen.known, slots)
    return shape(seen) * traffic / expected.clamp(min=_SMALLEST_SHAPE), found


def profile_tile_recent_level(seen: TrafficBatch, slots: int = 4) -> tuple[Tensor, Tensor]:
    """Profile x level x what the tile's latest known entries (`slots` a cell) are relative to their own profile x level."""
    expected, answered = profile_level(seen)
    known = seen.known & answered
    latest, found = recent_sum(seen.traffic, known, slots)
    before, _ = recent_sum(expected, known, slots)
    total = before.sum(dim=3, keepdim=True)
    return expected * latest.sum(dim=3, keepdim=True) / torch.where(total > 0, total, 1.0), answered & found & (total > 0)


def yesterday_recent_level(seen: TrafficBatch, slots: int = 8) -> tuple[Tensor, Tensor]:
    """The same slot yesterday x the cell's latest `slots` known entries relative to the entries a day before them."""
    yesterday, found = same_slot_yesterday(seen)
    both = seen.known & found
    today, compared = recent_sum(seen.traffic, both, slots)
    before, _ = recent_sum(yesterday, both, slots)
    ratio = (today / torch.where(before > 0, before, 1.0)).clamp(max=_LARGEST_RATIO)
    return yesterday * ratio, found & compared & (before > 0)


def borrowed_mean(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The city's mean weekly shape x the mean level of the tile's cells with history, dead ones among them."""
    level, found = levels(seen)
    count = found.sum(dim=3, keepdim=True)
    mean = torch.where(found, level, 0.0).sum(dim=3, keepdim=True) / count.clamp(min=1)
    return (shape(seen) * mean).expand_as(seen.traffic), (count > 0).expand_as(seen.known)


def borrowed_median(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The city's mean weekly shape x the median level of the tile's cells with history, dead ones among them."""
    level, found = levels(seen)
    median = level.masked_fill(~found, torch.nan).nanquantile(0.5, dim=3, keepdim=True)
    value = (shape(seen) * median).expand_as(seen.traffic)
    return value, torch.isfinite(value)


def adjacent_mean(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """The mean over the cells known at that slot that touch the cell on the grid, corners included; no answer without a grid."""
    if seen.space.grid is None:
        return torch.zeros_like(seen.traffic), torch.zeros_like(seen.known)
    height, width = seen.space.grid
    row, column = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    near = ((row[:, None] - row).abs() <= 1) & ((column[:, None] - column).abs() <= 1) & ~torch.eye(height * width, dtype=torch.bool)
    weight = near.to(seen.traffic)
    count = seen.known.to(seen.traffic) @ weight
    return seen.traffic @ weight / count.clamp(min=1), count > 0


def first_answer(seen: TrafficBatch, chain: Sequence[Candidate]) -> tuple[Tensor, Tensor]:
    """Where traffic is known that traffic, elsewhere the first answer of the chain."""
    answer, answered = seen.traffic, seen.known
    for candidate in chain:
        value, found = candidate(seen)
        answer = torch.where(~answered & found, value, answer)
        answered = answered | found
    return answer, answered


def recent_sum(value: Tensor, known: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """The sum of `value` over the latest `slots` known slots before each slot (fewer where there are fewer), and whether there is any."""
    packed = torch.argsort(~known, dim=2, stable=True)
    kept = torch.where(known.gather(2, packed), value.gather(2, packed), 0.0)
    total = F.pad(kept.cumsum(dim=2), (0, 0, 1, 0))
    before = known.cumsum(dim=2) - known.long()
    recent = total.gather(2, before) - total.gather(2, (before - slots).clamp(min=0))
    return recent.clamp(min=0.0), before > 0


def shape(seen: TrafficBatch) -> Tensor:
    """(b, 1, t, 1): the city's mean weekly shape at the window's slots, 1 where there is none."""
    b, _, t, _ = seen.shape
    profile = seen.context.get("profile", torch.ones(b, t, device=seen.traffic.device))
    return torch.nan_to_num(profile, nan=1.0).clamp(min=_SMALLEST_SHAPE)[:, None, :, None]


def levels(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """(b, c, 1, s): each cell's level = sum of its known traffic / sum of the shape at its known slots, and whether it has any."""
    weight = (seen.known * shape(seen)).sum(dim=2, keepdim=True)
    return seen.traffic.sum(dim=2, keepdim=True) / weight.clamp(min=_SMALLEST_SHAPE), weight > 0


def entry_scale(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """(b, c, 1, s) each cell's level, or the mean level of its tile where it has no known entry; and which cells are dead."""
    level, found = levels(seen)
    count = found.sum(dim=3, keepdim=True)
    borrowed = torch.where(found, level, 0.0).sum(dim=3, keepdim=True) / count.clamp(min=1)
    return torch.where(found, level, borrowed), found & (level <= 0)


def in_double(seen: TrafficBatch) -> TrafficBatch:
    """The batch with traffic and profile in float64, where the order of a sum, which may change with the batch, hardly shows."""
    context = {name: value.double() if name == "profile" else value for name, value in seen.context.items()}
    return replace(seen, traffic=seen.traffic.double(), context=context)


def lead(seen: TrafficBatch) -> Tensor:
    """(b, c, t, s) int64: slots since the cell's latest known entry; 0 before its first one."""
    slot, latest = _latest_slot(seen)
    return torch.where(latest >= 0, slot - latest, 0)


def _latest_slot(seen: TrafficBatch) -> tuple[Tensor, Tensor]:
    """(t, 1) the slots, and (b, c, t, s) the cell's latest known slot up to each, -1 before its first one."""
    slot = torch.arange(seen.shape[2], device=seen.known.device)[:, None]
    return slot, torch.where(seen.known, slot, -1).cummax(dim=2).values


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
