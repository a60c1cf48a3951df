"""Opening a prepared store: its manifest, index and statistics; shards are read later, row group by row group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raytraffic.files import Location
from raytraffic.store.index import StoreIndex
from raytraffic.store.layout import SCHEMA_VERSION, Layout
from raytraffic.store.splits import SPLITS, Split, SplitName
from raytraffic.store.statistics import CityStatistics

__all__ = ["Store", "open_store"]


@dataclass(frozen=True, eq=False)
class Store:
    """An open store: where it is, how it is cut, what its manifest says, and its index. It can be sent to another process."""

    location: Location
    layout: Layout
    manifest: Mapping[str, Any]
    index: StoreIndex

    @property
    def services(self) -> tuple[str, ...]:
        """Names of the c channels."""
        return tuple(self.manifest["services"])

    @property
    def poi_categories(self) -> tuple[str, ...]:
        """The union of the cities' POI categories, sorted: the k axis of every window."""
        return tuple(self.manifest["poi_categories"])

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard["bytes"] for shard in self.manifest["shards"])

    @property
    def series_bytes(self) -> int:
        """Bytes of the float32 series (traffic and users) that the store was made from."""
        return sum(city["series_bytes"] for city in self.manifest["cities"].values())

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """By city, where users move: the names of the places that its runs' `place` indexes."""
        return {name: tuple(city["places"]) for name, city in self.manifest["cities"].items() if "places" in city}

    @property
    def refused(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """By city, where its source left any out: (unique_id, reason) of the stations whose own rows are at fault, sorted."""
        cities = self.manifest["cities"].items()
        return {name: tuple((station, reason) for station, reason in city["refused"]) for name, city in cities if "refused" in city}

    def split(self, name: SplitName) -> Split:
        """The split of this name that the store's statistics belong to; ValueError for an unknown name."""
        if name not in SPLITS:
            raise ValueError(f"split: {name!r}, expected one of {SPLITS}")
        return Split(name, seed=self.manifest["splits"][name]["seed"])

    def statistics(self, name: SplitName) -> dict[str, CityStatistics | None]:
        """Each city's statistics under a split, None where it has no training part; ValueError if the file was changed."""
        entry = self.manifest["splits"][self.split(name).name]
        location = self.location.child(entry["statistics"])
        content = json.loads(_checked_bytes(location, entry["sha256"]))
        return {city: None if fields is None else CityStatistics.from_json(fields) for city, fields in content.items()}

    def verify(self) -> None:
        """Read every shard once; ValueError naming the first whose content is not what was written."""
        for shard in self.manifest["shards"]:
            _checked_bytes(self.location.child(shard["path"]), shard["sha256"])


def open_store(path: str | Path | Location) -> Store:
    """The store in a folder or under an s3:// URL.

    Raises ValueError when there is none or its preparation was not finished, when it was written by another schema version,
    and when a shard is missing or the index was changed.
    """
    location = Location.of(path)
    manifest_file = location.child("manifest.json")
    if not manifest_file.exists():
        raise ValueError(f"{location}: no manifest.json, expected a prepared store; its preparation was not finished: run it again")
    manifest = _parse(manifest_file)
    layout = Layout.from_json(manifest)
    there = {file.name for file in location.child("shards").list()}
    missing = [shard["path"] for shard in manifest["shards"] if shard["path"].rsplit("/", 1)[-1] not in there]
    if missing:
        raise ValueError(f"{location}: {len(missing)} shards are missing, the first is {missing[0]}; prepare the store again")
    data = _checked_bytes(location.child(manifest["index"]["path"]), manifest["index"]["sha256"])
    return Store(location, layout, manifest, StoreIndex.of(pq.read_table(pa.BufferReader(data)), layout))


def _parse(location: Location) -> dict[str, Any]:
    try:
        manifest = json.loads(location.read_bytes())
        version = manifest["schema_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{location}: not a store's manifest ({error!r}), expected JSON with a schema_version") from error
    if version != SCHEMA_VERSION:
        raise ValueError(f"{location}: schema_version {version}, expected {SCHEMA_VERSION}; prepare the store again with this version")
    return dict(manifest)


def _checked_bytes(location: Location, sha256: str) -> bytes:
    if not location.exists():
        raise ValueError(f"{location}: missing, expected the file its manifest names; prepare the store again")
    data = location.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{location}: sha256 {found}, expected {sha256}: the file was changed or truncated")
    return data
