"""The places of a synthetic city that its users move through: land use, points of interest, and plain vectors of both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytraffic.environment.poi import LSDM_CATEGORIES
from raytraffic.sources.synthetic import CELL_METRES, LAND_USES, SyntheticCity, places_of

__all__ = ["ServicePlaces", "service_places"]

Array = NDArray[np.float64]

#: Made up: mean counts of POI in a cell of mean density that is wholly of each land use (LAND_USES).
_POI = {
    "Medical Care": (3.0, 1.5, 0.5, 0.5),
    "Hotel": (1.0, 2.0, 4.0, 3.0),
    "Business": (2.0, 20.0, 2.0, 2.0),
    "Life Service": (8.0, 3.0, 2.0, 1.0),
    "Transport Hub": (2.0, 3.0, 2.0, 12.0),
    "Culture": (0.5, 1.0, 3.0, 0.2),
    "Sports": (1.5, 0.5, 4.0, 0.3),
    "Residence": (12.0, 1.0, 0.5, 0.5),
    "Entertainment": (1.0, 1.0, 8.0, 0.5),
    "Scenic Spot": (0.2, 0.2, 4.0, 0.2),
    "Government": (0.8, 3.0, 0.5, 0.5),
    "Factory": (0.5, 1.0, 0.2, 4.0),
    "Shopping": (4.0, 5.0, 14.0, 3.0),
    "Restaurant": (4.0, 7.0, 12.0, 3.0),
    "Education": (3.0, 1.5, 0.5, 0.3),
    "Landmark": (0.2, 0.8, 2.0, 0.8),
    "Other": (2.0, 2.0, 2.0, 2.0),
}
assert tuple(_POI) == LSDM_CATEGORIES
#: Of the city's random numbers; its source uses the streams from 0, its landscape 100.
_STREAM = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class ServicePlaces:
    """Places (p,): ids, the mix (4, p) of LAND_USES, density (p,), metres (p, 2) as in City.xy, and POI counts (p, 17)."""

    ids: tuple[str, ...]
    mix: Array
    density: Array
    xy: Array
    poi: NDArray[np.float32]

    def vectors(self, d: int) -> NDArray[np.float32]:
        """(p, d): the 17 POI counts as log1p, standardised over the places, then 1 for the largest of 4 land uses, then zeros.

        ValueError for d < 21.
        """
        k, needed = len(LSDM_CATEGORIES), len(LSDM_CATEGORIES) + len(LAND_USES)
        if d < needed:
            raise ValueError(f"d: {d}, expected at least {needed}")
        counts = np.log1p(self.poi.astype(np.float64))
        out = np.zeros((len(counts), d), dtype=np.float32)
        out[:, :k] = (counts - counts.mean(axis=0)) / np.maximum(counts.std(axis=0), 1e-6)
        out[np.arange(len(counts)), k + self.mix.argmax(axis=0)] = 1.0
        return out


def service_places(land: SyntheticCity) -> ServicePlaces:
    """The live cells of a synthetic city, row by row from the north-west."""
    found = places_of(land)
    live = np.flatnonzero(found.live)
    row, column = np.divmod(live, land.grid[1])
    means = np.array(list(_POI.values()))
    expected = np.exp(0.8 * found.density[live, None]) * (means[:, :, None] * found.mix[:, live]).sum(axis=1).T
    return ServicePlaces(
        ids=tuple(f"r{i}c{j}" for i, j in zip(row.tolist(), column.tolist(), strict=True)),
        mix=found.mix[:, live],
        density=found.density[live],
        xy=np.stack([(column + 0.5) * CELL_METRES, (land.grid[0] - row - 0.5) * CELL_METRES], axis=1),
        poi=land.generator(_STREAM).poisson(expected).astype(np.float32),
    )
