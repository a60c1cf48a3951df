r"""Honest intervals of a fitted law: a bootstrap over configurations with random weights.

The seeds of one configuration are averaged before anything is fitted, and the configuration is what is drawn: what a configuration
has of its own (a learning rate that suits its size less, its subset of the data) is shared by its seeds, so that drawing runs
one by one would take their agreement for knowledge of the law. Drawing pairs of seeds together, without averaging, fails too:
the fit is close to a least-absolute-deviation one, and any curve between two seeds is equally good for it.

A resample gives the configurations weights w ~ Dirichlet(1, ..., 1) (Rubin 1981; Xu et al. 2020, "Applications of the
fractional-random-weight bootstrap") and fits again, from the fit of all. Unlike drawing with replacement no resample loses a
size or an amount of data, on which five constants of a dozen configurations cannot rest. Intervals are percentiles, moved
outwards to Phi(-t sqrt(1 + q p / (n - p))) for n configurations and p constants (Hesterberg 2015, section 4.2, expanded
percentiles: t of Student's distribution with n - p degrees of freedom, and residuals that the fit itself has shrunk). q is the share
of residuals, beyond the p that any such fit meets exactly, below delta: a least-absolute-deviation fit spreads enough of itself, a
least-squares fit does not. `benchmarks/scaling_fits.py` measures the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

from raytraffic.study.laws import ParametricLaw, PowerLaw, Sample
from raytraffic.study.variable_projection import HUBER_DELTA, PowerSums, fit_power_sum, refit_power_sums

__all__ = ["Bootstrap", "Interval", "bootstrap_parametric_law", "bootstrap_power_law"]

Law = TypeVar("Law", PowerLaw, ParametricLaw)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with the two ends of its interval."""

    low: float
    estimate: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Bootstrap(Generic[Law]):
    """The `law` fitted to all configurations, its refits under random weights (`laws`), and the `residuals` of its log loss (n,)."""

    law: Law
    laws: tuple[Law, ...]
    residuals: NDArray[np.float64]
    constants: int
    delta: float

    @property
    def freedom(self) -> int:
        """Configurations less the law's constants."""
        return len(self.residuals) - self.constants

    def interval(self, quantity: Callable[[Law], float], level: float = 0.9) -> Interval:
        """The central interval of any quantity of the law: `lambda law: law.optimum(budget, k).parameters`."""
        low, high = self.ends(np.array([quantity(law) for law in self.laws]), level)
        return Interval(low=low, estimate=quantity(self.law), high=high)

    def ends(self, values: NDArray[np.float64], level: float = 0.9) -> tuple[float, float]:
        """The expanded percentiles of a quantity's `values` (r,), one a refit; ValueError for a level outside (0, 1)."""
        if not 0 < level < 1:
            raise ValueError(f"level: {level}, expected a number in (0, 1)")
        met = int((np.abs(self.residuals) <= self.delta).sum())
        squared = max(met - self.constants, 0) / self.freedom
        shrunk = math.sqrt(1 + squared * self.constants / self.freedom)
        tail = float(norm.cdf(shrunk * t.ppf((1 - level) / 2, self.freedom)))
        low, high = np.quantile(values, [tail, 1 - tail], method="closest_observation")  # an infinite optimum is never averaged
        return float(low), float(high)


def bootstrap_power_law(
    x: ArrayLike, loss: ArrayLike, *, resamples: int = 1000, seed: int = 0, delta: float = HUBER_DELTA
) -> Bootstrap[PowerLaw]:
    """L(N) or L(D) of runs (n,) with what its intervals need; the same seed gives the same intervals, whatever the runs' order."""
    sample = Sample.of(loss, x=x)
    fitted, refitted = _resampled(sample, resamples, seed, delta)
    law = PowerLaw.rows(fitted)[0]
    residuals = np.log(sample.loss) - np.log(law.predict(sample.x[:, 0]))
    return Bootstrap(law=law, laws=tuple(PowerLaw.rows(refitted)), residuals=residuals, constants=3, delta=delta)


def bootstrap_parametric_law(
    parameters: ArrayLike, tokens: ArrayLike, loss: ArrayLike, *, resamples: int = 1000, seed: int = 0, delta: float = HUBER_DELTA
) -> Bootstrap[ParametricLaw]:
    """L(N, D) of runs (n,), as `bootstrap_power_law`."""
    sample = Sample.of(loss, parameters=parameters, tokens=tokens)
    fitted, refitted = _resampled(sample, resamples, seed, delta)
    law = ParametricLaw.rows(fitted)[0]
    residuals = np.log(sample.loss) - np.log(law.predict(sample.x[:, 0], sample.x[:, 1]))
    return Bootstrap(law=law, laws=tuple(ParametricLaw.rows(refitted)), residuals=residuals, constants=5, delta=delta)


def _resampled(sample: Sample, resamples: int, seed: int, delta: float) -> tuple[PowerSums, PowerSums]:
    """The fit of a sample and its refits; the weights belong to the sorted points, so the order of the runs does not matter."""
    if resamples < 100:
        raise ValueError(f"resamples: {resamples}, expected at least 100 for the ends of an interval")
    fitted = fit_power_sum(sample.x, sample.loss, delta=delta)
    n = len(sample.loss)
    weights = n * np.random.default_rng(seed).dirichlet(np.ones(n), size=resamples)
    return fitted, refit_power_sums(sample.x, sample.loss, weights, fitted, delta=delta)
