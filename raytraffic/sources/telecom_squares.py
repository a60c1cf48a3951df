"""The squares of Telecom Italia's two areas: how many there are, where they lie, and which base station each of them belongs to.

Milan's 100 x 100 squares of 235 m are numbered along rows from the south-west corner (doi 10.7910/DVN/QJWLFU). Trentino's lie in a grid of
117 x 98 squares of 1,000 m, of which those of the province occur (doi 10.7910/DVN/FZRVSX); where they lie is read from the published
GeoJSON and not worked out from their numbers. Base stations are in neither data set: with a table of them (OpenCellID and the like) every
square belongs to the nearest station, whose traffic is the sum over its squares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from raytraffic.files import Location
from raytraffic.sources.faulty import Refused
from raytraffic.sources.gridding import LocalPlane
from raytraffic.sources.sheet import Columns, Sheet

__all__ = ["AREAS", "Area", "AreaName", "Assignment", "Points", "assign", "nearest", "read_centres"]

AreaName = Literal["milan", "trentino"]


@dataclass(frozen=True)
class Area:
    """Squares 1 ... `squares`; where they are numbered along rows from the south-west, `columns` of `metres` each, else 0."""

    squares: int
    columns: int
    metres: float


AREAS: Mapping[AreaName, Area] = {"milan": Area(100 * 100, 100, 235.0), "trentino": Area(117 * 98, 0, 1000.0)}


@dataclass(frozen=True, eq=False)
class Points:
    """Places (n,) in degrees (WGS 84)."""

    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Assignment:
    """Stations that some square belongs to: their `ids` and places `xy` (s, 2) in metres, and the `station` (n,) of every square."""

    ids: tuple[str, ...]
    xy: NDArray[np.float64]
    station: NDArray[np.int64]

    def summed(self, traffic: NDArray[np.float32]) -> NDArray[np.float32]:
        """(c, t, s) traffic of the stations, of traffic (c, t, n) of the squares; NaN in an outage, which is one of all squares."""
        order = np.argsort(self.station, kind="stable")
        first = np.searchsorted(self.station[order], np.arange(len(self.ids)))
        out = np.empty((*traffic.shape[:2], len(self.ids)), dtype=np.float32)
        for channel, values in enumerate(traffic):
            out[channel] = np.add.reduceat(values[:, order], first, axis=1, dtype=np.float64)
        return out


def assign(squares: NDArray[np.int64], cells: str | Path, stations: str | Path) -> Assignment:
    """Every square (n,) to the nearest station, by the distance between its centre and the station.

    `cells` is read by `read_centres`; `stations` is a CSV or Parquet table of unique_id, lat and lon (WGS 84). Raises ValueError for
    squares that `cells` does not know, and for tables that are not as described.
    """
    centres = read_centres(cells)
    absent = [square for square in squares.tolist() if square not in centres.index]
    if absent:
        raise ValueError(f"{cells}: no place of the squares {absent[:5]}, expected one of every square with records")
    sheet = Sheet(str(stations), "stations", ("unique_id", "lat", "lon"), Columns(), Refused(skip=False))
    ids, places = sheet.texts("unique_id"), Points(*sheet.coordinates())
    if ids.has_duplicates:
        raise ValueError(f"{stations}: unique_id {ids[ids.duplicated()][0]!r} is there twice, expected every station once")
    chosen = centres.loc[squares]
    return nearest(Points(chosen["lat"].to_numpy(), chosen["lon"].to_numpy()), ids, places)


def nearest(squares: Points, ids: Sequence[str], stations: Points) -> Assignment:
    """Every square (n,), by its centre, to the nearest of the stations of those ids, whose `xy` are metres around the squares' middle."""
    plane = LocalPlane.around(squares.latitude, squares.longitude)
    places = plane.project(stations.latitude, stations.longitude)
    _, found = cKDTree(places).query(plane.project(squares.latitude, squares.longitude))
    used, station = np.unique(found, return_inverse=True)
    return Assignment(tuple(str(ids[i]) for i in used), places[used], station.astype(np.int64))


def read_centres(path: str | Path) -> pd.DataFrame:
    """Centres of squares in degrees (`lat`, `lon`), by square id, of a GeoJSON of polygons with `cellId` or a table of square_id, lat, lon.

    ValueError names the file and what is not as described.
    """
    location = Location.of(path)
    if location.name.endswith((".geojson", ".json")):
        rows = _polygon_centres(location)
    else:
        sheet = Sheet(str(path), "cells", ("square_id", "lat", "lon"), Columns(), Refused(skip=False))
        square = sheet.numbers("square_id")
        latitude, longitude = sheet.coordinates()
        rows = pd.DataFrame({"square_id": square, "lat": latitude, "lon": longitude})
    if rows["square_id"].duplicated().any():
        twice = int(rows["square_id"][rows["square_id"].duplicated()].iloc[0])
        raise ValueError(f"{path}: square {twice} is there twice, expected every square once")
    return rows.astype({"square_id": np.int64}).set_index("square_id")


def _polygon_centres(location: Location) -> pd.DataFrame:
    try:
        features: list[dict[str, Any]] = json.loads(location.read_bytes())["features"]
        rings = {int(each["properties"]["cellId"]): np.array(each["geometry"]["coordinates"][0], dtype=np.float64) for each in features}
    except FileNotFoundError as error:
        raise ValueError(f"{location}: no such file, expected a GeoJSON of squares") from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{location}: cannot be read, expected a GeoJSON of polygons with property cellId ({error!r})") from error
    if len(rings) < len(features):
        raise ValueError(f"{location}: {len(features)} squares of {len(rings)} ids, expected every square once")
    if not rings or any(
        ring.ndim != 2 or len(ring) < 4 or np.abs(ring[:, 0]).max() > 180 or np.abs(ring[:, 1]).max() > 90 for ring in rings.values()
    ):
        raise ValueError(f"{location}: a square that is no polygon of degrees (WGS 84), expected corners as longitude, latitude")
    # A ring ends where it began: its last corner would count twice.
    centres = np.stack([ring[:-1, :2].mean(axis=0) for ring in rings.values()])
    return pd.DataFrame({"square_id": list(rings), "lat": centres[:, 1], "lon": centres[:, 0]})
