"""Learned marginals: maps that always increase and invert, and a CRPS that is that of the distribution they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from raytraffic.marginals import NODES, crps, knots, quantile_scores, quantiles, to_residual, to_score

IDENTITY = torch.tensor(NODES)
#: Spacing of the quadrature's scores, over which the pinball loss has one kink.
SPACING = 0.4


def raws(largest: float, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[Tensor]:
    """Raw outputs (k,) of a network, none beyond `largest`."""
    one = st.floats(-largest, largest, allow_nan=False)
    return st.lists(one, min_size=len(NODES), max_size=len(NODES)).map(lambda values: torch.tensor(values, dtype=dtype))


def normal_crps(residual: np.ndarray) -> np.ndarray:
    """CRPS of a standard normal in closed form (Gneiting and Raftery 2007, Eq. 21)."""
    return residual * (2 * stats.norm.cdf(residual) - 1) + 2 * stats.norm.pdf(residual) - 1 / math.sqrt(math.pi)


@given(raw=raws(1000.0, torch.float32))
def test_knots_increase_whatever_the_network_says(raw: Tensor) -> None:
    """Up to 1,000 spreads, where float32 still tells the flattest segment's ends apart; residuals of traffic lie within 100."""
    found = knots(raw)
    assert bool(torch.isfinite(found).all())
    assert bool((found.diff() > 0).all())
    assert float(found[len(NODES) // 2]) == float(raw[len(NODES) // 2])


def test_zero_raw_output_is_the_identity() -> None:
    # The slope is 1 to rounding; it was 1.001 when the smallest slope came on top.
    torch.testing.assert_close(knots(torch.zeros(2, 3, len(NODES))), IDENTITY.expand(2, 3, -1), rtol=1e-6, atol=1e-6)
    score = torch.linspace(-7, 7, 57)
    torch.testing.assert_close(to_residual(score, IDENTITY.expand(57, -1)), score, rtol=1e-6, atol=1e-6)


@given(raw=raws(5.0), shift=st.floats(-5, 5))
def test_the_middle_output_moves_the_whole_map(raw: Tensor, shift: float) -> None:
    moved = raw.clone()
    moved[len(NODES) // 2] += shift
    torch.testing.assert_close(knots(moved), knots(raw) + shift)


@given(raw=raws(8.0), score=st.floats(-7, 7), residual=st.floats(-60, 60))
def test_to_score_inverts_to_residual_and_back(raw: Tensor, score: float, residual: float) -> None:
    """Beyond the outer nodes (2.4) too. In double precision nothing but algebra is tested: knots lie within 30, slopes in 1e-3..9."""
    q = knots(raw)
    s, r = torch.tensor(score, dtype=torch.float64), torch.tensor(residual, dtype=torch.float64)
    assert float(to_score(to_residual(s, q), q)) == pytest.approx(score, abs=1e-9)
    assert float(to_residual(to_score(r, q), q)) == pytest.approx(residual, abs=1e-9)


@given(raw=raws(8.0, torch.float32), score=st.floats(-7, 7))
def test_the_inverse_loses_float32_rounding_only(raw: Tensor, score: float) -> None:
    """A residual is rounded to some 1e-7 of the largest number it is made of, which the flattest segment divides by its slope."""
    q = knots(raw)
    s = torch.tensor(score, dtype=torch.float32)
    r = to_residual(s, q)
    slope = float((q.diff() / IDENTITY.diff()).min())
    rounding = 8 * torch.finfo(torch.float32).eps * float(q.abs().max() + r.abs())
    assert float(to_score(r, q)) == pytest.approx(float(s), abs=1e-5 + rounding / slope)


@given(raw=raws(8.0))
def test_maps_are_monotone_and_go_through_their_knots(raw: Tensor) -> None:
    q = knots(raw)
    score = torch.linspace(-7, 7, 141, dtype=torch.float64)
    assert bool((to_residual(score, q.expand(141, -1)).diff() > 0).all())
    assert bool((to_score(torch.linspace(-60, 60, 141, dtype=torch.float64), q.expand(141, -1)).diff() > 0).all())
    torch.testing.assert_close(to_residual(IDENTITY, q.expand(len(NODES), -1)), q)
    torch.testing.assert_close(to_score(q, q.expand(len(NODES), -1)), IDENTITY.double())


@given(raw=raws(3.0, torch.float32))
def test_quantiles_are_the_map_at_normal_scores(raw: Tensor) -> None:
    q = knots(raw)
    found, score = quantiles(q), quantile_scores()
    torch.testing.assert_close(found, to_residual(score, q.expand(len(score), -1)), rtol=1e-4, atol=1e-4)


RESIDUALS = np.concatenate((np.linspace(-3, 3, 61), [-6.0, 6.0]))


def test_crps_of_the_identity_is_that_of_a_standard_normal() -> None:
    """The trapezoid rule misses a kink of slope 2 phi(r) by at most spacing^2 / 12 of it (Euler and Maclaurin), up to 0.0107 where
    the residual is a quadrature score; tails beyond the last score add some thousandths. Relative to the CRPS that is 1 % where it
    is large, 4.4 % at its minimum 0.23, and on average over normal residuals next to nothing."""
    found = crps(torch.from_numpy(RESIDUALS).float(), quantiles(IDENTITY).expand(len(RESIDUALS), -1)).double().numpy()
    exact = normal_crps(RESIDUALS)
    bound = SPACING**2 / 12 * 2 * stats.norm.pdf(RESIDUALS) + 0.003 + 0.002 * np.abs(RESIDUALS)
    assert (np.abs(found - exact) <= bound).all()
    far = np.abs(RESIDUALS) >= 1
    assert np.abs(found / exact - 1)[far].max() < 0.02
    assert np.abs(found / exact - 1).max() < 0.05
    # Over all residuals of its own the kinks average out: E CRPS = 1 / sqrt(pi).
    own = torch.from_numpy(stats.norm.ppf((np.arange(4000) + 0.5) / 4000)).float()
    assert float(crps(own, quantiles(IDENTITY).expand(4000, -1)).mean()) == pytest.approx(1 / math.sqrt(math.pi), rel=0.01)


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 0.2), (1.7, 1.0), (-3.0, 2.5)])
def test_crps_of_a_scaled_and_shifted_normal(mean: float, spread: float) -> None:
    q = (mean + spread * IDENTITY).expand(len(RESIDUALS), -1)
    found = crps(torch.from_numpy(mean + spread * RESIDUALS).float(), quantiles(q))
    exact = spread * normal_crps(RESIDUALS)
    bound = spread * (SPACING**2 / 12 * 2 * stats.norm.pdf(RESIDUALS) + 0.003 + 0.002 * np.abs(RESIDUALS))
    assert (np.abs(found.double().numpy() - exact) <= bound).all()
    unit = crps(torch.from_numpy(RESIDUALS).float(), quantiles(IDENTITY).expand(len(RESIDUALS), -1))
    torch.testing.assert_close(found, spread * unit, rtol=1e-4, atol=1e-5)


