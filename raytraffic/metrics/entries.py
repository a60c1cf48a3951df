"""The scored entries of a batch, flattened: the one place where masks meet draws."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gather"]


def gather(truth: Tensor, draws: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """The m entries of truth (b, ...) and draws (b, n, ...) where (b, ...) is True: (m,) and (m, n), float64.

    Raises ValueError when shapes disagree, when there is no draw, or when a scored value is not finite (a NaN would
    silently make every score NaN).
    """
    expected = (truth.shape[0], *truth.shape[1:])
    if tuple(where.shape) != expected or where.dtype != torch.bool:
        raise ValueError(f"where: {where.dtype} of shape {tuple(where.shape)}, expected torch.bool of shape {expected}")
    if draws.ndim != truth.ndim + 1 or (draws.shape[0], *draws.shape[2:]) != expected or draws.shape[1] == 0:
        raise ValueError(f"draws: shape {tuple(draws.shape)}, expected (b, n, ...) with n >= 1 beside truth of shape {expected}")
    x, y = draws.movedim(1, -1)[where].double(), truth[where].double()
    for name, values in (("truth", y), ("draws", x)):
        bad = values.numel() - int(torch.isfinite(values).sum())
        if bad:
            raise ValueError(f"{name}: {bad} of {values.numel()} scored values are not finite, expected finite traffic where scored")
    return y, x
