r"""Scaling of intermittent traffic: a user's hour with a service is mostly exactly zero, and else anything over three decades.

    p_0 = (zeros + 1/2) / (n + 1)                                    share of zeros among a cell's n known entries
    log centre = mean of log x over its known entries above zero     (borrowed, as raytraffic.scaling does, where there are none)
    z = Phi^-1(p_0 / 2)                              x = 0           the middle of the zeros' share of a standard normal
    z = Phi^-1(p_0 + (1 - p_0) Phi(r))               x > 0           r = (asinh(x / level) - asinh(e^7)) / spread, level = centre e^-7

so r is (log x - log centre) / spread for all but the smallest x. Every draw with Phi(z) < p_0 is exactly 0 (raytraffic.types.Scale):
standard normal z are the cell's own share of zeros and its own sizes. Were zero a single point of the scale, half of the draws of a silent
hour would be small positive noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch

from raytraffic.scaling import Scaling
from raytraffic.types import Scale, TrafficBatch

__all__ = ["IntermittentScaling"]

#: Logarithm of the centre over the level.
_LOG_RANGE = 7.0
#: Standard deviation of log x that a cell with few entries above zero is given, and the weight of that in entries.
_SPREAD, _WEIGHT = 1.5, 4.0


@dataclass(frozen=True)
class IntermittentScaling(Scaling):
    """The known scale of `Scaling` with the share of zeros and the level of what is above zero taken apart."""

    @classmethod
    def like(cls, scaling: Scaling) -> IntermittentScaling:
        """The intermittent scale with the settings of a plain one."""
        return cls(**{field.name: getattr(scaling, field.name) for field in fields(Scaling)})

    def fit(self, batch: TrafficBatch) -> Scale:
        """The scale of a batch, from `batch.visible()`."""
        base, batch = super().fit(batch), batch.visible()
        active = batch.traffic > 0
        known, count = (where.sum(2, keepdim=True) for where in (batch.known, active))
        nothing = torch.zeros_like(batch.traffic)
        total = torch.where(active, batch.traffic, 1.0).log().sum(2, keepdim=True)
        centre = torch.where(count > 0, (total / count.clamp(min=1)).exp(), base.level)
        level, prior = centre * math.exp(-_LOG_RANGE), torch.full_like(base.prior, math.asinh(math.exp(_LOG_RANGE)))
        residual = torch.where(active, torch.asinh(batch.traffic / level) - prior, nothing)
        spread = (((residual**2).sum(2, keepdim=True) + _WEIGHT * _SPREAD**2) / (count + _WEIGHT)).sqrt()
        silent = torch.where(known > 0, (known - count + 0.5) / (known + 1.0), base.silent)
        return replace(base, level=level, prior=prior, spread=spread, silent=silent)
