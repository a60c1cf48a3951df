"""Augmentation of training windows: what a forecaster must not hold on to when its next city is another one.

Published cities have a few dozen places; without this a model learns them by heart (their POI are fingerprints) and is far too
sure of itself in places it never saw (docs/results.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from raytraffic.kriging import ALIVE, LOG_LEVEL, REACH, Nearness, cell_distance
from raytraffic.randomness import derive, normal, uniform
from raytraffic.types import TrafficBatch

__all__ = [
    "Augmentation",
    "augment",
    "drop_contexts",
    "expect_users",
    "forget_cities",
    "jitter_levels",
    "shift_rhythm",
    "silence_cells",
    "turn_tiles",
]

_STREAM = 2
_SHIFT_HOURS = 1.5
_USERS = ("users", "expected_users")
_ALONG_CELLS = (*_USERS, "poi")
_EXPECTATION_ERROR = 0.1


class Augmentation(Protocol):
    """How much of each augmentation; a training configuration says so."""

    @property
    def turn_tiles(self) -> bool: ...
    @property
    def jitter_levels(self) -> float: ...
    @property
    def silence_cells(self) -> float: ...
    @property
    def shift_rhythm(self) -> float: ...
    @property
    def forget_cities(self) -> float: ...
    @property
    def drop_contexts(self) -> float: ...
    @property
    def expect_users(self) -> float: ...


def augment(batch: TrafficBatch, seeds: Tensor, how: Augmentation) -> TrafficBatch:
    """All of it, as training does; the augmentation of window i is a function of `seeds[i]` (b,) alone."""
    batch = turn_tiles(batch, seeds) if how.turn_tiles else batch
    batch = expect_users(batch, seeds, how.expect_users) if how.expect_users else batch
    batch = silence_cells(batch, seeds, how.silence_cells) if how.silence_cells else batch
    batch = jitter_levels(batch, seeds, how.jitter_levels) if how.jitter_levels else batch
    batch = shift_rhythm(batch, seeds, how.shift_rhythm) if how.shift_rhythm else batch
    return drop_contexts(forget_cities(batch, seeds, how.forget_cities), seeds, how.drop_contexts)


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
    if "env" in context:
        context["env"] = turn(context["env"].transpose(2, 3)).transpose(2, 3)
    xy = None if batch.space.xy is None else batch.space.xy.gather(1, order[..., None].expand_as(batch.space.xy))
    return replace(batch, traffic=turn(batch.traffic), known=turn(batch.known), space=replace(batch.space, xy=xy), context=context)


def silence_cells(batch: TrafficBatch, seeds: Tensor, most: float) -> TrafficBatch:
    """In every window some cells carry nothing, neither traffic nor users: a share of them drawn evenly from [0, `most`].

    Which cells of a tile are dead tells the place; how many are, and how near, tells how likely another one is, so they lie together
    as dead cells do.
    """
    share = most * uniform(derive(seeds, 10), _STREAM, (1,))
    silent = torch.special.ndtr(_field(batch, derive(seeds, 11), ALIVE)) < share
    nothing = silent[:, None, None] & batch.measured
    context = dict(batch.context)
    for name in _USERS:
        if name in context:
            context[name] = torch.where(silent[:, None], torch.zeros_like(context[name]), context[name])
    return replace(batch, traffic=torch.where(nothing, torch.zeros_like(batch.traffic), batch.traffic), context=context)


def jitter_levels(batch: TrafficBatch, seeds: Tensor, spread: float, share: float = 0.7) -> TrafficBatch:
    """In a `share` of the windows every cell's traffic times its own log-normal factor exp(spread * N(0, 1)).

    The relative levels of a tile's cells are its fingerprint; a cell's own course in time stays what it was. Factors of near cells are as
    alike as their levels, of which a model is to learn how far they tell another one.
    """
    jittered = uniform(derive(seeds, 4), _STREAM, ()) < share
    factor = torch.exp(spread * _field(batch, derive(seeds, 5), LOG_LEVEL))[:, None, None]
    return replace(batch, traffic=torch.where(jittered[:, None, None, None], batch.traffic * factor, batch.traffic))


def _field(batch: TrafficBatch, seeds: Tensor, nearness: Nearness) -> Tensor:
    """(b, s) standard normal numbers of every window's cells, near ones as alike as the two variances of `nearness` for cells say."""
    together = nearness.near / (nearness.near + nearness.own)
    distance = cell_distance(batch)
    itself = torch.eye(distance.shape[-1], device=distance.device)
    root = torch.linalg.cholesky(together * torch.exp(-distance / REACH) + (1 - together) * itself)
    return torch.einsum("bij,bj->bi", root.expand(len(seeds), -1, -1), normal(seeds, _STREAM, (batch.shape[3],)))


