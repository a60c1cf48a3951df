"""Embeddings of noise level, position and clock."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["ClockEmbedding", "LevelEmbedding", "grid_positions", "sinusoids"]


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


class LevelEmbedding(nn.Module):
    """(b, hidden) embedding of the noise level (b,) in (0, 1]."""

    def __init__(self, hidden: int, features: int = 128) -> None:
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

    harmonics = 8

    def __init__(self, features: int) -> None:
        super().__init__()
        self.day = nn.Embedding(7, features)
        self.mlp = nn.Sequential(nn.Linear(features + 2 * self.harmonics, 2 * features), nn.SiLU(), nn.Linear(2 * features, features))

    def forward(self, clock: Tensor, step_minutes: Tensor) -> Tensor:
        turn = (2 * math.pi / 1440) * (clock[..., 0] * step_minutes[:, None]).float()
        angle = turn[..., None] * torch.arange(1, self.harmonics + 1, device=clock.device)
        return self.mlp(torch.cat((self.day(clock[..., 1]), angle.sin(), angle.cos()), dim=-1))
