r"""Calibration: how often the truth falls inside the intervals that a forecast's draws span.

The central interval of level a lies between the quantiles (1 - a) / 2 and (1 + a) / 2 as `Forecast.quantile` gives them, at
position p (n + 1) among the n sorted draws. With it a calibrated forecast is covered at exactly the nominal rate whatever n
is; the usual p (n - 1) + 1 would read 72 % instead of 80 % for 20 perfect draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raytraffic.metrics.entries import gather
from raytraffic.types import ordered_quantile

__all__ = ["coverage", "covered", "pit_histogram", "spans"]


def spans(draws: int, level: float) -> bool:
    """Whether so many draws can span the central interval of this level: n >= 2 / (1 - level) - 1 (80 %: 9, 90 %: 19)."""
    return (1 - level) / 2 * (draws + 1) >= 1 - 1e-9


def covered(truth: Tensor, ordered: Tensor, level: float) -> Tensor:
    """(m,) bool: truth (m,) lies in the closed central interval of draws (m, n) in ascending order, for which `spans` holds."""
    assert spans(ordered.shape[1], level)
    lower, upper = (ordered_quantile(ordered, quantile) for quantile in ((1 - level) / 2, (1 + level) / 2))
    return (lower <= truth) & (truth <= upper)


def coverage(truth: Tensor, draws: Tensor, where: Tensor, level: float) -> Tensor:
    """Share of the true values inside the central interval of this level, over entries where (b, ...) is True; draws (b, n, ...).

    NaN where the draws are too few for the interval (`spans`), a deterministic forecast among them.
    """
    y, x = gather(truth, draws, where)
    if not spans(x.shape[1], level):
        return torch.full((), torch.nan, dtype=torch.float64, device=x.device)
    return covered(y, x.sort(dim=1).values, level).double().mean()


def pit_histogram(truth: Tensor, draws: Tensor, where: Tensor, bins: int = 10) -> Tensor:
    """(bins,): shares of the probability integral transform of the truth, flat at 1 / bins for a calibrated forecast.

    An entry with r draws below the truth and e equal to it spreads its mass evenly over [r, r + e + 1] / (n + 1), so ties
    (dead cells) need no random numbers (Czado, Gneiting and Held 2009).
    """
    y, x = gather(truth, draws, where)
    n = x.shape[1]
    low = (x < y[:, None]).sum(dim=1).double() / (n + 1)
    high = ((x <= y[:, None]).sum(dim=1).double() + 1) / (n + 1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=x.device)
    reached = ((edges - low[:, None]) / (high - low)[:, None]).clamp(0, 1).mean(dim=0)
    return reached.diff()
