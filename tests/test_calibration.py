"""Split conformal calibration: closed-form factors, coverage of fresh windows, groups, what stays untouched, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raytraffic.calibration import HORIZON_HOURS, LARGEST, LOAD_SHARES, SMALLEST, Calibration
from raytraffic.config import from_json, to_json
from raytraffic.masks import GENERATION, RANDOM, SHORT, WHOLE, mask
from raytraffic.metrics.calibration import coverage
from raytraffic.types import Forecast, TrafficBatch, ordered_quantile
from tests.batches import ABSENT, DEAD, seasonal_batch

ROWS, COLUMNS = len(HORIZON_HOURS) + 2, len(LOAD_SHARES) + 2
NORMAL = NormalDist()
#: 19 draws at the quantiles k / 20 of a standard normal: their interval is exactly that of the distribution.
EXACT_DRAWS = torch.tensor([NORMAL.inv_cdf(k / 20) for k in range(1, 20)])


def table(value: float = 1.0) -> tuple[tuple[float, ...], ...]:
    return ((value,) * COLUMNS,) * ROWS


def constant(below: float = 1.0, above: float = 1.0) -> Calibration:
    return Calibration(level=0.8, below=table(below), above=table(above), windows=((0,) * COLUMNS,) * ROWS)


def batch_of(traffic: Tensor, known: Tensor, step_minutes: int = 60, reference: float | None = None) -> TrafficBatch:
    b, c, t, _ = traffic.shape
    return TrafficBatch(
        traffic=traffic,
        known=known.expand_as(traffic),
        clock=torch.zeros(b, t, 2, dtype=torch.int64),
        step_minutes=torch.full((b,), step_minutes),
        key=torch.arange(b),
        context={} if reference is None else {"reference": torch.full((b, c), reference)},
    )


def law(kind: str, z: Tensor, width: float, level: Tensor | float = 100.0) -> Tensor:
    """The value at the standard normal score z, of a law whose median is `level`."""
    return level * (1 + 0.1 * width * z) if kind == "gaussian" else level * torch.exp(0.4 * width * z)


def hour_ahead(scores: Tensor, kind: str, width: float | Tensor, level: Tensor | float = 100.0) -> tuple[TrafficBatch, Forecast]:
    """One known slot at `level` and one hidden slot after it, true at normal scores (b, s); draws are `width` times as wide."""
    traffic = torch.stack((torch.ones_like(scores) * level, law(kind, scores, 1.0, level)), dim=1)[:, None]
    batch = batch_of(traffic, torch.tensor([True, False])[:, None], reference=100.0)
    z = EXACT_DRAWS[:, None] * width
    drawn = (level * torch.ones(19, 1) * (1 + 0.1 * z)) if kind == "gaussian" else level * torch.exp(0.4 * z)
    drawn = drawn.expand(19, scores.shape[1])[None, :, None, None].expand(len(scores), 19, 1, 2, -1)
    return batch, Forecast(draws=torch.where(batch.known[:, None], traffic[:, None], drawn), known=batch.known)


def stratified(windows: int, cells: int, seed: int = 0) -> Tensor:
    """(windows, cells): the quantiles (i + 1/2) / m of a standard normal in random order, so that a sample has no sampling error."""
    m = windows * cells
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    return torch.special.ndtri((torch.arange(m).double() + 0.5) / m)[order].float().view(windows, cells)


def expected_factor(kind: str, width: float, windows: int, *, above: bool) -> float:
    """By hand: the law's corrected quantile over the draws' quantile, both as distances of square roots from the median's."""
    sign = 1 if above else -1
    z = torch.tensor([NORMAL.inv_cdf(0.9 * (windows + 1) / windows), NORMAL.inv_cdf(0.9) * width], dtype=torch.float64) * sign
    truth, drawn = (law(kind, z, 1.0).sqrt() - 10.0).tolist()
    return truth / drawn


