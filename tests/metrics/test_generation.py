"""Measures of generated traffic: closed forms, brute force, and that each sees what it is for and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from raytraffic.metrics.generation import (
    autocorrelation,
    autocorrelation_distance,
    course_divergence,
    forecast_from_synthetic,
    paired_mae,
    paired_rmse,
    spatial_correlation_distance,
    value_divergence,
    weekly_profile_distance,
)


def courses(m: int = 40, t: int = 48, seed: int = 0) -> Tensor:
    """Daily rhythm with noise, on [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    level = 0.1 + 0.2 * torch.rand(m, 1, generator=generator)
    rhythm = 1.2 + torch.sin(2 * math.pi * torch.arange(t) / 24)
    return (level * rhythm * torch.exp(0.2 * torch.randn(m, t, generator=generator))).clamp(max=1)


def autoregression(m: int, t: int, phi: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(m, generator=generator)]
    for _ in range(t - 1):
        x.append(phi * x[-1] + math.sqrt(1 - phi**2) * torch.randn(m, generator=generator))
    return torch.stack(x, dim=1)


def test_errors_of_pairs_by_hand() -> None:
    real, generated = torch.tensor([[0.0, 0.5], [1.0, 0.25]]), torch.tensor([[0.5, 0.5], [0.0, 0.5]])
    assert paired_mae(real, generated) == pytest.approx((0.5 + 0 + 1 + 0.25) / 4)
    assert paired_rmse(real, generated) == pytest.approx(math.sqrt((0.25 + 0 + 1 + 0.0625) / 4))
    with pytest.raises(ValueError, match=r"generated: shape \(1, 2\), expected that of the real courses, \(2, 2\)"):
        paired_mae(real, generated[:1])


def test_value_divergence_is_scipys_of_the_histograms() -> None:
    real, generated = courses(), courses(30, seed=1) ** 1.3
    p, q = (np.histogram(x.numpy(), bins=100, range=(0, 1))[0] for x in (real, generated))
    assert value_divergence(real, generated) == pytest.approx(jensenshannon(p, q, base=2) ** 2, rel=1e-6)
    assert value_divergence(real, real.flip(0)) == 0
    assert value_divergence(torch.full((3, 2), 0.1), torch.full((9, 5), 0.9)) == pytest.approx(1)


def test_course_divergence_is_scipys_of_normalised_courses_over_the_slots() -> None:
    real, generated = courses(), courses(seed=1)
    pairs = [jensenshannon(p, q) ** 2 / 48 for p, q in zip(real.double().numpy(), generated.double().numpy(), strict=True)]
    assert course_divergence(real, generated) == pytest.approx(np.mean(pairs), rel=1e-9)


def test_course_divergence_of_disjoint_courses_and_of_levels() -> None:
    first, second = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0, 0, 5.0, 0]])
    assert course_divergence(first, second) == pytest.approx(math.log(2) / 4)
    assert course_divergence(courses(), 0.3 * courses()) == pytest.approx(0, abs=1e-9)
    silent = torch.cat((first, torch.zeros_like(first)))
    assert course_divergence(silent, torch.cat((second, second))) == pytest.approx(math.log(2) / 4)
    assert math.isnan(course_divergence(torch.zeros(1, 4), second))


def test_the_size_of_course_divergence_is_the_papers() -> None:
    """A third of relative error, as Table 1's MAE is of Internet traffic, is a few 1e-4 by courses, and tens of times that by values."""
    torch.manual_seed(0)
    real, generated = courses(400, 168), courses(400, 168, seed=1)
    by_course = course_divergence(real / real.mean(1, keepdim=True), generated / generated.mean(1, keepdim=True))
    assert 5e-5 < by_course < 5e-4
    twice = course_divergence(real, real + 2 * 0.05 * torch.randn_like(real) * real)
    assert twice == pytest.approx(4 * course_divergence(real, real + 0.05 * torch.randn_like(real) * real), rel=0.2)


def test_autocorrelation_is_numpys() -> None:
    x = courses(3, 30)
    for lag in (1, 5, 29):
        expected = []
        for course in x.double().numpy():
            centred = course - course.mean()
            expected.append(np.dot(centred[lag:], centred[: 30 - lag]) / np.dot(centred, centred))
        assert float(autocorrelation(x, 29)[lag - 1]) == pytest.approx(np.mean(expected), rel=1e-9)


