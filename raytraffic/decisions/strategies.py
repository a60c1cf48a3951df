"""Where the demand of a decision comes from: functions from what is known to demand (draws, places, slots), one a strategy of Fig. 9.

A place is a grid (deployment) or a cell (sleep control). Only forecasts have several draws. POI and residents say how demand divides
over places and nothing of its level or its course, so both divide a total that the planner knows for the whole area.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raytraffic.decisions.validation import check_nonnegative, check_shape, check_whole

__all__ = [
    "forecast_demand",
    "mean_demand",
    "mean_forecast_demand",
    "poi_demand",
    "real_demand",
    "resident_demand",
    "same_slot_last_week_demand",
    "weighted_demand",
]


def forecast_demand(draws: NDArray[np.floating]) -> NDArray[np.float64]:
    """(draws, places, slots) a forecast's draws as they are: the decision weighs what may happen."""
    check_shape("draws", draws, "(draws, places, slots)", (None, None, None))
    check_nonnegative("draws", draws)
    return draws.astype(np.float64)


def mean_forecast_demand(draws: NDArray[np.floating]) -> NDArray[np.float64]:
    """(1, places, slots) the mean of a forecast's draws (draws, places, slots): one number, as a point forecast gives."""
    return forecast_demand(draws).mean(axis=0, keepdims=True)


def real_demand(real: NDArray[np.floating]) -> NDArray[np.float64]:
    """(1, places, slots) what really came (places, slots): no strategy can do better, so it is the upper bound of a comparison."""
    check_shape("real", real, "(places, slots)", (None, None))
    check_nonnegative("real", real)
    return real[None].astype(np.float64)


def poi_demand(poi: NDArray[np.number], total: NDArray[np.floating], weights: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
    """(1, places, slots) the area's total (slots,) divided by points of interest (categories, places), each category times its weight.

    `weights` (categories,) are 1 where not given; take them from places whose traffic is known. ValueError where no place has any.
    """
    check_shape("poi", poi, "(categories, places)", (None, None))
    check_nonnegative("poi", poi)
    if weights is None:
        weights = np.ones(len(poi))
    check_shape("weights", weights, "(categories,)", (len(poi),))
    check_nonnegative("weights", weights)
    return weighted_demand("poi", weights @ poi, total)


def resident_demand(residents: NDArray[np.number], total: NDArray[np.floating]) -> NDArray[np.float64]:
    """(1, places, slots) the area's total (slots,) divided by residents, or by registered users (places,)."""
    return weighted_demand("residents", residents, total)


def weighted_demand(name: str, weights: NDArray[np.number], total: NDArray[np.floating]) -> NDArray[np.float64]:
    """(1, places, slots) the area's total (slots,) divided over places in proportion to weights (places,), called `name` in messages.

    ValueError where no place has any.
    """
    check_shape(name, weights, "(places,)", (None,))
    check_nonnegative(name, weights)
    check_shape("total", total, "(slots,)", (None,))
    check_nonnegative("total", total)
    if not weights.sum() > 0:
        raise ValueError(f"{name}: zero everywhere, expected at least one place above 0")
    return (weights / weights.sum())[None, :, None] * total.astype(np.float64)


def mean_demand(history: NDArray[np.floating], slots: int) -> NDArray[np.float64]:
    """(1, places, slots) the mean of the past (places, past slots), the same in every slot: the naive strategy of a planner."""
    _check_history(history, slots)
    return np.repeat(history.mean(axis=1, dtype=np.float64)[None, :, None], slots, axis=2)


def same_slot_last_week_demand(history: NDArray[np.floating], slots: int, slots_per_week: int) -> NDArray[np.float64]:
    """(1, places, slots) the last week of the past (places, past slots) repeated: the naive strategy of an operator.

    Raises ValueError where the past is shorter than a week.
    """
    _check_history(history, slots)
    check_whole("slots_per_week", slots_per_week, 1)
    if history.shape[1] < slots_per_week:
        raise ValueError(f"history: {history.shape[1]} slots, expected at least a week of {slots_per_week}")
    week = history[:, -slots_per_week:].astype(np.float64)
    return week[None, :, np.arange(slots) % slots_per_week]


def _check_history(history: NDArray[np.floating], slots: int) -> None:
    check_shape("history", history, "(places, past slots)", (None, None))
    check_nonnegative("history", history)
    check_whole("slots", slots, 1)