@pytest.mark.parametrize("kind", ["gaussian", "lognormal"])
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_factors_of_a_wrong_width_are_the_closed_form_and_fresh_windows_are_covered(kind: str, width: float) -> None:
    calibration = Calibration.fit([hour_ahead(stratified(100, 64), kind, width)])
    for values, above in ((calibration.below, False), (calibration.above, True)):
        # 0.1 %: half a rank of 6,400 stratified entries moves the quantile by 0.0005 of a standard deviation
        assert torch.tensor(values).flatten().tolist() == pytest.approx([expected_factor(kind, width, 100, above=above)] * 30, rel=1e-3)
    fresh = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    batch, forecast = hour_ahead(fresh, kind, width)
    raw, covered = (coverage(batch.traffic, f.draws, batch.hidden, 0.8).item() for f in (forecast, calibration.apply(batch, forecast)))
    assert 0.77 < covered < 0.83
    if width == 0.5:
        assert raw == pytest.approx(2 * NORMAL.cdf(0.5 * NORMAL.inv_cdf(0.9)) - 1, abs=0.015)  # 0.478; four standard errors


def test_a_few_random_draws_are_calibrated_too() -> None:
    """20 random draws that are too narrow: what is fitted is the interval of such draws, whatever their sampling error."""
    generator = torch.Generator().manual_seed(0)

    def pair(windows: int) -> tuple[TrafficBatch, Forecast]:
        batch, _ = hour_ahead(torch.randn(windows, 64, generator=generator), "lognormal", 1.0)
        drawn = law("lognormal", torch.randn(windows, 20, 1, 2, 64, generator=generator), 0.5)
        return batch, Forecast(draws=torch.where(batch.known[:, None], batch.traffic[:, None], drawn), known=batch.known)

    calibration = Calibration.fit(pair(50) for _ in range(4))
    batch, forecast = pair(200)
    draws = calibration.apply(batch, forecast).draws
    assert 0.77 < coverage(batch.traffic, draws, batch.hidden, 0.8).item() < 0.83
    ordered = draws.sort(dim=1).values.movedim(1, -1)[batch.hidden]
    truth = batch.traffic[batch.hidden]
    for beyond in (truth > ordered_quantile(ordered, 0.9), truth < ordered_quantile(ordered, 0.1)):
        assert 0.08 < float(beyond.double().mean()) < 0.115  # at most 0.1 each, four standard errors of 12,800 entries at most above


def test_truths_of_exactly_zero_are_covered_where_draws_reach_zero() -> None:
    """The lower end of clamped draws lies between a zero and a positive draw; the factor must bring it down to the zeros of the truth."""
    generator = torch.Generator().manual_seed(3)

    def pair(windows: int) -> tuple[TrafficBatch, Forecast]:
        noise, drawn = torch.randn(windows, 64, generator=generator), torch.randn(windows, 20, 1, 2, 64, generator=generator)
        traffic = torch.stack((torch.ones(windows, 64), (1 + noise).clamp(min=0)), dim=1)[:, None]
        batch = batch_of(traffic, torch.tensor([True, False])[:, None], reference=1.0)
        return batch, Forecast(draws=torch.where(batch.known[:, None], traffic[:, None], (1 + drawn / 2).clamp(min=0)), known=batch.known)

    calibration = Calibration.fit([pair(200)])
    batch, forecast = pair(200)
    assert 0.77 < coverage(batch.traffic, calibration.apply(batch, forecast).draws, batch.hidden, 0.8).item() < 0.83


def test_groups_of_other_widths_get_their_own_factors_and_small_ones_fall_back() -> None:
    level = torch.tensor([2.0] * 32 + [20.0] * 32)  # 2 % and 20 % of the reference: the first and the third cluster
    width = torch.tensor([0.5] * 32 + [1.0] * 32)
    scores = torch.cat((stratified(60, 32, 1), stratified(60, 32, 2)), dim=1)
    few = torch.full((44, 1), 5.0)  # in the second cluster; one window fewer than a group needs
    pairs = [
        hour_ahead(scores, "lognormal", width, level),
        hour_ahead(stratified(44, 1), "lognormal", 0.25, few[0]),
    ]
    calibration = Calibration.fit(pairs)
    assert calibration.windows[0] == (60, 44, 60, 0, 104) and calibration.windows[1:] == ((0,) * 5,) * 5
    above = calibration.above
    # 1 %: the quantile of 1,920 stratified entries
    assert above[0][0] == pytest.approx(expected_factor("lognormal", 0.5, 60, above=True), rel=0.01)
    assert above[0][2] == pytest.approx(expected_factor("lognormal", 1.0, 60, above=True), rel=0.01)
    assert above[0][2] < above[0][4] < above[0][0]
    assert above[0][1] == above[0][3] == above[0][4] and above[1] == above[5] == (above[0][4],) * 5
    enough = Calibration.fit([pairs[0], hour_ahead(stratified(45, 1), "lognormal", 0.25, few[0])])
    assert enough.above[0][1] > enough.above[0][0]


