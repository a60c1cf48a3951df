r"""Fits of a floor plus power laws, L(x) = E + sum_j A_j x_j^-alpha_j, by variable projection: a Huber loss on residuals of the log loss.

    minimise  sum_i w_i huber_delta( log L(x_i) - log loss_i )   over   E >= 0,  A_j > 0,  alpha_j in EXPONENTS

(Hoffmann et al. 2022, arXiv 2203.15556, equation 3; variable projection: Golub and Pereyra 1973, for this law arXiv 2603.22339.)
Given the exponents the law is linear in (E, A), so a grid over the exponents alone, each cell with its best (E, A) >= 0, finds
where to start. From the best cells all parameters are refined together by a projected Newton method until nothing is gained:
the replication of Chinchilla (Besiroglu et al. 2024, arXiv 2404.10102) traces the wrong published fit to an optimiser that stopped
early. Everything is done for many rows of weights at once, which is what makes a bootstrap of thousands of fits affordable.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXPONENTS", "HUBER_DELTA", "PowerSums", "fit_power_sum", "refit_power_sums"]

Floats = NDArray[np.float64]

#: Where the Huber loss turns from a square to a line, in units of log loss (Chinchilla's choice): 0.1 % of the loss.
HUBER_DELTA = 1e-3
#: Bounds of every exponent; no scaling law of the literature comes near either.
EXPONENTS = (1e-3, 4.0)
_SMALLEST_SCALE = 1e-9  # of a power term at the middle of the data, as a share of the loss: it keeps optima finite
_GRID, _STARTS, _REWEIGHTINGS = 16, 6, 3
_ITERATIONS, _PATIENCE, _LEAST_DAMPING, _MOST_DAMPING = 200, 2, 1e-8, 1e6
_EXACT = 1e-28  # of the objective: the residuals are rounding errors


@dataclass(frozen=True, kw_only=True, eq=False)
class PowerSums:
    """Fitted laws, one a row: `floor` (r,), `scale` (r, j), `exponent` (r, j) and the Huber `objective` (r,)."""

    floor: Floats
    scale: Floats
    exponent: Floats
    objective: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """log x about its mean `u` (n, j) and log loss about its mean `y` (n,): what makes fits blind to the units of x and loss."""

    u: Floats
    y: Floats
    middle: Floats
    level: float
    delta: float

    @classmethod
    def of(cls, x: Floats, loss: Floats, delta: float) -> _Problem:
        log_x, log_loss = np.log(x), np.log(loss)
        middle, level = log_x.mean(axis=0), float(log_loss.mean())
        return cls(u=log_x - middle, y=log_loss - level, middle=middle, level=level, delta=delta)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """Of a row (floor, scales, exponents) in centred units."""
        j = self.u.shape[1]
        return np.repeat([0.0, _SMALLEST_SCALE, EXPONENTS[0]], [1, j, j]), np.repeat([np.inf, EXPONENTS[1]], [1 + j, j])

    def terms(self, rows: Floats) -> tuple[Floats, Floats]:
        """The law (r, n) and x^-alpha (r, n, j) of rows (r, 1 + 2 j)."""
        j = self.u.shape[1]
        powers = np.exp(-rows[:, None, 1 + j :] * self.u)
        return rows[:, :1] + (rows[:, None, 1 : 1 + j] * powers).sum(axis=-1), powers

    def objective(self, rows: Floats, weights: Floats) -> Floats:
        """(r,) the weighted sum of Huber losses."""
        size = np.abs(np.log(self.terms(rows)[0]) - self.y)
        loss: Floats = (weights * np.where(size <= self.delta, size**2 / 2, self.delta * (size - self.delta / 2))).sum(axis=-1)
        return loss

    def laws(self, rows: Floats, objective: Floats) -> PowerSums:
        """Rows in the units of x and loss."""
        j = self.u.shape[1]
        scale, exponent = rows[:, 1 : 1 + j], rows[:, 1 + j :]
        level = np.exp(self.level)
        return PowerSums(
            floor=rows[:, 0] * level, scale=scale * level * np.exp(exponent * self.middle), exponent=exponent, objective=objective
        )

    def rows(self, laws: PowerSums) -> Floats:
        """The inverse of `laws`."""
        level = np.exp(-self.level)
        scale = laws.scale * np.exp(-laws.exponent * self.middle) * level
        return np.concatenate((laws.floor[:, None] * level, scale, laws.exponent), axis=1)


def fit_power_sum(x: Floats, loss: Floats, *, delta: float = HUBER_DELTA) -> PowerSums:
    """The best law (one row) of predictors `x` (n, j) and `loss` (n,), all positive, from a grid of starts and to convergence."""
    problem = _Problem.of(x, loss, delta)
    starts = _projected_starts(problem)
    rows, objective = _refine(problem, starts, np.ones((len(starts), len(loss))), 1e-10)
    best = [int(objective.argmin())]
    return problem.laws(rows[best], objective[best])


def refit_power_sums(x: Floats, loss: Floats, weights: Floats, start: PowerSums, *, delta: float = HUBER_DELTA) -> PowerSums:
    """The laws under other weights (r, n) of the same points, each refined from the one row of `start`."""
    problem = _Problem.of(x, loss, delta)
    rows, objective = _refine(problem, np.repeat(problem.rows(start), len(weights), axis=0), weights, 1e-7)
    return problem.laws(rows, objective)


def _projected_starts(problem: _Problem) -> Floats:
    """Cells (r, 1 + 2 j) of a grid over the exponents, each with its (E, A) >= 0 by reweighted least squares."""
    n, j = problem.u.shape
    axis = np.geomspace(0.02, 2.5, _GRID)
    exponents = np.stack(np.meshgrid(*[axis] * j, indexing="ij"), axis=-1).reshape(-1, j)
    basis = np.concatenate((np.ones((len(exponents), n, 1)), np.exp(-exponents[:, None] * problem.u)), axis=-1)
    loss = np.exp(problem.y)
    weights = np.tile(loss**-2, (len(exponents), 1))
    for _ in range(_REWEIGHTINGS):
        linear = _non_negative_least_squares(basis, loss, weights)
        law = np.maximum((basis * linear[:, None]).sum(axis=-1), np.finfo(float).tiny)
        size = np.abs(np.log(law) - problem.y)
        weights = np.minimum(1.0, problem.delta / np.maximum(size, problem.delta)) / (loss * law)
    rows = np.clip(np.concatenate((linear, exponents), axis=1), *problem.bounds)
    objective = problem.objective(rows, np.ones_like(loss))
    best = np.argsort(objective, kind="stable")[:_STARTS].tolist()
    # And the best cell of each exponent's every value: the best cells of all may crowd in one valley while another one is deeper.
    for column in exponents.T:
        best += [int(np.where(column == value, objective, np.inf).argmin()) for value in axis]
    return rows[np.unique(best)]


def _non_negative_least_squares(basis: Floats, target: Floats, weights: Floats) -> Floats:
    """(r, k) argmin over t >= 0 of sum_n weights (basis t - target)^2, by trying every set of free coefficients (k is 2 or 3)."""
    weighted = basis * weights[..., None]
    gram, product = weighted.transpose(0, 2, 1) @ basis, (weighted * target[:, None]).sum(axis=1)
    best, lowest = np.zeros_like(product), np.zeros(len(product))
    count = product.shape[1]
    for free in (list(chosen) for size in range(1, count + 1) for chosen in combinations(range(count), size)):
        part = gram[:, free][:, :, free]
        ridge = 1e-12 * np.trace(part, axis1=1, axis2=2)[:, None, None] * np.eye(len(free))
        solved = np.linalg.solve(part + ridge, product[:, free, None])[..., 0]
        value = -(solved * product[:, free]).sum(axis=-1)
        better = (solved >= 0).all(axis=-1) & (value < lowest)
        candidate = np.zeros_like(best)
        candidate[:, free] = solved
        best, lowest = np.where(better[:, None], candidate, best), np.where(better, value, lowest)
    return best


def _refine(problem: _Problem, rows: Floats, weights: Floats, tolerance: float) -> tuple[Floats, Floats]:
    """Rows (r, p) at the minimum of their weighted objective (r,): a projected Newton method with one damping a row.

    A row is done when two steps in a row gain less than `tolerance` of its objective.
    """
    rows, objective = rows.copy(), problem.objective(rows, weights)
    damping, idle, live = np.ones(len(rows)), np.zeros(len(rows), dtype=np.int64), np.arange(len(rows))
    for _ in range(_ITERATIONS):
        proposed = np.clip(rows[live] + _step(problem, rows[live], weights[live], damping[live]), *problem.bounds)
        value = problem.objective(proposed, weights[live])
        better = value < objective[live]
        gain = np.where(better, (objective[live] - value) / np.maximum(objective[live], _EXACT), 0.0)
        rows[live[better]], objective[live[better]] = proposed[better], value[better]
        damping[live] = np.clip(np.where(better, damping[live] / 5, damping[live] * 5), _LEAST_DAMPING, 10 * _MOST_DAMPING)
        nothing_gained = np.where(better, gain < tolerance, damping[live] > _MOST_DAMPING) | (objective[live] < _EXACT)
        idle[live] = np.where(nothing_gained, idle[live] + 1, 0)
        live = live[idle[live] < _PATIENCE]
        if not len(live):
            break
    return rows, objective


def _step(problem: _Problem, rows: Floats, weights: Floats, damping: Floats) -> Floats:
    """(r, p) the Newton step of the Huber loss, the law linearised; parameters that press against a bound stay.

    The damping adds the curvature of the least square that touches the Huber loss from above (iterative reweighting). Alone it
    always descends; without it the step is Newton's own, which sees only residuals below delta.
    """
    law, powers = problem.terms(rows)
    residual = np.log(law) - problem.y
    j = powers.shape[-1]
    slopes = np.concatenate((np.ones((*law.shape, 1)), powers, -rows[:, None, 1 : 1 + j] * problem.u * powers), axis=-1) / law[..., None]
    size, delta = np.abs(residual), problem.delta
    curvature = weights * ((size <= delta) + damping[:, None] * np.minimum(1.0, delta / np.maximum(size, delta)))
    gradient = (slopes * (weights * np.clip(residual, -delta, delta))[..., None]).sum(axis=1)
    hessian = (slopes * curvature[..., None]).transpose(0, 2, 1) @ slopes
    low, high = problem.bounds
    held = ((rows <= low) & (gradient > 0)) | ((rows >= high) & (gradient < 0))
    hessian[held[:, :, None] | held[:, None, :]] = 0.0
    diagonal = np.arange(rows.shape[1])
    ridge = 1e-12 * np.trace(hessian, axis1=1, axis2=2)[:, None] + np.finfo(float).tiny
    hessian[:, diagonal, diagonal] += np.where(held, 1.0, ridge)
    return np.asarray(np.linalg.solve(hessian, np.where(held, 0.0, -gradient)[..., None])[..., 0], dtype=np.float64)
