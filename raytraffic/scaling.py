r"""Scaling: from physical units to what is diffused, invertible, made from a window's known entries only.

known    level = a cell's own mean over its known entries (adjusted by the city profile where there is one), asinh, residual
         to a prior, divided by the residuals' own spread over the known entries. Cells without history borrow level and
         spread from their tile's live cells, and the probability of being dead from all of them, near ones before others
         (raytraffic.kriging). An untrained network with zero output therefore samples prior + noise.
global   the papers' scale: [0, q] -> [-1, 1] with the city's upper reference q; no prior, no spread, answers clipped to [0, q].
         A city without training statistics (NaN) has its largest known entry as q, and 1 where nothing above zero is known.

Evidence for `known`: one global scale loses to "same slot yesterday" at small budgets (docs/results.md, ablations).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from raytraffic.diffusion.priors import same_slot
from raytraffic.kriging import ALIVE, LOG_LEVEL, between_cells, cell_distance, krige, variation
from raytraffic.types import TYPICAL_LEVEL, Scale, TrafficBatch

__all__ = ["Scaling"]

#: Guards divisions; far under any traffic in any unit (a cell may carry 1e-9 TB), and large traffic over it is still a float32.
_SMALLEST = 1e-20
_IMPLAUSIBLE = 30.0
#: Of cells of which nothing is known so many carry traffic, and a tile's levels vary as usual with the weight of so many cells.
_LIVE_SHARE, _USUAL_CELLS = 0.75, 20.0


@dataclass(frozen=True)
class Scaling:
    """How a Forecaster scales: `kind`, the `prior` whose residual is diffused, and the spread's prior value and weight.

    The prior is nothing, what a Fourier series of the window's own known entries continues, or the city's profile.

    A cell is dead when it has at least `dead_after` known entries and all of them are zero.
    """

    kind: Literal["known", "global"] = "known"
    prior: Literal["none", "fourier", "seasonal"] = "seasonal"
    spread: float = 0.3
    spread_weight: float = 8.0
    dead_after: int = 8

    def __post_init__(self) -> None:
        if self.kind not in ("known", "global"):
            raise ValueError(f"scaling.kind: {self.kind!r}, expected 'known' or 'global'")
        if self.prior not in ("none", "fourier", "seasonal"):
            raise ValueError(f"scaling.prior: {self.prior!r}, expected 'none', 'fourier' or 'seasonal'")
        if self.kind == "global" and self.prior != "none":
            raise ValueError(f"scaling.prior: {self.prior!r} with scaling.kind 'global', expected 'none' (the global scale has no level)")

    def fit(self, batch: TrafficBatch) -> Scale:
        """The scale of a batch, from `batch.visible()`; ValueError if the global scale has no `reference` to scale by."""
        batch = batch.visible()
        return self._global(batch) if self.kind == "global" else self._known(batch)

    def _global(self, batch: TrafficBatch) -> Scale:
        if "reference" not in batch.context:
            raise ValueError("context: no 'reference', expected the city's upper reference level for scaling.kind 'global'")
        reference = batch.context["reference"]
        q = torch.where(torch.isfinite(reference), reference, batch.traffic.amax(dim=(2, 3)))
        q = torch.where(q > 0, q, torch.ones_like(q))[:, :, None, None]
        cells = torch.ones_like(batch.traffic[:, :, :1])
        return Scale(
            level=cells * q / 2,
            prior=torch.ones_like(batch.traffic),
            spread=cells,
            ceiling=q,
            dead=torch.zeros_like(cells, dtype=torch.bool),
            silent=torch.zeros_like(cells),
            asinh=False,
        )

    def _known(self, batch: TrafficBatch) -> Scale:
        known = batch.known
        profile = _profile(batch)[:, None, :, None]
        traffic = torch.minimum(batch.traffic, _plausible(batch, profile))
        count = known.sum(2, keepdim=True)
        total = traffic.sum(2, keepdim=True)
        dead = (count >= self.dead_after) & (total == 0)
        own = total / (known * profile).sum(2, keepdim=True).clamp(min=_SMALLEST)
        live = total > 0
        distance = cell_distance(batch)
        borrowed, uncertain = _borrow(own, live, batch, distance)
        level = torch.where(live, own, borrowed).clamp(min=_SMALLEST)

        prior = self._prior(batch, profile, level)
        residual = torch.where(known, torch.asinh(traffic / level) - prior, torch.zeros_like(traffic))
        square = (residual**2).sum(2, keepdim=True) + self.spread_weight * self.spread**2
        spread = torch.where(live, (square / (count + self.spread_weight)).sqrt(), uncertain)
        silent = torch.where(count > 0, torch.zeros_like(level), _silent(count > 0, dead, distance))
        return Scale(level=level, prior=prior, spread=spread, ceiling=_ceiling(batch, level), dead=dead, silent=silent, asinh=True)

    def _prior(self, batch: TrafficBatch, profile: Tensor, level: Tensor) -> Tensor:
        if self.prior == "none":
            return torch.zeros_like(batch.traffic)
        if self.prior == "fourier":
            return _continued(batch, level)
        shaped = torch.asinh(profile).expand_as(batch.traffic)
        unknown_city = (profile == 1).all(dim=2, keepdim=True)
        if not bool(unknown_city.any()):
            return shaped
        other_day, found = same_slot(batch)
        return torch.where(found & unknown_city, torch.asinh(other_day / level), shaped)


def _continued(batch: TrafficBatch, level: Tensor) -> Tensor:
    """(b, c, t, s): asinh of what the daily rhythm of the window's own known entries continues as; 1 where nothing of a cell is known."""
    flat = torch.asinh(torch.ones_like(level))
    modes, persistence = variation(replace(batch, context={}))
    return flat + krige(torch.asinh(batch.traffic / level) - flat, batch.known, modes, persistence, batch.step_minutes)[0]


