"""The fits find the best law there is (scipy's own optimisers as oracle), whatever the units, and optima are those of the closed form."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from raytraffic.study import (
    CHINCHILLA,
    CHINCHILLA_REPLICATED,
    ParametricLaw,
    PowerLaw,
    fit_parametric_law,
    fit_power_law,
    flops_per_parameter_token,
)
from raytraffic.study.variable_projection import EXPONENTS, HUBER_DELTA

Floats = NDArray[np.float64]


def plane(sizes: int = 5, amounts: int = 4) -> tuple[Floats, Floats]:
    """Parameters and tokens of a full grid."""
    n, d = np.meshgrid(np.geomspace(1e6, 1e8, sizes), np.geomspace(1e8, 1e10, amounts), indexing="ij")
    return n.ravel(), d.ravel()


def noisy(law: ParametricLaw, n: Floats, d: Floats, noise: float, seed: int) -> Floats:
    return law.predict(n, d) * np.exp(noise * np.random.default_rng(seed).normal(size=len(n)))


def huber(law: ParametricLaw | PowerLaw, loss: Floats, *x: Floats) -> float:
    """The objective, written out run by run."""
    total = 0.0
    for i, value in enumerate(loss):
        size = abs(math.log(float(law.predict(*(each[i] for each in x)))) - math.log(value))
        total += size**2 / 2 if size <= HUBER_DELTA else HUBER_DELTA * (size - HUBER_DELTA / 2)
    return total


@pytest.mark.parametrize("law", [CHINCHILLA, CHINCHILLA_REPLICATED])
def test_published_laws_are_recovered_exactly_from_data_without_noise(law: ParametricLaw) -> None:
    n, d = plane()
    np.testing.assert_allclose(astuple(fit_parametric_law(n, d, law.predict(n, d))), astuple(law), rtol=1e-9)


exponents = st.floats(0.1, 1.0)
scales = st.floats(0.05, 2.0)  # of a power term at the middle of the data, in units of the loss


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, 3.0), scales, exponents, scales, exponents, st.floats(4.0, 9.0), st.floats(5.0, 11.0))
@example(0.0, 0.0625, 0.125, 2.0, 0.390625, 4.0, 5.0)  # the best cells of the grid all lie in a shallower valley
def test_any_law_is_recovered_at_any_scale(E: float, near: float, alpha: float, far: float, beta: float, size: float, data: float) -> None:
    n, d = (each.ravel() for each in np.meshgrid(10 ** (size + np.linspace(-1, 1, 5)), 10 ** (data + np.linspace(-1, 1, 4))))
    law = ParametricLaw(E=E, A=near * 10 ** (alpha * size), alpha=alpha, B=far * 10 ** (beta * data), beta=beta)
    found = fit_parametric_law(n, d, law.predict(n, d))
    np.testing.assert_allclose(found.predict(n, d), law.predict(n, d), rtol=1e-6)
    assert found.alpha == pytest.approx(alpha, abs=1e-3)
    assert found.beta == pytest.approx(beta, abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [5e-4, 1e-2])
def test_no_optimiser_of_scipy_finds_a_better_law(noise: float, seed: int) -> None:
    n, d = plane()
    loss = noisy(CHINCHILLA, n, d, noise, seed)
    found = huber(fit_parametric_law(n, d, loss), loss, n, d)
    x, y = np.log(np.stack((n, d))), np.log(loss)
    centre = x.mean(axis=1, keepdims=True)

    def objective(theta: Floats) -> float:
        """Of log E, the two terms' logs at the middle of the data, and the exponents."""
        size = np.abs(np.logaddexp.reduce(np.stack((np.full(len(y), theta[0]), *(theta[1:3, None] - theta[3:, None] * (x - centre))))) - y)
        return float(np.where(size <= HUBER_DELTA, size**2 / 2, HUBER_DELTA * (size - HUBER_DELTA / 2)).sum()) / HUBER_DELTA

    generator = np.random.default_rng(seed)
    best = math.inf
    for _ in range(4):
        start = generator.uniform([-1, -2, -2, 0.1, 0.1], [0.5, 0.5, 0.5, 0.8, 0.8])
        rough = minimize(objective, start, method="L-BFGS-B").x
        for _ in range(3):  # a simplex that has collapsed starts anew
            rough = minimize(objective, rough, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-13}).x
        best = min(best, objective(rough) * HUBER_DELTA)
    assert found <= best * (1 + 1e-6)


def test_one_predictor_is_best_over_every_exponent() -> None:
    # Brute force: for each exponent on a fine grid the best floor and scale by scipy.
    x = np.geomspace(1e5, 1e7, 8)
    loss = PowerLaw(E=0.4, A=30.0, alpha=0.3).predict(x) * np.exp(0.01 * np.random.default_rng(3).normal(size=8))
    found = fit_power_law(x, loss)

    def best_given(alpha: float) -> float:
        def objective(theta: Floats) -> float:
            law = PowerLaw(E=float(np.exp(theta[0])), A=float(np.exp(theta[1] + alpha * 14)), alpha=alpha)
            return huber(law, loss, x) / HUBER_DELTA

        options = {"maxiter": 1000, "xatol": 1e-8, "fatol": 1e-12}
        return min(float(minimize(objective, [e, -0.5], method="Nelder-Mead", options=options).fun) for e in (-1.0, -4.0)) * HUBER_DELTA

    assert huber(found, loss, x) <= min(best_given(alpha) for alpha in np.linspace(0.05, 1.2, 24)) * (1 + 1e-6)


