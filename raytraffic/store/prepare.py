"""From cities to a store in two parallel steps: write each city's shards, then measure each city on the training parts.

    parts      = [prepare_city(records, out, layout) for every city]                     (parallel)
    index      = build_index(parts, layout)                                              (once)
    statistics = {part.city: measure_city(part.city, index, out, layout) for ...}        (parallel)
    commit_store(out, parts, statistics, layout)                                         (once; writes manifest.json last)

A store without a manifest is not a store. Files are named by what they hold, so a repeated preparation finds what is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import numpy as np

from raytraffic.files import Location, parquet_bytes
from raytraffic.sources.city import City
from raytraffic.store.index import StoreIndex
from raytraffic.store.layout import SCHEMA_VERSION, Layout
from raytraffic.store.parts import CityPart, RecordPart, ShardPart, checked, index_table
from raytraffic.store.shards import BYTE_SPLIT, encode, epoch_minute
from raytraffic.store.splits import SPLITS, Split, assign
from raytraffic.store.statistics import CityStatistics, city_statistics
from raytraffic.store.tiling import tile_city

__all__ = ["build_index", "commit_store", "measure_city", "prepare_city", "prepare_store"]


def prepare_city(records: Iterable[City], out: Location, layout: Layout) -> CityPart:
    """Write the shards of one city's records (one a period); those that an earlier, equal preparation wrote are kept.

    Raises ValueError when there is no record, when two have one period, or when they disagree on what a city has one of.
    """
    written: list[RecordPart] = []
    facts: dict[str, Any] = {}
    earlier: dict[str, RecordPart] = {}
    refused: dict[str, str] = {}
    for city in records:
        mine = _facts(city)
        if not facts:
            facts = mine
            earlier = _finished(out, city.name)
        for field, value in mine.items():
            if value != facts[field]:
                raise ValueError(f"{city.name}.{field} of period {city.period!r}: {value}, expected {facts[field]} as in its other periods")
        if city.period in {record.period for record in written}:
            raise ValueError(f"{city.name}.period: {city.period!r} comes twice, expected one record a period")
        if len(set(mine["poi_categories"])) < len(mine["poi_categories"]):
            raise ValueError(f"{city.name}.poi_categories: {mine['poi_categories']}, expected unique names")
        fingerprint = _fingerprint(city, layout)
        written.append(earlier[fingerprint] if fingerprint in earlier else _write_record(city, fingerprint, out, layout))
        refused = {**dict(city.refused), **refused}
    if not written:
        raise ValueError("city: the source gave no record, expected at least one")
    part = CityPart(records=tuple(written), refused=tuple(sorted(refused.items())), **facts)
    _write_json(_part_location(out, part.city), part.to_json())
    return part


def build_index(parts: Sequence[CityPart], layout: Layout) -> StoreIndex:
    """The index of a store with these cities; ValueError when a city comes twice or services differ between cities."""
    return StoreIndex.of(index_table(checked(parts), layout), layout)


def measure_city(city: str, index: StoreIndex, out: Location, layout: Layout) -> dict[str, CityStatistics | None]:
    """One city's statistics under every split of the store; None where the city has no training part."""
    return city_statistics(out, index, city, {name: assign(index, Split(name, seed=layout.seed)).train for name in SPLITS}, layout)


def commit_store(
    out: Location, parts: Sequence[CityPart], statistics: Mapping[str, Mapping[str, CityStatistics | None]], layout: Layout
) -> None:
    """Write statistics, index and at last the manifest; shards of an earlier store in the same folder go.

    `statistics` are by city, then by split. Raises ValueError when a city comes twice or has none.
    """
    parts = checked(parts)
    missing = [part.city for part in parts if part.city not in statistics]
    if missing:
        raise ValueError(f"statistics: none for {missing}, expected every city's")
    manifest = out.child("manifest.json")
    manifest.delete()  # from here to the last line there is no store, so a reader never sees two preparations mixed
    files = {}
    for split in SPLITS:
        found = {part.city: statistics[part.city][split] for part in parts}
        content = {city: None if one is None else one.to_json() for city, one in found.items()}
        files[split] = _write_json(out.child("statistics", f"{split}.json"), content)
    index = parquet_bytes(index_table(parts, layout))
    out.child("index.parquet").write_bytes(index)
    shards = [shard for part in parts for record in part.records for shard in record.shards]
    used = {shard.path for shard in shards}
    for file in out.child("shards").list():
        if f"shards/{file.name}" not in used:
            file.delete()
    fields = {
        "schema_version": SCHEMA_VERSION,
        **layout.to_json(),
        "services": parts[0].services,
        "poi_categories": sorted({name for part in parts for name in part.poi_categories}),
        "cities": {part.city: _city_entry(part) for part in parts},
        "splits": {split: {"seed": layout.seed, "statistics": f"statistics/{split}.json", "sha256": files[split]} for split in SPLITS},
        "index": {"path": "index.parquet", "sha256": hashlib.sha256(index).hexdigest()},
        "shards": [asdict(shard) for shard in shards],
    }
    _write_json(manifest, fields)


