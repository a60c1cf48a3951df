"""Rows of a shard: a run of base tokens of one tile as fixed-shape tensors, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raytraffic.sources.city import City
from raytraffic.store.layout import Layout
from raytraffic.store.tiling import Tiles
from raytraffic.tokens import tokenise, untokenise

__all__ = ["BYTE_SPLIT", "Run", "decode", "decode_series", "encode", "epoch_minute"]

#: Leaves whose float32 values compress better when their four bytes are stored apart.
BYTE_SPLIT = ("traffic.list.element", "users.list.element", "place.list.element")

_Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Run:
    """One decoded row: `traffic` (c, t, s), `users` (t, s), `poi` (k, s) with the city's own categories, `xy` (s, 2); t = run_steps.

    `place` (t, s) indexes the city's places, NaN where that is unknown; None where nobody moves.
    """

    traffic: _Floats
    users: _Floats
    poi: _Floats
    xy: _Floats
    place: _Floats | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        arrays = (self.traffic, self.users, self.poi, self.xy, self.place)
        return sum(array.nbytes for array in arrays if array is not None)


def epoch_minute(city: City) -> int:
    """Minutes from 1970-01-01 00:00 to slot 0 on the city's own wall clock."""
    return int(np.datetime64(city.start, "m").astype(np.int64))


def encode(city: City, tiles: Tiles, rows: range, layout: Layout) -> tuple[pa.Table, list[int]]:
    """Rows `rows` of a city's record as a table, and those of them that hold no measurement; row k is run k % runs of tile k // runs."""
    runs = layout.runs(city.shape[1])
    tile, run = np.divmod(np.arange(rows.start, rows.stop), runs)
    cells = tiles.cells[tile]
    traffic = _cut(city.traffic, cells, run, layout)
    users = np.full((len(rows), 1, *traffic.shape[2:]), np.nan, dtype=np.float32)
    if city.users is not None:
        users = _cut(city.users[None], cells, run, layout)
    xy = np.full((city.shape[2], 2), np.nan) if city.xy is None else city.xy
    steps = np.minimum(layout.run_steps, city.shape[1] - run * layout.core)
    columns: dict[str, pa.Array] = {
        "city": pa.array([city.name] * len(rows)),
        "period": pa.array([city.period] * len(rows)),
        "tile": pa.array([tiles.ids[i] for i in tile]),
        "run": pa.array(run, pa.int32()),
        "start_minute": pa.array(epoch_minute(city) + run * layout.core * city.step_minutes, pa.int64()),
        "step_minutes": pa.array([city.step_minutes] * len(rows), pa.int32()),
        "steps": pa.array(steps, pa.int32()),
        "traffic": _tensors(_to_tokens(traffic, layout)),
        "users": _tensors(_to_tokens(users, layout)[:, :, :, :, 0]),
        "xy": _tensors(_at_cells(xy.T, cells, np.nan).swapaxes(1, 2)),
        "sites": pa.array([["" if i < 0 else city.sites[i] for i in row] for row in cells], pa.list_(pa.string())),
    }
    if city.poi is not None and len(city.poi):  # a tensor column cannot have an empty shape
        columns["poi"] = _tensors(_at_cells(city.poi, cells, 0.0))
    if city.place is not None:  # indexes are whole float32 numbers, far under 2^24
        place = np.where(city.place < 0, np.float32(np.nan), city.place.astype(np.float32))
        columns["place"] = _tensors(_to_tokens(_cut(place[None], cells, run, layout), layout)[:, :, :, :, 0])
    empty = ~np.isfinite(traffic).any(axis=(1, 2, 3, 4))
    return pa.table(columns), [int(k) for k in np.flatnonzero(empty) + rows.start]


def decode(table: pa.Table, layout: Layout) -> list[Run]:
    """The runs of a table of whole rows, in its order."""
    traffic, users = decode_series(table, layout)
    nothing = np.zeros((len(table), 0, layout.cells), dtype=np.float32)
    poi = _ndarray(table, "poi") if "poi" in table.column_names else nothing
    xy = _ndarray(table, "xy")
    place = _single(table, "place", layout) if "place" in table.column_names else None
    # Copies, so that a run kept in memory does not keep the row group it came from.
    return [
        Run(traffic[i].copy(), users[i].copy(), poi[i].copy(), xy[i].copy(), None if place is None else place[i].copy())
        for i in range(len(table))
    ]


def decode_series(table: pa.Table, layout: Layout) -> tuple[_Floats, _Floats]:
    """Traffic (row, c, t, s) and users (row, t, s) of a table's columns of these names."""
    return _from_tokens(_ndarray(table, "traffic"), layout), _single(table, "users", layout)


def _single(table: pa.Table, name: str, layout: Layout) -> _Floats:
    """(row, t, s) of a column of one number a step and cell."""
    return _from_tokens(np.expand_dims(_ndarray(table, name), 4), layout)[:, 0]


def _cut(series: _Floats, cells: NDArray[np.int64], run: NDArray[np.int64], layout: Layout) -> _Floats:
    """(row, c, run_steps, h, w) of a (c, t, s) series, NaN where the tile has no cell or the series has ended."""
    out = np.full((len(run), len(series), layout.run_steps, layout.cells), np.nan, dtype=np.float32)
    for row, (index, first) in enumerate(zip(cells, run * layout.core, strict=True)):
        there = np.flatnonzero(index >= 0)
        part = series[:, first : first + layout.run_steps]
        out[row, :, : part.shape[1], there] = np.moveaxis(part[:, :, index[there]], 2, 0)
    return out.reshape(*out.shape[:3], *layout.tile)


def _at_cells(values: NDArray, cells: NDArray[np.int64], absent: float) -> _Floats:
    """(row, d, h * w) of (d, s) values, `absent` where a tile has no cell."""
    taken = np.moveaxis(values[:, np.maximum(cells, 0)], 1, 0).astype(np.float32)
    return np.where(cells[:, None] >= 0, taken, np.float32(absent))


def _to_tokens(block: _Floats, layout: Layout) -> _Floats:
    """(row, T', H', V', c, t0, h0, v0) of (row, c, t, h, w)."""
    return tokenise(torch.from_numpy(block), layout.token).movedim(1, 4).contiguous().numpy()


def _from_tokens(tokens: _Floats, layout: Layout) -> _Floats:
    """(row, c, t, s) of (row, T', H', V', c, t0, h0, v0)."""
    return untokenise(torch.from_numpy(tokens).movedim(4, 1), layout.token).flatten(-2).numpy()


def _tensors(block: _Floats) -> pa.Array:
    """A row-major tensor column (pyarrow's `from_numpy_ndarray` would declare a permutation where an axis has length 1)."""
    kind = pa.fixed_shape_tensor(pa.float32(), block.shape[1:])
    values = pa.array(np.ascontiguousarray(block).reshape(-1), pa.float32())
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(values, math.prod(block.shape[1:])))


def _ndarray(table: pa.Table, name: str) -> _Floats:
    """(row, ...) of a tensor column."""
    rows = [chunk.to_numpy_ndarray() for chunk in table.column(name).chunks]
    return np.concatenate(rows) if len(rows) > 1 else np.array(rows[0])
