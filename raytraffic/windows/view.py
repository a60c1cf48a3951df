"""One split of a store seen as windows: what training, validation and evaluation iterate over."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from raytraffic.masks import Task
from raytraffic.store import SPLITS, Assignment, Statistics, Store, assign, city_statistics, restrict
from raytraffic.store.splits import Part, SplitName
from raytraffic.types import TrafficBatch
from raytraffic.windows.collate import to_batch
from raytraffic.windows.cut import Columns, RunReader, cut_windows
from raytraffic.windows.order import TrainingOrder, evaluation_windows
from raytraffic.windows.surroundings import Surroundings

__all__ = ["Selection", "Windows", "windows_for"]

_CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Selection:
    """Which training data are there: of these cities (all if none is named) a seeded share of the places, at least one a city unless it
    is 0, and of each series the last `days`, all if None. What a smaller share or fewer days choose is contained in what larger ones do.

    What is measured on training data (profile, reference) is measured on these places; with share 0 every city is new.
    """

    cities: tuple[str, ...] = ()
    share: float = 1.0
    seed: int = 0
    days: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: {self.share}, expected a share of the training places in [0, 1]")
        if self.days is not None and not self.days > 0:
            raise ValueError(f"days: {self.days}, expected a number > 0")


_EVERYTHING = Selection()


class Windows:
    """The windows of `window` steps of one split; it can be sent to another process, which then reads for itself.

    With `environment` a window says which vector of the store's embeddings (windows.surroundings) is each cell's, and a batch has them.
    """

    def __init__(
        self,
        store: Store,
        split: SplitName,
        window: int = 64,
        poi_categories: tuple[str, ...] | None = None,
        selection: Selection = _EVERYTHING,
        environment: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split: {split!r}, expected one of {SPLITS}")
        if not 0 < window <= store.layout.overlap_steps:
            raise ValueError(f"window: {window}, expected 1..{store.layout.overlap_steps}, the overlap of the store's runs")
        self.store = store
        self.split = split
        self.window = window
        self.poi_categories = store.poi_categories if poi_categories is None else poi_categories
        self.selection = selection
        self.environment = environment

    def __reduce__(self) -> tuple[type[Windows], tuple[Store, SplitName, int, tuple[str, ...], Selection, bool]]:
        return Windows, (self.store, self.split, self.window, self.poi_categories, self.selection, self.environment)

    @cached_property
    def assignment(self) -> Assignment:
        """Which steps of which run belong to which part."""
        whole = assign(self.store.index, self.store.split(self.split))
        return whole if self.selection == _EVERYTHING else restrict(self.store.index, whole, *astuple(self.selection))

    @cached_property
    def statistics(self) -> Statistics:
        """Each city's statistics, measured on the training part that is there; none of a city that is not selected."""
        if self.selection.share == 1 and self.selection.days is None:
            whole, cities = self.store.statistics(self.split), self.selection.cities
            return {city: found if not cities or city in cities else None for city, found in whole.items()}
        store, train = self.store, {"here": self.assignment.train}
        return {city: city_statistics(store.location, store.index, city, train, store.layout)["here"] for city in store.index.cities}

    @cached_property
    def reader(self) -> RunReader:
        """This process's reader."""
        return RunReader(self.store, _CACHE_BYTES, self.poi_categories)

    @cached_property
    def surroundings(self) -> Surroundings:
        """This process's table of environment vectors."""
        return Surroundings.of(self.store)

    def training(self, seed: int) -> TrainingOrder:
        """The endless training order; ValueError when there is no training window."""
        return TrainingOrder(self.store.index, self.assignment, self.window, seed)

    def evaluation(self, part: Part, task: Task, stride: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and starts of the windows a task is scored on: only entries of the part are hidden."""
        known = int(self.window * (1 - task.high) + 1e-4) if task.kind == "temporal" else 0
        return evaluation_windows(self.store.index, self.assignment, part, known, self.window, stride)

    def validation(self, limit: int) -> Columns | None:
        """At most `limit` evenly spaced windows of the validation part, or None where it has none."""
        rows, starts = evaluation_windows(self.store.index, self.assignment, "validation", 0, self.window, 1)
        if not len(rows):
            return None
        chosen = np.unique(np.linspace(0, len(rows) - 1, limit).round().astype(np.int64))
        return self.cut(rows[chosen], starts[chosen])

    def cut(self, rows: NDArray[np.int64], starts: NDArray[np.int64], window: int | None = None, horizon: int = 0) -> Columns:
        """The columns of some windows (`window` steps of history and `horizon` unknown ones, where given)."""
        columns = cut_windows(self.reader, rows, starts, window or self.window, self.statistics, horizon)
        place = columns.pop("place", None)
        if self.environment:
            columns["environment"] = self._environment(rows, place)
        return columns

    def _environment(self, rows: NDArray[np.int64], place: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """(n, t|1, s) rows of the table of environment vectors: of the places where users are, or of the sites."""
        index = self.store.index
        found = np.full((len(rows), 1, self.store.layout.cells) if place is None else place.shape, -1, dtype=np.int64)
        for code in np.unique(index.city[rows]):
            name, mine = index.cities[code], np.flatnonzero(index.city[rows] == code)
            if place is not None and name in self.surroundings.places:
                found[mine] = self.surroundings.of_places(name, place[mine])
            else:
                found[mine] = self.surroundings.of_sites(name, self.site_names(rows[mine]))[:, None]
        return found

    def site_names(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """(n, s) names of the sites of the tiles of some index rows, "" where a tile has no cell."""
        index = self.store.index
        names = np.empty((len(rows), self.store.layout.cells), dtype=object)
        for shard in np.unique(index.shard[rows]).tolist():
            mine = np.flatnonzero(index.shard[rows] == shard)
            column = self.store.location.child(index.shards[shard]).read_table(["sites"]).column("sites")
            names[mine] = [column[int(row)].as_py() for row in index.row[rows[mine]]]
        return names

    def batch(self, columns: Columns) -> TrafficBatch:
        """Columns as a batch in which everything measured is known."""
        layout = self.store.layout
        batch = to_batch(columns, None, None if layout.group_stations else layout.tile)
        if not self.environment:
            return batch
        env = self.surroundings.vectors[torch.from_numpy(columns["environment"])]
        return replace(batch, context={**batch.context, "env": env})


class _Takes(Protocol):
    """What a model's configuration says of the windows it takes."""

    services: int
    window: int
    contexts: tuple[str, ...]
    poi_categories: tuple[str, ...]


def windows_for(store: Store, split: SplitName, model: _Takes, selection: Selection = _EVERYTHING) -> Windows:
    """A store's windows as a trained model takes them; ValueError when the store has another number of services."""
    if len(store.services) != model.services:
        raise ValueError(f"{store.location}: services {list(store.services)}, expected {model.services} as the model was trained on")
    return Windows(store, split, model.window, model.poi_categories, selection, environment="env" in model.contexts)
