"""The entry network: learned marginals of every hidden entry from what is known around it.

One small network answers for all entries alike, from features that mean the same for every cell, slot and granularity. So it
learns from each entry of each cell what a transformer over tokens of 4 x 4 x 4 entries has to learn anew at every place in a
token: on three cities of a few dozen places it forecasts far better than the transformer alone (docs/decisions/0010).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raytraffic.diffusion.priors import same_slot
from raytraffic.kriging import krige, variation
from raytraffic.marginals import NODES
from raytraffic.nn.embeddings import HOUR_FEATURES, hour_of_day
from raytraffic.nn.transformer import ZeroLinear
from raytraffic.types import Scale, TrafficBatch

__all__ = ["FEATURES", "EntryNetwork", "entry_features"]

_HALF_LIVES = (0.5, 3.0, 12.0)  # hours of the moving averages
_LATEST = 4  # known residuals that are told one by one
#: What the network is told of an entry: `entry_features`, the hour and the granularity.
FEATURES = 19 + _LATEST + 1 + 6 * len(_HALF_LIVES) + HOUR_FEATURES + 1
_LARGEST = 6.0  # residuals beyond so many spreads say no more


class EntryNetwork(nn.Module):
    """Raw knots (b, c, t, s, k) of learned marginals (raytraffic.marginals); zero at construction and where nothing is asked."""

    #: A perceptron takes larger steps than the transformer beside it, which the same rate lets diverge.
    learning_rate_scale = 4.0

    def __init__(self, hidden: int, poi_features: int) -> None:
        super().__init__()
        self.features = nn.Linear(FEATURES, hidden)
        if poi_features:
            self.poi = ZeroLinear(poi_features, hidden)
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            ZeroLinear(hidden, len(NODES)),
        )

    def forward(self, batch: TrafficBatch, scale: Scale, env: Tensor | None) -> Tensor:
        """`env` (b, 1, s, d) is the sites' embedding; only entries that are asked for (not known, not of a dead cell) cost anything.

        Of the clock it is told the hour alone: the city's profile knows the day of week, and a table of seven rows, learned from
        cities that were measured for a week, is the memory of that week (docs/decisions/0014).
        """
        b, c, t, s = batch.shape
        asked = ~batch.known & ~scale.dead
        granularity = torch.log(batch.step_minutes.float() / 30)[:, None, None].expand(b, t, 1)
        time = torch.cat((hour_of_day(batch.clock, batch.step_minutes), granularity), dim=-1)[:, None, :, None].expand(b, c, t, s, -1)
        hidden = self.features(torch.cat((entry_features(batch, scale)[asked], time[asked]), dim=-1))
        if env is not None:
            hidden = hidden + self.poi(env[:, None].expand(b, c, t, s, -1)[asked])
        answers = self.layers(hidden)
        raw = torch.zeros(b, c, t, s, len(NODES), dtype=answers.dtype, device=answers.device)
        return raw.masked_scatter(asked[..., None], answers)


def entry_features(batch: TrafficBatch, scale: Scale) -> Tensor:
    """(b, c, t, s, d) float32, d = 42: what the city's variation makes of the cell's residuals (kriging), these at the same slot of
    another day and lately, those of its tile, and how sure they are."""
    known, t = batch.known, batch.shape[2]
    zero = torch.zeros_like(batch.traffic)
    total = torch.where(known, batch.traffic, zero).sum(2, keepdim=True)
    live = known & (total > 0)
    history = live.any(2, keepdim=True)
    hours = batch.step_minutes.float() / 60
    residual = torch.where(live, scale.apply(batch.traffic), zero).clamp(-_LARGEST, _LARGEST)
    other_day, found = same_slot(batch)
    found = found & history
    seasonal = torch.where(found, scale.apply(other_day), zero).clamp(-_LARGEST, _LARGEST)
    around = torch.stack([seasonal.roll(i, 2) for i in (-2, -1, 1, 2)]).mean(0)

    past, past_weight = _moving_averages(residual, live, hours)
    future, future_weight = (value.flip(2) for value in _moving_averages(residual.flip(2), live.flip(2), hours))
    since_other_day, _ = _moving_averages(residual - seasonal, found & live, hours)
    count = live.sum(3, keepdim=True)
    tile = residual.sum(3, keepdim=True) / (count + 1)
    tile_lately, _ = _moving_averages(tile, count > 0, hours)

    shape = torch.sinh(scale.prior)
    evidence = torch.log(((known * shape).sum(2, keepdim=True) + 0.1) / (shape.sum(2, keepdim=True) + 0.1))
    slot = torch.arange(t, device=known.device)[:, None]
    last = torch.where(known, slot, -t).cummax(dim=2).values
    lead = torch.log1p((slot - last).clamp(max=t) * hours[:, None, None, None])
    lately = torch.sinh(scale.prior + scale.spread * past[..., 0]).clamp(max=20.0)
    steps = live[:, :, 1:] & live[:, :, :-1]
    rough = (residual.diff(dim=2).abs() * steps).sum(2, keepdim=True) / (steps.sum(2, keepdim=True) + 1)
    cell = [
        torch.log(scale.spread / 0.3),
        live.float().mean(2, keepdim=True),
        history,
        evidence,
        rough,
        residual.abs().amax(2, keepdim=True),
        scale.silent,
    ]
    latest = _latest(residual, known)
    fields = [*latest, scale.prior, seasonal, found, around, tile, shape, lead, lately, *cell]
    single = torch.stack([field.float().expand(batch.shape) for field in fields], dim=-1)
    tile_lately = tile_lately.expand(*batch.shape, -1)
    averages = (past, past_weight.log1p(), future, future_weight.log1p(), since_other_day, tile_lately)
    return torch.cat((single, *averages, _kriged(batch, scale, live, known & history)), dim=-1)


def _kriged(batch: TrafficBatch, scale: Scale, live: Tensor, known: Tensor) -> Tensor:
    """(b, c, t, s, 5): the kriged residual, its standard deviation and the logarithm of that, its traffic over the cell's level, and
    the mean kriged residual of the tile's live cells (not weighted by their levels, which would tell them: docs/decisions/0010)."""
    mean, deviation = krige(scale.residual(batch.traffic) * scale.spread, known, *variation(batch), batch.step_minutes)
    traffic = torch.sinh(scale.prior + mean).clamp(max=20.0)
    cells = live.any(2, keepdim=True)
    of_tile = (mean * cells).sum(3, keepdim=True) / (cells.sum(3, keepdim=True) + 1)
    own, shared = ((value / scale.spread).clamp(-_LARGEST, _LARGEST) for value in (mean, of_tile))
    deviation = (deviation / scale.spread).clamp(1e-3, _LARGEST)
    return torch.stack((own, deviation, deviation.log(), traffic, shared), dim=-1)


