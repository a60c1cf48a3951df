"""One city as a dense array (time, row, column) in an npz file: Shanghai's 20 x 20 grid, Milan's gridded Internet activity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raytraffic.files import Location
from raytraffic.sources.city import City
from raytraffic.sources.resample import resample
from raytraffic.sources.series import MONDAY, check_name, read_arrays, read_step

__all__ = ["GridArrays", "cell_centres"]


@dataclass(frozen=True)
class GridArrays:
    """A city from one npz file: `traffic` (t, h, w), `step_minutes`, and its clock as `start` or `dow_slot`.

    `start` is the local time of step 0 in ISO 8601; `dow_slot` (t, 2) = [day of week (0 = Monday), slot of day] of every step,
    which must go on slot by slot, and begins in the week of 2001-01-01 as it has no date. The argument `start` replaces
    the file's clock. Rows stay in the file's order; with `cell_metres`, `xy` (metres east and north of the south-west
    corner) says where they lie by `row_order`. `aggregate_minutes` sums to a coarser step. `name` is by default the file's.
    """

    path: str | Path
    _: KW_ONLY
    name: str | None = None
    start: str | None = None
    cell_metres: float | None = None
    row_order: Literal["north-first", "south-first"] = "north-first"
    aggregate_minutes: int | None = None
    unit: str = "unknown"

    def __post_init__(self) -> None:
        if self.row_order not in ("north-first", "south-first"):
            raise ValueError(f"row_order: {self.row_order!r}, expected 'north-first' or 'south-first'")
        if self.cell_metres is not None and not (np.isfinite(self.cell_metres) and self.cell_metres > 0):
            raise ValueError(f"cell_metres: {self.cell_metres}, expected a length > 0")

    def names(self) -> Sequence[str]:
        """The one name this array was given."""
        return (self.name or Path(str(self.path)).stem,)

    def read(self, name: str) -> Iterator[City]:
        """The city, as one record; ValueError names the file and the field that is not as described."""
        path = Location.of(self.path)
        check_name(name, self.names(), path)
        arrays = read_arrays(path, ("traffic",), ("start", "dow_slot"))
        traffic = arrays["traffic"]
        if traffic.ndim != 3:
            raise ValueError(f"{path}: traffic: shape {traffic.shape}, expected (time, row, column)")
        t, h, w = traffic.shape
        step = read_step(path)
        row, column = np.divmod(np.arange(h * w), w)
        northing = row if self.row_order == "south-first" else h - 1 - row
        try:
            city = City(
                name=name,
                traffic=np.ascontiguousarray(traffic.reshape(1, t, h * w), dtype=np.float32),
                start=self._start(arrays, t, step),
                step_minutes=step,
                sites=[f"r{y}c{x}" for y, x in zip(row, column, strict=True)],
                unit=self.unit,
                grid=(h, w),
                xy=None if self.cell_metres is None else cell_centres(northing, column, self.cell_metres),
            )
            city = city if self.aggregate_minutes is None else resample(city, self.aggregate_minutes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        yield city

    def _start(self, arrays: dict[str, NDArray[Any]], t: int, step: int) -> datetime:
        if self.start is not None:
            return _parse(self.start)
        if ("start" in arrays) == ("dow_slot" in arrays):
            raise ValueError("start, dow_slot: " + ("both" if "start" in arrays else "neither") + " in the file, expected one of them")
        if "start" in arrays:
            return _parse(str(arrays["start"].item() if arrays["start"].size == 1 else arrays["start"]))
        return MONDAY + timedelta(minutes=_first_slot(arrays["dow_slot"], t, 24 * 60 // step) * step)


def cell_centres(northing: NDArray[np.int64], easting: NDArray[np.int64], cell_metres: float) -> NDArray[np.float64]:
    """(n, 2) metres east and north of the south-west corner, of the middles of cells counted from it."""
    return (np.stack([easting, northing], axis=1).astype(np.float64) + 0.5) * cell_metres


def _parse(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"start: {text!r}, expected ISO 8601 as 2013-11-01T00:00") from error


def _first_slot(dow_slot: NDArray[Any], t: int, slots: int) -> int:
    """Slot of the week of step 0, after checking that every step is one slot later."""
    if dow_slot.shape != (t, 2) or dow_slot.dtype.kind not in "iu":
        raise ValueError(f"dow_slot: {dow_slot.dtype} of shape {dow_slot.shape}, expected whole numbers ({t}, 2)")
    first = int(dow_slot[0, 0]) * slots + int(dow_slot[0, 1])
    expected = np.stack(np.divmod((first + np.arange(t)) % (7 * slots), slots), axis=1)
    wrong = (dow_slot != expected).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        told, right = dow_slot[row].tolist(), expected[row].tolist()
        raise ValueError(f"dow_slot: row {row} is {told}, expected {right} (or start to be given instead)")
    return first
