"""Service-level scores equal the papers' formulas written out in numpy, whatever the partition; edge cases say NaN."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.masks import LONG, NEXT, SHORT, mask
from raytraffic.metrics.service import ALL, SERVICE_METRICS, ServiceScores
from raytraffic.types import Forecast, TrafficBatch

SERVICES = ("music", "news", "games")


def usage(windows: int = 6, t: int = 12, users: int = 2, seed: int = 0) -> TrafficBatch:
    """Hours of three services of some users, zero two thirds of the time, some never measured."""
    generator = torch.Generator().manual_seed(seed)
    shape = (windows, 3, t, users)
    traffic = torch.exp(torch.randn(shape, generator=generator)) * (torch.rand(shape, generator=generator) < 1 / 3)
    traffic[0, 1, 3] = torch.nan
    clock = torch.stack((torch.arange(t) % 24, torch.zeros(t, dtype=torch.int64)), dim=-1).expand(windows, t, 2)
    minutes = torch.full((windows,), 60)
    batch = TrafficBatch(traffic=traffic, known=traffic.isfinite(), clock=clock, step_minutes=minutes, key=torch.arange(windows))
    return mask(batch, LONG)


def guessed(batch: TrafficBatch, draws: int = 7, seed: int = 1) -> Forecast:
    """Draws that know a little of the truth."""
    b, c, t, s = batch.shape
    noise = torch.randn(b, draws, c, t, s, generator=torch.Generator().manual_seed(seed))
    return Forecast(draws=(batch.traffic.nan_to_num()[:, None] + 0.5 * noise).clamp(min=0), known=batch.known)


def expected(y: np.ndarray, x: np.ndarray) -> dict[str, float]:
    """Eq. 10-14 and the fair CRPS of truths (m,) and draws (m, n)."""
    f = x.mean(axis=1)
    noise = x.var(axis=1, ddof=1) / x.shape[1] if x.shape[1] > 1 else np.zeros_like(y)
    return {
        "mse_debiased": float(np.mean((y - f) ** 2 - noise)),
        "r2_debiased": float(1 - np.sum((y - f) ** 2 - noise) / np.sum((y - y.mean()) ** 2)),
        "mse": float(np.mean((y - f) ** 2)),
        "rmse": float(np.sqrt(np.mean((y - f) ** 2))),
        "mae": float(np.mean(np.abs(y - np.median(x, axis=1)))),
        "cs": float(np.sum(y * f) / (np.sqrt(np.sum(y**2)) * np.sqrt(np.sum(f**2)))),
        "r2": float(1 - np.sum((y - f) ** 2) / np.sum((y - y.mean()) ** 2)),
        "crps": float(np.mean(scoringrules.crps_ensemble(y, x, estimator="fair"))),
    }


def entries(batch: TrafficBatch, forecast: Forecast, service: int | None = None, step: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Truths and draws of the hidden entries of a service, at a slot that is so many steps after the last known one."""
    where = batch.hidden.clone()
    if service is not None:
        where[:, [i for i in range(3) if i != service]] = False
    if step is not None:
        last_known = int(batch.known.any(dim=(0, 1, 3)).nonzero().max())
        where[:, :, [i for i in range(batch.shape[2]) if i != last_known + step]] = False
    return batch.traffic[where].double().numpy(), forecast.draws.movedim(1, -1)[where].double().numpy()


def test_every_service_and_all_of_them_equal_the_formulas() -> None:
    batch = usage()
    forecast = guessed(batch)
    scores = ServiceScores(SERVICES)
    scores.update(batch, forecast)
    found = scores.by_service()
    assert list(found) == [*SERVICES, ALL] and all(tuple(row) == SERVICE_METRICS for row in found.values())
    for i, name in enumerate(SERVICES):
        assert found[name] == pytest.approx(expected(*entries(batch, forecast, i)), rel=1e-9)
    assert found[ALL] == pytest.approx(expected(*entries(batch, forecast)), rel=1e-9)
    assert found[ALL]["r2"] != pytest.approx(np.mean([found[name]["r2"] for name in SERVICES]), rel=1e-3), "one sum, not a mean of means"


def test_every_step_ahead_equals_the_formulas() -> None:
    batch = usage()
    forecast = guessed(batch)
    scores = ServiceScores(SERVICES)
    scores.update(batch, forecast)
    assert list(scores.by_step()) == list(range(1, 10)), "three quarters of twelve slots are hidden"
    for step, found in scores.by_step().items():
        assert found == pytest.approx(expected(*entries(batch, forecast, step=step)), rel=1e-9)
    for step, found in scores.by_step("games").items():
        assert found["mse"] == pytest.approx(expected(*entries(batch, forecast, 2, step))["mse"], rel=1e-9)
    first = [entries(batch, forecast, step=step) for step in (1, 2, 3)]
    truths, draws = np.concatenate([y for y, _ in first]), np.concatenate([x for _, x in first])
    assert scores.up_to(3).by_service()[ALL] == pytest.approx(expected(truths, draws), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 5), max_size=4), by_hour=st.booleans())
