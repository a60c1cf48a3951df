"""Embeddings of noise level, position and clock."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["HOUR_FEATURES", "LEVEL_FEATURES", "WEEKDAYS", "ClockEmbedding", "LevelEmbedding", "grid_positions", "hour_of_day", "sinusoids"]

_HARMONICS = 8
#: Features of `hour_of_day`.
HOUR_FEATURES = 2 * _HARMONICS
#: Sinusoids of a noise level, and rows of the table of weekdays.
LEVEL_FEATURES, WEEKDAYS = 128, 7


def sinusoids(position: Tensor, features: int, longest: float = 10000.0) -> Tensor:
    """(..., features) sine and cosine of `position` at geometrically spaced wavelengths (Vaswani et al. 2017)."""
    half = features // 2
    rate = torch.exp(-math.log(longest) * torch.arange(half, device=position.device) / max(half, 1))
    angle = position[..., None].float() * rate
    waves = torch.cat((angle.sin(), angle.cos()), dim=-1)
    return nn.functional.pad(waves, (0, features - 2 * half))


def grid_positions(t: int, h: int, w: int, features: int, device: torch.device) -> Tensor:
    """(t * h * w, features) fixed positions: half of the features for time, a quarter each for row and column."""
    quarter = features // 4
    time = sinusoids(torch.arange(t, device=device), features - 2 * quarter)
    row = sinusoids(torch.arange(h, device=device), quarter)
    column = sinusoids(torch.arange(w, device=device), quarter)
    parts = (time[:, None, None].expand(t, h, w, -1), row[None, :, None].expand(t, h, w, -1), column[None, None].expand(t, h, w, -1))
    return torch.cat(parts, dim=-1).flatten(0, 2)


def hour_of_day(clock: Tensor, step_minutes: Tensor) -> Tensor:
    """(b, t, HOUR_FEATURES): harmonics of the day at slots [slot of day, weekday] (b, t, 2) of `step_minutes` (b,) each."""
    turn = (2 * math.pi / 1440) * (clock[..., 0] * step_minutes[:, None]).float()
    angle = turn[..., None] * torch.arange(1, _HARMONICS + 1, device=clock.device)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


class LevelEmbedding(nn.Module):
    """(b, hidden) embedding of the noise level (b,) in (0, 1]."""

    def __init__(self, hidden: int, features: int = LEVEL_FEATURES) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, level: Tensor) -> Tensor:
        return self.mlp(sinusoids(level * 1000, self.features))


class ClockEmbedding(nn.Module):
    """(b, t, features) temporal embedding tau(t) of [day, hour] (UoMo 3.3.1), at any step: hours are continuous.

    The day of week enters by a table as in the paper; the hour by harmonics of the day, so that 15-, 30- and 60-minute
    slots of one hour are neighbours instead of rows of different tables.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.day = nn.Embedding(WEEKDAYS, features)
        self.mlp = nn.Sequential(nn.Linear(features + HOUR_FEATURES, 2 * features), nn.SiLU(), nn.Linear(2 * features, features))

    def forward(self, clock: Tensor, step_minutes: Tensor) -> Tensor:
        return self.mlp(torch.cat((self.day(clock[..., 1]), hour_of_day(clock, step_minutes)), dim=-1))
