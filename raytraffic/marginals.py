r"""Learned marginals: a distribution for every hidden entry, through whose quantile function the diffusion is seen.

The residual r of an entry (what a Scale leaves) is tied to a standard normal score s by a monotone piecewise linear map with
knots Q(s_1) < ... < Q(s_k) that a network predicts from what is known. Diffusion runs on the scores, so it starts from draws
whose marginals are the predicted ones and learns what these lack: how entries hang together. Untrained, Q is the identity.

The network's loss is the CRPS of that distribution, 2 E_u[pinball_u(r, Q(u))], by quadrature over u.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["NODES", "crps", "knots", "quantile_scores", "quantiles", "to_residual", "to_score"]

#: Standard normal scores of the knots: levels of about 1, 5, 16, 33, 50, 67, 84, 95 and 99 %.
NODES = (-2.4, -1.6, -1.0, -0.45, 0.0, 0.45, 1.0, 1.6, 2.4)
_CENTRE = len(NODES) // 2
#: Under this share of its untrained slope no segment of a map falls, so that it can be inverted.
_FLATTEST = 1e-3
_AT_ONE = math.log(math.expm1(1 - _FLATTEST))  # softplus of this is 1 - _FLATTEST, so an untrained slope is 1


def knots(raw: Tensor) -> Tensor:
    """(..., k) increasing knots of a network's raw output (..., k); those of the identity where it is zero."""
    gap = torch.tensor([b - a for a, b in pairwise(NODES)], device=raw.device)
    rise = gap * (nn.functional.softplus(torch.cat((raw[..., :_CENTRE], raw[..., _CENTRE + 1 :]), dim=-1) + _AT_ONE) + _FLATTEST)
    centre = raw[..., _CENTRE : _CENTRE + 1]
    below = centre - rise[..., :_CENTRE].flip(-1).cumsum(-1).flip(-1)
    above = centre + rise[..., _CENTRE:].cumsum(-1)
    return torch.cat((below, centre, above), dim=-1)


def to_residual(score: Tensor, knots: Tensor) -> Tensor:
    """Residuals (...) at scores (...): linear between knots (..., k), and with the outermost slopes beyond them."""
    nodes = torch.tensor(NODES, device=score.device)
    return _through(score, nodes.expand(knots.shape), knots)


def to_score(residual: Tensor, knots: Tensor) -> Tensor:
    """Scores (...) of residuals (...); the inverse of `to_residual`."""
    nodes = torch.tensor(NODES, device=residual.device)
    return _through(residual, knots, nodes.expand(knots.shape))


def _through(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Values at x (...) of the piecewise linear map that takes source (..., k) to target (..., k)."""
    segment = (x[..., None] >= source[..., 1:-1]).sum(-1, keepdim=True)
    a, b = source.gather(-1, segment), source.gather(-1, segment + 1)
    c, d = target.gather(-1, segment), target.gather(-1, segment + 1)
    return (c + (x[..., None] - a) * (d - c) / (b - a))[..., 0]


@cache
def _quadrature() -> tuple[Tensor, Tensor, Tensor]:
    """Scores, their weights (sum 1), and the matrix (k, n) that takes knots to quantiles at these scores."""
    scores = torch.linspace(-2.8, 2.8, 15)
    weights = torch.exp(-(scores**2) / 2)
    return scores, weights / weights.sum(), torch.stack([to_residual(scores, row.expand(len(scores), -1)) for row in torch.eye(len(NODES))])


def quantiles(knots: Tensor) -> Tensor:
    """(..., n): quantiles of the map of knots (..., k) at the fixed levels at which `crps` is computed."""
    with torch.autocast(knots.device.type, enabled=False):  # bfloat16 would round quantiles by up to a hundredth of a spread
        return knots @ _quadrature()[2].to(knots)


def quantile_scores() -> Tensor:
    """(n,): the standard normal scores of the levels at which `crps` is computed."""
    return _quadrature()[0]


def crps(truth: Tensor, quantiles: Tensor) -> Tensor:
    """(...) CRPS of truths (...) under distributions given by their quantiles (..., n) at those levels, by quadrature."""
    scores, weights, _ = _quadrature()
    level = torch.special.ndtr(scores).to(quantiles)
    error = truth[..., None] - quantiles
    return 2 * (torch.maximum(level * error, (level - 1) * error) * weights.to(quantiles)).sum(-1)
