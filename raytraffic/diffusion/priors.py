"""Seasonal priors: what a window's own known entries say about the hidden ones before any network is asked."""

from __future__ import annotations

import torch
from torch import Tensor

from raytraffic.types import TrafficBatch

__all__ = ["same_slot"]


def same_slot(batch: TrafficBatch) -> tuple[Tensor, Tensor]:
    """For every entry the cell's known traffic at the same slot of the nearest other day in the window, and whether there is one.

    Returns (b, c, t, s) traffic (0 where not found) and bool. Earlier days are preferred to later ones at equal distance.
    """
    value = torch.zeros_like(batch.traffic)
    found = torch.zeros_like(batch.known)
    t = batch.traffic.shape[2]
    for step in batch.step_minutes.unique().tolist():
        rows = (batch.step_minutes == step).nonzero()[:, 0]
        traffic, known = batch.traffic[rows], batch.known[rows]
        best, have = torch.zeros_like(traffic), torch.zeros_like(known)
        slots = 1440 // int(step)
        for lag in range(slots, t, slots):
            for source, target in ((slice(0, t - lag), slice(lag, t)), (slice(lag, t), slice(0, t - lag))):
                take = known[:, :, source] & ~have[:, :, target]
                best[:, :, target] = torch.where(take, traffic[:, :, source], best[:, :, target])
                have[:, :, target] |= take
        value[rows], found[rows] = best, have
    return value, found
