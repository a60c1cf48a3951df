"""Scenes of synthetic cities: for each cell its picture, its land, its POI and what can be measured of the picture."""

from __future__ import annotations

from collections.abc import Iterator

from raytraffic.environment.describe import Facts, Scene
from raytraffic.environment.landscape import LAND_COVERS, landscape
from raytraffic.environment.render import render
from raytraffic.environment.statistics import image_statistics
from raytraffic.sources.city import City
from raytraffic.sources.synthetic import CELL_METRES, SyntheticCity

__all__ = ["synthetic_scenes"]


def synthetic_scenes(city: SyntheticCity, record: City, *, pixels: int = 64) -> Iterator[Scene]:
    """One scene a cell, in the order of the sites of `record`, which is what the source read of `city`; sites are named "city/site"."""
    if record.name != city.name or record.grid != city.grid or record.xy is None or record.poi is None:
        raise ValueError(f"record: {record.name!r} with grid {record.grid}, expected that of {city.name!r} with grid {city.grid} and POI")
    land = landscape(city)
    shares = land.shares()
    longitude, latitude = land.degrees(record.xy)
    for i, site in enumerate(record.sites):
        image = render(land, *record.xy[i], metres=CELL_METRES, pixels=pixels)
        facts = Facts(
            site=f"{city.name}/{site}",
            longitude=float(longitude[i]),
            latitude=float(latitude[i]),
            poi={category: int(count) for category, count in zip(record.poi_categories, record.poi[:, i], strict=True)},
            statistics=image_statistics(image),
            land_use={cover: float(share) for cover, share in zip(LAND_COVERS, shares[:, i], strict=True)},
        )
        yield Scene(facts=facts, image=image)