def _latest(residual: Tensor, known: Tensor) -> list[Tensor]:
    """The cell's latest known residuals before each slot, the newest first; 0 where there are fewer."""
    slot = torch.arange(known.shape[2], device=known.device)[:, None]
    last = torch.where(known, slot, -1).cummax(dim=2).values
    before = nn.functional.pad(last[:, :, :-1], (0, 0, 1, 0), value=-1)
    found, at = [], before
    for _ in range(_LATEST):
        there = at >= 0
        found.append(torch.where(there, residual.gather(2, at.clamp(min=0)), torch.zeros_like(residual)))
        at = torch.where(there, before.gather(2, at.clamp(min=0)), at)
    return found


def _moving_averages(value: Tensor, there: Tensor, hours: Tensor) -> tuple[Tensor, Tensor]:
    """Exponential averages (b, c, t, s, 3) of the values (b, c, t, s) that are there up to each slot, shrunk to 0, and their weights.

    `hours` (b,) is the length of a slot.
    """
    decay = torch.exp2(-hours[:, None] / torch.tensor(_HALF_LIVES, device=value.device))[:, None, None]
    present = there.to(value.dtype)
    total = torch.zeros(*value.shape[:2], value.shape[3], len(_HALF_LIVES), dtype=value.dtype, device=value.device)
    weight = torch.zeros_like(total)
    totals, weights = [], []
    for slot in range(value.shape[2]):
        total = decay * total + (value[:, :, slot] * present[:, :, slot])[..., None]
        weight = decay * weight + present[:, :, slot, :, None]
        totals.append(total)
        weights.append(weight)
    total, weight = torch.stack(totals, 2), torch.stack(weights, 2)
    return total / (weight + 0.3), weight