def _plausible(batch: TrafficBatch, profile: Tensor) -> Tensor:
    """(b, c, t, s): what more than this is a fault of measurement, and may move neither level nor spread: _IMPLAUSIBLE times what the
    median of the cell's known entries above zero promises for the slot; infinite where nothing is known."""
    ratio = torch.where(batch.known & (batch.traffic > 0), batch.traffic / profile, torch.nan)
    return torch.nan_to_num(_IMPLAUSIBLE * ratio.nanmedian(dim=2, keepdim=True).values * profile, nan=torch.inf, posinf=torch.inf)


def _borrow(own: Tensor, live: Tensor, batch: TrafficBatch, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Level and spread (b, c, 1, s) of a cell without history: its log-level kriged from those of its tile's live cells, about that of
    a typical cell of the city (of the tile where no reference is known, 0 where nothing is), and the standard deviation of that.

    The latter is scaled as the tile's own log-levels vary, shrunk to what is usual, and lies in [0.4, 2].
    """
    count = live.sum(3, keepdim=True)
    log = torch.where(live, own.clamp(min=_SMALLEST).log(), torch.zeros_like(own))
    centre = log.sum(3, keepdim=True) / count.clamp(min=1)
    typical = centre
    if "reference" in batch.context:
        known = TYPICAL_LEVEL * batch.context["reference"][:, :, None, None]
        typical = torch.where(known > 0, known.clamp(min=_SMALLEST).log(), centre)
    guess, variance = between_cells(log[:, :, 0], live[:, :, 0], typical[:, :, 0], distance, LOG_LEVEL)
    usual = LOG_LEVEL.near + LOG_LEVEL.own
    square = torch.where(live, log - centre, torch.zeros_like(log)) ** 2
    share = (square.sum(3, keepdim=True) / usual + _USUAL_CELLS) / ((count - 1).clamp(min=0) + _USUAL_CELLS)
    return guess.exp()[:, :, None], (variance[:, :, None] * share).sqrt().clamp(0.4, 2.0)


def _silent(history: Tensor, dead: Tensor, distance: Tensor) -> Tensor:
    """(b, c, 1, s): the probability that a cell without history is dead, kriged from the tile's cells with history."""
    alive = torch.full_like(distance[:, None, :1, 0], _LIVE_SHARE).expand(len(dead), dead.shape[1], 1)
    guess, _ = between_cells((~dead[:, :, 0]).float(), history[:, :, 0], alive, distance, ALIVE)
    return (1 - guess).clamp(0.02, 0.98)[:, :, None]


def _profile(batch: TrafficBatch) -> Tensor:
    """(b, t): the city profile, 1 where there is none."""
    ones = torch.ones(batch.traffic.shape[0], batch.traffic.shape[2], device=batch.traffic.device)
    return _finite(batch.context["profile"], 1.0).clamp(min=0.02) if "profile" in batch.context else ones


def _ceiling(batch: TrafficBatch, level: Tensor) -> Tensor:
    """(b, c, 1, 1): five times the largest known entry or borrowed level, and never under 1.5 times the city's reference."""
    ceiling = 5 * torch.maximum(batch.traffic.amax(dim=(2, 3), keepdim=True), level.amax(dim=3, keepdim=True))
    if "reference" in batch.context:
        ceiling = torch.maximum(ceiling, 1.5 * _finite(batch.context["reference"], 0.0)[:, :, None, None])
    return ceiling


def _finite(value: Tensor, otherwise: float) -> Tensor:
    return torch.nan_to_num(value, nan=otherwise)