def prepare_store(cities: Iterable[Iterable[City]], out: Location, layout: Layout) -> None:
    """Both steps and the commit in this process, one city in memory at a time."""
    parts = [prepare_city(records, out, layout) for records in cities]
    index = build_index(parts, layout)
    commit_store(out, parts, {part.city: measure_city(part.city, index, out, layout) for part in parts}, layout)


def _facts(city: City) -> dict[str, Any]:
    return {
        "city": city.name,
        "step_minutes": city.step_minutes,
        "services": tuple(city.services),
        "unit": city.unit,
        "poi_categories": () if city.poi is None else tuple(city.poi_categories),
        "grid": city.grid,
        "places": tuple(city.places),
    }


def _city_entry(part: CityPart) -> dict[str, Any]:
    periods = {
        record.period: {"start_minute": record.start_minute, "steps": record.steps, "tiles": len(record.tiles)} for record in part.records
    }
    entry = {
        "step_minutes": part.step_minutes,
        "unit": part.unit,
        "poi_categories": part.poi_categories,
        "grid": part.grid,
        "has_users": any(record.has_users for record in part.records),
        "series_bytes": sum(record.series_bytes for record in part.records),
        "periods": periods,
    }
    optional = {"refused": part.refused, "places": part.places}
    return {**entry, **{name: value for name, value in optional.items() if value}}


def _finished(out: Location, city: str) -> dict[str, RecordPart]:
    """The records of an earlier preparation by fingerprint, those whose shards are all there."""
    location = _part_location(out, city)
    if not location.exists():
        return {}
    try:
        part = CityPart.from_json(json.loads(location.read_bytes()))
    except (ValueError, TypeError, KeyError):
        return {}  # written by another version, or damaged: everything is written again
    there = {file.name for file in out.child("shards").list()}
    return {r.fingerprint: r for r in part.records if all(shard.path.rsplit("/", 1)[-1] in there for shard in r.shards)}


def _part_location(out: Location, city: str) -> Location:
    return out.child("parts", f"{quote(city, safe='')}.json")


def _write_record(city: City, fingerprint: str, out: Location, layout: Layout) -> RecordPart:
    tiles = tile_city(city, layout.tile, layout.group_stations)
    services, steps, _ = city.shape
    rows = len(tiles.ids) * layout.runs(steps)
    row_bytes = 4 * layout.cells * (layout.run_steps * (services + 1 + (city.place is not None)) + len(city.poi_categories) + 2)
    rows_a_shard = max(1, layout.shard_bytes // row_bytes)
    stem = f"{quote(city.name, safe='')}-{quote(city.period, safe='')}-{fingerprint}"
    shards, empty_rows = [], []
    for number, first in enumerate(range(0, rows, rows_a_shard)):
        table, empty = encode(city, tiles, range(first, min(first + rows_a_shard, rows)), layout)
        data = parquet_bytes(table, row_group_rows=layout.row_group_rows, byte_split=BYTE_SPLIT)
        path = f"shards/{stem}-{number:05d}.parquet"
        out.child(path).write_bytes(data)
        shards.append(ShardPart(path=path, rows=len(table), bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        empty_rows += empty
    return RecordPart(
        period=city.period,
        fingerprint=fingerprint,
        start_minute=epoch_minute(city),
        steps=steps,
        tiles=tiles.ids,
        empty_rows=tuple(empty_rows),
        has_users=city.users is not None,
        series_bytes=city.traffic.nbytes + (0 if city.users is None else city.users.nbytes),
        shards=tuple(shards),
    )


def _fingerprint(city: City, layout: Layout) -> str:
    """Names everything a record's shards depend on."""
    digest = hashlib.blake2b(digest_size=8)
    places = [list(city.sites), city.tile_shape, None if city.tile_ids is None else list(city.tile_ids)]
    facts = {name: value for name, value in _facts(city).items() if name != "places" or value}
    names = {**facts, "period": city.period, "start": city.start.isoformat(), "places": places, "layout": layout.to_json()}
    digest.update(json.dumps([SCHEMA_VERSION, names], sort_keys=True).encode())
    for array in (city.traffic, city.users, city.poi, city.xy, city.tiles, *(() if city.place is None else (city.place,))):
        if array is None:
            digest.update(b"none")
        else:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _write_json(location: Location, content: Any) -> str:
    """Write it, and return its hash."""
    data = (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
    location.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
