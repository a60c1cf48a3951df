"""The sites whose environment is wanted, and the scene of each: its image, what is known of it, and what is said of it.

A site is "city/unique_id" everywhere. Sites are read from tables (city, unique_id, lat, lon in WGS 84 degrees, poi:<category> counts and
land:<kind> shares of the land in its image) and from synthetic cities; what a prepared store knows of a site's place is in metres only, so
its own site table is asked for here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raytraffic.config.environment import ScenesConfig
from raytraffic.environment.chat import Endpoint
from raytraffic.environment.describe import Describer, Facts, Scene, TemplateDescriber
from raytraffic.environment.endpoint import EndpointDescriber
from raytraffic.environment.landscape import landscape
from raytraffic.environment.limits import Prices
from raytraffic.environment.mercator import MAX_LATITUDE, check_place
from raytraffic.environment.refine import Audit, Refined, Refinement, refine
from raytraffic.environment.render import SyntheticTiles
from raytraffic.environment.service_scenes import service_places_table
from raytraffic.environment.statistics import image_statistics
from raytraffic.environment.tiles import FolderTiles, MissingTileError, RgbImage, Tiles, ZipTiles
from raytraffic.environment.url_tiles import UrlTiles
from raytraffic.files import Location
from raytraffic.sources.faulty import Refused
from raytraffic.sources.open import open_source
from raytraffic.sources.services import ServiceCity
from raytraffic.sources.sheet import Columns, Sheet
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity

__all__ = ["Pair", "Paired", "Place", "open_describer", "open_tiles", "pairs", "read_places"]

#: Environment variable that holds the key of a map service.
KEY = "RAYTRAFFIC_TILES_KEY"
_COLUMNS = ("city", "unique_id", "lat", "lon")
_POI, _LAND = "poi:", "land:"
_SYNTHETIC, _SERVICES = "synthetic:", "services:"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A site: where it lies in degrees, the POI counts known of its surroundings, and the shares of kinds of land in its image."""

    city: str
    unique_id: str
    longitude: float
    latitude: float
    poi: Mapping[str, int] = field(default_factory=dict)
    land_use: Mapping[str, float] = field(default_factory=dict)

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """Image and text of the sites that have both, in order, why the others have not, by site, and what became of every sentence."""

    pairs: tuple[Pair, ...]
    failures: Mapping[str, str]
    audit: tuple[Audit, ...]


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
        cities += [_users(source).land for source in config.sites if source.startswith(_SERVICES)]
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
    """Who describes the images; ValueError for a vision model that the environment does not name, or limits that are none."""
    if config.describer == "template":
        return TemplateDescriber(topics=config.topics)
    assert config.cache is not None
    asked = config.endpoint
    endpoint = dataclasses.replace(
        Endpoint.from_environment(),
        concurrency=asked.concurrency,
        requests_per_minute=asked.requests_per_minute,
        tokens_per_minute=asked.tokens_per_minute,
        prices=Prices(prompt=asked.prompt_price, completion=asked.completion_price),
        budget=asked.budget,
    )
    return EndpointDescriber(endpoint, cache=str(Location.of(config.cache).child("descriptions")))


def pairs(
    places: Sequence[Place], tiles: Tiles, describer: Describer, config: ScenesConfig, refinement: Refinement | None = None
) -> Paired:
    """Image and text of sites, the texts refined where that is asked for; by image statistics unless a `refinement` says otherwise."""
    scenes: list[Scene] = []
    failures: dict[str, str] = {}
    for place in places:
        try:
            scenes.append(_scene(place, tiles, config))
        except MissingTileError as error:
            failures[place.site] = str(error)
    found: list[Pair] = []
    audit: list[Audit] = []
    for scene, told in zip(scenes, describer.describe(scenes), strict=True):
        refined = Refined(description=told)
        if config.refine:
            refined = refine(told, scene, refinement, metres_per_pixel=config.metres / config.pixels)
        audit += refined.audit
        if refined.description.failure is None:
            assert scene.image is not None
            found.append(Pair(site=scene.facts.site, image=scene.image, text=refined.description.text))
        else:
            failures[scene.facts.site] = refined.description.failure
    return Paired(pairs=tuple(found), failures=failures, audit=tuple(audit))


def _scene(place: Place, tiles: Tiles, config: ScenesConfig) -> Scene:
    image = tiles.image(place.longitude, place.latitude, metres=config.metres, pixels=config.pixels)
    statistics = image_statistics(image)
    facts = Facts(
        site=place.site,
        longitude=place.longitude,
        latitude=place.latitude,
        poi=place.poi,
        statistics=statistics,
        land_use=place.land_use or None,
    )
    return Scene(facts=facts, image=image)


def _places_of(source: str) -> Iterator[Place]:
    if source.startswith(_SYNTHETIC):
        for city in _synthetic(source):
            yield from _synthetic_places(city)
    else:
        table = service_places_table(_users(source)) if source.startswith(_SERVICES) else source
        yield from _rows_of(Sheet(table, "sites", _COLUMNS, Columns(), Refused(skip=False)))


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


def _users(source: str) -> ServiceCity:
    opened = open_source(source)
    assert isinstance(opened, ServiceCity)
    return opened


def _rows_of(sheet: Sheet) -> Iterator[Place]:
    """Every row of a table; the first that is wrong is a ValueError."""
    names = [sheet.texts(column) for column in ("city", "unique_id")]
    latitude, longitude = sheet.coordinates(northmost=MAX_LATITUDE)
    names_of = {prefix: [str(name) for name in sheet.frame if str(name).startswith(prefix)] for prefix in (_POI, _LAND)}
    counts = {column.removeprefix(_POI): _counts(sheet, column) for column in names_of[_POI]}
    land = {column.removeprefix(_LAND): _shares(sheet, column) for column in names_of[_LAND]}
    for row, (city, unique_id) in enumerate(zip(*names, strict=True)):
        poi = {category: int(values[row]) for category, values in counts.items()}
        shares = {kind: float(values[row]) for kind, values in land.items() if values[row]}
        yield Place(
            city=city, unique_id=unique_id, longitude=float(longitude[row]), latitude=float(latitude[row]), poi=poi, land_use=shares
        )


def _shares(sheet: Sheet, column: str) -> NDArray[np.float64]:
    """A column of shares."""
    values = sheet.numbers(column)
    sheet.refuse(
        ~((values >= 0) & (values <= 1)), lambda row: f"row {row + 1}, column {column!r}: {values[row]}, expected a share in [0, 1]"
    )
    return values


def _counts(sheet: Sheet, column: str) -> NDArray[np.float64]:
    """A column of counts."""
    values = sheet.numbers(column)
    wrong = ~((values >= 0) & (values == np.floor(values)))
    sheet.refuse(wrong, lambda row: f"row {row + 1}, column {column!r}: {values[row]}, expected a count of points")
    return values