def test_windows_count_and_not_entries() -> None:
    """Every window has 64 entries of one and the same truth; 9 windows just pin the 90 % quantile, at the worst of them."""
    scores = torch.linspace(-2, 2, 9)[:, None].expand(9, 64)
    calibration = Calibration.fit([hour_ahead(scores, "gaussian", 1.0)])
    worst = (law("gaussian", torch.tensor(2.0), 1.0).sqrt() - 10) / (law("gaussian", torch.tensor(NORMAL.inv_cdf(0.9)), 1.0).sqrt() - 10)
    assert calibration.above[0][4] == pytest.approx(worst.item(), rel=1e-4)
    with pytest.raises(ValueError, match=r"pairs: 8 windows with hidden entries of live cells, expected at least 9 for level 0\.8"):
        Calibration.fit([hour_ahead(scores[:8], "gaussian", 1.0)])


def test_a_fresh_window_is_missed_at_the_nominal_rate_even_after_few_dependent_windows() -> None:
    """Of 20 exchangeable windows each in turn is the fresh one: the factor is the 18th of the 19 other scores, so the two largest miss."""
    scores = torch.randn(20, 1, generator=torch.Generator().manual_seed(0)).expand(20, 8)
    batch, forecast = hour_ahead(scores, "lognormal", 0.6)
    missed = []
    for fresh in range(20):
        others, one = torch.arange(20) != fresh, slice(fresh, fresh + 1)
        calibration = Calibration.fit([(batch.select(others), Forecast(draws=forecast.draws[others], known=forecast.known[others]))])
        after = calibration.apply(batch.select(one), Forecast(draws=forecast.draws[one], known=forecast.known[one]))
        if batch.traffic[fresh, 0, 1, 0] > after.quantile([0.9])[0, 0, 0, 1, 0]:
            missed.append(fresh)
    assert sorted(missed) == sorted(scores[:, 0].topk(2).indices.tolist())


def factors_above(batch: TrafficBatch) -> Tensor:
    """(b, c, t, s): the factor that each hidden entry gets, where row i, column j of the table holds 1 + (10 i + j) / 100."""
    above = tuple(tuple(1 + (10 * i + j) / 100 for j in range(COLUMNS)) for i in range(ROWS))
    calibration = replace(constant(), above=above)
    draws = torch.tensor([4.0, 9.0, 16.0], dtype=torch.float64)[:, None, None, None].expand(batch.shape[0], 3, *batch.shape[1:])
    return calibration.apply(batch, Forecast(draws=draws, known=batch.known)).draws[:, 2].sqrt() - 3


def place(factor: Tensor) -> tuple[int, int]:
    code = round((float(factor) - 1) * 100)
    return code // 10, code % 10


@pytest.mark.parametrize(
    ("step_minutes", "slots", "row"), [(15, 4, 0), (15, 5, 1), (60, 1, 0), (60, 4, 1), (30, 10, 2), (60, 24, 3), (60, 25, 4)]
)
def test_the_horizon_is_the_time_to_the_nearest_known_entry_of_the_cell(step_minutes: int, slots: int, row: int) -> None:
    known = torch.zeros(60, 2, dtype=torch.bool)
    known[0, 0] = known[59, 0] = True  # the other cell has no history, whatever is known beside it
    batch = batch_of(torch.ones(1, 1, 60, 2), known, step_minutes, reference=1.0)
    factor = factors_above(batch)[0, 0]
    assert place(factor[slots, 0]) == place(factor[59 - slots, 0]) == (row, 3)
    assert place(factor[slots, 1]) == (5, 3)


