r"""The simple rules that every table of results carries beside the models, with the contract of `Forecaster.forecast`.

A `Rule` is a chain of candidates: an entry gets the first answer there is. `ProfileGaussian` is the one that gives a
distribution, in asinh space around the city's shape f_t and the cell's level l:

    z = asinh(x / l),   z_t ~ N(asinh(f_t), s^2),   s^2 = (sum r^2 + w S^2) / (m + w)

with r the cell's m known residuals, S^2 their mean over the tile's live cells and w `shrinkage`. A cell without history
is dead with the share of dead cells around it, else its level is log-normal like those of its live neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raytraffic.baselines.candidates import (
    Candidate,
    cell_mean,
    first_answer,
    last_known,
    levels,
    neighbour_mean,
    neighbour_median,
    nothing,
    profile_level,
    same_slot_last_week,
    same_slot_yesterday,
    shape,
    tile_mean,
)
from raytraffic.masks import Task
from raytraffic.randomness import derive, normal, uniform
from raytraffic.types import Forecast, TrafficBatch

__all__ = ["HISTORY_RULES", "NEIGHBOUR_RULES", "SIMPLE_RULES", "Baseline", "ProfileGaussian", "Rule"]

_SMALLEST = 1e-6  # guards divisions by a level; traffic units are far larger
_RESIDUAL, _LEVEL, _DEAD = 64, 65, 66  # streams of random numbers


class Baseline(Protocol):
    """Anything that forecasts a batch from `batch.visible()`; draws of a window depend on (its key, seed) alone."""

    @property
    def name(self) -> str:
        """How the baseline is called in tables."""
        ...

    def forecast(self, batch: TrafficBatch, draws: int = 1, seed: int = 0) -> Forecast:
        """Draws (b, n, c, t, s) in traffic units, equal to the traffic where known."""
        ...


@dataclass(frozen=True)
class Rule:
    """A deterministic rule: every entry takes the first candidate of the chain that has an answer for it."""

    name: str
    chain: tuple[Candidate, ...]

    def forecast(self, batch: TrafficBatch, draws: int = 1, seed: int = 0) -> Forecast:
        """One draw whatever `draws` and `seed` are: its CRPS is its absolute error, and it has no coverage."""
        seen = batch.visible()
        answer, _ = first_answer(seen, self.chain)
        return Forecast(draws=answer[:, None], known=batch.known)


@dataclass(frozen=True)
class ProfileGaussian:
    """City profile x known level with Gaussian residuals in asinh space; `spread` holds where a whole tile has no residual.

    `dead_after` known entries that are all zero make a cell dead: its draws are exactly 0.
    """

    name: str = "profile + Gaussian"
    spread: float = 0.3
    shrinkage: float = 8.0
    dead_after: int = 8

    def forecast(self, batch: TrafficBatch, draws: int = 1, seed: int = 0) -> Forecast:
        """`draws` draws; ValueError unless there is at least one."""
        if draws < 1:
            raise ValueError(f"draws: {draws}, expected at least 1")
        seen = batch.visible()
        seeds = derive(seen.key, seed)
        _, c, t, s = seen.shape
        own, has_history = levels(seen)
        live, dead = own > 0, has_history & (own <= 0) & (seen.known.sum(dim=2, keepdim=True) >= self.dead_after)
        level = torch.where(live, own, torch.zeros_like(own))[:, None]
        borrowed = ~live & ~dead
        level = torch.where(borrowed[:, None], self._borrow(own, live, dead, seeds, draws), level)
        spread = self._spread(seen, own, live)[:, None]
        z = torch.asinh(shape(seen))[:, None] + spread * normal(seeds, _RESIDUAL, (draws, c, t, s))
        drawn = (level * torch.sinh(z)).clamp(min=0.0)
        return Forecast(draws=torch.where(seen.known[:, None], seen.traffic[:, None], drawn), known=batch.known)

    def _spread(self, seen: TrafficBatch, level: Tensor, live: Tensor) -> Tensor:
        """(b, c, 1, s): standard deviation of a cell's residuals, shrunk to that of its tile; the tile's for other cells."""
        known = seen.known & live
        residual = torch.asinh(seen.traffic / level.clamp(min=_SMALLEST)) - torch.asinh(shape(seen))
        square = torch.where(known, residual**2, torch.zeros_like(residual)).sum(dim=2, keepdim=True)
        count = known.sum(dim=2, keepdim=True)
        everywhere = count.sum(dim=3, keepdim=True)
        pooled = torch.where(everywhere > 0, square.sum(dim=3, keepdim=True) / everywhere.clamp(min=1), self.spread**2)
        return torch.sqrt((square + self.shrinkage * pooled) / (count + self.shrinkage))

    def _borrow(self, level: Tensor, live: Tensor, dead: Tensor, seeds: Tensor, draws: int) -> Tensor:
        """(b, n, c, 1, s): levels drawn for cells without history; 0 throughout in a tile where nothing is live."""
        _, c, _, s = level.shape
        count = live.sum(dim=3, keepdim=True)
        log = torch.where(live, level.clamp(min=_SMALLEST).log(), torch.zeros_like(level))
        mean = log.sum(dim=3, keepdim=True) / count.clamp(min=1)
        deviation = torch.where(live, log - mean, torch.zeros_like(log))
        variance = (deviation**2).sum(dim=3, keepdim=True) / (count - 1).clamp(min=1)
        spread = torch.sqrt(variance * (1 + 1 / count.clamp(min=1)))  # of a new cell, whose mean is only estimated
        drawn = torch.exp(mean[:, None] + spread[:, None] * normal(seeds, _LEVEL, (draws, c, 1, s)))
        share = count / (count + dead.sum(dim=3, keepdim=True)).clamp(min=1)
        return drawn * (uniform(seeds, _DEAD, (draws, c, 1, s)) < share[:, None])


#: What is known of the neighbours where a cell itself has no known entry, then of the whole tile, then zero.
_NEIGHBOURS: tuple[Candidate, ...] = (neighbour_mean, tile_mean, nothing)

#: What a cell's own history says.
HISTORY_RULES: tuple[Baseline, ...] = (
    Rule("persistence", (last_known, *_NEIGHBOURS)),
    Rule("mean of the known", (cell_mean, *_NEIGHBOURS)),
    Rule("same slot yesterday", (same_slot_yesterday, cell_mean, *_NEIGHBOURS)),
    Rule("same slot last week", (same_slot_last_week, same_slot_yesterday, cell_mean, *_NEIGHBOURS)),
    Rule("profile x level", (profile_level, cell_mean, *_NEIGHBOURS)),
    ProfileGaussian(),
)
#: What the neighbours say of a cell that was never seen.
NEIGHBOUR_RULES: tuple[Baseline, ...] = (
    Rule("neighbour mean", (neighbour_mean, cell_mean, tile_mean, nothing)),
    Rule("neighbour median", (neighbour_median, cell_mean, tile_mean, nothing)),
    Rule("zero", (nothing,)),
    ProfileGaussian(),
)
SIMPLE_RULES: tuple[Baseline, ...] = tuple(dict.fromkeys(HISTORY_RULES + NEIGHBOUR_RULES))


def rules_for(task: Task) -> tuple[Baseline, ...]:
    """The rules that mean something for a task: where whole cells are hidden, rules of a cell's own history all say the same."""
    return NEIGHBOUR_RULES if task.kind == "generation" else HISTORY_RULES
