"""Synthetic cities are reproducible and look like cities; their stated conditional law is the true one."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from raytraffic.sources.city import City
from raytraffic.sources.synthetic import LAND_USES, MAX_ENTRIES, POI_CATEGORIES, SyntheticCities, SyntheticCity, law

TOWN = SyntheticCity(name="town", grid=(6, 5), days=7, seed=3)


def read(city: SyntheticCity) -> City:
    (record,) = SyntheticCities([city]).read(city.name)
    return record


def digest(city: City) -> str:
    assert city.users is not None and city.poi is not None
    return hashlib.sha256(city.traffic.tobytes() + city.users.tobytes() + city.poi.tobytes()).hexdigest()


def test_record_is_complete() -> None:
    town = read(TOWN)
    assert town.shape == (1, 7 * 48, 30) and town.grid == (6, 5) and town.step_minutes == 30
    assert town.start.isoweekday() == 1 and town.start.hour == 0
    assert town.users is not None and town.users.shape == (336, 30)
    assert town.poi is not None and town.poi.shape == (15, 30) and tuple(town.poi_categories) == POI_CATEGORIES
    assert town.xy is not None and town.xy[0, 1] > town.xy[-1, 1]  # row 0 is the northernmost
    assert read(replace(TOWN, users=False)).users is None


def test_same_in_another_process_and_beside_other_cities() -> None:
    here = digest(read(TOWN))
    other = SyntheticCity(name="other", seed=3)
    beside = list(SyntheticCities([other, TOWN]).read("town"))
    assert digest(beside[0]) == here
    code = """
