"""Intervals: deterministic, blind to the runs' order, honest about seeds that agree, and wide enough (closed form, and coverage)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from raytraffic.study import CHINCHILLA, ParametricLaw, PowerLaw, bootstrap_parametric_law, bootstrap_power_law
from raytraffic.study.bootstrap import Bootstrap
from raytraffic.study.laws import Sample
from raytraffic.study.variable_projection import fit_power_sum, refit_power_sums

Floats = NDArray[np.float64]


def runs(seed: int, seeds: int = 2, noise: float = 0.01, shared: float = 0.0) -> tuple[Floats, Floats, Floats]:
    n, d = (each.ravel() for each in np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(1e8, 1e10, 4)))
    generator = np.random.default_rng(seed)
    together = np.repeat(shared * generator.normal(size=len(n)), seeds)
    n, d = np.repeat(n, seeds), np.repeat(d, seeds)
    return n, d, CHINCHILLA.predict(n, d) * np.exp(together + noise * generator.normal(size=len(n)))


def optimum(law: ParametricLaw) -> float:
    return law.optimum(1e20, 6.0).parameters


def test_the_same_seed_gives_the_same_interval_whatever_the_order_of_the_runs() -> None:
    n, d, loss = runs(0)
    order = np.random.default_rng(5).permutation(len(n))
    first = bootstrap_parametric_law(n, d, loss, resamples=100, seed=3).interval(optimum)
    shuffled = bootstrap_parametric_law(n[order], d[order], loss[order], resamples=100, seed=3).interval(optimum)
    assert (shuffled.low, shuffled.estimate, shuffled.high) == pytest.approx((first.low, first.estimate, first.high), rel=1e-6)
    assert bootstrap_parametric_law(n, d, loss, resamples=100, seed=4).interval(optimum).low != first.low
    assert first.low < first.estimate < first.high


def test_copies_of_a_run_are_no_evidence() -> None:
    # Ten seeds that agree to the digit say as little of the law as one: what a configuration has of its own is shared.
    n, d, loss = runs(1, seeds=1)
    one = bootstrap_parametric_law(n, d, loss, resamples=200).interval(optimum)
    ten = bootstrap_parametric_law(np.repeat(n, 10), np.repeat(d, 10), np.repeat(loss, 10), resamples=200).interval(optimum)
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high), rel=1e-6)


def test_more_configurations_narrow_the_interval_and_noise_widens_it() -> None:
    def width(noise: float, sizes: int) -> float:
        x = np.geomspace(1e5, 1e8, sizes)
        loss = PowerLaw(E=1.0, A=50.0, alpha=0.35).predict(x) * np.exp(noise * np.random.default_rng(0).normal(size=sizes))
        interval = bootstrap_power_law(x, loss, resamples=200).interval(lambda law: law.alpha)
        return interval.high - interval.low

    assert width(0.002, 60) < width(0.02, 60)
    assert width(0.01, 100) < width(0.01, 10)


def bootstrap_with(residuals: Floats) -> Bootstrap[ParametricLaw]:
    return Bootstrap(law=CHINCHILLA, laws=(CHINCHILLA,), residuals=residuals, constants=5, delta=1e-3)


def test_ends_are_expanded_percentiles_by_hand() -> None:
    # 8 configurations, 5 constants: Student's t with 3 degrees of freedom has its 5 % point at -2.353, which is 0.93 % of a normal.
    values = np.arange(10001.0)
    assert bootstrap_with(np.ones(8)).ends(values) == pytest.approx((93, 9907), abs=2)
    assert bootstrap_with(np.append(np.zeros(5), np.ones(3))).ends(values) == pytest.approx((93, 9907), abs=2)
    # Least squares, no residual beyond delta: times sqrt(8 / 3), so -3.843, which is 0.006 %.
    assert bootstrap_with(np.zeros(8)).ends(values) == pytest.approx((0.6, 9999.4), abs=1)
    assert bootstrap_with(np.ones(100_005)).ends(values) == pytest.approx((500, 9500), abs=1)


def test_an_infinite_value_never_becomes_nan() -> None:
    low, high = bootstrap_with(np.ones(50)).ends(np.array([1.0, 2.0, math.inf, math.inf]))
    assert low == 1.0
    assert high == math.inf


def test_a_refit_under_weights_is_the_fit_of_repeated_points() -> None:
    n, d, loss = runs(2, seeds=1)
    sample = Sample.of(loss, n=n, d=d)
    counts = np.random.default_rng(0).integers(1, 4, size=len(loss))
    weighted = refit_power_sums(sample.x, sample.loss, counts[None].astype(float), fit_power_sum(sample.x, sample.loss))
    repeated = fit_power_sum(np.repeat(sample.x, counts, axis=0), np.repeat(sample.loss, counts))
    assert weighted.objective[0] == pytest.approx(repeated.objective[0], rel=1e-6)
    np.testing.assert_allclose(weighted.exponent, repeated.exponent, rtol=1e-3)


def test_warm_refits_reach_what_cold_fits_reach() -> None:
    n, d, loss = runs(3, seeds=1)
    sample = Sample.of(loss, n=n, d=d)
    cold = fit_power_sum(sample.x, sample.loss)
    noisy = runs(4, seeds=1)[2]
    again = Sample.of(noisy, n=n, d=d)
    warm = refit_power_sums(again.x, again.loss, np.ones((1, len(noisy))), cold)
    assert warm.objective[0] == pytest.approx(fit_power_sum(again.x, again.loss).objective[0], rel=1e-5)


@pytest.mark.parametrize("shared", [0.0, 0.005])
def test_intervals_cover_whether_seeds_agree_or_not(shared: float) -> None:
    # 30 tables x 3 quantities: about 81 of 90 at 90 %.
    hits = 0
    for trial in range(30):
        boot = bootstrap_parametric_law(*runs(100 + trial, noise=0.002, shared=shared), resamples=100, seed=trial)
        for quantity in (lambda law: law.alpha, lambda law: law.beta, optimum):
            interval = boot.interval(quantity)
            hits += interval.low <= quantity(CHINCHILLA) <= interval.high
    assert 72 <= hits <= 89


def test_bad_levels_and_too_few_resamples_are_refused() -> None:
    n, d, loss = runs(0)
    with pytest.raises(ValueError, match=r"^resamples: 99, expected at least 100"):
        bootstrap_parametric_law(n, d, loss, resamples=99)
    with pytest.raises(ValueError, match=r"^level: 1.0, expected a number in \(0, 1\)"):
        bootstrap_parametric_law(n, d, loss, resamples=100).interval(optimum, level=1.0)
