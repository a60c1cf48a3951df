"""The environment of a synthetic service city as files that `raytraffic embed` reads: a table of its places and tiles of its land.

`scenes.sites` is then places.csv and `scenes.tiles` the folder tiles, of the one zoom that was written. Land, points of interest and
pictures are synthetic; the degrees are somewhere on Earth, whatever is there.
"""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from PIL import Image

from raytraffic.environment.landscape import LAND_COVERS, Landscape, landscape
from raytraffic.environment.mercator import EARTH_METRES, TILE_PIXELS, tile_of, unproject
from raytraffic.environment.poi import LSDM_CATEGORIES
from raytraffic.environment.render import render
from raytraffic.files import Location
from raytraffic.sources.services import ServiceCity

__all__ = ["service_places_table", "write_service_scenes"]


def service_places_table(city: ServiceCity) -> pd.DataFrame:
    """A row a place, in the order of City.places: city, unique_id, lat, lon, poi:<category> counts and land:<cover> shares of its cell."""
    layout, land = city.layout, landscape(city.land)
    longitude, latitude = land.degrees(layout.xy)
    places = pd.DataFrame({"city": city.name, "unique_id": layout.ids, "lat": latitude, "lon": longitude})
    counts = pd.DataFrame(layout.poi.astype(np.int64), columns=[f"poi:{category}" for category in LSDM_CATEGORIES])
    covers = pd.DataFrame(land.shares().T[land.live.ravel()], columns=[f"land:{cover}" for cover in LAND_COVERS])
    return pd.concat([places, counts, covers], axis=1)


def write_service_scenes(city: ServiceCity, folder: str, *, zoom: int = 16, margin_metres: float = 500.0) -> None:
    """Writes places.csv and tiles/<zoom>/<x>/<y>.png into a folder or s3:// URL: all tiles within a margin of the city's rim.

    The margin is to be at least half of the side of the images that are wanted. ValueError for a zoom without tiles.
    """
    if not 10 <= zoom <= 20:
        raise ValueError(f"zoom: {zoom}, expected one from 10 to 20")
    if not 0 <= margin_metres <= 50_000:
        raise ValueError(f"margin_metres: {margin_metres}, expected a length from 0 to 50000")
    out, land = Location.of(folder), landscape(city.land)
    east, north = land.extent
    corners = np.array([[-margin_metres, north + margin_metres], [east + margin_metres, -margin_metres]])
    longitude, latitude = land.degrees(corners)
    (left, upper), (right, lower) = (tile_of(float(x), float(y), zoom) for x, y in zip(longitude, latitude, strict=True))
    for x in range(left, right + 1):
        for y in range(upper, lower + 1):
            out.child("tiles", str(zoom), str(x), f"{y}.png").write_bytes(_tile(land, zoom, x, y))
    out.child("places.csv").write_bytes(service_places_table(city).to_csv(index=False).encode())


def _tile(land: Landscape, zoom: int, x: int, y: int) -> bytes:
    """A slippy-map tile of the land as a PNG file: a square in the city's metres too, as these are a map's of one scale."""
    longitude, latitude = (float(degrees) for degrees in unproject((x + 0.5) / 2**zoom, (y + 0.5) / 2**zoom))
    side = EARTH_METRES * float(np.cos(np.radians(land.latitude))) / 2**zoom
    picture = render(land, *land.metres(longitude, latitude), metres=side, pixels=TILE_PIXELS)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()
