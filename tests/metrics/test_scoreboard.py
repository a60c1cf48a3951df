"""Scores and the scoreboard: sums that do not depend on the partition, populations, units, JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.masks import GENERATION, LONG, RANDOM, mask
from raytraffic.metrics.calibration import coverage
from raytraffic.metrics.distribution import crps, energy_score, jsd
from raytraffic.metrics.point import mae, rmse
from raytraffic.metrics.scoreboard import KEYS, Scoreboard
from raytraffic.metrics.scores import Scores
from raytraffic.types import Forecast, TrafficBatch
from tests.batches import DEAD, seasonal_batch


def noisy(batch: TrafficBatch, draws: int = 20, seed: int = 0) -> Forecast:
    noise = torch.randn(batch.shape[0], draws, *batch.shape[1:], generator=torch.Generator().manual_seed(seed))
    return Forecast(draws=torch.nan_to_num(batch.traffic)[:, None] * torch.exp(0.3 * noise), known=batch.known)


def board_of(batch: TrafficBatch, forecast: Forecast, cities: list[str]) -> Scoreboard:
    board = Scoreboard()
    board.update(batch, forecast, model="m", cities=cities, split="time", task="long")
    return board


def row(board: Scoreboard, **keys: str) -> dict[str, Any]:
    found = [r for r in board.rows() if all(r[k] == v for k, v in keys.items())]
    assert len(found) == 1
    return found[0]


def test_scores_are_the_functions_of_the_same_entries() -> None:
    batch = mask(seasonal_batch(), LONG)
    draws, scale = noisy(batch).draws, batch.context["reference"][:, :, None, None]
    scores = Scores()
    scores.update(batch.traffic, draws, batch.hidden, scale)
    truth, unit = batch.traffic / scale, draws / scale[:, None]
    debiased = ((unit.mean(1) - truth)[batch.hidden] ** 2 - unit.var(1)[batch.hidden] / unit.shape[1]).mean()
    expected = {
        "rmse": rmse(truth, unit.mean(1), batch.hidden),
        "rmse_debiased": debiased.clamp(min=0).sqrt(),
        "mae": mae(truth, unit.quantile(0.5, dim=1), batch.hidden),
        "crps": crps(truth, unit, batch.hidden),
        "energy": energy_score(truth, unit, batch.hidden).nanmean(),
        "jsd": jsd(truth, unit, batch.hidden),
        "coverage50": coverage(truth, unit, batch.hidden, 0.5),
        "coverage80": coverage(truth, unit, batch.hidden, 0.8),
        "coverage90": coverage(truth, unit, batch.hidden, 0.9),
    }
    # 2e-4: dividing in float32 before or in float64 after may move a value over the edge of a bin
    assert scores.result() == pytest.approx({name: value.item() for name, value in expected.items()}, rel=2e-4)
    assert scores.entries == int(batch.hidden.sum()) and scores.windows == 4
    assert scores.cells == int(batch.hidden.any(dim=2).sum())


@given(cut=st.integers(1, 5), seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_any_partition_of_the_windows_gives_the_same_rows(cut: int, seed: int) -> None:
    batch = mask(seasonal_batch(6), RANDOM, seed)
    cities = ["a", "b", "a", "c", "c", "a"]
    forecast = noisy(batch, seed=seed)
    whole = board_of(batch, forecast, cities)
    parts = Scoreboard()
    for part in (slice(cut, 6), slice(0, cut)):
        small = Forecast(draws=forecast.draws[part], known=forecast.known[part])
        parts.merge(board_of(batch.select(part), small, cities[part]))
    assert len(whole.rows()) == 3 * 2 * 2
    for expected, got in zip(whole.rows(), parts.rows(), strict=True):
        assert [got[k] for k in KEYS] == [expected[k] for k in KEYS]
        figures = [name for name in expected if name not in KEYS]
        # rounding of float64 sums
        assert [got[f] for f in figures] == pytest.approx([expected[f] for f in figures], rel=1e-10, nan_ok=True)


def test_live_leaves_out_dead_cells_and_all_has_them() -> None:
    batch = mask(seasonal_batch(2), LONG)
    board = board_of(batch, noisy(batch), ["a", "a"])
    everything, live = (row(board, population=p, unit="physical") for p in ("all", "live"))
    dead = int(batch.hidden[..., DEAD].sum())
    assert everything["entries"] == live["entries"] + dead and everything["windows"] == live["windows"] == 2
    # a dead cell is forecast without any error, so it dilutes
    assert live["mae"] * live["entries"] == pytest.approx(everything["mae"] * everything["entries"], rel=1e-12)
    assert live["mae"] > everything["mae"]
    assert (everything["cells"], live["cells"]) == (2 * 15, 2 * 14)
    assert live["energy"] * live["cells"] == pytest.approx(everything["energy"] * everything["cells"], rel=1e-12)


def test_a_cell_that_is_zero_only_where_hidden_is_live() -> None:
    batch = mask(seasonal_batch(1), LONG)
    traffic = batch.traffic.clone()
    traffic[:, :, 16:, 0] = 0.0
    quiet = replace(batch, traffic=traffic)
    board = board_of(quiet, noisy(quiet), ["a"])
    assert row(board, population="live", unit="physical")["entries"] == 48 * 14


def test_a_cell_whose_traffic_is_all_hidden_is_live_by_its_truth() -> None:
    batch = mask(seasonal_batch(4), GENERATION)
    hidden = batch.hidden.clone()
    hidden[..., DEAD] = False
    assert row(board_of(batch, noisy(batch), ["a"] * 4), population="live", unit="physical")["entries"] == int(hidden.sum()) > 0


def test_the_unit_scale_divides_by_the_reference_without_clipping_errors() -> None:
    batch = mask(seasonal_batch(1), LONG)
    small = replace(batch, context={**batch.context, "reference": batch.context["reference"] / 100})
    forecast = noisy(batch)
    board = board_of(small, forecast, ["a"])
    scaled, physical = (row(board, population="all", unit=u) for u in ("[0,1]", "physical"))
    reference = float(small.context["reference"])
    for name in ("rmse", "mae", "crps", "energy"):
        assert scaled[name] * reference == pytest.approx(physical[name], rel=1e-9)
    assert scaled["coverage80"] == physical["coverage80"]
    assert math.isnan(physical["jsd"]) and not math.isnan(scaled["jsd"])


def test_only_hidden_and_measured_entries_count() -> None:
    batch = mask(seasonal_batch(2), GENERATION)
    forecast = noisy(batch)
    wild = torch.where(batch.hidden[:, None], forecast.draws, torch.full_like(forecast.draws, torch.nan))
    assert board_of(batch, forecast, ["a", "a"]).to_json() == board_of(batch, replace(forecast, draws=wild), ["a", "a"]).to_json()


def test_without_a_reference_there_are_only_physical_rows() -> None:
    batch = mask(seasonal_batch(2), LONG)
    bare = replace(batch, context={})
    assert {r["unit"] for r in board_of(bare, noisy(bare), ["a", "b"]).rows()} == {"physical"}
    half = replace(batch, context={"reference": torch.tensor([[torch.nan], [3.0]])})
    assert [r["city"] for r in board_of(half, noisy(half), ["a", "b"]).rows() if r["unit"] == "[0,1]"] == ["b", "b"]


def test_the_energy_of_a_forecast_without_distribution_is_the_distance_of_each_cell_s_course() -> None:
    batch = mask(seasonal_batch(2), RANDOM)
    one = Forecast(draws=noisy(batch).draws[:, :1], known=batch.known)
    error = torch.where(batch.hidden, one.draws[:, 0] - batch.traffic, torch.zeros_like(batch.traffic)).double()
    distance = error.norm(dim=2)[batch.hidden.any(dim=2)]
    assert row(board_of(batch, one, ["a", "a"]), population="all", unit="physical")["energy"] == pytest.approx(distance.mean().item())


def test_coverage_counts_only_forecasts_of_enough_draws() -> None:
    batch = mask(seasonal_batch(2), LONG)
    board = board_of(batch, noisy(batch, draws=10), ["a", "a"])
    one = row(board, population="all", unit="physical")
    assert not math.isnan(one["coverage80"]) and math.isnan(one["coverage90"])


def test_json_round_trip_goes_on_counting() -> None:
    batch = mask(seasonal_batch(3), LONG)
    board = board_of(batch, noisy(batch), ["a", "b", "é<"])
    again = Scoreboard.from_json(board.to_json())
    assert again.to_json() == board.to_json()
    again.merge(board)
    assert [r["entries"] for r in again.rows()] == [2 * r["entries"] for r in board.rows()]
    scores = Scores()
    scores.update(batch.traffic, noisy(batch).draws, batch.hidden)
    assert Scores.from_json(scores.to_json()) == scores


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"key": 1}', "a JSON dict, expected a list"),
        ('[{"key": ["a"]}]', r"scoreboard: key \['a'\]"),
        ('[{"key": ["m","c","s","t","all","physical"], "scores": {"entries": 1}}]', r"scores: \['entries'\]"),
    ],
)
def test_a_broken_scoreboard_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scoreboard.from_json(text)


@pytest.mark.parametrize(("field", "value"), [("entries", "7"), ("interval_hits", [1]), ("crps", True)])
def test_broken_sums_are_refused(field: str, value: object) -> None:
    sums = {**asdict(Scores()), field: value}
    with pytest.raises(ValueError, match=rf"scores\.{field}"):
        Scores.from_json(json.dumps(sums))


def test_wrong_shapes_are_refused() -> None:
    batch = mask(seasonal_batch(2), LONG)
    with pytest.raises(ValueError, match="cities: 1 names, expected one for each of the 2 windows"):
        board_of(batch, noisy(batch), ["a"])
    other = noisy(mask(seasonal_batch(3), LONG))
    with pytest.raises(ValueError, match="draws: shape"):
        board_of(batch, other, ["a", "a"])
