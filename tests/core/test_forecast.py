"""Quantiles of draws: exchangeability, an independent implementation, the extreme draws as ends, bad levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.types import Forecast, ordered_quantile


def forecast_of(draws: torch.Tensor) -> Forecast:
    return Forecast(draws=draws, known=torch.zeros(draws.shape[0], *draws.shape[2:], dtype=torch.bool))


@pytest.mark.parametrize("n", [9, 19, 20, 50])
@pytest.mark.parametrize("level", [0.1, 0.25, 0.5, 0.8, 0.9])
def test_an_exchangeable_truth_lies_below_a_quantile_at_exactly_its_level(n: int, level: float) -> None:
    """The truth of n + 1 exchangeable values takes every rank equally often; between draws it is uniform, as the interpolation is.

    The k-th of n uniform draws has mean k / (n + 1), so at these means the chance to lie below the quantile is the quantile.
    """
    means = torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)
    assert ordered_quantile(means, level).item() == pytest.approx(level, abs=1e-12)


def test_at_a_whole_position_the_ranks_count_it_out() -> None:
    """19 draws and the truth are 1..20 in any order: the truth is 1 to 18 of them where it does not lie above the 90 % quantile."""
    below = 0
    for truth in range(1, 21):
        draws = torch.tensor([float(value) for value in range(1, 21) if value != truth])
        below += truth <= ordered_quantile(draws, 0.9).item()
    assert below / 20 == 0.9


@given(n=st.integers(1, 60), level=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_quantiles_are_those_of_an_independent_type_6(n: int, level: float, seed: int) -> None:
    draws = torch.rand(1, n, 1, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    oracle = np.quantile(draws.numpy(), [level, 0.5], axis=1, method="weibull")
    # positions are rounded to 1e-9 and gaps are at most 1
    np.testing.assert_allclose(forecast_of(draws).quantile([level, 0.5])[0].numpy(), oracle[:, 0], rtol=0, atol=2e-9)


def test_beyond_the_outermost_draws_there_is_nothing() -> None:
    draws = torch.tensor([3.0, 1.0, 2.0])[None, :, None, None, None]
    assert forecast_of(draws).quantile([0.0, 0.1, 0.25, 0.5, 0.625, 0.75, 0.99, 1.0]).flatten().tolist() == [1, 1, 1, 2, 2.5, 3, 3, 3]
    assert forecast_of(draws[:, :1]).quantile([0.1, 0.9]).flatten().tolist() == [3.0, 3.0]


def test_a_draw_that_is_not_a_number_makes_its_own_quantiles_so() -> None:
    draws = torch.ones(1, 5, 1, 1, 2)
    draws[0, 2, 0, 0, 1] = torch.nan
    assert forecast_of(draws).quantile([0.1])[0, 0, 0, 0].isnan().tolist() == [False, True]


@pytest.mark.parametrize(("levels", "message"), [([0.5, 1.5], r"levels: \[1\.5\], expected one or more"), ([], r"levels: \[\]")])
def test_bad_levels_are_named(levels: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forecast_of(torch.ones(1, 5, 1, 1, 2)).quantile(levels)
