"""The breakdown: every entry in its bin of horizon, hour and load, figures of the same entries, sums that merge."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.masks import GENERATION, HORIZON, LONG, RANDOM, SHORT, mask
from raytraffic.metrics.breakdown import AXES, BREAKDOWN_COLUMNS, Breakdown
from raytraffic.metrics.calibration import coverage
from raytraffic.metrics.distribution import crps
from raytraffic.metrics.point import mae
from raytraffic.metrics.scores import score_forecast
from raytraffic.types import Forecast, TrafficBatch
from tests.batches import DEAD, seasonal_batch


def noisy(batch: TrafficBatch, draws: int = 20) -> Forecast:
    noise = torch.randn(batch.shape[0], draws, *batch.shape[1:], generator=torch.Generator().manual_seed(0))
    return Forecast(draws=torch.nan_to_num(batch.traffic)[:, None] * torch.exp(0.3 * noise + 0.1), known=batch.known)


def broken_down(batch: TrafficBatch, forecast: Forecast, cities: list[str] | None = None) -> Breakdown:
    breakdown = Breakdown()
    cities = cities or ["a"] * batch.shape[0]
    breakdown.add(score_forecast(batch, forecast, cities), model="m", split="time", task="t")
    return breakdown


def on(axis: str, breakdown: Breakdown) -> dict[str, dict[str, Any]]:
    return {row["bin"]: row for row in breakdown.rows() if row["axis"] == axis}


def counts(axis: str, breakdown: Breakdown) -> dict[str, int]:
    return {name: row["entries"] for name, row in on(axis, breakdown).items()}


def hand_made(traffic: list[list[float]], known: list[list[int]], slots: list[int], step: int, reference: float = 100.0) -> TrafficBatch:
    """One window of cells x slots."""
    day = torch.full((1, len(slots)), 4)
    return TrafficBatch(
        traffic=torch.tensor(traffic).T[None, None],
        known=torch.tensor(known, dtype=torch.bool).T[None, None],
        clock=torch.stack((torch.tensor([slots]), day), dim=-1),
        step_minutes=torch.tensor([step]),
        key=torch.tensor([1]),
        context={"reference": torch.tensor([[reference]])},
    )


def test_horizon_counts_from_the_latest_known_slot_before_an_entry() -> None:
    known = [[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
    batch = hand_made([[5.0] * 6] * 2, known, [0, 1, 2, 3, 4, 5], 60)
    # first cell: before its first known slot, then 1 h and 2 h after it, then 1 h after the second; second cell: never before
    assert counts("horizon", broken_down(batch, noisy(batch))) == {"up to 1": 2, "1-3": 1, "no history": 1 + 5}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (15, {"up to 1": 4, "1-3": 8, "3-6": 12, "6-12": 23}),
        (30, {"up to 1": 2, "1-3": 4, "3-6": 6, "6-12": 12, "12-24": 23}),
        (60, {"up to 1": 1, "1-3": 2, "3-6": 3, "6-12": 6, "12-24": 12, "over 24": 23}),
    ],
)
def test_horizon_is_in_hours_whatever_the_granularity(step: int, expected: dict[str, int]) -> None:
    slots = [slot % (1440 // step) for slot in range(48)]
    batch = hand_made([[5.0] * 48], [[1] + [0] * 47], slots, step)
    assert counts("horizon", broken_down(batch, noisy(batch))) == expected


def test_where_nothing_of_a_cell_is_known_there_is_no_history() -> None:
    batch = mask(seasonal_batch(2), GENERATION)
    assert list(on("horizon", broken_down(batch, noisy(batch)))) == ["no history"]


def test_hour_is_of_the_local_day_in_which_the_slot_begins() -> None:
    batch = hand_made([[5.0] * 4], [[0] * 4], [0, 3, 4, 95], 15)
    assert counts("hour", broken_down(batch, noisy(batch))) == {"00": 2, "01": 1, "23": 1}
    coarse = hand_made([[5.0] * 3], [[0] * 3], [0, 1, 3], 360)
    assert counts("hour", broken_down(coarse, noisy(coarse))) == {"00": 1, "06": 1, "18": 1}


def test_load_is_the_mean_true_traffic_of_the_window_over_the_reference() -> None:
    """Cells of mean 0, 0.4, 2, 4, 20, 50 and 10 at reference 100, known and hidden slots together; a slot is known or not measured."""
    nan = math.nan
    traffic = [[0.0, 0.0, 0.0], [0.8, 0.0, 0.4], [2.0, 2.0, nan], [8.0, 4.0, 0.0], [0.0, 40.0, 20.0], [50.0, 50.0, 50.0], [10.0] * 3]
    batch = hand_made(traffic, [[1, 0, 0]] * 7, [0, 1, 2], 60)
    found = counts("load", broken_down(batch, noisy(batch)))
    assert found == {"dead": 2, "below 0.01": 2, "0.01-0.03": 1, "0.03-0.1": 2, "0.1-0.3": 4, "over 0.3": 2}
    small = replace(batch, context={"reference": torch.tensor([[4.0]])})
    assert counts("load", broken_down(small, noisy(small))) == {"dead": 2, "0.1-0.3": 2, "over 0.3": 9}


def test_dead_cells_are_counted_by_load_alone() -> None:
    batch = mask(seasonal_batch(2), LONG)
    breakdown = broken_down(batch, noisy(batch))
    dead = int(batch.hidden[..., DEAD].sum())
    totals = {axis: sum(counts(axis, breakdown).values()) for axis in AXES}
    assert totals["load"] == int(batch.hidden.sum()) and totals["horizon"] == totals["hour"] == totals["load"] - dead
    assert on("load", breakdown)["dead"]["entries"] == dead


def test_figures_of_a_bin_are_the_functions_of_its_entries() -> None:
    batch = mask(seasonal_batch(3), HORIZON)
    forecast = noisy(batch)
    hour = batch.clock[..., 0] * batch.step_minutes[:, None] // 60
    reference = batch.context["reference"][:, :, None, None]
    truth, draws = batch.traffic / reference, forecast.draws / reference[:, None]
    found = on("hour", broken_down(batch, forecast))
    assert len(found) == 24
    for name, got in found.items():
        where = batch.hidden & (hour == int(name))[:, None, :, None] & (torch.arange(16) != DEAD)
        assert got["entries"] == int(where.sum())
        assert got["coverage80"] == pytest.approx(coverage(truth, draws, where, 0.8).item(), rel=1e-12)
        # divided in float32 before, in float64 after
        assert got["crps"] == pytest.approx(crps(truth, draws, where).item(), rel=1e-5)
        assert got["mae"] == pytest.approx(mae(truth, draws.quantile(0.5, dim=1), where).item(), rel=1e-5)


def test_a_forecast_without_distribution_has_errors_but_no_coverage() -> None:
    batch = mask(seasonal_batch(2), SHORT)
    rows = broken_down(batch, noisy(batch, draws=1)).rows()
    assert rows and all(math.isnan(row["coverage80"]) and row["crps"] == row["mae"] >= 0 for row in rows)


def test_without_a_reference_there_is_coverage_but_no_load_and_no_error() -> None:
    batch = mask(seasonal_batch(2), LONG)
    for context in ({}, {"reference": torch.full((2, 1), torch.nan)}):
        rows = broken_down(replace(batch, context=context), noisy(batch)).rows()
        assert {row["axis"] for row in rows} == {"horizon", "hour"}
        assert all(math.isnan(row["crps"]) and math.isnan(row["mae"]) and 0 <= row["coverage80"] <= 1 for row in rows)
    half = replace(batch, context={"reference": torch.tensor([[torch.nan], [50.0]])})
    first = on("hour", broken_down(half.select(slice(0, 1)), Forecast(draws=noisy(batch).draws[:1], known=batch.known[:1])))
    second = on("hour", broken_down(half.select(slice(1, 2)), Forecast(draws=noisy(batch).draws[1:], known=batch.known[1:])))
    both = on("hour", broken_down(half, noisy(batch)))
    shared = first.keys() & second.keys()
    assert shared and all(both[hour]["crps"] == pytest.approx(second[hour]["crps"], rel=1e-12) for hour in shared)
    assert all(both[hour]["entries"] == first[hour]["entries"] + second[hour]["entries"] for hour in shared)


def assert_same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    keys = BREAKDOWN_COLUMNS[:7]
    assert [[row[key] for key in keys] for row in rows] == [[row[key] for key in keys] for row in others]
    figures = [
        [row[name] for row in rows for name in BREAKDOWN_COLUMNS[7:]],
        [row[name] for row in others for name in BREAKDOWN_COLUMNS[7:]],
    ]
    assert figures[0] == pytest.approx(figures[1], rel=1e-10, nan_ok=True)  # rounding of float64 sums


@given(cut=st.integers(1, 5), seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_any_partition_of_the_windows_gives_the_same_rows(cut: int, seed: int) -> None:
    batch = mask(seasonal_batch(6), RANDOM, seed)
    cities, forecast = ["b", "a", "a", "c", "c", "a"], noisy(batch)
    parts = Breakdown()
    for part in (slice(cut, 6), slice(0, cut)):
        small = Forecast(draws=forecast.draws[part], known=forecast.known[part])
        parts.merge(Breakdown.from_json(broken_down(batch.select(part), small, cities[part]).to_json()))
    whole = broken_down(batch, forecast, cities).rows()
    assert [row["city"] for row in whole] == sorted(row["city"] for row in whole) and {row["city"] for row in whole} == {"a", "b", "c"}
    assert_same(whole, parts.rows())


def test_rows_are_flat_in_the_order_of_the_bins() -> None:
    batch = mask(seasonal_batch(3), LONG)
    rows = broken_down(batch, noisy(batch)).rows()
    assert all(tuple(row) == BREAKDOWN_COLUMNS for row in rows)
    for axis, bins in AXES.items():
        found = [row["bin"] for row in rows if row["axis"] == axis]
        assert found == [name for name in bins if name in found]


def test_json_round_trip_goes_on_counting() -> None:
    batch = mask(seasonal_batch(3), LONG)
    breakdown = broken_down(batch, noisy(batch), ["a", "b", "é<"])
    again = Breakdown.from_json(breakdown.to_json())
    assert again.to_json() == breakdown.to_json()
    again.merge(breakdown)
    assert [row["entries"] for row in again.rows()] == [2 * row["entries"] for row in breakdown.rows()]
    assert [row["coverage80"] for row in again.rows()] == [row["coverage80"] for row in breakdown.rows()]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"key": 1}, "a JSON dict, expected a list"),
        ([3], "key None, expected model, city, split, task and one of"),
        ([{"key": ["m", "c", "s", "t", "weekday"], "sums": []}], "'weekday'"),
        ([{"key": ["m", "c", "s", "t", "load"], "sums": [[1, 2]]}], r"sums of shape \(1, 2\), expected \(6, 6\)"),
        ([{"key": ["m", "c", "s", "t", "load"], "sums": [["x"]]}], "expected 6 x 6 numbers"),
        ([{"key": ["m", "c", "s", "t", "load"]}], "sums None, expected 6 x 6 numbers"),
    ],
)
def test_a_broken_breakdown_is_refused(items: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Breakdown.from_json(json.dumps(items))
