"""Checks of what users hand to the decisions; every message names the field, the value and what was expected."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_counts", "check_nonnegative", "check_number", "check_positive", "check_shape", "check_whole"]


def check_shape(name: str, array: NDArray[Any], axes: str, shape: tuple[int | None, ...]) -> None:
    """Raises ValueError unless the array has this shape; None is any length of at least 1. `axes` names them: "(grids, slots)"."""
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: a {type(array).__name__}, expected a numpy array {axes}")
    fits = array.ndim == len(shape) and all(got >= 1 if want is None else got == want for got, want in zip(array.shape, shape, strict=True))
    if not fits:
        sizes = ", ".join("at least 1" if want is None else str(want) for want in shape)
        raise ValueError(f"{name}: shape {array.shape}, expected {axes} of sizes ({sizes})")


def check_nonnegative(name: str, array: NDArray[Any]) -> None:
    """Raises ValueError naming the first entry that is no finite number of at least 0, and how many there are."""
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: dtype {array.dtype}, expected numbers")
    # The extremes tell without a mask as large as the draws; a NaN makes both of them NaN.
    if array.min() >= 0 and array.max() < math.inf:
        return
    _name_first(name, array, ~(array >= 0) | ~np.isfinite(array), "a finite number of at least 0")


def check_positive(name: str, array: NDArray[Any]) -> None:
    """Raises ValueError naming the first entry that is no finite number above 0, and how many there are."""
    check_nonnegative(name, array)
    _name_first(name, array, array == 0, "a finite number above 0")


def check_counts(name: str, array: NDArray[Any]) -> None:
    """Raises ValueError unless the array is of an integer type and nowhere negative."""
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: dtype {array.dtype}, expected whole numbers")
    check_nonnegative(name, array)


def check_number(name: str, value: float, least: float = 0.0) -> None:
    """Raises ValueError unless the value is a finite number of at least `least`."""
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name}: {value}, expected a finite number of at least {least:g}")


def check_whole(name: str, value: int, least: int = 0) -> None:
    """Raises ValueError unless the value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}: {value}, expected a whole number of at least {least}")


def _name_first(name: str, array: NDArray[Any], bad: NDArray[np.bool_], expected: str) -> None:
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name}{list(at)}: {array[at]}, expected {expected} ({int(bad.sum())} of {bad.size} entries are not)")
