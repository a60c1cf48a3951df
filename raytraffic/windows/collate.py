"""From window columns to the TrafficBatch a Forecaster takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raytraffic.types import Space, TrafficBatch
from raytraffic.windows.cut import Columns

__all__ = ["to_batch"]

_CONTEXTS = ("users", "poi", "profile", "reference", "modes", "persistence")


def to_batch(
    columns: Columns, known: Tensor | None, grid: tuple[int, int] | None, device: torch.device | str | None = None
) -> TrafficBatch:
    """The windows of `cut_windows` as a batch on `device`; `known` (n, c, t, s) bool, or None: all that was measured is known.

    A context is there when its column is. NaN stays NaN in `users` (not measured is not zero) and in `reference` (measured
    nowhere on training data: a scale falls back to the window's known entries); `xy` is left out when a position is unknown
    for every cell. Raises ValueError when shapes disagree or an entry that was not measured is called known.
    """
    traffic = _tensor(columns["traffic"], device)
    measured = torch.isfinite(traffic)
    known = measured if known is None else known.to(traffic.device)
    if known.shape == traffic.shape and bool((known & ~measured).any()):
        raise ValueError("known: True where traffic is NaN, expected only measured entries to be known")
    xy = columns.get("xy")
    return TrafficBatch(
        traffic=traffic,
        known=known,
        clock=_tensor(columns["clock"], device),
        step_minutes=_tensor(columns["step_minutes"], device),
        key=_tensor(columns["key"], device),
        space=Space(xy=None if xy is None or np.isnan(xy).all() else _tensor(xy, device), grid=grid),
        context={name: _tensor(columns[name], device) for name in _CONTEXTS if name in columns},
    )


def _tensor(column: np.ndarray, device: torch.device | str | None) -> Tensor:
    """Copied when the memory is read-only (Arrow's), because torch would share it as writable."""
    tensor = torch.from_numpy(column if column.flags.writeable else column.copy())
    return tensor if device is None else tensor.to(device)