def test_any_partition_gives_the_same_scores(cuts: list[int], by_hour: bool) -> None:
    batch = usage()
    forecast = guessed(batch)
    whole = ServiceScores(SERVICES)
    whole.update(batch, forecast)
    merged = ServiceScores(SERVICES)
    edges = sorted({0, len(batch.key), *cuts})
    for start, end in pairwise(edges):
        part = ServiceScores(SERVICES)
        piece = slice(start, end)
        part.update(batch.select(piece), Forecast(draws=forecast.draws[piece], known=forecast.known[piece]))
        merged.merge(part)
    ours, theirs = (scores.by_step() if by_hour else scores.by_service() for scores in (whole, merged))
    assert list(ours) == list(theirs)
    for name, row in ours.items():  # type: ignore[attr-defined]
        assert theirs[name] == pytest.approx(row, rel=1e-12, nan_ok=True)


def test_batches_of_other_horizons_are_merged_by_step() -> None:
    long, short = usage(), mask(usage(seed=5), SHORT)
    scores = ServiceScores(SERVICES)
    for batch in (short, long, mask(usage(seed=6), NEXT)):
        scores.update(batch, guessed(batch))
    alone = ServiceScores(SERVICES)
    alone.update(long, guessed(long))
    assert scores.by_step()[9] == alone.by_step()[9] and scores.by_step()[1] != alone.by_step()[1]


def test_a_scale_divides_truth_and_draws() -> None:
    batch = usage()
    forecast = guessed(batch)
    scale = torch.tensor([2.0, 8.0, 0.5]).expand(6, 3)
    unit = scale[:, :, None, None]
    scores, divided = ServiceScores(SERVICES), ServiceScores(SERVICES)
    scores.update(batch, forecast, scale)
    smaller = replace(batch, traffic=batch.traffic / unit)
    divided.update(smaller, Forecast(draws=forecast.draws / unit[:, None], known=batch.known))
    assert scores.by_service()[ALL] == pytest.approx(divided.by_service()[ALL], rel=1e-6)


def test_a_perfect_forecast_and_the_mean_of_the_truth() -> None:
    batch = usage()
    perfect = ServiceScores(SERVICES)
    perfect.update(batch, Forecast(draws=batch.traffic[:, None], known=batch.known))
    assert perfect.by_service()[ALL] == pytest.approx(
        {"mse": 0, "rmse": 0, "mae": 0, "cs": 1, "r2": 1, "crps": 0, "mse_debiased": 0, "r2_debiased": 1}
    )
    mean = ServiceScores(SERVICES)
    mean.update(
        batch, Forecast(draws=torch.full_like(batch.traffic, float(batch.traffic[batch.hidden].mean()))[:, None], known=batch.known)
    )
    assert mean.by_service()[ALL]["r2"] == pytest.approx(0, abs=1e-6)


def test_what_is_not_defined_is_nan_and_not_zero() -> None:
    batch = replace(usage(), traffic=torch.zeros(6, 3, 12, 2))
    scores = ServiceScores(SERVICES)
    assert all(math.isnan(value) for value in scores.by_service()[ALL].values()) and scores.by_step() == {}
    scores.update(batch, Forecast(draws=batch.traffic[:, None], known=batch.known))
    found = scores.by_service()["music"]
    assert found["mse"] == found["mae"] == found["crps"] == 0 and math.isnan(found["cs"]) and math.isnan(found["r2"])


def test_mistakes_are_named() -> None:
    batch = usage()
    with pytest.raises(ValueError, match="traffic: 3 services, expected the 1 of"):
        ServiceScores(["music"]).update(batch, guessed(batch))
    with pytest.raises(ValueError, match=r"services: .*expected at least one name, each once"):
        ServiceScores(["music", "music"])
    with pytest.raises(ValueError, match="service: 'maps', expected one of"):
        ServiceScores(SERVICES).by_step("maps")
    with pytest.raises(ValueError, match="scale: not finite and positive"):
        ServiceScores(SERVICES).update(batch, guessed(batch), torch.zeros(6, 3))
    with pytest.raises(ValueError, match=r"services: \['a'\], expected \['music', 'news', 'games'\]"):
        ServiceScores(SERVICES).merge(ServiceScores(["a"]))