@settings(max_examples=50)
@given(raw=raws(1000.0, torch.float32), residual=st.floats(-1e4, 1e4))
def test_crps_and_its_gradient_are_finite_and_it_is_not_negative(raw: Tensor, residual: float) -> None:
    leaf = raw.requires_grad_()
    loss = crps(torch.tensor(residual, dtype=torch.float32), quantiles(knots(leaf)))
    loss.backward()
    assert float(loss.detach()) >= 0 and math.isfinite(float(loss.detach()))
    assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())


def test_the_least_crps_is_that_of_the_true_distribution() -> None:
    """Each quantile's pinball loss is proper and the family holds every normal, so minimising finds this one."""
    truth = torch.from_numpy(0.7 + 0.5 * stats.norm.ppf((np.arange(2000) + 0.5) / 2000)).float()
    raw = torch.zeros(len(NODES), requires_grad=True)
    adam = torch.optim.Adam([raw], lr=0.05)
    for _ in range(300):
        adam.zero_grad()
        crps(truth, quantiles(knots(raw))[None]).mean().backward()
        adam.step()
    # The loss is flat near its minimum: 0.03 is 6 % of the spread.
    torch.testing.assert_close(knots(raw).detach(), 0.7 + 0.5 * IDENTITY, rtol=0, atol=0.03)


def test_crps_is_as_exact_in_mixed_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    q, residual = knots(torch.randn(200, len(NODES), generator=generator)), torch.randn(200, generator=generator)
    plain = crps(residual, quantiles(q))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(crps(residual, quantiles(q)), plain)
