"""Coarser time steps: sums of traffic, means of active users."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np

from raytraffic.sources.city import STEP_MINUTES, City

__all__ = ["resample"]


def resample(city: City, minutes: int) -> City:
    """The city in steps of `minutes`: traffic (c, t, s) summed, users (t, s) averaged, NaN where any finer slot is NaN.

    Fine slots before the first and after the last whole coarse slot are left out. ValueError where `minutes` is no whole
    multiple of the city's step, is not in STEP_MINUTES, or leaves no whole slot.
    """
    step, (c, t, s) = city.step_minutes, city.shape
    if minutes not in STEP_MINUTES or minutes % step:
        valid = [coarse for coarse in STEP_MINUTES if coarse % step == 0]
        raise ValueError(f"{city.name}: cannot be aggregated to {minutes} minutes, expected one of {valid} (its step is {step} minutes)")
    ratio = minutes // step
    skip = -((city.start.hour * 60 + city.start.minute) // step) % ratio
    slots = (t - skip) // ratio
    if slots < 1:
        raise ValueError(f"{city.name}: {t} steps of {step} minutes hold no whole slot of {minutes} minutes, expected a longer series")
    whole = slice(skip, skip + slots * ratio)
    traffic = city.traffic[:, whole].reshape(c, slots, ratio, s).sum(axis=2, dtype=np.float64)
    users = None if city.users is None else city.users[whole].reshape(slots, ratio, s).mean(axis=1, dtype=np.float64)
    return replace(
        city,
        traffic=traffic.astype(np.float32),
        users=None if users is None else users.astype(np.float32),
        start=city.start + timedelta(minutes=skip * step),
        step_minutes=minutes,
    )
