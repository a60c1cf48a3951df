"""Approach 2: exact on parabolas, biased where arXiv 2603.22339 says so, honest about bad parabolas; and grids that are centred."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raytraffic.study import CHINCHILLA, ParametricLaw, centred_grid, difference, fit_isoflop

Floats = NDArray[np.float64]
BUDGETS = [1e18, 1e19, 1e20, 1e21]
SYMMETRIC = ParametricLaw(E=1.69, A=400.0, alpha=0.3, B=400.0, beta=0.3)


def sampled(law: ParametricLaw, factor: float, drift: float = 0.0) -> tuple[Floats, Floats, Floats]:
    """FLOPs, parameters and loss of 7 sizes a budget about the true optimum times (C / 1e19)^drift."""
    rows = []
    for budget in BUDGETS:
        n = law.optimum(budget, 6.0).parameters * (budget / 1e19) ** drift * factor ** np.arange(-3.0, 4.0)
        rows.append((np.full(7, budget), n, law.predict(n, budget / 6 / n)))
    flops, parameters, loss = (np.concatenate(each) for each in zip(*rows, strict=True))
    return flops, parameters, loss


def test_parabolas_are_fitted_exactly() -> None:
    # loss = 2 + 0.1 (log N - log N*)^2 with N* = 0.5 C^0.45; k = 6
    flops = np.repeat(BUDGETS, 5)
    best = 0.5 * flops**0.45
    n = best * np.tile([0.1, 0.5, 1.5, 4.0, 9.0], 4)
    found = fit_isoflop(flops, n, 2 + 0.1 * np.log(n / best) ** 2, budgets=BUDGETS, k=6.0)
    assert (found.a, found.b, found.scale) == pytest.approx((0.45, 0.55, 0.5), rel=1e-6)
    first = found.parabolas[0]
    assert (first.parameters, first.loss, first.curvature) == pytest.approx((0.5 * 1e18**0.45, 2.0, 0.1), rel=1e-6)
    assert first.tokens == pytest.approx(1e18 / 6 / first.parameters)
    assert first.usable
    assert first.reason == ""
    assert found.parameters(1e22) * found.tokens(1e22) * 6 == pytest.approx(1e22)


def test_seeds_count_once_and_stray_runs_not_at_all() -> None:
    flops, n, loss = sampled(CHINCHILLA, 1.5)
    plain = fit_isoflop(flops, n, loss, budgets=BUDGETS, k=6.0)
    more = (np.append(flops, [flops[0], 5e18]), np.append(n, [n[0], 1e7]), np.append(loss, [loss[0], 99.0]))
    assert fit_isoflop(*more, budgets=BUDGETS, k=6.0).a == pytest.approx(plain.a, rel=1e-9)


def test_a_symmetric_law_has_no_bias_and_chinchilla_has_it_in_wide_grids() -> None:
    for factor in (1.2, 3.0):
        apart = difference(fit_isoflop(*sampled(SYMMETRIC, factor), budgets=BUDGETS, k=6.0), SYMMETRIC, 1e23)
        assert (apart.exponent, apart.parameters_ratio) == pytest.approx((0, 1), abs=1e-9)
        assert apart.wasted_share == pytest.approx(0, abs=1e-9)
    narrow, wide = (difference(fit_isoflop(*sampled(CHINCHILLA, f), budgets=BUDGETS, k=6.0), CHINCHILLA, 1e23) for f in (1.2, 3.0))
    assert abs(narrow.parameters_ratio - 1) < 0.01 < 0.05 < abs(wide.parameters_ratio - 1)
    assert abs(wide.exponent) < 1e-9  # grids of one shape about the optimum shift every minimum alike
    assert 0 < narrow.wasted_share < wide.wasted_share
    assert 0 < narrow.loss_percent < wide.loss_percent


def test_grids_that_drift_off_the_optimum_bias_the_exponent() -> None:
    apart = difference(fit_isoflop(*sampled(CHINCHILLA, 3.0, drift=0.2), budgets=BUDGETS, k=6.0), CHINCHILLA, 1e24)
    assert abs(apart.exponent) > 2e-3
    assert apart.wasted_share > 0


def test_difference_by_its_meaning() -> None:
    isoflop = fit_isoflop(*sampled(CHINCHILLA, 3.0), budgets=BUDGETS, k=6.0)
    apart = difference(isoflop, CHINCHILLA, 1e23)
    saved = CHINCHILLA.optimum(1e23 * (1 - apart.wasted_share), 6.0)
    assert saved.loss == pytest.approx(float(CHINCHILLA.predict(isoflop.parameters(1e23), isoflop.tokens(1e23))), rel=1e-9)


def test_parabolas_that_are_no_evidence_are_named_and_left_out() -> None:
    flops = np.repeat(BUDGETS, 3)
    best = 0.5 * flops**0.45
    n = best * np.tile([0.25, 1.0, 4.0], 4)
    loss = 2 + 0.1 * np.log(n / best) ** 2
    loss[:3] = [2.0, 2.1, 2.0]  # a hill
    loss[3:6] = [2.2, 2.08, 2.0]  # still falling at the largest size
    found = fit_isoflop(flops, n, loss, budgets=BUDGETS, k=6.0)
    assert [each.usable for each in found.parabolas] == [False, False, True, True]
    assert "not convex" in found.parabolas[0].reason
    assert math.isnan(found.parabolas[0].parameters)
    assert found.parabolas[1].convex
    assert "outside the sampled sizes" in found.parabolas[1].reason
    assert found.a == pytest.approx(0.45)
    with pytest.raises(ValueError, match=r"^budgets: 0 usable parabolas, expected at least 2 .*not convex.*outside"):
        fit_isoflop(flops[:6], n[:6], loss[:6], budgets=BUDGETS[:2], k=6.0)


def test_a_straight_line_is_not_convex() -> None:
    flops, n, _ = sampled(CHINCHILLA, 2.0)
    with pytest.raises(ValueError, match="0 usable parabolas"):
        fit_isoflop(flops, n, 5 - 0.1 * np.log(n), budgets=BUDGETS, k=6.0)


def test_too_few_sizes_are_refused_with_their_budget() -> None:
    flops, n, loss = sampled(CHINCHILLA, 2.0)
    with pytest.raises(ValueError, match=r"^budgets: 3e\+30 FLOPs has 0 sizes, expected at least 3"):
        fit_isoflop(flops, n, loss, budgets=[*BUDGETS, 3e30], k=6.0)


def test_a_grid_by_hand() -> None:
    grid = centred_grid(budgets=[600.0], optimum=lambda _: 10.0, sizes=[2.5, 5, 10, 20, 40, 80], k=6.0, points=3)
    assert [(each.parameters, each.tokens) for each in grid] == [pytest.approx(pair) for pair in ((5, 20), (10, 10), (20, 5))]


near = st.floats(-0.45, 0.45)  # in steps of the grid


@settings(deadline=None)
@given(near, near, near, st.lists(st.floats(-4.0, 4.0), max_size=20), st.floats(1e6, 1e8), st.sampled_from([3, 5, 7]), st.floats(1.3, 4.0))
def test_grids_are_symmetric_within_half_a_step(
    low: float, middle: float, high: float, others: list[float], guess: float, points: int, factor: float
) -> None:
    sizes = [guess * factor**place for place in {low - 1, middle, high + 1, *others}]
    grid = centred_grid(budgets=[1e18], optimum=lambda _: guess, sizes=sizes, k=6.0, points=points, factor=factor)
    found = np.array([each.parameters for each in grid])
    assert 3 <= len(found) == len(np.unique(found)) <= points
    assert np.isclose(found[:, None], np.array(sizes)).any(axis=1).all()
    assert abs(np.log(found / guess).mean()) <= math.log(factor) / 2 * (1 + 1e-6)
    np.testing.assert_allclose([6 * each.parameters * each.tokens for each in grid], 1e18)


def test_a_size_without_its_mirror_image_is_not_taken() -> None:
    ladder = 10.0 * 2.0 ** np.arange(-1, 4)  # one step below the guess, three above
    grid = centred_grid(budgets=[1e6], optimum=lambda _: 10.0, sizes=ladder, k=6.0, points=7)
    assert [each.parameters for each in grid] == pytest.approx([5, 10, 20])
    with pytest.raises(ValueError, match=r"^budgets: 1e\+06 FLOPs, expected sizes on both sides of its guessed optimum, 1e\+03 parameters"):
        centred_grid(budgets=[1e6], optimum=lambda _: 1000.0, sizes=ladder, k=6.0)


@pytest.mark.parametrize(("points", "factor", "told"), [(4, 2.0, "points: 4"), (1, 2.0, "points: 1"), (5, 1.0, "factor: 1.0")])
def test_bad_grids_are_refused(points: int, factor: float, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}, expected"):
        centred_grid(budgets=[1e6], optimum=lambda _: 10.0, sizes=[5, 10, 20], k=6.0, points=points, factor=factor)
