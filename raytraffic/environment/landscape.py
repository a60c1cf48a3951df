"""The land of a synthetic city: which blocks are housing, offices, shops, industry, park and water, in line with its traffic and POI.

A synthetic city (raytraffic.sources.synthetic) draws, for each cell, a mix of four activities and a density, from which follow the
rhythm and the level of its traffic and the means of its POI counts. The land is a function of the same two, so that an image shows what
the traffic does, and nothing of how loud a cell happens to be beyond its density. With b = Phi(density) in (0, 1):

    open        = 0.06 + 0.39 (1 - b) of a live cell, 0.85 of one without a station
    water       = open * w,  w a smooth field in (0, 0.5) of its own
    park        = open - water + 0.25 mix(leisure) (1 - open)
    commercial  = 0.75 mix(leisure) (1 - open)
    residential, office, industrial = mix(residential), mix(business), mix(transport), times (1 - open)

Each cell is 6 x 6 blocks, given to the covers in these shares to within 1/36, neighbours alike. `built` = b sets how close and, of housing,
how tall buildings stand, and `transport` = mix(transport) how wide the roads around the cell are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

from raytraffic.environment.mercator import EARTH_METRES, project, unproject
from raytraffic.randomness import fold, text_key
from raytraffic.sources.synthetic import CELL_METRES, LAND_USES, SyntheticCity, places_of

__all__ = ["BLOCKS", "LAND_COVERS", "Landscape", "landscape"]

#: In the order in which they lie beside each other.
LAND_COVERS = ("water", "park", "residential", "commercial", "office", "industrial")
#: Blocks of a cell along a side.
BLOCKS = 6
_STREAM = 100  # of the city's random numbers; its source uses those from 0
#: Synthetic cities lie within so many degrees of the equator, where the map magnifies little.
_LATITUDES = 50.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Landscape:
    """The land of one city of (h, w) cells; rows run from north to south.

    covers      (6 h, 6 w) the cover of each block, an index into LAND_COVERS
    built       (h, w) how densely built a cell is, in (0, 1); transport (h, w) the share of traffic's rhythm that is of transport
    live        (h, w) whether a station stands there
    seed        of everything that is drawn
    longitude, latitude   where the city's south-west corner is said to lie: somewhere on Earth, whatever is there
    """

    covers: NDArray[np.int8]
    built: NDArray[np.float64]
    transport: NDArray[np.float64]
    live: NDArray[np.bool_]
    seed: int
    longitude: float
    latitude: float

    @property
    def extent(self) -> tuple[float, float]:
        """Metres from west to east, and from south to north."""
        h, w = self.built.shape
        return w * CELL_METRES, h * CELL_METRES

    def shares(self) -> NDArray[np.float64]:
        """(u, s) the share of each of the LAND_COVERS in each cell, row-major like the city's sites."""
        h, w = self.built.shape
        cells = self.covers.reshape(h, BLOCKS, w, BLOCKS).swapaxes(1, 2).reshape(h * w, -1)
        return np.stack([(cells == cover).mean(axis=1) for cover in range(len(LAND_COVERS))])

    def degrees(self, xy: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Longitudes and latitudes of places (n, 2) in the city's metres (City.xy), on a Web Mercator map of its scale at `latitude`."""
        west, south = project(self.longitude, self.latitude)
        return unproject(west + xy[:, 0] / self._world_metres, south - xy[:, 1] / self._world_metres)

    def metres(self, longitude: float, latitude: float) -> tuple[float, float]:
        """The city's metres (x, y) of a place in degrees: the inverse of `degrees`."""
        west, south = project(self.longitude, self.latitude)
        x, y = project(longitude, latitude)
        return float(x - west) * self._world_metres, float(south - y) * self._world_metres

    @property
    def _world_metres(self) -> float:
        """Metres on the ground of the whole map's width, at the city's latitude."""
        return EARTH_METRES * math.cos(math.radians(self.latitude))


def landscape(city: SyntheticCity) -> Landscape:
    """The land of a synthetic city: the same for equal name, seed, grid, range and share of dead cells, whatever its traffic."""
    found = places_of(city)
    generator = city.generator(_STREAM)
    longitude, latitude = generator.uniform((-170.0, -_LATITUDES), (170.0, _LATITUDES))
    lakes = 0.5 * ndtr(_smooth(generator.standard_normal(city.grid), 1.0)).ravel()
    share = _shares(found.mix, ndtr(found.density), found.live, lakes)
    grain = _smooth(generator.standard_normal((city.grid[0] * BLOCKS, city.grid[1] * BLOCKS)), 1.5)
    return Landscape(
        covers=_blocks(share, grain),
        built=ndtr(found.density).reshape(city.grid),
        transport=found.mix[LAND_USES.index("transport")].reshape(city.grid),
        live=found.live.reshape(city.grid),
        seed=fold(text_key(city.name), city.seed),
        longitude=float(longitude),
        latitude=float(latitude),
    )


def _shares(
    mix: NDArray[np.float64], built: NDArray[np.float64], live: NDArray[np.bool_], lakes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(u, s) shares of the LAND_COVERS by this file's rules."""
    activity = dict(zip(LAND_USES, mix, strict=True))
    open_ = np.where(live, 0.06 + 0.39 * (1 - built), 0.85)
    water = open_ * lakes
    return np.stack(
        [
            water,
            open_ - water + 0.25 * activity["leisure"] * (1 - open_),
            activity["residential"] * (1 - open_),
            0.75 * activity["leisure"] * (1 - open_),
            activity["business"] * (1 - open_),
            activity["transport"] * (1 - open_),
        ]
    )


def _blocks(share: NDArray[np.float64], grain: NDArray[np.float64]) -> NDArray[np.int8]:
    """(6 h, 6 w) covers: each cell's blocks, in the order of a smooth field `grain`, are given to one cover after the other."""
    h, w = grain.shape[0] // BLOCKS, grain.shape[1] // BLOCKS
    cells = grain.reshape(h, BLOCKS, w, BLOCKS).swapaxes(1, 2).reshape(h * w, -1)
    rank = cells.argsort(axis=1, kind="stable").argsort(axis=1)
    ends = np.rint(share.cumsum(axis=0) * BLOCKS**2)[:-1]
    covers = (rank[None] >= ends[:, :, None]).sum(axis=0).astype(np.int8)
    return covers.reshape(h, w, BLOCKS, BLOCKS).swapaxes(1, 2).reshape(grain.shape)


def _smooth(white: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """White noise smoothed, then scaled to what was its standard deviation, as far as the edges."""
    impulse = np.zeros((8 * math.ceil(sigma) + 1,) * 2)
    impulse[4 * math.ceil(sigma), 4 * math.ceil(sigma)] = 1.0
    return np.asarray(gaussian_filter(white, sigma)) / float(np.linalg.norm(gaussian_filter(impulse, sigma)))
