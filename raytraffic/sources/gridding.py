"""From points on the Earth to a local metric plane, and from there to the cells of a square grid or to stations.

The plane is the azimuthal equidistant projection (WGS 84) around the points' centroid: distances from the centroid are
exact, and over a city (50 km) all others are right to about 1e-5. x grows eastwards and y northwards, in metres; the
rows of a grid run from north to south and its columns from west to east, like the pixels of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyproj import Proj
from scipy.spatial import cKDTree

__all__ = ["MAX_CELLS", "CellGrid", "LocalPlane", "count_in_cells", "count_within", "sum_into_cells"]

#: More cells than this are a misplaced site or a cell size in the wrong unit, not a city.
MAX_CELLS = 1_000_000


@dataclass(frozen=True)
class LocalPlane:
    """The metric plane around one place, given in degrees (WGS 84)."""

    latitude: float
    longitude: float

    @classmethod
    def around(cls, latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> LocalPlane:
        """The plane around the centroid of points (n,) in degrees; the centroid is taken on the sphere, so the date line is no seam."""
        assert len(latitude) == len(longitude) > 0
        phi, lam = np.radians(latitude), np.radians(longitude)
        x, y, z = (np.cos(phi) * np.cos(lam)).mean(), (np.cos(phi) * np.sin(lam)).mean(), np.sin(phi).mean()
        return cls(float(np.degrees(np.arctan2(z, np.hypot(x, y)))), float(np.degrees(np.arctan2(y, x))))

    def project(self, latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 2) metres east and north of the centre, for points (n,) in degrees."""
        plane = Proj(proj="aeqd", lat_0=self.latitude, lon_0=self.longitude, datum="WGS84")
        x, y = plane(np.asarray(longitude, dtype=np.float64), np.asarray(latitude, dtype=np.float64))
        return np.stack([np.asarray(x), np.asarray(y)], axis=1)


@dataclass(frozen=True)
class CellGrid:
    """Square cells of `cell_metres`, `shape` (h, w), whose north-west corner lies at (`west`, `north`) in metres."""

    west: float
    north: float
    cell_metres: float
    shape: tuple[int, int]

    @classmethod
    def covering(cls, xy: NDArray[np.float64], cell_metres: float) -> CellGrid:
        """The smallest grid that holds all points (n, 2); ValueError where it would have more than MAX_CELLS cells."""
        if not (np.isfinite(cell_metres) and cell_metres > 0):
            raise ValueError(f"cell_metres: {cell_metres}, expected a length > 0")
        assert len(xy) > 0
        west, north = float(xy[:, 0].min()), float(xy[:, 1].max())
        h = int((north - float(xy[:, 1].min())) // cell_metres) + 1
        w = int((float(xy[:, 0].max()) - west) // cell_metres) + 1
        if h * w > MAX_CELLS:
            raise ValueError(
                f"cell_metres: {cell_metres:g} makes {h} x {w} cells of sites that lie up to {np.linalg.norm(xy, axis=1).max() / 1000:.0f} km"
                f" from their centroid, expected at most {MAX_CELLS} cells (is a site misplaced?)"
            )
        return cls(west, north, float(cell_metres), (h, w))

    @property
    def count(self) -> int:
        """Number of cells, h * w."""
        return self.shape[0] * self.shape[1]

    def cells_of(self, xy: NDArray[np.float64]) -> NDArray[np.int64]:
        """(n,) row-major cell of each point (n, 2), -1 for a point outside the grid."""
        row = np.floor((self.north - xy[:, 1]) / self.cell_metres)
        column = np.floor((xy[:, 0] - self.west) / self.cell_metres)
        inside = (row >= 0) & (row < self.shape[0]) & (column >= 0) & (column < self.shape[1])
        return np.where(inside, row * self.shape[1] + column, -1.0).astype(np.int64)

    def centres(self) -> NDArray[np.float64]:
        """(h * w, 2) metres: the middle of every cell, row-major from the north-west."""
        row, column = np.divmod(np.arange(self.count), self.shape[1])
        return np.stack([self.west + (column + 0.5) * self.cell_metres, self.north - (row + 0.5) * self.cell_metres], axis=1)


def sum_into_cells(values: NDArray[np.float64], cells: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(..., count): for values (..., s) of stations in `cells` (s,), each cell's sum; NaN where no station of it has a value."""
    assert values.shape[-1] == len(cells) > 0 and cells.min() >= 0 and cells.max() < count
    order = np.argsort(cells, kind="stable")
    occupied, first = np.unique(cells[order], return_index=True)
    sorted_values = values[..., order]
    measured = np.isfinite(sorted_values)
    total = np.add.reduceat(np.where(measured, sorted_values, 0.0), first, axis=-1)
    out = np.full((*values.shape[:-1], count), np.nan)
    out[..., occupied] = np.where(np.logical_or.reduceat(measured, first, axis=-1), total, np.nan)
    return out


def count_in_cells(cells: NDArray[np.int64], category: NDArray[np.int64], categories: int, count: int) -> NDArray[np.float32]:
    """(k, count): how many points of each category lie in each cell; points (n,) in cell -1 are left out."""
    inside = cells >= 0
    flat = category[inside] * count + cells[inside]
    return np.bincount(flat, minlength=categories * count).reshape(categories, count).astype(np.float32)


def count_within(
    points: NDArray[np.float64], category: NDArray[np.int64], categories: int, stations: NDArray[np.float64], radius_metres: float
) -> NDArray[np.float32]:
    """(k, s): how many points (n, 2) of each category lie at most `radius_metres` from each station (s, 2)."""
    out = np.zeros((categories, len(stations)), dtype=np.float32)
    for k in np.unique(category):
        out[k] = cKDTree(points[category == k]).query_ball_point(stations, radius_metres, return_length=True)
    return out
