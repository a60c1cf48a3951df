"""Strategies and scores by hand, their invariances, and Fig. 9's order of strategies on a synthetic city."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.decisions.deployment import DeploymentProblem, StationType
from raytraffic.decisions.deployment_program import plan
from raytraffic.decisions.evaluation import deployment_measures, interval, share_of_gain, side_by_side, sleep_measures
from raytraffic.decisions.sleep import EnergyCosts, SleepProblem
from raytraffic.decisions.sleep_chain import schedule
from raytraffic.decisions.strategies import (
    forecast_demand,
    mean_demand,
    mean_forecast_demand,
    poi_demand,
    real_demand,
    resident_demand,
    same_slot_last_week_demand,
)

TEN = (StationType(capacity=10.0, operating_cost=1.0),)


def test_deployment_measures_by_hand() -> None:
    # Grid 0 has 10 of capacity, grid 1 none; draws of two slots.
    demand = np.array([[[5.0, 20.0], [0.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = deployment_measures(DeploymentProblem(demand=demand, station_types=TEN), np.array([[1], [0]]))
    assert found["served_ratio"].tolist() == [0.5, 1.0]
    assert found["idle_ratio"].tolist() == [0.25, 1.0]
    assert found["deficit_ratio"].tolist() == [pytest.approx(2 / 3), 0.0]
    assert found["operating_cost"].tolist() == [2.0, 2.0]
    assert found["objective"].tolist() == [15 - 15 - 2, -2.0]


def test_sleep_measures_by_hand() -> None:
    problem = SleepProblem(
        load=np.array([[[4.0, 0.0, 1.0]]]),
        rru_capacity=np.array([1.0]),
        rrus=np.array([2]),
        energy=EnergyCosts(per_load=1.0, per_active_rru=0.5),
        switch_cost=2.0,
    )
    found = sleep_measures(problem, np.array([[1, 0, 1]]))
    assert found["served_ratio"].tolist() == [pytest.approx(2 / 5)]
    assert found["refused_ratio"].tolist() == [pytest.approx(0.75 / 2)]
    assert found["switching"].tolist() == [pytest.approx(2 / 6)]
    assert found["energy_ratio"].tolist() == [pytest.approx((2 + 1) / (3 + 3))]
    assert found["objective"].tolist() == [pytest.approx(0.75 + 4 + 3)]


def test_nothing_installed_serves_nothing_and_idles_nothing() -> None:
    found = deployment_measures(DeploymentProblem(demand=np.ones((1, 1, 2)), station_types=TEN), np.array([[0]]))
    assert {name: values.item() for name, values in found.items()} == {
        "served_ratio": 0.0,
        "idle_ratio": 0.0,
        "deficit_ratio": 1.0,
        "operating_cost": 0.0,
        "objective": -2.0,
    }


def test_share_of_gain() -> None:
    assert share_of_gain(0.8, naive=0.6, best=1.0) == pytest.approx(0.5)
    assert share_of_gain(0.45, naive=0.6, best=0.3) == pytest.approx(0.5)  # where less is better
    assert share_of_gain(0.5, naive=0.6, best=1.0) == pytest.approx(-0.25)
    assert share_of_gain(0.5, naive=0.6, best=0.6) is None


def test_interval_is_central() -> None:
    assert interval(np.arange(101.0), level=0.8) == (pytest.approx(10), pytest.approx(90))
    with pytest.raises(ValueError, match="level: 80"):
        interval(np.arange(3.0), level=80)


def city() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Past and real (12, 24), 15 draws (15, 12, 24) of a good forecast, and POI (2, 12) that tell levels badly."""
    rng = np.random.default_rng(2)
    level, phase = rng.gamma(1.0, 20.0, (12, 1)), rng.uniform(0, 1, (12, 1))
    profile = 1 + np.sin(2 * np.pi * (np.arange(24) / 24 - phase))
    past, real = (level * profile * rng.gamma(20, 1 / 20, (12, 24)) for _ in range(2))
    draws = level * profile * rng.gamma(20, 1 / 20, (15, 12, 24))
    return past, real, draws, rng.poisson(3 + level[:, 0] ** 0.5, (2, 12))


