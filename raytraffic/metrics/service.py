r"""Scores of service-level forecasts (LSDM V-A.3), by service and by step ahead, of the mean f over draws against the truth y:

    MSE = mean (y - f)^2  (10)      RMSE = sqrt(MSE)  (11)      MAE = mean |y - m|, m the median over draws  (12)
    CS  = sum y f / (sqrt(sum y^2) sqrt(sum f^2))  (13)         R^2 = 1 - sum (y - f)^2 / sum (y - mean y)^2  (14)

and the CRPS of all draws. `mse_debiased` and `r2_debiased` are those of the mean that infinitely many draws would have: the squared error
of a mean over n draws is too large by their variance over n. Everything is a ratio of sums over entries, so a partition over batches or
workers changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raytraffic.metrics.distribution import fair_crps
from raytraffic.metrics.entries import gather
from raytraffic.types import Forecast, TrafficBatch

__all__ = ["ALL", "SERVICE_METRICS", "ServiceScores"]

#: The name of all services together: one sum over their entries, not a mean of their scores.
ALL = "all services"
SERVICE_METRICS = ("mse", "rmse", "mae", "cs", "r2", "crps", "mse_debiased", "r2_debiased")
_SUMS = 9  # entries, squared error, absolute error, y f, y^2, f^2, y, CRPS, variance of f over draws


class ServiceScores:
    """Float64 sums (c, steps, sums) over the hidden entries of every service, by slots since the cell's latest known one."""

    def __init__(self, services: Sequence[str]) -> None:
        if not services or len(set(services)) < len(services) or ALL in services:
            raise ValueError(f"services: {list(services)}, expected at least one name, each once, and none {ALL!r}")
        self.services = tuple(services)
        self._sums = torch.zeros(len(services), 0, _SUMS, dtype=torch.float64)

    def update(self, batch: TrafficBatch, forecast: Forecast, scale: Tensor | None = None) -> None:
        """Add a forecast of a batch with its hidden truth; in units of `scale` (b, c) where it is given, else in those of the traffic.

        Raises ValueError when there is not a name for every service, when shapes disagree, or when a scored value or scale is not finite.
        """
        c, t = batch.shape[1:3]
        if c != len(self.services):
            raise ValueError(f"traffic: {c} services, expected the {len(self.services)} of {list(self.services)}")
        where = batch.hidden
        y, x = gather(batch.traffic, forecast.draws, where)
        unit = torch.ones_like(y) if scale is None else scale[:, :, None, None].expand_as(batch.traffic)[where].double()
        if not bool((torch.isfinite(unit) & (unit > 0)).all()):
            raise ValueError("scale: not finite and positive where there are scored entries, expected the unit of every service")
        y, x = y / unit, (x / unit[:, None]).sort(dim=1).values
        f, n = x.mean(dim=1), x.shape[1]
        median = (x[:, (n - 1) // 2] + x[:, n // 2]) / 2
        noise = x.var(dim=1) / n if n > 1 else torch.zeros_like(y)
        values = torch.stack((torch.ones_like(y), (y - f) ** 2, (y - median).abs(), y * f, y**2, f**2, y, fair_crps(y, x), noise), dim=1)
        service = torch.arange(c, device=y.device)[:, None, None].expand_as(batch.traffic)[where]
        place = service * t + _steps_ahead(batch)[where] - 1
        sums = values.new_zeros(c * t, _SUMS).index_add_(0, place, values)
        self._add(sums.unflatten(0, (c, t)).cpu())

    def merge(self, other: ServiceScores) -> None:
        """Add another part's sums; ValueError unless it is of the same services."""
        if other.services != self.services:
            raise ValueError(f"services: {list(other.services)}, expected {list(self.services)}")
        self._add(other._sums)

    def _add(self, sums: Tensor) -> None:
        missing = sums.shape[1] - self._sums.shape[1]
        padded = torch.nn.functional.pad(self._sums, (0, 0, 0, max(missing, 0)))
        self._sums = padded + torch.nn.functional.pad(sums, (0, 0, 0, max(-missing, 0)))

    def by_service(self) -> dict[str, dict[str, float]]:
        """SERVICE_METRICS of every service and of ALL; NaN for what is not defined (nothing scored, or nothing but zeros)."""
        rows = self._sums.sum(dim=1)
        return {name: _result(row) for name, row in zip((*self.services, ALL), (*rows, rows.sum(dim=0)), strict=True)}

    def by_step(self, service: str = ALL) -> dict[int, dict[str, float]]:
        """SERVICE_METRICS at every step ahead at which something was scored; ValueError for a service that is none."""
        if service not in (*self.services, ALL):
            raise ValueError(f"service: {service!r}, expected one of {[*self.services, ALL]}")
        rows = self._sums.sum(dim=0) if service == ALL else self._sums[self.services.index(service)]
        return {step: _result(row) for step, row in enumerate(rows, start=1) if row[0] > 0}

    def up_to(self, step: int) -> ServiceScores:
        """The scores of the first `step` steps ahead."""
        part = ServiceScores(self.services)
        part._sums = self._sums[:, :step].clone()
        return part


def _steps_ahead(batch: TrafficBatch) -> Tensor:
    """(b, c, t, s): slots since the cell's latest known one, from 1 where hidden; since before the window where nothing was known."""
    slot = torch.arange(batch.shape[2], device=batch.known.device)[:, None]
    return slot - torch.where(batch.known, slot, -1).cummax(dim=2).values


def _result(sums: Tensor) -> dict[str, float]:
    count, squared, absolute, product, truth_square, forecast_square, truth, crps, noise = sums.tolist()
    mse, about_mean = _ratio(squared, count), truth_square - _ratio(truth**2, count)
    return {
        "mse": mse,
        "rmse": math.sqrt(mse),
        "mae": _ratio(absolute, count),
        "cs": _ratio(product, math.sqrt(truth_square * forecast_square)),
        "r2": 1 - _ratio(squared, about_mean),
        "crps": _ratio(crps, count),
        "mse_debiased": _ratio(squared - noise, count),
        "r2_debiased": 1 - _ratio(squared - noise, about_mean),
    }


def _ratio(total: float, of: float) -> float:
    return total / of if of > 0 else math.nan
