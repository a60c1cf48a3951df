"""The test of a law: fitted on the small runs alone, how well does it foretell the large ones?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raytraffic.study.bootstrap import Interval, bootstrap_parametric_law
from raytraffic.study.laws import ParametricLaw
from raytraffic.study.table import Points

__all__ = ["Extrapolation", "HeldOut", "extrapolate"]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One held-out configuration: the mean loss of its runs, what the law foretold (with a 90 % interval), and the error.

    `error_percent` is 100 (foretold / measured - 1), with the same interval.
    """

    parameters: float
    tokens: float
    measured: float
    foretold: Interval
    error_percent: Interval

    @property
    def covered(self) -> bool:
        """Whether the measured loss lies in the interval."""
        return self.foretold.low <= self.measured <= self.foretold.high


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """A law fitted on `fitted_runs` small runs, and the larger configurations by size and tokens."""

    law: ParametricLaw
    fitted_runs: int
    held_out: tuple[HeldOut, ...]

    @property
    def mean_error_percent(self) -> float:
        """The mean absolute error over held-out configurations."""
        return float(np.mean([abs(each.error_percent.estimate) for each in self.held_out]))


def extrapolate(
    points: Points, *, most_parameters: float = math.inf, most_flops: float = math.inf, resamples: int = 1000, seed: int = 0
) -> Extrapolation:
    """Fits L(N, D) on runs of at most these parameters and FLOPs, and foretells the others.

    The interval holds the law's uncertainty and what a configuration deviates from the law, drawn from the residuals of the fit
    (times sqrt(n / (n - 5)): the fit bends towards its own points). Raises ValueError where nothing is held out or too little is left.
    """
    small = (points.parameters <= most_parameters) & (points.flops <= most_flops)
    if small.all():
        raise ValueError(f"most_parameters: {most_parameters:g}, most_flops: {most_flops:g}, expected a limit that holds out a run")
    fitted, larger = points.subset(small), points.subset(~small)
    boot = bootstrap_parametric_law(fitted.parameters, fitted.tokens, fitted.loss, resamples=resamples, seed=seed)
    deviation = boot.residuals * math.sqrt(len(boot.residuals) / boot.freedom)
    generator = np.random.default_rng([seed, 1])
    places, place = np.unique(np.stack((larger.parameters, larger.tokens), axis=1), axis=0, return_inverse=True)
    measured = np.exp(np.bincount(place.reshape(-1), np.log(larger.loss)) / np.bincount(place.reshape(-1)))
    held_out = []
    for (parameters, tokens), loss in zip(places.tolist(), measured.tolist(), strict=True):
        laws = np.array([float(law.predict(parameters, tokens)) for law in boot.laws])
        low, high = boot.ends(laws * np.exp(generator.choice(deviation, len(laws))))
        foretold = Interval(low=low, estimate=float(boot.law.predict(parameters, tokens)), high=high)
        error = Interval(
            low=100 * (foretold.low / loss - 1), estimate=100 * (foretold.estimate / loss - 1), high=100 * (foretold.high / loss - 1)
        )
        held_out.append(HeldOut(parameters=parameters, tokens=tokens, measured=loss, foretold=foretold, error_percent=error))
    return Extrapolation(law=boot.law, fitted_runs=len(fitted), held_out=tuple(held_out))
