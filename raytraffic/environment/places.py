"""The sites whose environment is wanted, and the scene of each: its image, what is known of it, and what is said of it.

A site is "city/unique_id" everywhere. Sites are read from tables (city, unique_id, lat, lon in WGS 84 degrees, and poi:<category> counts)
and from synthetic cities; what a prepared store knows of a site's place is in metres only, so its own site table is asked for here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from raytraffic.config.environment import ScenesConfig
from raytraffic.environment.chat import Endpoint
from raytraffic.environment.describe import Describer, Facts, Scene, TemplateDescriber
from raytraffic.environment.endpoint import EndpointDescriber
from raytraffic.environment.landscape import landscape
from raytraffic.environment.mercator import check_place
from raytraffic.environment.render import SyntheticTiles
from raytraffic.environment.statistics import image_statistics
from raytraffic.environment.tiles import FolderTiles, MissingTileError, RgbImage, Tiles, ZipTiles
from raytraffic.environment.url_tiles import UrlTiles
from raytraffic.files import Location
from raytraffic.sources.open import open_source
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity

__all__ = ["Pair", "Place", "open_describer", "open_tiles", "pairs", "read_places"]

#: Environment variable that holds the key of a map service.
KEY = "RAYTRAFFIC_TILES_KEY"
_COLUMNS = ("city", "unique_id", "lat", "lon")
_POI = "poi:"
_SYNTHETIC = "synthetic:"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A site: where it lies in degrees, and the POI counts known of its surroundings."""

    city: str
    unique_id: str
    longitude: float
    latitude: float
    poi: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_place(self.longitude, self.latitude)

    @property
    def site(self) -> str:
        """The name by which it is known in an embedding store."""
        return f"{self.city}/{self.unique_id}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A site's image and the text that goes with it."""

    site: str
    image: RgbImage
    text: str


def read_places(config: ScenesConfig) -> list[Place]:
    """All sites, sorted by name; ValueError for a table that cannot be read, a site that is named twice, and none at all."""
    places = [place for source in config.sites for place in _places_of(source)]
    names = pd.Index([place.site for place in places])
    if names.has_duplicates:
        raise ValueError(f"sites: {names[names.duplicated()][0]!r} is there twice, expected every site once")
    if not places:
        raise ValueError(f"sites: {list(config.sites)} hold no site, expected at least one")
    return sorted(places, key=lambda place: place.site)


def open_tiles(config: ScenesConfig) -> Tiles:
    """Where the images come from; ValueError for synthetic tiles without a synthetic city among the sites."""
    if config.tiles == "synthetic":
        cities = [city for source in config.sites if source.startswith(_SYNTHETIC) for city in _synthetic(source)]
        if not cities:
            raise ValueError(f"tiles: 'synthetic' with sites {list(config.sites)}, expected a synthetic city among them")
        return SyntheticTiles(tuple(cities))
    if config.from_service:
        assert config.cache is not None and config.user_agent is not None
        return UrlTiles(
            template=config.tiles.replace("{key}", os.environ.get(KEY, "")),
            user_agent=config.user_agent,
            cache=str(Location.of(config.cache).child("tiles")),
            zooms=config.zooms,
            requests_per_second=config.requests_per_second,
        )
    if config.tiles.endswith(".zip"):
        return ZipTiles(file=config.tiles, zooms=config.zooms, pattern=config.pattern)
    return FolderTiles(folder=config.tiles, zooms=config.zooms, pattern=config.pattern)


def open_describer(config: ScenesConfig) -> Describer:
    """Who describes the images."""
    if config.describer == "endpoint":
        assert config.cache is not None
        return EndpointDescriber(Endpoint.from_environment(), cache=str(Location.of(config.cache).child("descriptions")))
    return TemplateDescriber(topics=config.topics)


def pairs(places: Sequence[Place], tiles: Tiles, describer: Describer, config: ScenesConfig) -> tuple[list[Pair], dict[str, str]]:
    """Image and text of the sites that have both, in order, and why the others have not, by site."""
    scenes, failures = [], {}
    for place in places:
        try:
            scenes.append(_scene(place, tiles, config))
        except MissingTileError as error:
            failures[place.site] = str(error)
    found = []
    for scene, description in zip(scenes, describer.describe(scenes), strict=True):
        if description.failure is None:
            assert scene.image is not None
            found.append(Pair(site=scene.facts.site, image=scene.image, text=description.text))
        else:
            failures[scene.facts.site] = description.failure
    return found, failures


def _scene(place: Place, tiles: Tiles, config: ScenesConfig) -> Scene:
    image = tiles.image(place.longitude, place.latitude, metres=config.metres, pixels=config.pixels)
    statistics = image_statistics(image)
    facts = Facts(site=place.site, longitude=place.longitude, latitude=place.latitude, poi=place.poi, statistics=statistics)
    return Scene(facts=facts, image=image)


def _places_of(source: str) -> Iterator[Place]:
    if source.startswith(_SYNTHETIC):
        for city in _synthetic(source):
            yield from _synthetic_places(city)
    else:
        yield from _table_places(source)


def _synthetic(source: str) -> Sequence[SyntheticCity]:
    opened = open_source(source)
    assert isinstance(opened, SyntheticCities)
    return opened.cities


def _synthetic_places(city: SyntheticCity) -> Iterator[Place]:
    """Every cell, its place as the city's landscape says; its shortest traffic is drawn, as the POI come with it."""
    (record,) = SyntheticCities([dataclasses.replace(city, days=1)]).read(city.name)
    assert record.xy is not None and record.poi is not None
    longitude, latitude = landscape(city).degrees(record.xy)
    for i, site in enumerate(record.sites):
        poi = {category: int(count) for category, count in zip(record.poi_categories, record.poi[:, i], strict=True)}
        yield Place(city=city.name, unique_id=site, longitude=float(longitude[i]), latitude=float(latitude[i]), poi=poi)


def _table_places(source: str) -> Iterator[Place]:
    file = Location.of(source)
    names = {"city": str, "unique_id": str}  # "007" is no number
    try:
        with file.open_file() as stream:
            frame = pd.read_parquet(stream) if file.name.endswith(".parquet") else pd.read_csv(stream, dtype=names)
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file, expected a table of sites") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: {error}, expected a CSV or Parquet table of sites") from error
    missing = [name for name in _COLUMNS if name not in frame]
    if missing:
        raise ValueError(f"{file}: columns {list(frame)}, expected {missing[0]!r} among them")
    counted = [name for name in frame if str(name).startswith(_POI)]
    for row, values in enumerate(frame.to_dict("records"), start=1):
        try:
            yield Place(
                city=_text(values["city"]),
                unique_id=_text(values["unique_id"]),
                longitude=float(values["lon"]),
                latitude=float(values["lat"]),
                poi={str(name).removeprefix(_POI): _count(values[name]) for name in counted},
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: row {row}: {error}") from None


def _text(value: object) -> str:
    if pd.isna(value) or not str(value).strip():  # type: ignore[call-overload]  # one cell
        raise ValueError(f"{value!r}, expected a city and a unique_id")
    return str(value)


def _count(value: object) -> int:
    number = float(value)  # type: ignore[arg-type]  # one cell
    if not (number >= 0 and number == int(number)):
        raise ValueError(f"{value!r}, expected a count of points")
    return int(number)
