"""The prepared store: Parquet shards of tokenised traffic, an index, splits and per-city statistics."""

from raytraffic.store.index import StoreIndex
from raytraffic.store.layout import Layout
from raytraffic.store.parts import CityPart
from raytraffic.store.prepare import build_index, commit_store, measure_city, prepare_city, prepare_store
from raytraffic.store.reading import Store, open_store
from raytraffic.store.splits import SPLITS, Assignment, Split, assign, restrict
from raytraffic.store.statistics import CityStatistics, Statistics, city_statistics

__all__ = [
    "SPLITS",
    "Assignment",
    "CityPart",
    "CityStatistics",
    "Layout",
    "Split",
    "Statistics",
    "Store",
    "StoreIndex",
    "assign",
    "build_index",
    "city_statistics",
    "commit_store",
    "measure_city",
    "open_store",
    "prepare_city",
    "prepare_store",
    "restrict",
]
