r"""Kriging: the best linear guess at what is hidden from what is known, in time and in space.

In time, at a cell's hidden entries from its known ones, given how the cells of its city vary:

    r_t = phi_t' beta + l + sum_i e_i(t) + n_t,     beta ~ N(0, I),   l ~ N(0, LEVEL^2),   n white with variance v_0,
    e_i an Ornstein-Uhlenbeck process with variance v_i and time constant HOURS[i-1]

r is asinh traffic over its cell's level less that of the city's mean week. The modes phi say how whole days of cells differ from that
(offices from homes), the persistence v how a cell's deviations from its own day last; both are measured on a city's training part
(raytraffic.store.variation). Known r give the hidden ones' mean and variance in closed form (simple kriging; Rasmussen and
Williams 2006, Eq. 2.23-2.24). It is linear and takes all cells alike: what is left, a network learns (docs/decisions/0012).

In space, at what a cell without history is like (its log-level, whether it carries traffic at all) from the other cells of its tile:

    y_i = mean + u + w_i + n_i,   Var u = tile,   Cov(w_i, w_j) = near exp(-d_ij / REACH),   Var n = own,   d in cells

with variances that are the same for all cities (docs/decisions/0013).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raytraffic.types import TrafficBatch

__all__ = [
    "ALIVE",
    "HOURS",
    "LOG_LEVEL",
    "MODES",
    "REACH",
    "Nearness",
    "between_cells",
    "cell_distance",
    "generic_modes",
    "krige",
    "variation",
]

MODES = 8
#: Time constants of what persists, in hours.
HOURS = (0.7, 2.5, 8.0, 24.0)
#: Standard deviation of a level that was measured on few entries.
LEVEL = 0.5
#: Residuals further out are taken for this much, and no variance is less: both keep one strange entry from ruling all others.
_LARGEST, _LEAST_VARIANCE = 3.0, 1e-3
#: A city of which nothing was measured: days swing in their first three harmonics, deviations last as in the cities that were.
_HARMONICS = (0.45, 0.2, 0.1)
#: Cells apart at which what neighbours have in common has fallen to 1 / e.
REACH = 2.0
_PERSISTENCE = (0.004, 0.009, 0.003, 0.002, 0.005)


def krige(residual: Tensor, known: Tensor, modes: Tensor, persistence: Tensor, step_minutes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (b, c, t, s) of r at every slot, from `residual` (b, c, t, s) where it is `known`.

    `modes` (b, t, k), `persistence` (b, 1 + len(HOURS)), `step_minutes` (b,); all finite. The deviation is that of a new measurement.
    """
    b, c, t, s = residual.shape
    y = torch.where(known, residual, torch.zeros_like(residual)).clamp(-_LARGEST, _LARGEST).movedim(2, -1).reshape(-1, t)
    window = torch.arange(b, device=y.device)[:, None, None].expand(b, c, s).reshape(-1, 1)
    # Cells of a window that are known at the same slots share one solution.
    patterns, of_cell = torch.unique(torch.cat((window, known.movedim(2, -1).reshape(-1, t).long()), dim=1), dim=0, return_inverse=True)
    seen = patterns[:, 1:].to(y.dtype)
    with torch.autocast(y.device.type, enabled=False):  # bfloat16 has no digits to solve with
        covariance = _covariance(modes.float(), persistence.float(), step_minutes)[patterns[:, 0]]
        noise = (persistence[:, 0].float() + _LEAST_VARIANCE)[patterns[:, 0]][:, None]
        gram = covariance * seen[:, :, None] * seen[:, None, :] + torch.diag_embed(noise * seen + (1 - seen))
        weights = torch.cholesky_solve(covariance * seen[:, :, None], torch.linalg.cholesky(gram)) * seen[:, :, None]
        variance = covariance.diagonal(dim1=1, dim2=2) - (weights * covariance).sum(1) + noise
        mean = _each(y, weights, of_cell)
    deviation = variance.clamp(min=_LEAST_VARIANCE).sqrt()[of_cell]
    return mean.reshape(b, c, s, t).movedim(-1, 2), deviation.reshape(b, c, s, t).movedim(-1, 2)


def _each(y: Tensor, weights: Tensor, pattern: Tensor) -> Tensor:
    """(n, t): y (n, t) times the weights (p, t, t) of its pattern (n,), as one product of padded stacks."""
    count = torch.bincount(pattern, minlength=len(weights))
    order = pattern.argsort(stable=True)
    place = torch.empty_like(pattern)
    place[order] = torch.arange(len(pattern), device=pattern.device) - (count.cumsum(0) - count)[pattern[order]]
    stacks = y.new_zeros(len(weights), int(count.max()), y.shape[1])
    stacks[pattern, place] = y
    return torch.bmm(stacks, weights)[pattern, place]