def test_load_clusters() -> None:
    levels = torch.tensor([0.0, 1.0, 5.0, 20.0, 50.0, 0.0])
    traffic = levels.expand(1, 1, 4, 6).clone()
    known = torch.ones(4, 6, dtype=torch.bool)
    known[2:, :5] = False
    known[:, 5] = False
    batch = batch_of(traffic, known, reference=100.0)
    # the last cell has no history: the mean of the live ones is 19 % of the reference; the first is dead and stays as it is
    assert [place(f) for f in factors_above(batch)[0, 0, 3]] == [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (5, 2)]
    for bare in (replace(batch, context={}), replace(batch, context={"reference": torch.tensor([[torch.nan]])})):
        assert [place(f)[1] for f in factors_above(bare)[0, 0, 3, 1:]] == [0, 1, 3, 3, 3]  # of 50, the largest known
    whole = mask(batch, WHOLE)
    assert [place(f) for f in factors_above(whole)[0, 0, 3]] == [(5, 4)] * 6


def test_known_and_dead_entries_stay_bit_for_bit_and_hidden_truths_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    for task in (SHORT, RANDOM, GENERATION):
        batch = mask(seasonal_batch(), task)
        draws = torch.where(batch.known[:, None], batch.traffic[:, None], torch.rand(4, 20, 1, 64, 16, generator=generator) * 100)
        silent = ~batch.known & (torch.arange(16) == 0)
        draws = torch.where(silent[:, None], torch.zeros(()), draws)  # a live cell that is answered by exactly zero
        calibration = constant(2.0, 3.0)
        after = calibration.apply(batch, Forecast(draws=draws, known=batch.known)).draws
        dead = batch.known.any(dim=2, keepdim=True) & (torch.arange(16) == DEAD)
        stays = (batch.known | dead | silent)[:, None].expand_as(draws)
        assert torch.equal(after[stays], draws[stays]) and bool((after != draws)[~stays].float().mean() > 0.99)
        assert torch.equal(after.argsort(dim=1, stable=True)[:, -3:], draws.argsort(dim=1, stable=True)[:, -3:])
        ordered = after.gather(1, draws.argsort(dim=1))
        assert bool((ordered.diff(dim=1) >= 0).all())
        other = replace(batch, traffic=torch.where(batch.known, batch.traffic, torch.rand(()) * 1e6))
        assert torch.equal(calibration.apply(other, Forecast(draws=draws, known=batch.known)).draws, after)


def test_unmeasured_and_dead_cells_take_no_part() -> None:
    windows = 12
    batch = mask(seasonal_batch(windows), SHORT)
    generator = torch.Generator().manual_seed(0)
    noise = torch.exp(0.3 * torch.randn(windows, 20, 1, 64, 16, generator=generator))
    draws = torch.where(batch.known[:, None], batch.traffic[:, None], torch.nan_to_num(batch.traffic)[:, None] * noise)
    fitted = Calibration.fit([(batch, Forecast(draws=draws, known=batch.known))])
    wild, traffic = draws.clone(), batch.traffic.clone()
    wild[..., 48:, [DEAD, ABSENT]] = 1e6
    traffic[..., 48:, DEAD] = 123.0
    assert Calibration.fit([(replace(batch, traffic=traffic), Forecast(draws=wild, known=batch.known))]) == fitted


def test_the_parts_of_a_stream_make_no_difference() -> None:
    batch, forecast = hour_ahead(stratified(60, 4), "lognormal", 0.7)
    parts = [
        (batch.select(slice(i, i + 7)), Forecast(draws=forecast.draws[i : i + 7], known=forecast.known[i : i + 7])) for i in range(0, 60, 7)
    ]
    assert Calibration.fit(iter(parts)) == Calibration.fit([(batch, forecast)])


def test_factors_are_bounded() -> None:
    batch, forecast = hour_ahead(stratified(45, 8), "gaussian", 0.01)
    assert Calibration.fit([(batch, forecast)]).above == Calibration.fit([(batch, forecast)]).below == table(LARGEST)
    batch, forecast = hour_ahead(stratified(45, 8) / 100, "gaussian", 1.0)
    # bisection rounds up by at most 3 parts in a million
    assert torch.tensor(Calibration.fit([(batch, forecast)]).above).flatten().tolist() == pytest.approx([SMALLEST] * 30, rel=1e-5)


