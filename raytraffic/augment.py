"""Augmentation of training windows: what a forecaster must not hold on to when its next city is another one.

Published cities have a few dozen places; without this a model learns them by heart (their POI are fingerprints) and is far too
sure of itself in places it never saw (docs/results.md).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from raytraffic.randomness import derive, normal, uniform
from raytraffic.types import TrafficBatch

__all__ = ["augment", "drop_contexts", "jitter_levels", "turn_tiles"]

_STREAM = 2
_ALONG_CELLS = ("users", "poi")


def augment(batch: TrafficBatch, seeds: Tensor, jitter: float, drop: float) -> TrafficBatch:
    """All of it, as training does: tiles turned, levels jittered with spread `jitter`, contexts dropped with share `drop`."""
    return drop_contexts(jitter_levels(turn_tiles(batch, seeds), seeds, jitter), seeds, drop)


def turn_tiles(batch: TrafficBatch, seeds: Tensor) -> TrafficBatch:
    """Each window's grid in one of its symmetries (eight of a square, four of an oblong), chosen by seeds (b,).

    A city has no preferred compass direction. Returns the batch unchanged where there is no grid.
    """
    if batch.space.grid is None:
        return batch
    h, w = batch.space.grid
    cells = torch.arange(h * w, device=seeds.device).reshape(h, w)
    turned = [cells, cells.rot90(2)] + ([cells.rot90(1), cells.rot90(3)] if h == w else [])
    orders = torch.stack([variant.flatten() for one in turned for variant in (one, one.flip(0))])
    chosen = (uniform(derive(seeds, 1), _STREAM, ()) * len(orders)).long().clamp(max=len(orders) - 1)
    order = orders[chosen]

    def turn(value: Tensor) -> Tensor:
        return value.gather(-1, order.reshape(-1, *(1,) * (value.ndim - 2), h * w).expand_as(value))

    context = {name: turn(value) if name in _ALONG_CELLS else value for name, value in batch.context.items()}
    xy = None if batch.space.xy is None else batch.space.xy.gather(1, order[..., None].expand_as(batch.space.xy))
    return replace(batch, traffic=turn(batch.traffic), known=turn(batch.known), space=replace(batch.space, xy=xy), context=context)


def jitter_levels(batch: TrafficBatch, seeds: Tensor, spread: float, share: float = 0.7) -> TrafficBatch:
    """In a `share` of the windows every cell's traffic times its own log-normal factor exp(spread * N(0, 1)).

    The relative levels of a tile's cells are its fingerprint; a cell's own course in time stays what it was.
    """
    s = batch.shape[3]
    jittered = uniform(derive(seeds, 4), _STREAM, ()) < share
    factor = torch.exp(spread * normal(derive(seeds, 5), _STREAM, (1, 1, s)))
    return replace(batch, traffic=torch.where(jittered[:, None, None, None], batch.traffic * factor, batch.traffic))


def drop_contexts(batch: TrafficBatch, seeds: Tensor, share: float) -> TrafficBatch:
    """Each of users and POI taken away from a `share` of the windows, independently: users become NaN, POI counts 0."""
    context = dict(batch.context)
    for number, (name, nothing) in enumerate((("users", torch.nan), ("poi", 0.0))):
        if name in context:
            dropped = uniform(derive(seeds, 2 + number), _STREAM, ()) < share
            context[name] = torch.where(dropped[:, None, None], torch.full_like(context[name], nothing), context[name])
    return replace(batch, context=context)
