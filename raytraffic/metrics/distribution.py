r"""Scores of a distribution that is given by n draws X_i, against the truth y.

fair CRPS      mean_i |X_i - y| - 1 / (2 n (n - 1)) sum_{i,j} |X_i - X_j|          (Ferro 2014)
energy score   mean_i ||X_i - y|| - 1 / (2 n (n - 1)) sum_{i,j} ||X_i - X_j||      (Gneiting and Raftery 2007, Eq. 22, fair)
JSD            H((p + q) / 2) - (H(p) + H(q)) / 2, entropies H in bits, so in [0, 1]          (Lin 1991, Eq. 4.1)

"Fair" scores have the same expectation whatever n is, so forecasts of different numbers of draws may stand in one table.
With n = 1 there is no pair: the CRPS is the absolute error, the energy score the Euclidean distance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raytraffic.metrics.entries import gather

__all__ = ["JSD_BINS", "crps", "divergence", "energy_score", "fair_crps", "histogram_bin", "jsd"]

#: Equal bins on [0, 1], the last one closed; values outside are clipped into the first and the last bin.
JSD_BINS = 100


def fair_crps(truth: Tensor, ordered: Tensor) -> Tensor:
    """(m,): fair CRPS of every entry, from truth (m,) and draws (m, n) in ascending order; O(n) after the sort.

    Sorted, sum_{i,j} |X_i - X_j| = 2 sum_k (2k - n - 1) X_(k).
    """
    n = ordered.shape[1]
    distance = (ordered - truth[:, None]).abs().mean(dim=1)
    if n == 1:
        return distance
    rank = torch.arange(1 - n, n, 2, dtype=ordered.dtype, device=ordered.device)
    return distance - ordered @ rank / (n * (n - 1))


def crps(truth: Tensor, draws: Tensor, where: Tensor) -> Tensor:
    """Mean fair CRPS, a float64 scalar in the unit of the traffic, over entries where (b, ...) is True; draws are (b, n, ...)."""
    y, x = gather(truth, draws, where)
    return fair_crps(y, x.sort(dim=1).values).mean()


def energy_score(truth: Tensor, draws: Tensor, where: Tensor) -> Tensor:
    """(b, ..., s): fair energy score of every cell's course, float64 in the unit of the traffic; NaN for cells without scored slots.

    A course is the vector of the slots of truth (b, ..., t, s) and draws (b, n, ..., t, s) where (b, ..., t, s) is True. One vector a
    window would be the score of its largest cell. It grows with the number of slots: compare within one task only. O(n^2).
    """
    gather(truth, draws, where)  # for its checks
    n, scored = draws.shape[1], where.any(dim=-2)
    y = torch.where(where, truth, torch.zeros_like(truth)).movedim(-2, -1)[scored].double()[:, None]
    x = torch.where(where[:, None], draws, torch.zeros_like(draws)).movedim((1, -2), (-2, -1))[scored].double()
    distance = torch.linalg.vector_norm(x - y, dim=2).mean(dim=1)
    # The exact path: the one through matrix products cancels catastrophically for draws that are close together.
    between = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=(1, 2))
    score = torch.full(scored.shape, torch.nan, dtype=torch.float64, device=scored.device)
    score[scored] = distance - between / (2 * n * max(n - 1, 1))
    return score


def histogram_bin(values: Tensor) -> Tensor:
    """The bin 0..JSD_BINS - 1 (uint8) of every value on the [0, 1] scale."""
    return (values.clamp(0.0, 1.0) * JSD_BINS).clamp(max=JSD_BINS - 1).to(torch.uint8)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence (base 2, in [0, 1]) of two histograms (k,), which need not be normalised; NaN if one is empty."""
    p, q = p / p.sum(), q / q.sum()
    nats = torch.special.entr((p + q) / 2) - (torch.special.entr(p) + torch.special.entr(q)) / 2
    return (nats.sum() / math.log(2)).clamp(min=0.0)  # rounding may leave -1e-17 for equal histograms


def jsd(truth: Tensor, draws: Tensor, where: Tensor) -> Tensor:
    """JSD between the histograms of the true values and of all draws, both on the [0, 1] scale, where (b, ...) is True.

    It is the natural definition in base 2: 0 for equal histograms, 1 for disjoint ones; bins: see JSD_BINS.
    """
    y, x = gather(truth, draws, where)
    p, q = (torch.bincount(histogram_bin(values).flatten(), minlength=JSD_BINS).double() for values in (y, x))
    return divergence(p, q)
