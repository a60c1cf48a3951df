"""What the server's store says of a request's city: what was measured of it, its tiles, where its stations stand, what surrounds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raytraffic.store import CityStatistics
from raytraffic.windows.surroundings import Surroundings

__all__ = ["CityTiles", "KnownCity"]


class CityTiles:
    """A city's tiles in a prepared store: `sites` (p, s) in their cells, "" for none, at `xy` (p, s, 2) metres or NaN, and the tiles'
    random keys (p,)."""

    def __init__(self, sites: NDArray[np.object_], xy: NDArray[np.float32], keys: NDArray[np.int64]) -> None:
        self._keys = keys.tolist()
        self._xy = xy
        self._standing: dict[str, list[tuple[int, int]]] = {}
        for tile, cell in np.argwhere(sites != "").tolist():
            self._standing.setdefault(sites[tile, cell], []).append((tile, cell))

    def key(self, sites: NDArray[np.object_]) -> int | None:
        """The key of the tile in which each of these sites (s,), "" for none, stands in its cell; None where no tile is so."""
        cells = np.flatnonzero(sites != "").tolist()
        tiles = [{tile for tile, at in self._standing.get(sites[cell], []) if at == cell} for cell in cells]
        found = set.intersection(*tiles)
        return self._keys[min(found)] if found else None

    def place(self, site: str) -> tuple[int, int] | None:
        """Tile and cell of a site, the first where it stands in several; None for one that is not there."""
        return self._standing[site][0] if site in self._standing else None

    def metres(self, sites: Sequence[str]) -> NDArray[np.float32]:
        """(n, 2) where sites stand, NaN where that is unknown."""
        found = np.full((len(sites), 2), np.nan, dtype=np.float32)
        for row, site in zip(found, sites, strict=True):
            place = self.place(site)
            if place is not None:
                row[:] = self._xy[place]
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownCity:
    """A city of the store; `statistics` and `surroundings` are None where nothing was measured, and where the store has no embeddings.

    `places` are those that its users move between.
    """

    name: str
    statistics: CityStatistics | None
    tiles: CityTiles
    surroundings: Surroundings | None
    places: frozenset[str] = frozenset()

    @property
    def env_features(self) -> int:
        """Features of the environment vectors, 0 where there are none."""
        return 0 if self.surroundings is None else int(self.surroundings.vectors.shape[1])

    def has_place(self, name: str) -> bool:
        """Whether users may be at a place of this name: one of theirs, or one that has an environment vector."""
        return name in self.places or (self.surroundings is not None and name in self.surroundings.sites[self.name])

    def environment(self, sites: NDArray[np.object_]) -> Tensor:
        """(..., d) the environment vectors of sites or places (...) of any name, NaN where there is none."""
        assert self.surroundings is not None, "asked for where there are env_features"
        return self.surroundings.vectors[torch.from_numpy(self.surroundings.of_sites(self.name, sites))]
