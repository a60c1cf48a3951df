"""The demand of every strategy: weights divide each city's own total, and no strategy is called as another one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.decisions.problems import strategy_demands, strategy_weights
from raytraffic.decisions.reading import Demand

SITES = (("east", "a"), ("west", "a"), ("east", "b"), ("west", "b"))
SLOTS = np.datetime64("2024-01-15T00:00", "s") + np.arange(3) * np.timedelta64(3600, "s")


def demand(seed: int = 0, draws: int = 5) -> Demand:
    """Four sites of two cities."""
    return Demand(sites=SITES, slots=SLOTS, draws=np.random.default_rng(seed).gamma(1.0, 10.0, (draws, 4, 3)))


@given(st.lists(st.floats(0.01, 1e6), min_size=4, max_size=4), st.integers(0, 99))
def test_weights_divide_the_mean_total_of_each_city(weights: list[float], seed: int) -> None:
    forecast, shares = demand(seed), np.array(weights)
    spread = strategy_demands(forecast, forecast.draws[0], None, {"poi": shares})["poi"]
    mean = forecast.draws.mean(axis=0)
    for mine in ([0, 2], [1, 3]):
        np.testing.assert_allclose(spread[0, mine].sum(axis=0), mean[mine].sum(axis=0))
        np.testing.assert_allclose(spread[0, mine[0]] * shares[mine[1]], spread[0, mine[1]] * shares[mine[0]])
    assert spread.shape == (1, 4, 3)


def test_the_forecast_s_own_shares_are_its_mean() -> None:
    one = Demand(sites=SITES[:1] + SITES[2:3], slots=SLOTS[:1], draws=np.array([[[2.0], [6.0]], [[4.0], [8.0]]]))
    found = strategy_demands(one, one.draws[0], None, {"poi": np.array([3.0, 7.0])})
    np.testing.assert_allclose(found["poi"], found["mean forecast"])


def test_strategies_come_in_this_order() -> None:
    past = np.ones((1, 4, 3))
    found = strategy_demands(demand(), past[0], past, {"poi": np.ones(4), "residents": np.ones(4)})
    assert list(found) == ["forecast", "mean forecast", "last week", "poi", "residents", "real"]
    assert list(strategy_demands(demand(), None, None, {})) == ["forecast"]
    assert list(strategy_demands(demand(draws=1), past[0], None, {})) == ["forecast", "real"]


def test_a_city_without_any_weight_is_named() -> None:
    with pytest.raises(ValueError, match=r"weights 'poi' of city 'west': zero everywhere"):
        strategy_demands(demand(), np.ones((4, 3)), None, {"poi": np.array([1.0, 0.0, 1.0, 0.0])})


@pytest.mark.parametrize("name", ["forecast", "mean forecast", "last week", "real", "nothing built", "all on"])
def test_no_strategy_is_called_as_another(tmp_path: Path, name: str) -> None:
    file = tmp_path / "weights.csv"
    file.write_text("\n".join([f"city,unique_id,{name}", *(f"{city},{site},1" for city, site in SITES)]))
    with pytest.raises(ValueError, match=rf"column '{name}', expected a name that no other strategy has"):
        strategy_weights(str(file), SITES)
