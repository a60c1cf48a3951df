r"""Kriging: the best linear guess at a cell's hidden entries from its known ones, given how the cells of its city vary.

    r_t = phi_t' beta + l + sum_i e_i(t) + n_t,     beta ~ N(0, I),   l ~ N(0, LEVEL^2),   n white with variance v_0,
    e_i an Ornstein-Uhlenbeck process with variance v_i and time constant HOURS[i-1]

r is asinh traffic over its cell's level less that of the city's mean week. The modes phi say how whole days of cells differ from that
(offices from homes), the persistence v how a cell's deviations from its own day last; both are measured on a city's training part
(raytraffic.store.variation). Known r give the hidden ones' mean and variance in closed form (simple kriging; Rasmussen and
Williams 2006, Eq. 2.23-2.24). It is linear and takes all cells alike: what is left, a network learns (docs/decisions/0012).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raytraffic.types import TrafficBatch

__all__ = ["HOURS", "MODES", "generic_modes", "krige", "variation"]

MODES = 8
#: Time constants of what persists, in hours.
HOURS = (0.7, 2.5, 8.0, 24.0)
#: Standard deviation of a level that was measured on few entries.
LEVEL = 0.5
#: Residuals further out are taken for this much, and no variance is less: both keep one strange entry from ruling all others.
_LARGEST, _LEAST_VARIANCE = 3.0, 1e-3
#: A city of which nothing was measured: days swing in their first three harmonics, deviations last as in the cities that were.
_HARMONICS = (0.45, 0.2, 0.1)
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