def shift_rhythm(batch: TrafficBatch, seeds: Tensor, spread: float) -> TrafficBatch:
    """Traffic and users of every cell times one course in time, exp(size * N(0, 1)), size drawn evenly from [0, 2 * spread] a window.

    Half of the course is a smooth process of its own, half comes back every day. The city's profile was measured on the very weeks
    that are trained on and knows what happened in them; the week that is forecast differs from it (in Nanchang by 0.13 in the
    logarithm of the mean over 49 cells, of which 0.08 are sampling noise), and a model must not learn to trust the profile more.
    """
    t = batch.shape[2]
    hours = batch.step_minutes[:, None] / 60
    since = torch.arange(t, device=hours.device) * hours
    own = _smooth(normal(derive(seeds, 6), _STREAM, (t + 2,)), (since / _SHIFT_HOURS).clamp(max=t + 1))
    of_day = batch.clock[..., 0] * hours
    knots = normal(derive(seeds, 7), _STREAM, (12,))
    daily = _smooth(torch.cat((knots, knots[:, :1]), dim=1), of_day / 2)
    size = 2 * spread * uniform(derive(seeds, 8), _STREAM, (1,))
    factor = torch.exp(size * (own + daily) / 2**0.5)
    context = dict(batch.context)
    for name in _USERS:
        if name in context:
            context[name] = context[name] * factor[:, :, None]
    return replace(batch, traffic=batch.traffic * factor[:, None, :, None], context=context)


def _smooth(knots: Tensor, at: Tensor) -> Tensor:
    """(b, t): knots (b, n) at 0, 1, ..., joined by lines, at positions (b, t)."""
    below = at.floor().long().clamp(max=knots.shape[1] - 2)
    return torch.lerp(knots.gather(1, below), knots.gather(1, below + 1), at - below)


def forget_cities(batch: TrafficBatch, seeds: Tensor, share: float) -> TrafficBatch:
    """A `share` of the windows as if nothing had been measured of their city: its profile 1 throughout, the rest NaN."""
    forgotten = uniform(derive(seeds, 9), _STREAM, (1,)) < share
    context = dict(batch.context)
    for name, nothing in (("profile", 1.0), ("reference", torch.nan), ("modes", torch.nan), ("persistence", torch.nan)):
        if name in context:
            value = context[name]
            context[name] = torch.where(forgotten.reshape(-1, *(1,) * (value.ndim - 1)), torch.full_like(value, nothing), value)
    return replace(batch, context=context)


def expect_users(batch: TrafficBatch, seeds: Tensor, share: float) -> TrafficBatch:
    """A `share` of the windows with a caller's forecast of their users: the true ones times a smooth course, 10 % off; else NaN."""
    if "users" not in batch.context:
        return batch
    users = batch.context["users"]
    hours = torch.arange(users.shape[1], device=users.device) * batch.step_minutes[:, None] / 60
    error = _smooth(normal(derive(seeds, 12), _STREAM, (users.shape[1] + 2,)), (hours / _SHIFT_HOURS).clamp(max=users.shape[1] + 1))
    given = uniform(derive(seeds, 13), _STREAM, (1, 1)) < share
    expected = torch.where(given, users * torch.exp(_EXPECTATION_ERROR * error)[:, :, None], torch.nan)
    return replace(batch, context={**batch.context, "expected_users": expected})


def drop_contexts(batch: TrafficBatch, seeds: Tensor, share: float) -> TrafficBatch:
    """Each of users, POI and environment taken away from a `share` of the windows, independently: NaN where POI counts are 0."""
    context = dict(batch.context)
    for number, name, nothing in ((2, "users", torch.nan), (2, "expected_users", torch.nan), (3, "poi", 0.0), (14, "env", torch.nan)):
        if name in context:
            value = context[name]
            dropped = (uniform(derive(seeds, number), _STREAM, ()) < share).reshape(-1, *(1,) * (value.ndim - 1))
            context[name] = torch.where(dropped, torch.full_like(value, nothing), value)
    return replace(batch, context=context)
