r"""Scaling laws of the held-out loss and what they call optimal.

    L(x)    = E + A x^-alpha                                         of parameters or of data alone (Kaplan et al. 2020)
    L(N, D) = E + A N^-alpha + B D^-beta                             Chinchilla's approach 3 (Hoffmann et al. 2022, equation 2)

    N*(C) = G (C / k)^a,  D*(C) = (C / k)^b / G,  a = beta / (alpha + beta),  b = alpha / (alpha + beta),
    G = (alpha A / (beta B))^(1 / (alpha + beta))                    under C = k N D (equation 4)

Runs at one point of the plane (the seeds of one configuration) count once, with the geometric mean of their losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raytraffic.study.variable_projection import HUBER_DELTA, PowerSums, fit_power_sum

__all__ = [
    "CHINCHILLA",
    "CHINCHILLA_REPLICATED",
    "Optimum",
    "ParametricLaw",
    "PowerLaw",
    "Sample",
    "fit_parametric_law",
    "fit_power_law",
    "flops_per_parameter_token",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The model that is best for a budget: `parameters`, the `tokens` it is trained on, and the `loss` that the law gives it."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """L(x) = E + A x^-alpha; x is a number of parameters, tokens or FLOPs."""

    E: float
    A: float
    alpha: float

    @classmethod
    def rows(cls, fitted: PowerSums) -> list[Self]:
        """The laws of fitted rows of one predictor."""
        columns = (fitted.floor, fitted.scale[:, 0], fitted.exponent[:, 0])
        return [cls(E=E, A=A, alpha=alpha) for E, A, alpha in zip(*(column.tolist() for column in columns), strict=True)]

    def predict(self, x: ArrayLike) -> Floats:
        """The loss at `x`, an array of any shape."""
        return self.E + np.exp(math.log(self.A) - self.alpha * np.log(np.asarray(x, dtype=np.float64)))


@dataclass(frozen=True, kw_only=True)
class ParametricLaw:
    """L(N, D) = E + A N^-alpha + B D^-beta."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    @classmethod
    def rows(cls, fitted: PowerSums) -> list[Self]:
        """The laws of fitted rows of two predictors, parameters and tokens."""
        columns = (fitted.floor, fitted.scale[:, 0], fitted.exponent[:, 0], fitted.scale[:, 1], fitted.exponent[:, 1])
        numbers = zip(*(column.tolist() for column in columns), strict=True)
        return [cls(E=E, A=A, alpha=alpha, B=B, beta=beta) for E, A, alpha, B, beta in numbers]

    @property
    def a(self) -> float:
        """The exponent of the optimal parameters in the budget."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """The exponent of the optimal tokens in the budget."""
        return self.alpha / (self.alpha + self.beta)

    def predict(self, parameters: ArrayLike, tokens: ArrayLike) -> Floats:
        """The loss of models of `parameters` after `tokens`, arrays that broadcast."""
        n, d = np.log(np.asarray(parameters, dtype=np.float64)), np.log(np.asarray(tokens, dtype=np.float64))
        return self.E + np.exp(math.log(self.A) - self.alpha * n) + np.exp(math.log(self.B) - self.beta * d)

    def optimum(self, budget: float, k: float) -> Optimum:
        """The best model for a `budget` of FLOPs where training costs k N D (k is 6 for language models); ValueError if not > 0."""
        product = math.log(_positive("budget", budget) / _positive("k", k))
        shift = (math.log(self.alpha * self.A) - math.log(self.beta * self.B)) / (self.alpha + self.beta)
        parameters, tokens = math.exp(shift + self.a * product), math.exp(-shift + self.b * product)
        return Optimum(parameters=parameters, tokens=tokens, loss=float(self.predict(parameters, tokens)))

    def budget_for(self, loss: float, k: float) -> float:
        """The FLOPs at which the optimal model reaches `loss`; infinite where no budget does."""
        excess = loss - self.E
        if excess <= 0:
            return math.inf
        at_one = self.optimum(k, k).loss - self.E  # the reducible part falls as (C / k)^-(alpha beta / (alpha + beta))
        return k * math.exp(math.log(at_one / excess) * (1 / self.alpha + 1 / self.beta))


#: Chinchilla's published fit (Hoffmann et al. 2022, equation 10) and its replication on the same runs (Besiroglu et al. 2024).
CHINCHILLA = ParametricLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)
CHINCHILLA_REPLICATED = ParametricLaw(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The distinct points `x` (n, j) of some runs, sorted, with the geometric mean `loss` (n,) of the runs at each."""

    x: Floats
    loss: Floats

    @classmethod
    def of(cls, loss: ArrayLike, **predictors: ArrayLike) -> Sample:
        """The sample of runs, one a place of every array; ValueError names one that is not 1-D, positive and as long as the others."""
        columns = [_one_positive_column(name, values) for name, values in {"loss": loss, **predictors}.items()]
        lengths = {len(column) for column in columns}
        if len(lengths) != 1:
            raise ValueError(f"loss, {', '.join(predictors)}: {[len(column) for column in columns]} runs, expected equally many")
        x, place = np.unique(np.stack(columns[1:], axis=1), axis=0, return_inverse=True)
        place = place.reshape(-1)
        mean = np.bincount(place, np.log(columns[0])) / np.bincount(place)
        for name, values in zip(predictors, x.T, strict=True):
            if len(np.unique(values)) < 3:
                raise ValueError(f"{name}: {len(np.unique(values))} distinct values, expected at least 3 to tell a power from a floor")
        constants = 1 + 2 * x.shape[1]
        if len(x) <= constants:
            raise ValueError(f"{', '.join(predictors)}: {len(x)} distinct points, expected more than the law's {constants} constants")
        return cls(x=x, loss=np.exp(mean))


def fit_power_law(x: ArrayLike, loss: ArrayLike, *, delta: float = HUBER_DELTA) -> PowerLaw:
    """L(N) or L(D) fitted to runs (n,): a Huber loss on the log loss, converged; ValueError for fewer than 4 distinct `x`."""
    sample = Sample.of(loss, x=x)
    return PowerLaw.rows(fit_power_sum(sample.x, sample.loss, delta=delta))[0]


def fit_parametric_law(parameters: ArrayLike, tokens: ArrayLike, loss: ArrayLike, *, delta: float = HUBER_DELTA) -> ParametricLaw:
    """L(N, D) fitted to runs (n,), as `fit_power_law`; ValueError for fewer than 6 points, or 3 values of N or D."""
    sample = Sample.of(loss, parameters=parameters, tokens=tokens)
    return ParametricLaw.rows(fit_power_sum(sample.x, sample.loss, delta=delta))[0]


def flops_per_parameter_token(flops: ArrayLike, parameters: ArrayLike, tokens: ArrayLike) -> float:
    """k of C = k N D: the median over runs of what their training cost for each parameter and token."""
    columns = {"flops": flops, "parameters": parameters, "tokens": tokens}
    cost, n, d = (_one_positive_column(name, values) for name, values in columns.items())
    return float(np.median(cost / (n * d)))


def _one_positive_column(name: str, values: ArrayLike) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or not len(column):
        raise ValueError(f"{name}: shape {column.shape}, expected one value a run")
    wrong = ~(np.isfinite(column) & (column > 0))
    if wrong.any():
        raise ValueError(f"{name}: {column[wrong][0]} at run {int(wrong.argmax())}, expected finite numbers > 0")
    return column


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: {value}, expected a number > 0")
    return value
