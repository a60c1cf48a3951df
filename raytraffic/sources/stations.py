r"""Synthetic cities of stations whose environment and whose coupling in space are known, so that a model's use of either can be judged.

    log y(t, i) = log level(i) + m(t, i) + x(t, i) + e(t, i),                        e ~ N(0, nugget^2)
    m(t, i)     = effect M(t, cell of i) + (1 - effect) mean_j M(t, cell of j)       the rhythm of the land around, and that of all
    x(t)        = phi [ (1 - coupling) x(t - 1) + coupling W x(t - 1) ] + w(t),      w white,  phi = exp(-step / memory)

Stations stand in cells of a grid city (raytraffic.sources.synthetic), whose levels, land-use mix, rhythms M and POI they have. W is the
mean over the stations that one hears (raytraffic.graph: the k nearest, Gaussian weights), so with `coupling` what happens at a station
shows around it in the next slot, which no past of that station tells; without, stations are independent. With `environment_effect` the
shape of a station's days follows from its land use; without, all have one shape. POI counts and environment vectors tell the land use
either way, and are of use only where there is an effect. The mean variance of x is noise^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from raytraffic.graph import Neighbourhood, station_edges
from raytraffic.sources.city import City
from raytraffic.sources.synthetic import CELL_METRES, LAND_USES, SyntheticCities, SyntheticCity, law, places_of

__all__ = ["ENV_FEATURES", "PRESETS", "StationCities", "StationCity", "coupling_matrix", "environment_vectors"]

Array = NDArray[np.float64]

#: Features of an environment vector: land-use mix and density through a fixed random map, and noise.
ENV_FEATURES = 16
#: Cells of the grid to a station, about: stations stand neither in every cell nor in rows.
_CELLS = 2.0
_LAYOUT, _TRAFFIC, _NUGGET, _ENVIRONMENT = range(10, 14)  # streams beside those of the grid city


@dataclass(frozen=True, kw_only=True)
class StationCity:
    """What a city of stations is like; equal fields give equal arrays.

    stations             how many, about one in two cells of 500 m
    start                first day; weekends fall where they fall
    coupling             share of a disturbance that comes from the stations around, in [0, 1]; 0: independent stations
    environment_effect   how much of the shape of a station's days follows from the land around it, in [0, 1]; 0: nothing
    tail                 standard deviation of log-levels
    noise, nugget        standard deviations of the disturbance and of the white part of log-traffic; memory_hours of the former
    """

    name: str
    stations: int = 64
    days: int = 28
    step_minutes: int = 30
    start: date = date(2024, 1, 1)
    seed: int = 0
    coupling: float = 0.8
    environment_effect: float = 1.0
    tail: float = 1.0
    noise: float = 0.35
    nugget: float = 0.05
    memory_hours: float = 3.0
    neighbourhood: Neighbourhood = field(default_factory=Neighbourhood)

    def __post_init__(self) -> None:
        if self.stations < 1:
            raise ValueError(f"stations: {self.stations}, expected at least 1")
        for name in ("coupling", "environment_effect"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: {value}, expected a number in [0, 1]")
        _ = self.grid_city  # whose fields are checked there

    @property
    def grid_city(self) -> SyntheticCity:
        """The city in whose cells the stations stand."""
        side = math.ceil(math.sqrt(_CELLS * self.stations))
        return SyntheticCity(
            name=self.name,
            grid=(side, side),
            days=self.days,
            step_minutes=self.step_minutes,
            seed=self.seed,
            users=False,
            tail=self.tail,
            dead_share=0.0,
            noise=self.noise,
            nugget=self.nugget,
            memory_hours=self.memory_hours,
        )


#: What LEC-Diff's Table 1 tells of its two data sets: stations, days and the first of them (the half hours are the default).
PRESETS: Mapping[str, StationCity] = {
    "shanghai": StationCity(name="shanghai", stations=4505, days=31, start=date(2014, 8, 1)),
    "nanjing": StationCity(name="nanjing", stations=8000, days=58, start=date(2021, 2, 2)),
}


@dataclass(frozen=True)
class StationCities:
    """A source of synthetic cities of stations of unique names (ValueError otherwise); each is generated alone, when it is read."""

    cities: Sequence[StationCity]

    def __post_init__(self) -> None:
        names = [city.name for city in self.cities]
        if len(set(names)) < len(names):
            raise ValueError(f"cities: names {names}, expected each of them once")

    def names(self) -> Sequence[str]:
        """Names of the cities."""
        return [city.name for city in self.cities]

    def read(self, name: str) -> Iterator[City]:
        """The city of that name, as one record; ValueError for a name that is not there."""
        named = [city for city in self.cities if city.name == name]
        if not named:
            raise ValueError(f"name: {name!r}, expected one of {self.names()}")
        yield _generate(named[0])


def coupling_matrix(city: StationCity) -> csr_array:
    """W (s, s): rows sum to 1; a station that hears nobody hears itself."""
    return _coupling(city, _layout(city)[1])


def environment_vectors(city: StationCity) -> dict[str, NDArray[np.float32]]:
    """The environment vector (ENV_FEATURES,) of every site, as an image encoder might give it: its land, rotated and a little noisy."""
    cells, _ = _layout(city)
    places = places_of(city.grid_city)
    land = np.concatenate((4 * places.mix[:, cells], places.density[None, cells])).T
    # One encoder sees all cities, so its map is the same for all of them.
    rotation = np.random.Generator(np.random.Philox(key=7)).standard_normal((len(LAND_USES) + 1, ENV_FEATURES)) / math.sqrt(len(LAND_USES))
    noise = city.grid_city.generator(_ENVIRONMENT).standard_normal((city.stations, ENV_FEATURES))
    return dict(zip(_sites(city), (land @ rotation + 0.1 * noise).astype(np.float32), strict=True))


def _sites(city: StationCity) -> list[str]:
    return [f"bs{number:05d}" for number in range(city.stations)]


def _layout(city: StationCity) -> tuple[NDArray[np.int64], Array]:
    """The cells (s,) in which stations stand, no two in one, and their places (s, 2) in metres."""
    grid = city.grid_city
    generator = grid.generator(_LAYOUT)
    cells = generator.choice(grid.grid[0] * grid.grid[1], city.stations, replace=False)
    row, column = np.divmod(cells, grid.grid[1])
    corner = np.stack((column, grid.grid[0] - 1 - row), axis=1)
    return cells, (corner + generator.random((city.stations, 2))) * CELL_METRES


def _coupling(city: StationCity, xy: Array) -> csr_array:
    heard, hearing = station_edges(xy, city.neighbourhood)
    weight = np.exp(-np.sum((xy[heard] - xy[hearing]) ** 2, axis=1) / city.neighbourhood.kernel_metres**2)
    total = np.bincount(hearing, weight, minlength=city.stations)
    alone = np.flatnonzero(total == 0)
    keep = total[hearing] > 0
    share = np.concatenate((weight[keep] / total[hearing[keep]], np.ones(len(alone))))
    at = (np.concatenate((hearing[keep], alone)), np.concatenate((heard[keep], alone)))
    return csr_array((share, at), shape=(city.stations, city.stations))


def _disturbance(city: StationCity, xy: Array) -> Array:
    """x (t, s), begun long enough before slot 0 to have forgotten its beginning."""
    around, grid = _coupling(city, xy), city.grid_city
    before = math.ceil(10 * city.memory_hours * 60 / city.step_minutes)
    white = grid.generator(_TRAFFIC).standard_normal((before + grid.slots, city.stations))
    out, now = np.zeros_like(white), np.zeros(city.stations)
    for slot, fresh in enumerate(white):
        now = grid.phi * ((1 - city.coupling) * now + city.coupling * (around @ now)) + fresh
        out[slot] = now
    out = out[before:]
    return np.asarray(out * (city.noise / math.sqrt(float(np.mean(out**2)))))


def _generate(city: StationCity) -> City:
    grid = city.grid_city
    cells, xy = _layout(city)
    log_traffic = _rhythm(city, cells)
    log_traffic += places_of(grid).level_log[cells]
    log_traffic += _disturbance(city, xy)
    log_traffic += city.nugget * grid.generator(_NUGGET).standard_normal(log_traffic.shape)
    (land,) = SyntheticCities([replace(grid, days=1)]).read(city.name)  # what stands in the cells, which the days do not change
    assert land.poi is not None
    return City(
        name=city.name,
        traffic=np.exp(log_traffic, out=log_traffic).astype(np.float32)[None],
        start=datetime.combine(city.start, time()),
        step_minutes=city.step_minutes,
        sites=_sites(city),
        unit=land.unit,
        xy=xy,
        poi=land.poi[:, cells],
        poi_categories=land.poi_categories,
    )


def _rhythm(city: StationCity, cells: NDArray[np.int64]) -> Array:
    """m (t, s) of stations in those cells: that of one week, which is the same in all, from the weekday of the first day on."""
    week = replace(city.grid_city, days=7)
    rhythm = law(week).mean_log - places_of(week).level_log
    shape = city.environment_effect * rhythm[:, cells] + (1 - city.environment_effect) * rhythm.mean(axis=1, keepdims=True)
    monday = city.start.weekday() * 1440 // city.step_minutes
    return np.asarray(shape[(np.arange(city.grid_city.slots) + monday) % len(shape)])