def test_json_round_trip_is_exact() -> None:
    fitted = Calibration.fit([hour_ahead(stratified(50, 7), "lognormal", 0.77)], level=0.75)
    assert from_json(Calibration, json.loads(json.dumps(to_json(fitted))), "calibration") == fitted


@given(
    values=st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=12),
    below=st.floats(SMALLEST, LARGEST),
    above=st.floats(SMALLEST, LARGEST),
)
@settings(max_examples=200, deadline=None)
def test_apply_yields_finite_traffic_in_the_order_of_the_draws(values: list[float], below: float, above: float) -> None:
    draws = torch.tensor(sorted(values))[None, :, None, None, None]
    batch = batch_of(torch.ones(1, 1, 1, 1), torch.tensor(False))
    forecast = Forecast(draws=draws, known=batch.known)
    after = constant(below, above).apply(batch, forecast).draws
    assert bool((torch.isfinite(after) & (after >= 0)).all()) and bool((after.diff(dim=1) >= 0).all())
    assert torch.equal(constant().apply(batch, forecast).draws, draws)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("level", 0.4, r"level: 0\.4, expected a central interval in \[0\.5, 1\)"),
        ("level", 1.0, r"level: 1\.0"),
        ("below", ((1.0,) * COLUMNS,) * 5, rf"below: rows of \[5, 5, 5, 5, 5\] values, expected {ROWS} rows of {COLUMNS}"),
        ("above", table(4.5), r"above\[0\]\[0\]: 4\.5, expected a value in \[0\.25, 4\.0\]"),
        ("above", table(float("nan")), r"above\[0\]\[0\]: nan"),
        ("windows", table(-1), r"windows\[0\]\[0\]: -1"),
        (
            "horizon_hours",
            (4.0, 1.0, 12.0, 24.0),
            r"horizon_hours: \[4\.0, 1\.0, 12\.0, 24\.0\], expected finite, positive, increasing edges",
        ),
        ("load_shares", (0.0, 0.1, 0.3), r"load_shares: \[0\.0, 0\.1, 0\.3\]"),
        ("load_shares", (0.1, 0.2, float("nan")), r"load_shares: \[0\.1, 0\.2, nan\]"),
    ],
)
def test_a_broken_calibration_is_refused_from_python_and_from_json(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(constant(), **{field: value})
    with pytest.raises(ValueError, match=message):
        from_json(Calibration, {**to_json(constant()), field: to_json(value)}, "calibration")


def test_bad_forecasts_are_refused() -> None:
    batch, forecast = hour_ahead(stratified(10, 4), "gaussian", 1.0)
    other = Forecast(draws=forecast.draws[:, :, :, :1], known=forecast.known)
    for use in (lambda pair: Calibration.fit([pair]), lambda pair: constant().apply(*pair)):
        with pytest.raises(ValueError, match=r"draws: shape \(10, 19, 1, 1, 4\), expected \(10, n, 1, 2, 4\)"):
            use((batch, other))
        with pytest.raises(ValueError, match=r"draws: -1\.0, expected traffic >= 0"):
            use((batch, Forecast(draws=forecast.draws.index_fill(1, torch.tensor(3), -1.0), known=forecast.known)))
    with pytest.raises(ValueError, match=r"draws: 8, expected at least 9 to span the central interval of level 0\.8"):
        Calibration.fit([(batch, Forecast(draws=forecast.draws[:, :8], known=forecast.known))])
    with pytest.raises(ValueError, match=r"level: 0\.1"):
        Calibration.fit([], level=0.1)
    with pytest.raises(ValueError, match="pairs: 0 windows"):
        Calibration.fit([])
    with pytest.raises(ValueError, match="draws: 40 of 760 scored values are not finite"):
        Calibration.fit([(batch, Forecast(draws=forecast.draws.index_fill(1, torch.tensor(3), torch.nan), known=forecast.known))])
