r"""How generated traffic resembles real traffic: errors and divergences of STOUTER's Table 1, and distances of what planning asks about.

Courses are (m, t): m station-weeks of t slots, on the [0, 1] scale of the city's upper reference level. Generated and real courses are
pairs (of one station and week) where a measure says so, and else two samples, whose numbers may differ.

    MAE, RMSE      over the entries of paired courses, of single draws: the error of using generated traffic in place of the real
    JSD, values    of histograms of all values: 100 equal bins on [0, 1], base 2, in [0, 1] (raytraffic.metrics.distribution)
    JSD, courses   mean over pairs and slots of (p log(p / m) + q log(q / m)) / 2, m = (p + q) / 2, in nats: p and q are the courses
                   divided by their sums, so that a course is a distribution over its slots

The paper prints JSD x 1e-4 and states neither bins nor normalisation. A divergence of histograms is of the order of 1e-2 where the
relative errors are those of its Table 1, and so is the sum over the 168 slots of normalised courses; the mean over slots is of the order
of 1e-4 and goes with the square of the MAE, as its rows do. So the latter is what is set beside the table, both in units of JSD_UNIT.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raytraffic.metrics.distribution import JSD_BINS, divergence, histogram_bin

__all__ = [
    "JSD_UNIT",
    "autocorrelation",
    "autocorrelation_distance",
    "course_divergence",
    "forecast_from_synthetic",
    "paired_mae",
    "paired_rmse",
    "spatial_correlation_distance",
    "value_divergence",
    "weekly_profile_distance",
]

#: What the paper's table counts the JSD in.
JSD_UNIT = 1e-4
#: Ridge of the forecaster trained on synthetic traffic, in units of its features' variance.
_RIDGE = 1e-3


def paired_mae(real: Tensor, generated: Tensor) -> float:
    """Mean absolute error of paired courses (m, t)."""
    _expect_pairs(real, generated)
    return float((generated.double() - real.double()).abs().mean())


def paired_rmse(real: Tensor, generated: Tensor) -> float:
    """Root mean squared error of paired courses (m, t)."""
    _expect_pairs(real, generated)
    return float((generated.double() - real.double()).square().mean().sqrt())


def value_divergence(real: Tensor, generated: Tensor) -> float:
    """JSD between the histograms of all real and all generated values, of any two shapes; in [0, 1]."""
    _expect_finite(real, generated)
    p, q = (torch.bincount(histogram_bin(values).flatten(), minlength=JSD_BINS).double() for values in (real, generated))
    return float(divergence(p, q))


def course_divergence(real: Tensor, generated: Tensor) -> float:
    """Mean over paired courses (m, t) and their slots of the JSD's terms, in nats; pairs of which one is all zero are left out.

    It is JSD(p, q) / t, averaged over pairs, and sees shapes alone: twice the traffic is no difference. NaN where no pair is left.
    """
    _expect_pairs(real, generated)
    p, q = real.double(), generated.double()
    live = (p.sum(1) > 0) & (q.sum(1) > 0)
    p, q = (course[live] / course[live].sum(1, keepdim=True) for course in (p, q))
    nats = torch.special.entr((p + q) / 2) - (torch.special.entr(p) + torch.special.entr(q)) / 2
    return float(nats.mean())


def autocorrelation(courses: Tensor, lags: int) -> Tensor:
    """(lags,): the autocorrelation at lags 1 ... `lags` of courses (m, t), averaged over those that vary; ValueError unless lags < t."""
    t = courses.shape[1]
    if not 1 <= lags < t:
        raise ValueError(f"lags: {lags}, expected 1..{t - 1} for courses of {t} slots")
    centred = courses.double() - courses.double().mean(1, keepdim=True)
    variance = (centred**2).sum(1)
    varying = variance > 1e-12 * (courses.double() ** 2).sum(1)
    if not bool(varying.any()):
        raise ValueError("courses: all of them constant, expected one that varies")
    products = [(centred[:, lag:] * centred[:, : t - lag]).sum(1)[varying] / variance[varying] for lag in range(1, lags + 1)]
    return torch.stack([product.mean() for product in products])


def autocorrelation_distance(real: Tensor, generated: Tensor, lags: int) -> float:
    """Mean over lags of the absolute difference of both samples' autocorrelations; courses (m, t) and (n, t')."""
    _expect_finite(real, generated)
    return float((autocorrelation(real, lags) - autocorrelation(generated, lags)).abs().mean())


def weekly_profile_distance(real: Tensor, generated: Tensor) -> float:
    """Mean absolute difference of the mean courses of (m, t) and (n, t), each divided by its own mean: the rhythm without the level."""
    _expect_finite(real, generated)
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"generated: courses of {generated.shape[1]} slots, expected {real.shape[1]}")
    profiles = [courses.double().mean(0) for courses in (real, generated)]
    if min(float(profile.mean()) for profile in profiles) <= 0:
        raise ValueError("courses: no traffic above zero in one of the samples, expected some in both")
    first, second = (profile / profile.mean() for profile in profiles)
    return float((first - second).abs().mean())


def spatial_correlation_distance(real: Tensor, generated: Tensor) -> float:
    """Mean absolute difference of the correlations between stations, of weeks (w, s, t) and (w', s, t) of the same stations.

    The correlation of two stations is over all slots of all weeks; stations that do not vary in one of the samples are left out.
    """
    _expect_finite(real, generated)
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"generated: {generated.shape[1]} stations, expected {real.shape[1]}")
    rows = [weeks.double().transpose(0, 1).flatten(1) for weeks in (real, generated)]
    varying = torch.stack([course.std(1) > 0 for course in rows]).all(0)
    count = int(varying.sum())
    if count < 2:
        raise ValueError(f"stations: {count} of them vary in both samples, expected at least 2")
    first, second = (torch.corrcoef(course[varying]) for course in rows)
    apart = ~torch.eye(count, dtype=torch.bool)
    return float((first - second)[apart].abs().mean())


def forecast_from_synthetic(train: Tensor, generated: Tensor, test: Tensor, lags: int) -> float:
    """Train on synthetic, test on real: the RMSE on real courses `test` of a forecaster trained on `generated` courses, over the RMSE
    of the same forecaster trained on the real courses `train`. 1 where generated traffic is as good to learn from; all (m, t).

    The forecaster is ridge regression of a slot on the `lags` slots before it and a constant.
    """
    _expect_finite(train, generated, test)
    features, wanted = _lagged(test, lags)
    errors = []
    for courses in (generated, train):
        x, y = _lagged(courses, lags)
        gram = x.T @ x
        penalty = _RIDGE * torch.diag(torch.diagonal(gram))
        weights = torch.linalg.solve(gram + penalty, x.T @ y)
        errors.append(float((features @ weights - wanted).square().mean().sqrt()))
    return errors[0] / errors[1] if errors[1] > 0 else math.nan


def _lagged(courses: Tensor, lags: int) -> tuple[Tensor, Tensor]:
    """Features (n, lags + 1) and targets (n,) of every slot with `lags` slots before it."""
    t = courses.shape[1]
    if not 1 <= lags < t:
        raise ValueError(f"lags: {lags}, expected 1..{t - 1} for courses of {t} slots")
    windows = courses.double().unfold(1, lags + 1, 1).flatten(0, 1)
    return torch.cat((windows[:, :-1], torch.ones_like(windows[:, :1])), dim=1), windows[:, -1]


def _expect_pairs(real: Tensor, generated: Tensor) -> None:
    if real.shape != generated.shape:
        raise ValueError(f"generated: shape {tuple(generated.shape)}, expected that of the real courses, {tuple(real.shape)}")
    _expect_finite(real, generated)


def _expect_finite(*courses: Tensor) -> None:
    for values in courses:
        bad = int((~torch.isfinite(values)).sum())
        if bad or not values.numel():
            raise ValueError(f"courses: {bad} of {values.numel()} values are not finite, expected finite traffic and at least one value")