import hashlib
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity
(city,) = SyntheticCities([SyntheticCity(name="town", grid=(6, 5), days=7, seed=3)]).read("town")
print(hashlib.sha256(city.traffic.tobytes() + city.users.tobytes() + city.poi.tobytes()).hexdigest())
"""
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == here


def test_seed_and_name_make_another_city_and_more_days_only_a_longer_one() -> None:
    town = read(TOWN)
    assert not np.array_equal(town.traffic, read(replace(TOWN, seed=4)).traffic)
    assert not np.array_equal(town.traffic, read(replace(TOWN, name="twin")).traffic)
    longer = read(replace(TOWN, days=9, users=False))
    np.testing.assert_array_equal(longer.traffic[:, :336], town.traffic)


@pytest.mark.parametrize(("grid", "share", "dead"), [((8, 8), 0.2, 13), ((10, 10), 0.37, 37), ((5, 5), 0.0, 0), ((1, 1), 0.9, 0)])
def test_dead_share_is_exact(grid: tuple[int, int], share: float, dead: int) -> None:
    city = read(replace(TOWN, grid=grid, dead_share=share))
    zero = city.traffic[0] == 0
    assert (zero.all(axis=0) == zero.any(axis=0)).all()
    assert zero.all(axis=0).sum() == dead
    assert city.users is not None
    np.testing.assert_array_equal(city.users == 0, zero)


def test_looks_like_a_city() -> None:
    spec = SyntheticCity(name="metropolis", grid=(20, 20), days=14, dead_share=0.0, seed=1)
    city = read(spec)
    assert city.users is not None and city.poi is not None
    x = city.traffic[0].astype(float)
    total = np.sort(x.sum(axis=0))[::-1]
    assert total[:40].sum() / total.sum() > 0.3  # the top tenth of the cells; 0.39 expected of a log-normal with sigma 1
    assert np.corrcoef(np.log(city.users).ravel(), np.log(x).ravel())[0, 1] > 0.8
    assert np.corrcoef(np.log1p(city.poi.sum(axis=0)), np.log(x.mean(axis=0)))[0, 1] > 0.5
    daily = x.sum(axis=1).reshape(14, 48).mean(axis=0)
    assert daily[:10].max() < daily[20:44].min()  # nights are quiet
    assert (city.poi.sum(axis=1) > 0).all()
    flat = read(replace(spec, tail=0.0)).traffic[0].sum(axis=0)
    assert flat.max() / flat.min() < 4


def test_land_use_sets_the_weekly_rhythm() -> None:
    city = replace(TOWN, grid=(20, 20))
    mean = np.exp(law(city).mean_log).reshape(7, 48, 400)
    weekend_share = mean[5:].sum(axis=(0, 1)) / mean.sum(axis=(0, 1))
    assert weekend_share.max() > 0.33 > 2 / 7 > 0.25 > weekend_share.min()  # leisure cells and office cells
    assert len(LAND_USES) == 4


def test_spatial_and_temporal_correlation_decay_as_stated() -> None:
    spec = SyntheticCity(name="plain", grid=(24, 24), days=28, dead_share=0.0, nugget=0.0, spatial_range_cells=2.0, memory_hours=1.0)
    z = (np.log(read(spec).traffic[0].astype(float)) - law(spec).mean_log) / spec.noise
    z = z.reshape(-1, 24, 24)
    assert z.std() == pytest.approx(1.0, abs=0.02)
    by_row = [float((z[:, d:] * z[:, : 24 - d]).mean()) for d in (1, 2, 4)]
    by_column = [float((z[:, :, d:] * z[:, :, : 24 - d]).mean()) for d in (1, 2, 4)]
    by_time = [float((z[d:] * z[: len(z) - d]).mean()) for d in (1, 2, 4)]
    # 1344 slots of memory 2 slots and 576 cells of range 2 leave about 10^4 independent values: standard error 0.01
    expected = np.exp(-np.array([1, 2, 4]) / 2)
    for found in (by_row, by_column, by_time):
        np.testing.assert_allclose(found, expected, atol=0.04)


def test_covariance_is_that_of_many_cities() -> None:
    spec = replace(TOWN, grid=(2, 2), days=1, step_minutes=60, dead_share=0.0, noise=0.5, nugget=0.2)
    slots = np.array([3, 4, 9])
    deviations = []
    for seed in range(1500):
        city = replace(spec, seed=seed)
        log_traffic = np.log(read(city).traffic[0].astype(float))
        deviations.append((log_traffic - law(city).mean_log)[slots].ravel())
    found = np.cov(np.array(deviations).T, bias=True)
    truth = law(spec).window(slots, slice(None)).covariance()
    # the standard error of a covariance is at most variance * sqrt(2 / n) = 0.29 * 0.037; five of them
    np.testing.assert_allclose(found, truth, atol=5 * 0.29 * np.sqrt(2 / 1500))
    np.testing.assert_allclose(np.mean(deviations, axis=0), 0.0, atol=5 * np.sqrt(0.29 / 1500))


def test_conditional_law_equals_regression_on_joint_draws() -> None:
    truth = law(replace(TOWN, grid=(3, 3), dead_share=0.0, noise=0.6)).window(slice(20, 26), np.array([0, 1, 4]))
    shape = truth.mean_log.shape
    nothing = truth.condition(np.zeros(shape, dtype=bool), np.full(shape, np.nan))
    np.testing.assert_allclose(nothing.cov_log, truth.covariance())
    draws = np.log(nothing.sample(40_000, np.random.default_rng(0))).reshape(40_000, -1)
    known = np.zeros(shape, dtype=bool)
    known[:3] = True
    given = np.flatnonzero(known.ravel())
    asked = np.flatnonzero(~known.ravel())
    design = np.column_stack([np.ones(len(draws)), draws[:, given]])
    coefficients, *_ = np.linalg.lstsq(design, draws[:, asked], rcond=None)
    residual = draws[:, asked] - design @ coefficients
    traffic = np.where(known, np.exp(truth.mean_log + 0.5), np.nan)
    conditional = truth.condition(known, traffic)
    predicted = np.concatenate([[1.0], np.log(traffic.ravel()[given])]) @ coefficients
    # residual sd <= 0.6, 10 coefficients, 40 000 draws: standard error of a prediction below 0.6 * sqrt(30 / 40 000)
    np.testing.assert_allclose(conditional.mean_log, predicted, atol=0.05)
    np.testing.assert_allclose(conditional.cov_log, residual.T @ residual / len(draws), atol=0.015)


def test_truth_is_uniform_under_its_law() -> None:
    spec = SyntheticCity(name="judge", grid=(12, 12), days=14, seed=5)
    traffic = read(spec).traffic[0].astype(float)
    rows, columns = np.divmod(np.arange(144), 12)
    generator = np.random.default_rng(0)
    whitened = []
    marginal = []
    for start in range(0, 600, 60):
        for tile in range(9):
            cells = np.flatnonzero((rows // 4 == tile // 3) & (columns // 4 == tile % 3))
            window = law(spec).window(slice(start, start + 20), cells)
            truth = traffic[start : start + 20, cells]
            known = generator.random(truth.shape) < 0.3
            known[:10] = True
            conditional = window.condition(known, np.where(known, truth, np.nan))
            deviation = np.log(truth[conditional.hidden]) - conditional.mean_log
            whitened.append(np.linalg.solve(np.linalg.cholesky(conditional.cov_log), deviation))
            marginal.append(conditional.cdf(truth)[-1:])
    white = np.concatenate(whitened)
    assert len(white) > 5000
    assert kstest(white, "norm").pvalue > 1e-3
    assert kstest(np.concatenate(marginal), "uniform").pvalue > 1e-3
    assert kstest(white * 1.1, "norm").pvalue < 1e-3  # the test would notice a deviation of 10 %


def test_quantiles_mean_and_samples_agree_and_known_entries_stay() -> None:
    truth = law(TOWN).window(slice(0, 8), slice(None))
    traffic = read(TOWN).traffic[0, :8].astype(float)
    known = np.zeros(traffic.shape, dtype=bool)
    known[:5] = True
    conditional = truth.condition(known, traffic)
    draws = conditional.sample(4000, np.random.default_rng(1))
    assert (draws[:, known] == traffic[known]).all()
    dead = ~truth.live
    assert dead.sum() == 6 and (draws[:, :, dead] == 0).all() and (conditional.quantile(0.9)[:, dead] == 0).all()
    below = (draws <= conditional.quantile(0.9))[:, conditional.hidden].mean(axis=0)
    np.testing.assert_allclose(below, 0.9, atol=5 * np.sqrt(0.09 / 4000))
    np.testing.assert_allclose(conditional.mean()[~dead[None] & ~known], draws.mean(axis=0)[~dead[None] & ~known], rtol=0.05)
    np.testing.assert_allclose(conditional.cdf(conditional.quantile(0.25)), 0.25)
    everything = truth.condition(np.ones(traffic.shape, dtype=bool), traffic)
    np.testing.assert_array_equal(everything.quantile(0.5), traffic)


def test_hidden_values_are_not_looked_at() -> None:
    truth = law(TOWN).window(slice(0, 4), slice(0, 6))
    traffic = read(TOWN).traffic[0, :4, :6].astype(float)
    known = np.arange(4)[:, None] < np.full(6, 2)
    other = np.where(known, traffic, 1e9)
    np.testing.assert_array_equal(truth.condition(known, traffic).mean_log, truth.condition(known, other).mean_log)


def test_law_refuses_what_it_cannot_answer() -> None:
    truth = law(TOWN).window(slice(0, 4), slice(0, 6))
    known = np.ones((4, 6), dtype=bool)
    with pytest.raises(ValueError, match=r"traffic: .*expected this city's own"):
        law(replace(TOWN, dead_share=0.0)).window(slice(0, 4), slice(0, 6)).condition(known, np.zeros((4, 6)))
    with pytest.raises(ValueError, match=r"shapes \(4, 5\)"):
        truth.condition(known[:, :5], np.ones((4, 5)))
    with pytest.raises(ValueError, match=f"expected at most {MAX_ENTRIES}"):
        law(TOWN).covariance()
    with pytest.raises(ValueError, match=r"cells: -1"):
        law(TOWN).window(slice(0, 4), np.array([0, -1]))
    with pytest.raises(ValueError, match=r"level: 1.0"):
        truth.condition(np.zeros((4, 6), dtype=bool), np.ones((4, 6))).quantile(1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", ""), ("grid", (0, 3)), ("days", 0), ("step_minutes", 7), ("seed", -1), ("dead_share", 1.0), ("noise", 0.0)],
)
def test_specification_is_checked(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}: .*expected"):
        replace(TOWN, **{field: value})


def test_names() -> None:
    cities = SyntheticCities([TOWN, replace(TOWN, name="village")])
    assert list(cities.names()) == ["town", "village"]
    with pytest.raises(ValueError, match=r"'hamlet', expected one of"):
        next(cities.read("hamlet"))
    with pytest.raises(ValueError, match="each of them once"):
        SyntheticCities([TOWN, TOWN])
