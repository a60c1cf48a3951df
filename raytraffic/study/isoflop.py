r"""Chinchilla's approach 2: for each budget a parabola of the loss in log N over models that cost the same, and a line through the minima.

    L = l0 + c (log N - log N*)^2 at C,      log N*(C) = log G + a log C,      D*(C) = C / (k N*(C))

It is simple and biased even without noise: a parabola is not the law's shape, so that wide grids, and grids which are not centred
on the minimum, move it (arXiv 2603.22339). So fit it beside approach 3 (`fit_parametric_law`), report `difference`, and sample
with `centred_grid`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raytraffic.study.laws import ParametricLaw

__all__ = ["Difference", "GridPoint", "IsoFlop", "Parabola", "centred_grid", "difference", "fit_isoflop"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Parabola:
    """The parabola of one budget: its minimum (`parameters`, `tokens`, `loss`; NaN unless convex) over `sizes` distinct sizes.

    `convex` says that it has a minimum, `inside` that the minimum lies within the sampled sizes.
    """

    budget: float
    sizes: int
    curvature: float
    parameters: float
    tokens: float
    loss: float
    convex: bool
    inside: bool

    @property
    def usable(self) -> bool:
        """Whether its minimum is evidence."""
        return self.convex and self.inside

    @property
    def reason(self) -> str:
        """In words, why it is not usable; empty where it is."""
        if not self.convex:
            return "the loss has no minimum in the model size (not convex)"
        return "" if self.inside else f"its minimum, {self.parameters:.3g} parameters, lies outside the sampled sizes"


@dataclass(frozen=True, kw_only=True)
class IsoFlop:
    """Approach 2: a parabola a budget, and N*(C) = scale C^a through the usable minima; D*(C) = C / (k N*(C)), so b = 1 - a."""

    parabolas: tuple[Parabola, ...]
    scale: float
    a: float
    k: float

    @property
    def b(self) -> float:
        """The exponent of the optimal tokens in the budget."""
        return 1 - self.a

    def parameters(self, budget: float) -> float:
        """N*(C)."""
        return math.exp(math.log(self.scale) + self.a * math.log(budget))

    def tokens(self, budget: float) -> float:
        """D*(C)."""
        return budget / (self.k * self.parameters(budget))


def fit_isoflop(
    flops: ArrayLike, parameters: ArrayLike, loss: ArrayLike, *, budgets: Sequence[float], k: float, tolerance: float = 0.1
) -> IsoFlop:
    """Approach 2 on runs (n,), each of the nearest of `budgets`; runs that cost more than `tolerance` else belong to none.

    Raises ValueError where a budget has fewer than 3 sizes or fewer than 2 parabolas are usable.
    """
    cost, n, values = (np.asarray(each, dtype=np.float64) for each in (flops, parameters, loss))
    if not len(cost) == len(n) == len(values):
        raise ValueError(f"flops, parameters, loss: {[len(cost), len(n), len(values)]} runs, expected equally many")
    parabolas = []
    for budget in sorted(budgets):
        mine = np.abs(np.log(cost / budget)) <= math.log1p(tolerance)
        if len(np.unique(n[mine])) < 3:
            raise ValueError(f"budgets: {budget:.4g} FLOPs has {len(np.unique(n[mine]))} sizes, expected at least 3 within {tolerance:.0%}")
        parabolas.append(_parabola(budget, n[mine], values[mine], k))
    usable = [each for each in parabolas if each.usable]
    if len(usable) < 2:
        told = "; ".join(f"{each.budget:.4g}: {each.reason}" for each in parabolas if not each.usable)
        raise ValueError(f"budgets: {len(usable)} usable parabolas, expected at least 2 ({told or 'too few budgets'})")
    a, intercept = np.polyfit(np.log([each.budget for each in usable]), np.log([each.parameters for each in usable]), 1)
    return IsoFlop(parabolas=tuple(parabolas), scale=float(np.exp(intercept)), a=float(a), k=k)


def _parabola(budget: float, parameters: Floats, loss: Floats, k: float) -> Parabola:
    """Least squares on the mean of every size's losses, in log N about its mean."""
    sizes, place = np.unique(parameters, return_inverse=True)
    mean = np.bincount(place, loss) / np.bincount(place)
    centre = np.log(sizes).mean()
    c2, c1, c0 = (float(each) for each in np.polyfit(np.log(sizes) - centre, mean, 2))
    if c2 <= 1e-12 * mean.mean():  # rounding of a straight line
        nothing = math.nan
        return Parabola(
            budget=budget, sizes=len(sizes), curvature=c2, parameters=nothing, tokens=nothing, loss=nothing, convex=False, inside=False
        )
    log_best = centre - c1 / (2 * c2)
    inside = bool(math.log(sizes[0]) <= log_best <= math.log(sizes[-1]))
    best = float(np.exp(np.clip(log_best, -700, 700)))
    return Parabola(
        budget=budget,
        sizes=len(sizes),
        curvature=c2,
        parameters=best,
        tokens=budget / (k * best),
        loss=c0 - c1**2 / (4 * c2),
        convex=True,
        inside=inside,
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What following approach 2 instead of approach 3 would do at a budget, if approach 3's law is right."""

    exponent: float
    """a of approach 2 less that of approach 3."""
    parameters_ratio: float
    """N*(C) of approach 2 over that of approach 3."""
    loss_percent: float
    """How much higher the loss is, in percent."""
    wasted_share: float
    """The share of the budget that could be saved at the same loss."""


def difference(isoflop: IsoFlop, law: ParametricLaw, budget: float) -> Difference:
    """Approach 2 against approach 3 at `budget` FLOPs."""
    best = law.optimum(budget, isoflop.k)
    loss = float(law.predict(isoflop.parameters(budget), isoflop.tokens(budget)))
    return Difference(
        exponent=isoflop.a - law.a,
        parameters_ratio=isoflop.parameters(budget) / best.parameters,
        loss_percent=100 * (loss / best.loss - 1),
        wasted_share=1 - law.budget_for(loss, isoflop.k) / budget,
    )


@dataclass(frozen=True, kw_only=True)
class GridPoint:
    """A run of an iso-FLOP grid: a size and the tokens that its budget pays for."""

    budget: float
    parameters: float
    tokens: float


def centred_grid(
    *, budgets: Sequence[float], optimum: Callable[[float], float], sizes: Sequence[float], k: float, points: int = 5, factor: float = 2.0
) -> list[GridPoint]:
    """For every budget the nearest of `sizes` to optimum(C) factor^i, i = -points//2 .. points//2: symmetric in log N about the guess.

    A size and its mirror image are taken together or not at all, each within half a step of where it should be. Raises ValueError
    for a budget about which the sizes allow fewer than 3 points.
    """
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points: {points}, expected an odd number of at least 3")
    if not factor > 1:
        raise ValueError(f"factor: {factor}, expected a number > 1")
    log_sizes = np.log(np.sort(np.asarray(sizes, dtype=np.float64)))
    grid = []
    for budget in budgets:
        centre = math.log(optimum(budget))
        chosen = _symmetric(log_sizes, centre, math.log(factor), points // 2)
        if len(chosen) < 3:
            raise ValueError(
                f"budgets: {budget:.4g} FLOPs, expected sizes on both sides of its guessed optimum, {math.exp(centre):.3g} parameters; "
                f"there are {math.exp(log_sizes[0]):.3g} to {math.exp(log_sizes[-1]):.3g}"
            )
        grid += [GridPoint(budget=budget, parameters=n, tokens=budget / (k * n)) for n in np.exp(log_sizes[chosen]).tolist()]
    return grid


def _symmetric(log_sizes: Floats, centre: float, step: float, pairs: int) -> list[int]:
    """Places of the sizes nearest to centre + i step, where both of a pair exist; rising."""

    def nearest(target: float) -> int | None:
        place = int(np.abs(log_sizes - target).argmin())
        return place if abs(log_sizes[place] - target) <= step / 2 * (1 + 1e-9) else None

    chosen = {nearest(centre)}
    for i in range(1, pairs + 1):
        pair = {nearest(centre - i * step), nearest(centre + i * step)}
        if None not in pair:
            chosen |= pair
    return sorted(place for place in chosen if place is not None)
