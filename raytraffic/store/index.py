"""The index of a store: one entry a run (row of a shard), in the order city, period, tile, run."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raytraffic.store.layout import Layout

__all__ = ["Series", "StoreIndex"]

_Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Series:
    """The series of an index, one entry each: `city`, `period`, `place` codes, `steps` long, their rows start at `first_row`."""

    city: _Ints
    period: _Ints
    place: _Ints
    steps: _Ints
    first_row: _Ints


@dataclass(frozen=True, eq=False)
class StoreIndex:
    """Arrays with one entry a run; codes point into `cities`, `periods`, `shards`; a place is a (city, tile) of `places`.

    `start_minute` counts from 1970-01-01 on the city's wall clock; `steps` are within the series; `core_steps` window starts
    belong to the run; `measured` is False where a run holds no measurement at all; `key` identifies the series.
    """

    core: int
    cities: tuple[str, ...]
    periods: tuple[str, ...]
    shards: tuple[str, ...]
    places: tuple[tuple[str, str], ...]
    city: _Ints
    period: _Ints
    place: _Ints
    series: _Ints
    shard: _Ints
    row: _Ints
    run: _Ints
    start_minute: _Ints
    step_minutes: _Ints
    steps: _Ints
    core_steps: _Ints
    key: _Ints
    measured: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.run)

    @property
    def first_step(self) -> _Ints:
        """The absolute step each run starts at."""
        return self.run * self.core

    def table_of_series(self) -> Series:
        """What does not change from run to run of a series."""
        first = np.flatnonzero(np.diff(self.series, prepend=-1))
        last = np.append(first[1:], len(self)) - 1
        steps = (self.first_step + self.steps)[last]
        return Series(self.city[first], self.period[first], self.place[first], steps, first)

    def rows_of(self, city: str) -> _Ints:
        """Row numbers of a city; ValueError when it is not in the store."""
        if city not in self.cities:
            raise ValueError(f"city: {city!r}, expected one of {list(self.cities)}")
        return np.flatnonzero(self.city == self.cities.index(city))

    @classmethod
    def of(cls, table: pa.Table, layout: Layout) -> StoreIndex:
        """The index held by a table of the columns that `parts.index_table` writes."""
        codes: dict[str, _Ints] = {}
        names: dict[str, tuple[str, ...]] = {}
        for name in ("city", "period", "tile", "shard"):
            column = table.column(name).combine_chunks().dictionary_encode()
            column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            codes[name] = column.indices.to_numpy().astype(np.int64)
            names[name] = tuple(column.dictionary.to_pylist())
        pairs, place = np.unique(codes["city"] * len(names["tile"]) + codes["tile"], return_inverse=True)
        places = tuple((names["city"][pair // len(names["tile"])], names["tile"][pair % len(names["tile"])]) for pair in pairs)
        numbers = {f.name: table.column(f.name).to_numpy() for f in fields(cls) if f.name in table.column_names and f.name not in codes}
        starts = numbers["run"] == 0
        return cls(
            core=layout.core,
            cities=names["city"],
            periods=names["period"],
            shards=names["shard"],
            places=places,
            city=codes["city"],
            period=codes["period"],
            place=place.astype(np.int64),
            series=np.cumsum(starts) - 1,
            shard=codes["shard"],
            measured=numbers.pop("measured").astype(bool),
            **{name: values.astype(np.int64) for name, values in numbers.items()},
        )