def _covariance(modes: Tensor, persistence: Tensor, step_minutes: Tensor) -> Tensor:
    """(b, t, t) of r without its white noise."""
    slot = torch.arange(modes.shape[1], device=modes.device)
    hours = (slot[:, None] - slot).abs() * step_minutes.float()[:, None, None] / 60
    covariance = modes @ modes.transpose(1, 2) + LEVEL**2
    for i, constant in enumerate(HOURS, start=1):
        covariance = covariance + persistence[:, i, None, None] * torch.exp(-hours / constant)
    return covariance


def variation(batch: TrafficBatch) -> tuple[Tensor, Tensor]:
    """Modes (b, t, MODES) and persistence (b, 1 + len(HOURS)) of the windows' cities, generic where nothing is known of a city."""
    modes, persistence = generic_modes(batch), torch.tensor(_PERSISTENCE, device=batch.traffic.device).expand(len(batch.key), -1)
    if "modes" in batch.context:
        modes = torch.where(torch.isfinite(batch.context["modes"]), batch.context["modes"], modes)
    if "persistence" in batch.context:
        persistence = torch.where(torch.isfinite(batch.context["persistence"]), batch.context["persistence"], persistence)
    return modes, persistence


def generic_modes(batch: TrafficBatch) -> Tensor:
    """(b, t, MODES): the leading harmonics of a day, for a city of which nothing is known."""
    day = 2 * math.pi * batch.clock[..., 0] * batch.step_minutes[:, None] / 1440
    waves = [size * wave(order * day) for order, size in enumerate(_HARMONICS, start=1) for wave in (torch.cos, torch.sin)]
    return torch.stack(waves + [torch.zeros_like(day)] * (MODES - len(waves)), dim=-1)


@dataclass(frozen=True)
class Nearness:
    """Variances of what the cells of a tile share, of what near ones share, and of what each has of its own."""

    tile: float
    near: float
    own: float

    @property
    def of_a_cell(self) -> float:
        """The variance of a cell of which nothing is known."""
        return self.tile + self.near + self.own


#: Of the logarithm of a live cell's level about its city's typical one.
LOG_LEVEL = Nearness(tile=2.0, near=0.9, own=0.25)
#: Of whether a cell carries traffic at all (0 or 1), up to a factor, which does not change the guess.
ALIVE = Nearness(tile=0.15, near=0.6, own=0.2)


def between_cells(value: Tensor, seen: Tensor, mean: Tensor, distance: Tensor, nearness: Nearness) -> tuple[Tensor, Tensor]:
    """Kriged mean and variance (b, c, s) of every cell's value, from `value` (b, c, s) of the cells that are `seen`.

    `mean` (b, c, 1) is that of the city, `distance` (b or 1, s, s) as of `cell_distance`.
    """
    covariance = (nearness.tile + nearness.near * torch.exp(-distance / REACH))[:, None]
    known = seen.to(value.dtype)
    gram = covariance * known[..., :, None] * known[..., None, :] + torch.diag_embed(nearness.own * known + (1 - known))
    weights = torch.linalg.solve(gram, covariance * known[..., :, None]) * known[..., :, None]
    guess = mean + torch.einsum("bci,bcij->bcj", torch.where(seen, value - mean, torch.zeros_like(value)), weights)
    return guess, nearness.of_a_cell - (weights * covariance).sum(-2)


def cell_distance(batch: TrafficBatch) -> Tensor:
    """(b or 1, s, s) distances between the places of a batch, in cells of its grid or in distances to the nearest station; infinite
    between places of unknown position."""
    s, device = batch.shape[3], batch.traffic.device
    if batch.space.grid is not None:
        height, width = batch.space.grid
        rows, columns = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        places = torch.stack((rows.flatten(), columns.flatten()), dim=-1).float()[None]
        return torch.cdist(places, places)
    itself = torch.eye(s, dtype=torch.bool, device=device)
    if batch.space.xy is None:
        return torch.where(itself, 0.0, torch.inf)[None]
    offset = batch.space.xy[:, :, None] - batch.space.xy[:, None]
    metres = torch.nan_to_num((offset**2).sum(-1).sqrt(), nan=torch.inf, posinf=torch.inf)
    nearest = torch.where(itself, torch.inf, metres).amin(-1)
    unit = torch.where(torch.isfinite(nearest) & (nearest > 0), nearest, torch.nan).nanmedian(-1).values[:, None, None]
    return torch.where(itself, 0.0, torch.nan_to_num(metres / unit, nan=torch.inf, posinf=torch.inf))
