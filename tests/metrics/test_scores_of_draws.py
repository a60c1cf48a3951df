"""Point, distribution and calibration scores against public implementations, closed forms and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.metrics.calibration import coverage, pit_histogram
from raytraffic.metrics.distribution import crps, energy_score, jsd
from raytraffic.metrics.point import mae, rmse
from raytraffic.metrics.scores import Scores


def case(b: int = 5, n: int = 7, entries: int = 11, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(b, entries, generator=generator) * 1000
    draws = torch.rand(b, n, entries, generator=generator) * 1000
    where = torch.rand(b, entries, generator=generator) < 0.7
    where[:, 0] = True
    return truth.masked_fill(~where, torch.nan), draws, where


def test_point_scores_by_hand() -> None:
    truth = torch.tensor([[1.0, 2.0, torch.nan], [5.0, 0.0, 7.0]])
    forecast = torch.tensor([[4.0, 2.0, 9.0], [1.0, 0.0, 100.0]])
    where = torch.tensor([[True, True, False], [True, True, False]])
    assert rmse(truth, forecast, where).item() == pytest.approx(math.sqrt((9 + 16) / 4))
    assert mae(truth, forecast, where).item() == pytest.approx(7 / 4)
    assert math.isnan(mae(truth, forecast, torch.zeros_like(where)).item())


@given(n=st.integers(2, 9), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_fair_crps_is_the_oracle_s(n: int, seed: int) -> None:
    truth, draws, where = case(n=n, seed=seed)
    draws = draws.round(decimals=-2)  # ties
    oracle = scoringrules.crps_ensemble(truth[where].double().numpy(), draws.movedim(1, -1)[where].double().numpy(), estimator="fair")
    assert crps(truth, draws, where).item() == pytest.approx(float(np.mean(oracle)), rel=1e-10)


@pytest.mark.parametrize("n", [2, 5])
def test_fair_energy_score_of_every_cell_s_course_is_the_oracle_s(n: int) -> None:
    """(b, c, t, s) = (3, 2, 11, 5), the oracle one cell at a time; a cell without scored slots has no score."""
    truth, draws, where = (value.unflatten(-1, (2, 11, 5)) for value in case(b=3, n=n, entries=110))
    where[1, 0, :, 2] = False
    got = energy_score(truth, draws, where)
    assert got.shape == (3, 2, 5) and got.isnan().nonzero().tolist() == [[1, 0, 2]]
    for i, c, s in got.isfinite().nonzero().tolist():
        slots = where[i, c, :, s]
        x, y = draws[i, :, c, slots, s].double().numpy(), truth[i, c, slots, s].double().numpy()
        assert got[i, c, s].item() == pytest.approx(float(scoringrules.es_ensemble(y, x, estimator="fair")), rel=1e-10)


def test_energy_score_of_one_slot_is_its_crps_and_of_one_draw_the_distance() -> None:
    truth, draws, where = case()
    one = energy_score(truth[:, None], draws[:, :, None], where[:, None])
    assert one.nanmean().item() == pytest.approx(crps(truth, draws, where).item(), rel=1e-12)
    course = energy_score(torch.zeros(1, 3, 1), torch.tensor([[[[3.0], [7.0], [4.0]]]]), torch.tensor([[[True], [False], [True]]]))
    assert course.tolist() == [[5.0]]


def test_energy_score_of_nothing_is_of_no_cell() -> None:
    truth, draws, where = case()
    assert energy_score(truth[..., None], draws[..., None], torch.zeros_like(where)[..., None]).isnan().all()


def test_draws_of_the_right_marginals_but_shuffled_slots_have_a_higher_energy_score_and_the_same_crps() -> None:
    """Every course is one level plus a little noise; shuffling the draws at each slot keeps all marginals and loses the level."""
    generator = torch.Generator().manual_seed(4)
    level = torch.randn(1, 33, 1, 500, generator=generator)
    courses = level + 0.1 * torch.randn(1, 33, 24, 500, generator=generator)
    truth, draws = courses[:, 0], courses[:, 1:]
    shuffled = draws.gather(1, torch.rand(draws.shape, generator=generator).argsort(dim=1))
    where = torch.ones_like(truth, dtype=torch.bool)
    assert crps(truth, shuffled, where).item() == pytest.approx(crps(truth, draws, where).item(), rel=1e-6)  # float32 sums
    loss = energy_score(truth, shuffled, where) - energy_score(truth, draws, where)
    assert loss.mean() > 4 * loss.std() / math.sqrt(500)


def test_crps_of_gaussian_draws_tends_to_the_closed_form_for_any_number_of_draws() -> None:
    """CRPS(N(0,1), y) = y (2 Phi(y) - 1) + 2 phi(y) - 1/sqrt(pi); the fair estimator has that mean even with 3 draws."""
    y = 0.7
    exact = y * math.erf(y / math.sqrt(2)) + 2 * math.exp(-(y**2) / 2) / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)
    generator = torch.Generator().manual_seed(1)
    for n in (3, 50):
        draws = torch.randn(1, n, 200_000, generator=generator, dtype=torch.float64)
        truth = torch.full((1, 200_000), y, dtype=torch.float64)
        # the standard error of the mean is at most 0.6 / sqrt(200,000) = 0.0013
        assert crps(truth, draws, torch.ones_like(truth, dtype=torch.bool)).item() == pytest.approx(exact, abs=0.005)


def test_one_draw_has_the_absolute_error_as_crps_and_no_coverage() -> None:
    truth, draws, where = case(n=1)
    assert crps(truth, draws, where).item() == pytest.approx(mae(truth, draws[:, 0], where).item())
    assert math.isnan(coverage(truth, draws, where, 0.8).item())


def test_jsd_by_hand() -> None:
    """Truth: bins 10 and 20, half each; draws: bins 10 (three of four) and 30: JSD = H(m) - (H(p) + H(q)) / 2 by hand."""
    truth = torch.tensor([[0.105, 0.205]])
    draws = torch.tensor([[[0.105, 0.105], [0.105, 0.305]]])
    where = torch.ones(1, 2, dtype=torch.bool)
    m, q = [0.625, 0.25, 0.125], [0.75, 0.25]
    by_hand = -sum(x * math.log2(x) for x in m) - (1 - sum(x * math.log2(x) for x in q)) / 2
    assert jsd(truth, draws, where).item() == pytest.approx(by_hand, rel=1e-12)
    assert jsd(truth, truth[:, None], where).item() == 0.0
    assert jsd(truth, truth[:, None] + 0.5, where).item() == pytest.approx(1.0, rel=1e-12)


def test_jsd_closes_the_last_bin_and_clips() -> None:
    truth = torch.tensor([[1.0, 0.999, 0.0]])
    draws = torch.tensor([[[0.995, 7.0, -3.0]]])
    assert jsd(truth, draws, torch.ones(1, 3, dtype=torch.bool)).item() == 0.0


@pytest.mark.parametrize(("level", "n"), [(0.5, 20), (0.8, 9), (0.8, 20), (0.9, 19), (0.9, 64)])
def test_a_calibrated_forecast_is_covered_at_the_nominal_rate_whatever_the_number_of_draws(level: float, n: int) -> None:
    generator = torch.Generator().manual_seed(2)
    truth, draws = torch.rand(1, 100_000, generator=generator), torch.rand(1, n, 100_000, generator=generator)
    # four standard errors of a share of 100,000
    assert coverage(truth, draws, torch.ones_like(truth, dtype=torch.bool), level).item() == pytest.approx(level, abs=0.0064)


def test_coverage_by_hand_and_of_dead_cells() -> None:
    draws = torch.arange(1.0, 20.0).view(1, 19, 1).expand(1, 19, 4)  # the 90 % interval of 1..19 is [1, 19], of 50 % [5, 15]
    truth = torch.tensor([[1.0, 19.0, 0.99, 5.0]])
    where = torch.ones(1, 4, dtype=torch.bool)
    assert coverage(truth, draws, where, 0.9).item() == 0.75
    assert coverage(truth, draws, where, 0.5).item() == 0.25
    dead = torch.zeros(1, 4)
    assert coverage(dead, torch.zeros(1, 20, 4), where, 0.8).item() == 1.0


def test_pit_is_flat_for_calibrated_draws_and_for_ties_and_bent_for_narrow_ones() -> None:
    generator = torch.Generator().manual_seed(3)
    truth, draws = torch.randn(1, 50_000, generator=generator), torch.randn(1, 19, 50_000, generator=generator)
    where = torch.ones_like(truth, dtype=torch.bool)
    flat = pit_histogram(truth, draws, where)
    assert flat.sum().item() == pytest.approx(1.0) and (flat - 0.1).abs().max() < 0.006  # four standard errors
    narrow = pit_histogram(truth, draws / 3, where)
    assert narrow[0] > 0.2 and narrow[-1] > 0.2
    tied = pit_histogram(torch.zeros_like(truth), torch.zeros_like(draws), where)
    assert torch.allclose(tied, torch.full_like(tied, 0.1))


def test_bad_input_is_named() -> None:
    truth, draws, where = case()
    with pytest.raises(ValueError, match=r"draws: 5 of .* not finite"):
        crps(truth, draws.index_fill(2, torch.tensor([0]), torch.nan)[:, :1], where)
    with pytest.raises(ValueError, match=r"where: torch\.float32"):
        rmse(truth, draws[:, 0], where.float())
    with pytest.raises(ValueError, match=r"draws: shape \(5, 7, 10\)"):
        crps(truth, draws[..., :10], where)


@pytest.mark.parametrize("n", [2, 8])
def test_the_debiased_rmse_is_that_of_the_distribution_s_mean_whatever_the_number_of_draws(n: int) -> None:
    """Draws of N(1, 2^2) for a truth of 0: the mean is 1 off, the mean of n draws sqrt(1 + 4 / n)."""
    generator = torch.Generator().manual_seed(0)
    truth, where = torch.zeros(1, 1, 200_000, 1), torch.ones(1, 1, 200_000, 1, dtype=torch.bool)
    scores = Scores()
    scores.update(truth, 1 + 2 * torch.randn(1, n, 1, 200_000, 1, generator=generator), where)
    found = scores.result()
    assert found["rmse_debiased"] == pytest.approx(1.0, rel=0.02)
    assert found["rmse"] == pytest.approx(math.sqrt(1 + 4 / n), rel=0.02)


def test_a_forecast_without_distribution_has_nothing_to_debias() -> None:
    truth, draws, where = (value.unflatten(-1, (1, 11, 10)) for value in case(n=1, entries=110))
    scores = Scores()
    scores.update(truth, draws, where)
    assert scores.result()["rmse_debiased"] == scores.result()["rmse"]
