"""Preparation through Ray Data: every city is read, tokenised and written by a task, then measured by another, then committed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from raytraffic.config import PrepareConfig
from raytraffic.files import Location
from raytraffic.on_ray.cluster import connect, dataset
from raytraffic.on_ray.progress import Stage
from raytraffic.sources.open import open_source
from raytraffic.store import CityPart, Layout, StoreIndex, build_index, commit_store, measure_city, open_store, prepare_city

__all__ = ["prepare"]


def prepare(config: PrepareConfig) -> Location:
    """Writes the store and returns its folder; the same command again keeps what is finished.

    Raises ValueError for a source that does not exist or holds bad data; no store is committed then.
    """
    out = Location.of(config.out)
    layout = Layout.for_windows(config.window, token=config.token, tile=config.tile, seed=config.seed, group_stations=config.group_stations)
    cities = [{"source": spec, "city": name} for spec in config.sources for name in open_source(spec).names()]
    if not cities:
        raise ValueError(f"sources: {list(config.sources)} hold no city, expected at least one")
    names = [city["city"] for city in cities]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"sources: the cities {twice} come from two sources, expected unique names")
    connect()
    parts = [CityPart.from_json(part) for part in _each("write cities", cities, _Write(out, layout))]
    index = build_index(parts, layout)
    statistics = dict(_each("measure cities", [{"city": part.city} for part in parts], _Measure(out, layout, index)))
    commit_store(out, parts, statistics, layout)
    store = open_store(out)
    print(f"prepared {len(store.index.cities)} cities, {len(store.index)} runs, {store.bytes / 1e6:.1f} MB", flush=True)
    return out


def _each(title: str, items: list[dict[str, Any]], work: Any) -> list[Any]:
    """The results of `work` for every item, in order."""
    results = []
    with Stage(title, len(items)) as stage:
        for row in dataset(items).map_batches(work, batch_size=1).iter_rows():
            results.append(row["result"])
            stage.advance(1)
    return results


def _column(value: Any) -> np.ndarray:
    """One object as a column of one row."""
    column = np.empty(1, dtype=object)
    column[0] = value
    return column


@dataclass(frozen=True)
class _Write:
    out: Location
    layout: Layout

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        source = open_source(str(item["source"][0]))
        return {"result": _column(prepare_city(source.read(str(item["city"][0])), self.out, self.layout).to_json())}


@dataclass(frozen=True)
class _Measure:
    out: Location
    layout: Layout
    index: StoreIndex

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        city = str(item["city"][0])
        return {"result": _column((city, measure_city(city, self.index, self.out, self.layout)))}
