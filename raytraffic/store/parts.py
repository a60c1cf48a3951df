"""What preparing a city leaves behind: small records from which the index and the manifest are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raytraffic.randomness import text_key
from raytraffic.store.layout import Layout

__all__ = ["CityPart", "RecordPart", "ShardPart", "checked", "index_table"]


@dataclass(frozen=True, kw_only=True)
class ShardPart:
    """One written shard: `path` within the store, its rows, bytes and hash."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RecordPart:
    """One period of a city as written: rows tile by tile, equally many a shard but the last; `empty_rows` hold no measurement."""

    period: str
    fingerprint: str
    start_minute: int
    steps: int
    tiles: tuple[str, ...]
    empty_rows: tuple[int, ...]
    has_users: bool
    series_bytes: int
    shards: tuple[ShardPart, ...]


@dataclass(frozen=True, kw_only=True)
class CityPart:
    """All records of a city as they were written, what they agree on, the `places` its users move between, and the stations `refused` in
    any of them (see City)."""

    city: str
    step_minutes: int
    services: tuple[str, ...]
    unit: str
    poi_categories: tuple[str, ...]
    grid: tuple[int, int] | None
    records: tuple[RecordPart, ...]
    places: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; without `places` and `refused` where there are none, as parts were written before there could be any."""
        return {name: value for name, value in asdict(self).items() if value or name not in ("places", "refused")}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> CityPart:
        """The inverse of `to_json`."""
        records = tuple(
            RecordPart(
                **{
                    **record,
                    "tiles": tuple(record["tiles"]),
                    "empty_rows": tuple(record["empty_rows"]),
                    "shards": tuple(ShardPart(**shard) for shard in record["shards"]),
                }
            )
            for record in fields["records"]
        )
        return cls(
            city=fields["city"],
            step_minutes=fields["step_minutes"],
            services=tuple(fields["services"]),
            unit=fields["unit"],
            poi_categories=tuple(fields["poi_categories"]),
            grid=fields["grid"] and (fields["grid"][0], fields["grid"][1]),
            records=records,
            places=tuple(fields.get("places", ())),
            refused=tuple((station, reason) for station, reason in fields.get("refused", ())),
        )


def checked(parts: Sequence[CityPart]) -> list[CityPart]:
    """The cities by name, so that a store does not depend on the order they were finished in.

    Raises ValueError when there is none, one comes twice, or services differ between cities.
    """
    if not parts:
        raise ValueError("store: no city, expected at least one")
    parts = sorted(parts, key=lambda part: part.city)
    for one, other in pairwise(parts):
        if one.city == other.city:
            raise ValueError(f"city: {one.city!r} comes twice, expected unique names")
        if one.services != other.services:
            raise ValueError(f"{other.city}.services: {other.services}, expected {one.services} as in {one.city}; prepare them apart")
    return parts


def index_table(parts: Sequence[CityPart], layout: Layout) -> pa.Table:
    """The index of these cities' runs (see StoreIndex), computed from what was written without reading it."""
    return pa.concat_tables([_record_index(part, record, layout) for part in parts for record in part.records])


def _record_index(part: CityPart, record: RecordPart, layout: Layout) -> pa.Table:
    runs = layout.runs(record.steps)
    row = np.arange(len(record.tiles) * runs, dtype=np.int64)
    tile, run = np.divmod(row, runs)
    first = run * layout.core
    shard, in_shard = np.divmod(row, record.shards[0].rows)
    measured = np.ones(len(row), dtype=bool)
    measured[list(record.empty_rows)] = False
    keys = np.array([text_key(f"{part.city}|{record.period}|{name}") for name in record.tiles], dtype=np.int64)
    return pa.table(
        {
            "shard": _repeat([one.path for one in record.shards], shard),
            "row": in_shard,
            "city": pa.array([part.city] * len(row)),
            "period": pa.array([record.period] * len(row)),
            "tile": _repeat(record.tiles, tile),
            "run": run,
            "start_minute": record.start_minute + first * part.step_minutes,
            "step_minutes": np.full(len(row), part.step_minutes),
            "steps": np.minimum(layout.run_steps, record.steps - first),
            "core_steps": np.minimum(layout.core, record.steps - first),
            "key": keys[tile],
            "measured": measured,
        }
    )


def _repeat(names: Sequence[str], index: NDArray[np.int64]) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(index))
