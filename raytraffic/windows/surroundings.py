"""The environment of a store's sites as its windows carry it: vectors of the embedding store that lies in the prepared store's folder.

`raytraffic embed --out STORE/environment` makes it, where a site is "city/site" and a place of users who move "city/place". A window
then says of every cell which row of the table of vectors is its own; the vectors are looked up where a batch is made, and not sent
about. The vector of a site is [z_I (+) z_T], image and text one after another; a model fuses them (LSDM Eq. 9, LEC-Diff's attention).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raytraffic.environment.embeddings import EmbeddingStore
from raytraffic.files import Location
from raytraffic.store import Store

__all__ = ["Surroundings", "environment_features"]

_FOLDER, _FACTS = "environment", "store.json"


@dataclass(frozen=True, eq=False)
class Surroundings:
    """`vectors` (p + 1, d), the last of them NaN for what is not known, and by city the rows of its `sites` by name and of its `places`."""

    vectors: Tensor
    sites: dict[str, dict[str, int]]
    places: dict[str, NDArray[np.int64]]

    @classmethod
    def of(cls, store: Store) -> Surroundings:
        """What the embedding store of a prepared store says of its cities; ValueError where there is none."""
        embeddings = EmbeddingStore.open(_folder(store))
        names = sorted(embeddings.index())
        vectors = np.full((len(names) + 1, 2 * embeddings.dimension), np.nan, dtype=np.float32)
        vectors[:-1] = np.concatenate(embeddings.read_both(names), axis=1)
        sites: dict[str, dict[str, int]] = {city: {} for city in store.index.cities}
        for row, name in enumerate(names):
            city, _, site = name.partition("/")
            if city in sites:
                sites[city][site] = row
        places = {city: np.array([sites[city].get(place, -1) for place in its] + [-1]) for city, its in store.places.items()}
        return cls(torch.from_numpy(vectors), sites, places)

    def of_places(self, city: str, place: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the vectors of a city's places by their index (-1: unknown); -1 where there is no vector."""
        return self.places[city][place]

    def of_sites(self, city: str, names: NDArray[np.object_]) -> NDArray[np.int64]:
        """Rows of the vectors of a city's sites by name; -1 where there is none."""
        rows = self.sites[city]
        return np.array([rows.get(name, -1) for name in names.ravel()], dtype=np.int64).reshape(names.shape)


def environment_features(store: Store) -> int:
    """Features of the environment of a store's sites, image and text together; 0 where the store has no embeddings."""
    return 2 * EmbeddingStore.open(_folder(store)).dimension if _folder(store).child(_FACTS).exists() else 0


def _folder(store: Store) -> Location:
    return store.location.child(_FOLDER)