def test_strategies_side_by_side_reach_from_naive_to_the_upper_bound() -> None:
    _, real, draws, poi = city()
    total = draws.mean(axis=0).sum(axis=0)
    demands = {
        "forecast": forecast_demand(draws),
        "POI": poi_demand(poi, np.full(24, total.mean())),
        "real": real_demand(real),
        "naive": np.full((1, 12, 24), real.mean()),
    }
    problems = {
        name: DeploymentProblem(demand=demand, station_types=TEN, most_stations=15, exactly=True) for name, demand in demands.items()
    }
    stations = {name: plan(problem).stations for name, problem in problems.items()}
    on_real = {name: deployment_measures(replace(problem, demand=real[None]), stations[name]) for name, problem in problems.items()}
    on_draws = {name: deployment_measures(replace(problem, demand=draws), stations[name]) for name, problem in problems.items()}
    rows = side_by_side(on_real, naive="naive", best="real", promised=on_draws)
    assert [(row.strategy, row.name) for row in rows] == [(s, m) for s in demands for m in on_real["real"]]
    objective = {row.strategy: row for row in rows if row.name == "objective"}
    assert objective["real"].real >= max(row.real for row in objective.values())
    assert objective["real"].gain_share == 1 and objective["naive"].gain_share == 0
    forecast, other = objective["forecast"].gain_share, objective["POI"].gain_share
    assert forecast is not None and other is not None and 0.8 < forecast <= 1 and forecast > other
    assert all(row.low is not None and row.promised is not None and row.high is not None for row in rows)
    assert objective["forecast"].low < objective["forecast"].promised < objective["forecast"].high  # type: ignore[operator]


def test_no_sleep_schedule_does_better_on_real_load_than_the_one_made_for_it() -> None:
    past, real, draws, _ = city()

    def problem(load: np.ndarray) -> SleepProblem:
        return SleepProblem(
            load=load, rru_capacity=np.full(12, 10.0), rrus=np.full(12, 6), energy=EnergyCosts(per_active_rru=0.05), switch_cost=0.1
        )

    on_real = {
        name: sleep_measures(problem(real[None]), schedule(problem(load)).active)
        for name, load in {
            "forecast": forecast_demand(draws),
            "naive": mean_demand(past, 24),
            "last day": same_slot_last_week_demand(past, 24, 24),
            "real": real_demand(real),
        }.items()
    }
    rows = side_by_side(on_real, naive="naive", best="real")
    objective = {row.strategy: row for row in rows if row.name == "objective"}
    assert min(objective, key=lambda name: objective[name].real) == "real"
    assert objective["forecast"].real < objective["naive"].real
    assert all(row.low is None and row.high is None and row.promised is None for row in rows)


def test_what_does_not_belong_side_by_side_is_named() -> None:
    one, two = {"objective": np.ones(1)}, {"objective": np.ones(2)}
    with pytest.raises(ValueError, match=r"naive: 'mean', expected one of \['a', 'b'\]"):
        side_by_side({"a": one, "b": one}, naive="mean", best="b")
    with pytest.raises(ValueError, match=r"real\['b'\]: \[2\] draws, expected 1"):
        side_by_side({"a": one, "b": two}, naive="a", best="a")
    with pytest.raises(ValueError, match=r"promised: strategies \['a'\]"):
        side_by_side({"a": one, "b": one}, naive="a", best="b", promised={"a": two})
    with pytest.raises(ValueError, match=r"real\['b'\]: measures \['cost'\]"):
        side_by_side({"a": one, "b": {"cost": np.ones(1)}}, naive="a", best="a")


def test_poi_and_residents_divide_the_total() -> None:
    total = np.array([10.0, 20.0])
    np.testing.assert_allclose(poi_demand(np.array([[1, 3], [1, 0]]), total), [[[4, 8], [6, 12]]])
    np.testing.assert_allclose(poi_demand(np.array([[1, 3], [1, 0]]), total, weights=np.array([1.0, 0.0])), [[[2.5, 5], [7.5, 15]]])
    np.testing.assert_allclose(resident_demand(np.array([1, 4]), total), [[[2, 4], [8, 16]]])
    with pytest.raises(ValueError, match="residents: zero everywhere"):
        resident_demand(np.zeros(2), total)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 9))
@settings(deadline=None)
def test_every_strategy_has_the_shape_and_total_it_says(draws: int, places: int, slots: int) -> None:
    rng = np.random.default_rng(0)
    drawn, total = rng.random((draws, places, slots)), rng.random(slots)
    assert forecast_demand(drawn).shape == (draws, places, slots)
    np.testing.assert_allclose(mean_forecast_demand(drawn)[0], drawn.mean(axis=0))
    np.testing.assert_array_equal(real_demand(drawn[0])[0], drawn[0])
    for demand in (poi_demand(1 + rng.random((3, places)), total), resident_demand(1 + rng.random(places), total)):
        assert demand.shape == (1, places, slots)
        np.testing.assert_allclose(demand.sum(axis=(0, 1)), total)


def test_the_past_repeats() -> None:
    history = np.array([[9.0, 1.0, 2.0, 3.0]])
    assert same_slot_last_week_demand(history, 5, 3).tolist() == [[[1, 2, 3, 1, 2]]]
    assert mean_demand(history, 2).tolist() == [[[3.75, 3.75]]]
    with pytest.raises(ValueError, match="history: 4 slots, expected at least a week of 5"):
        same_slot_last_week_demand(history, 5, 5)
    with pytest.raises(ValueError, match=r"history\[0, 1\]: nan"):
        mean_demand(np.array([[1.0, np.nan]]), 2)
