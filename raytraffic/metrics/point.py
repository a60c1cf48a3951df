"""Point scores: RMSE = sqrt(mean (f - y)^2), to be read with the mean over draws; MAE = mean |f - y|, with the median."""

from __future__ import annotations

import torch
from torch import Tensor

from raytraffic.metrics.entries import gather

__all__ = ["mae", "rmse"]


def rmse(truth: Tensor, forecast: Tensor, where: Tensor) -> Tensor:
    """Root mean squared error, a float64 scalar in the unit of the traffic, over entries where (b, ...) is True; NaN if none is."""
    return torch.sqrt((_error(truth, forecast, where) ** 2).mean())


def mae(truth: Tensor, forecast: Tensor, where: Tensor) -> Tensor:
    """Mean absolute error, a float64 scalar in the unit of the traffic, over entries where (b, ...) is True; NaN if none is."""
    return _error(truth, forecast, where).abs().mean()


def _error(truth: Tensor, forecast: Tensor, where: Tensor) -> Tensor:
    y, x = gather(truth, forecast[:, None], where)
    return x[:, 0] - y
