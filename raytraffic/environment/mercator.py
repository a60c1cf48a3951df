"""Web Mercator (EPSG:3857), the projection of slippy-map tiles, in units of the whole square world: (0, 0) north-west, (1, 1) south-east.

    x = (lon + 180) / 360        y = 1/2 - asinh(tan lat) / (2 pi)

At zoom z the world is 2^z tiles of 256 pixels wide. The projection magnifies lengths by 1 / cos(lat), with the Earth as the
sphere of radius 6,378,137 m; on the WGS 84 ellipsoid the true scale differs by up to 0.7 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "MAX_LATITUDE",
    "MAX_ZOOM",
    "TILE_PIXELS",
    "Box",
    "box_around",
    "check_place",
    "metres_per_pixel",
    "project",
    "tile_of",
    "unproject",
]

Array = NDArray[np.float64]

EARTH_METRES = 2 * math.pi * 6_378_137.0  # circumference
TILE_PIXELS = 256
#: The parallel at which the square world ends.
MAX_LATITUDE = math.degrees(math.atan(math.sinh(math.pi)))
#: A pixel of zoom 24 is half a centimetre; no map goes deeper.
MAX_ZOOM = 24


def project(longitude: ArrayLike, latitude: ArrayLike) -> tuple[Array, Array]:
    """World coordinates x and y of places in degrees, which broadcast; |latitude| <= MAX_LATITUDE gives y in [0, 1]."""
    x = (np.asarray(longitude, dtype=np.float64) + 180.0) / 360.0
    y = 0.5 - np.arcsinh(np.tan(np.radians(np.asarray(latitude, dtype=np.float64)))) / (2 * math.pi)
    return x, y


def unproject(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Longitude and latitude in degrees of world coordinates: the inverse of `project`."""
    longitude = np.asarray(x, dtype=np.float64) * 360.0 - 180.0
    latitude = np.degrees(np.arctan(np.sinh(2 * math.pi * (0.5 - np.asarray(y, dtype=np.float64)))))
    return longitude, latitude


def tile_of(longitude: float, latitude: float, zoom: int) -> tuple[int, int]:
    """Column and row of the slippy-map tile that a place lies in; a place on the eastern or southern rim is of the last tile."""
    check_place(longitude, latitude)
    x, y = project(longitude, latitude)
    last = 2**zoom - 1
    return min(int(x * 2**zoom), last), min(max(int(y * 2**zoom), 0), last)


def metres_per_pixel(latitude: float, zoom: int) -> float:
    """Side on the ground of a pixel of a tile at a latitude."""
    return EARTH_METRES * math.cos(math.radians(latitude)) / (TILE_PIXELS * 2**zoom)


@dataclass(frozen=True)
class Box:
    """A rectangle in world coordinates: `west` < `east` and `north` < `south`, all in [0, 1]."""

    west: float
    north: float
    east: float
    south: float

    def pixels(self, zoom: int) -> tuple[float, float, float, float]:
        """Left, upper, right and lower edge in pixels of the world at a zoom."""
        scale = float(TILE_PIXELS * 2**zoom)
        return self.west * scale, self.north * scale, self.east * scale, self.south * scale


def box_around(longitude: float, latitude: float, metres: float) -> Box:
    """The square of `metres` a side around a place; ValueError where it would reach over the antimeridian or beyond MAX_LATITUDE."""
    check_place(longitude, latitude)
    if not (math.isfinite(metres) and metres > 0):
        raise ValueError(f"metres: {metres}, expected a length > 0")
    half = metres / 2 / (EARTH_METRES * math.cos(math.radians(latitude)))
    x, y = (float(value) for value in project(longitude, latitude))
    box = Box(x - half, y - half, x + half, y + half)
    if box.west < 0 or box.east > 1:
        raise ValueError(f"longitude: {longitude}, {metres:g} m around it cross the antimeridian, expected a place further from it")
    if box.north < 0 or box.south > 1:
        expected = f"a place within {MAX_LATITUDE:.4f} degrees of the equator"
        raise ValueError(f"latitude: {latitude}, {metres:g} m around it leave the Web Mercator map, expected {expected}")
    return box


def check_place(longitude: float, latitude: float) -> None:
    """ValueError for degrees that are no place of the map."""
    if not -180 <= longitude <= 180:
        raise ValueError(f"longitude: {longitude}, expected degrees in [-180, 180]")
    if not -MAX_LATITUDE <= latitude <= MAX_LATITUDE:
        raise ValueError(f"latitude: {latitude}, expected degrees in [-{MAX_LATITUDE:.4f}, {MAX_LATITUDE:.4f}], the Web Mercator map")
