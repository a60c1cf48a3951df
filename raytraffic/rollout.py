"""Horizons longer than one window: every draw is continued window by window from its own earlier values."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster
from raytraffic.randomness import derive
from raytraffic.types import Forecast, TrafficBatch

__all__ = ["in_windows", "rollout"]


def rollout(
    forecaster: Forecaster,
    batch: TrafficBatch,
    window: int,
    sampler: Sampler | None = None,
    draws: int = 20,
    seed: int = 0,
    hop: int | None = None,
) -> Forecast:
    """The joint forecast of a batch of any length t; windows of `window` slots advance by `hop` slots, half a window where it is None.

    Draw j of the whole horizon is one trajectory: each later window knows the draw's own values before its last `hop` slots. With
    t <= window this is `forecaster.forecast`. With a history of window - 1 slots and a hop of 1 it is the recursion of a model that was
    trained one step ahead (LSDM VI-C). A draw is a function of (seed, key, j) alone, as there.
    """
    pieces = in_windows(batch, window, draws, hop)
    try:
        piece, count = next(pieces)
        while True:
            piece, count = pieces.send(forecaster.forecast(piece, sampler, count, seed))
    except StopIteration as done:
        forecast: Forecast = done.value
        return forecast


def in_windows(
    batch: TrafficBatch, window: int, draws: int, hop: int | None = None
) -> Generator[tuple[TrafficBatch, int], Forecast, Forecast]:
    """The rollout as a dialogue: it yields a batch of at most `window` slots with a number of draws, is sent that forecast, and returns
    the whole one. Who drives it decides where each forecast is computed."""
    t = batch.shape[2]
    if window < 2:
        raise ValueError(f"window: {window}, expected at least 2 slots")
    hop = window // 2 if hop is None else hop
    if not 1 <= hop < window:
        raise ValueError(f"hop: {hop}, expected at least 1 slot and less than the window's {window}")
    if t <= window:
        return (yield batch, draws)
    first = yield _slots(batch, 0, window), draws
    later = torch.full((*first.draws.shape[:3], t - window, first.draws.shape[4]), torch.nan, device=first.draws.device)
    values = torch.cat((first.draws, later), dim=3).flatten(0, 1)
    trajectories = _trajectories(batch, draws)
    known = trajectories.known.clone()
    continued = _continued(known)
    known[:, :, :window] = continued
    drawn = window
    for number, end in enumerate([*range(window + hop, t, hop), t], start=1):
        start = end - window
        piece = replace(trajectories, traffic=torch.where(trajectories.known, trajectories.traffic, values), known=known)
        piece = _slots(piece, start, end)
        answer = yield replace(piece, key=derive(piece.key, number)), 1
        values[:, :, drawn:end] = answer.draws[:, 0, :, drawn - start :]
        known[:, :, drawn:end] = continued
        drawn = end
    return Forecast(draws=values.unflatten(0, (-1, draws)), known=batch.known)


def _trajectories(batch: TrafficBatch, draws: int) -> TrafficBatch:
    """One window a draw, draws of one window side by side, each with its own key."""
    index = torch.arange(len(batch.key), device=batch.key.device).repeat_interleave(draws)
    number = torch.arange(draws, device=batch.key.device).repeat(len(batch.key))
    many = batch.select(index)
    context = dict(many.context)
    if "users" in context:  # a drawn entry counts as known later on, but its users were never seen
        context["users"] = torch.where(many.known.any(dim=1), context["users"], torch.nan)
    return replace(many, key=derive(many.key, number), context=context)


def _continued(known: Tensor) -> Tensor:
    """(b, c, 1, s): the cells whose drawn values later windows know: those with history, or all where a service has none.

    Where a tile has no cell (a lone station is a tile of one) there is nothing to go on from, and a model never saw it known.
    """
    history = known.any(dim=2, keepdim=True)
    return history | ~history.any(dim=3, keepdim=True)


def _slots(batch: TrafficBatch, start: int, end: int) -> TrafficBatch:
    """The batch between two time slots."""
    t = batch.shape[2]
    timed = {
        name
        for name in ("users", "expected_users", "profile", "modes", "env")
        if name in batch.context and batch.context[name].shape[1] == t
    }
    context = {name: value[:, start:end] if name in timed else value for name, value in batch.context.items()}
    return replace(
        batch,
        traffic=batch.traffic[:, :, start:end],
        known=batch.known[:, :, start:end],
        clock=batch.clock[:, start:end],
        context=context,
    )