def test_autocorrelation_distance_of_autoregressions_is_that_of_their_laws() -> None:
    slow, fast = autoregression(2000, 400, 0.9, 0), autoregression(2000, 400, 0.5, 1)
    expected = np.mean([0.9**lag - 0.5**lag for lag in range(1, 6)])
    assert autocorrelation_distance(slow, fast, 5) == pytest.approx(expected, abs=0.02)
    assert autocorrelation_distance(slow, autoregression(2000, 400, 0.9, 2), 5) < 0.01
    assert autocorrelation_distance(slow, 7 * slow, 5) == pytest.approx(0, abs=1e-6)


def test_constant_courses_have_no_autocorrelation() -> None:
    mixed = torch.cat((courses(3, 30), torch.full((2, 30), 0.3)))
    assert torch.allclose(autocorrelation(mixed, 4), autocorrelation(courses(3, 30), 4))
    with pytest.raises(ValueError, match="courses: all of them constant"):
        autocorrelation(torch.ones(2, 9), 3)
    with pytest.raises(ValueError, match=r"lags: 9, expected 1\.\.8 for courses of 9 slots"):
        autocorrelation(courses(2, 9), 9)


def test_profile_distance_is_the_shift_of_a_rhythm_and_not_its_level() -> None:
    slot = torch.arange(168)
    here = 1 + 0.5 * torch.sin(2 * math.pi * slot / 24)[None]
    there = 3 * (1 + 0.5 * torch.cos(2 * math.pi * slot / 24)[None])
    brute = np.mean([abs(0.5 * math.sin(2 * math.pi * i / 24) - 0.5 * math.cos(2 * math.pi * i / 24)) for i in range(168)])
    assert weekly_profile_distance(here, there) == pytest.approx(brute, rel=1e-5)
    assert weekly_profile_distance(here, 2 * here) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="courses of 24 slots, expected 168"):
        weekly_profile_distance(here, there[:, :24])


def test_spatial_distance_is_that_of_correlation_matrices() -> None:
    generator = torch.Generator().manual_seed(3)
    shared = torch.randn(5, 1, 100, generator=generator)
    together = shared + 0.5 * torch.randn(5, 4, 100, generator=generator)
    alone = torch.randn(7, 4, 100, generator=generator)
    brute = np.mean(
        [
            abs(
                np.corrcoef(*(together[:, k].flatten().numpy() for k in (i, j)))[0, 1]
                - np.corrcoef(*(alone[:, k].flatten().numpy() for k in (i, j)))[0, 1]
            )
            for i in range(4)
            for j in range(4)
            if i != j
        ]
    )
    assert spatial_correlation_distance(together, alone) == pytest.approx(brute, rel=1e-6)
    assert brute == pytest.approx(0.8, abs=0.1)
    with pytest.raises(ValueError, match="generated: 3 stations, expected 4"):
        spatial_correlation_distance(together, alone[:, :3])


def test_stations_that_do_not_vary_are_left_out_of_the_spatial_distance() -> None:
    weeks = courses(12, 48).unflatten(0, (3, 4))
    weeks[:, 2] = 0
    assert spatial_correlation_distance(weeks, weeks) == 0
    with pytest.raises(ValueError, match="stations: 1 of them vary"):
        spatial_correlation_distance(weeks[:, 1:3], weeks[:, 1:3])


def test_synthetic_traffic_of_the_same_law_trains_as_well_and_noise_does_not() -> None:
    train, test = autoregression(200, 100, 0.9, 0), autoregression(200, 100, 0.9, 1)
    assert forecast_from_synthetic(train, autoregression(200, 100, 0.9, 2), test, 3) == pytest.approx(1, abs=0.01)
    # White noise teaches to forecast the mean: the error is then 1, and that of the right forecast sqrt(1 - 0.9^2).
    white = autoregression(200, 100, 0.0, 3)
    assert forecast_from_synthetic(train, white, test, 3) == pytest.approx(1 / math.sqrt(1 - 0.81), rel=0.03)


def test_values_that_are_not_finite_are_refused() -> None:
    broken = courses()
    broken[0, 0] = torch.nan
    with pytest.raises(ValueError, match="courses: 1 of 1920 values are not finite"):
        value_divergence(courses(), broken)