def test_fits_do_not_depend_on_units_or_order() -> None:
    n, d = plane()
    loss = noisy(CHINCHILLA, n, d, 0.01, 0)
    plain = fit_parametric_law(n, d, loss)
    shuffled = np.random.default_rng(0).permutation(len(n))
    np.testing.assert_allclose(astuple(fit_parametric_law(n[shuffled], d[shuffled], loss[shuffled])), astuple(plain), rtol=1e-9)
    scaled = fit_parametric_law(n * 1e4, d * 1e-3, loss * 50)
    assert (scaled.alpha, scaled.beta) == pytest.approx((plain.alpha, plain.beta), rel=1e-6)
    np.testing.assert_allclose(scaled.E, 50 * plain.E, rtol=1e-6)


def test_one_bad_run_hardly_moves_the_law() -> None:
    n, d = plane()
    loss = CHINCHILLA.predict(n, d)
    true = loss.copy()
    loss[7] *= 1.5
    np.testing.assert_allclose(fit_parametric_law(n, d, loss).predict(n, d), true, rtol=2e-3)
    least_squares = fit_parametric_law(n, d, loss, delta=10.0)
    assert np.abs(least_squares.predict(n, d) / true - 1).max() > 0.05


def test_the_floor_is_never_negative_and_exponents_stay_in_their_bounds() -> None:
    x = np.geomspace(1e4, 1e8, 9)
    found = fit_power_law(x, 5 - 0.2 * np.log(x))  # falls faster than any floor allows
    assert found.E == 0.0
    assert EXPONENTS[0] <= found.alpha <= EXPONENTS[1]


def test_seeds_of_a_configuration_count_once_with_their_geometric_mean() -> None:
    n, d = plane()
    loss = noisy(CHINCHILLA, n, d, 0.01, 1)
    pairs = np.repeat(loss, 2) * np.tile([1.02, 1 / 1.02], len(loss))
    again = fit_parametric_law(np.append(np.repeat(n, 2), n[0]), np.append(np.repeat(d, 2), d[0]), np.append(pairs, loss[0]))
    np.testing.assert_allclose(astuple(again), astuple(fit_parametric_law(n, d, loss)), rtol=1e-6)


def test_optimum_by_hand() -> None:
    # L = 1 / N + 1 / D under N D = 100: by symmetry N = D = 10
    optimum = ParametricLaw(E=0.5, A=1.0, alpha=1.0, B=1.0, beta=1.0).optimum(600.0, 6.0)
    assert (optimum.parameters, optimum.tokens, optimum.loss) == pytest.approx((10, 10, 0.7))


laws = st.builds(ParametricLaw, E=st.floats(0, 3), A=st.floats(0.1, 1e4), alpha=exponents, B=st.floats(0.1, 1e4), beta=exponents)


@settings(deadline=None)
@given(laws, st.floats(1e12, 1e24), st.floats(1.0, 20.0))
def test_no_other_model_of_the_budget_is_better(law: ParametricLaw, budget: float, k: float) -> None:
    optimum = law.optimum(budget, k)
    assert k * optimum.parameters * optimum.tokens == pytest.approx(budget, rel=1e-9)
    found = minimize_scalar(lambda log_n: float(law.predict(np.exp(log_n), budget / k / np.exp(log_n))), bracket=(5.0, 30.0), tol=1e-10)
    assert optimum.loss <= found.fun * (1 + 1e-9)
    tenfold = law.optimum(10 * budget, k)
    assert math.log10(tenfold.parameters / optimum.parameters) == pytest.approx(law.a, rel=1e-6)
    assert math.log10(tenfold.tokens / optimum.tokens) == pytest.approx(law.b, rel=1e-6)


@given(st.floats(1e15, 1e24))
def test_budget_for_inverts_the_loss_of_the_optimum(budget: float) -> None:
    assert CHINCHILLA.budget_for(CHINCHILLA.optimum(budget, 6.0).loss, 6.0) == pytest.approx(budget, rel=1e-6)
    assert CHINCHILLA.budget_for(CHINCHILLA.E, 6.0) == math.inf


def test_k_is_the_median_cost() -> None:
    assert flops_per_parameter_token([60.0, 80.0, 900.0], [1.0, 2.0, 3.0], [10.0, 5.0, 10.0]) == 8.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"loss": [1.0] * 19 + [-2.0]}, r"loss: -2.0 at run 19, expected finite numbers > 0"),
        ({"tokens": [math.nan] * 20}, r"tokens: nan at run 0"),
        (
            {"parameters": [1e6, 2e6, 3e6] * 6 + [1e6] * 2, "tokens": [1e8, 2e8, 3e8] * 6 + [3e8] * 2},
            r"parameters, tokens: 4 distinct points",
        ),
        ({"parameters": [1e6, 2e6] * 10}, r"parameters: 2 distinct values, expected at least 3"),
        ({"loss": [1.0] * 3}, r"loss, parameters, tokens: \[3, 20, 20\] runs"),
        ({"loss": [[1.0]]}, r"loss: shape \(1, 1\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_name(change: dict[str, Any], told: str) -> None:
    n, d = plane()
    arguments: dict[str, Any] = {"parameters": n, "tokens": d, "loss": CHINCHILLA.predict(n, d)} | change
    with pytest.raises(ValueError, match=f"^{told}"):
        fit_parametric_law(**arguments)


def test_a_budget_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^budget: -1.0, expected a number > 0"):
        CHINCHILLA.optimum(-1.0, 6.0)


def test_study_needs_neither_ray_nor_torch() -> None:
    program = "import sys, raytraffic.study; print([name for name in ('ray', 'torch', 'raytraffic.models') if name in sys.modules])"
    repository = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True).stdout == "[]\n"
