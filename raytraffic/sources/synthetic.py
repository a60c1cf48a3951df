"""Synthetic cities whose conditional law is known exactly, so that a forecast can be judged against the truth.

Log-traffic of a live cell is a deterministic mean plus a Gaussian process, and small white noise::

    log y(t, s) = m(t, s) + z(t, s) + e(t, s),     m = log(level(s) * sum_u mix(u, s) * rhythm(u, t))
    cov z       = noise^2 * phi^|t - t'| * rho^(|row - row'| + |column - column'|)
    phi = exp(-step / memory),  rho = exp(-1 / range),  e ~ N(0, nugget^2)

so the hidden part of any window given any known part is Gaussian in closed form (`law`). Both kernels are exponential and
separable along time, rows and columns; their Cholesky factors are first-order recursions, so a city of any size is drawn
exactly in O(t s), without blocks, seams or matrix products (whose rounding depends on the number of threads).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve
from scipy.special import ndtr, ndtri

from raytraffic.randomness import text_key
from raytraffic.sources.city import STEP_MINUTES, City

__all__ = [
    "LAND_USES",
    "MAX_ENTRIES",
    "POI_CATEGORIES",
    "ConditionalLaw",
    "GaussianLaw",
    "Places",
    "SyntheticCities",
    "SyntheticCity",
    "law",
    "places_of",
]

Array = NDArray[np.float64]

START = datetime(2024, 1, 1)  # a Monday
CELL_METRES = 500.0
#: A window of more live entries than this is not conditioned on (dense matrices).
MAX_ENTRIES = 4096

LAND_USES = ("residential", "business", "leisure", "transport")
#: UoMo, Table 7, with the mean count in a cell of mean density that is wholly of each land use (LAND_USES).
_POI = {
    "Shopping": (4.0, 6.0, 9.0, 3.0),
    "Enterprise": (1.0, 12.0, 1.0, 2.0),
    "Restaurant": (4.0, 6.0, 9.0, 4.0),
    "Local Living": (8.0, 2.0, 2.0, 1.0),
    "Transportation": (2.0, 3.0, 2.0, 9.0),
    "Public Health": (2.5, 1.5, 0.5, 0.5),
    "Automobile": (1.0, 1.0, 0.5, 4.0),
    "Physical facilities": (1.5, 0.5, 4.0, 0.5),
    "Accommodation": (1.0, 2.0, 4.0, 3.0),
    "Finance": (1.0, 4.0, 1.0, 0.5),
    "Government organs": (0.8, 2.5, 0.5, 0.5),
    "Education": (3.0, 1.5, 0.5, 0.3),
    "Business": (1.0, 8.0, 2.0, 1.0),
    "Public facilities": (1.5, 1.0, 2.0, 2.0),
    "scenic spot": (0.2, 0.2, 3.0, 0.3),
}
POI_CATEGORIES = tuple(_POI)
#: Peaks (hour, width in hours, height) above 0.2 of each land use, on weekdays and on weekends.
_PEAKS = {
    "residential": (((8.0, 1.5, 0.4), (21.0, 3.0, 1.0)), ((12.0, 3.5, 0.6), (21.0, 3.0, 1.0))),
    "business": (((10.5, 2.0, 1.0), (15.5, 2.5, 1.0)), ((13.0, 4.0, 0.3),)),
    "leisure": (((12.5, 1.5, 0.5), (20.0, 2.5, 0.8)), ((15.0, 4.0, 1.2), (20.0, 2.5, 0.9))),
    "transport": (((8.0, 1.0, 1.3), (18.0, 1.2, 1.3)), ((11.0, 3.0, 0.5), (18.0, 3.0, 0.6))),
}
_LAYOUT, _POINTS, _TRAFFIC, _NUGGET, _USERS = range(5)  # streams: adding one output never changes another


@dataclass(frozen=True, kw_only=True)
class SyntheticCity:
    """What a synthetic city is like; equal fields give equal arrays, whatever else is generated.

    tail          standard deviation of the cells' log-levels (log-normal; at 1.0 the top tenth carries about 40 %)
    dead_share    share of cells without a station (traffic exactly 0): the least dense ones, rounded, at least one lives
    noise, nugget standard deviations of the correlated and of the white part of log-traffic
    memory_hours  after which the correlation in time has fallen to 1/e; spatial_range_cells likewise, along a row
    """

    name: str
    grid: tuple[int, int] = (8, 8)
    days: int = 14
    step_minutes: int = 30
    seed: int = 0
    users: bool = True
    tail: float = 1.0
    dead_share: float = 0.2
    spatial_range_cells: float = 2.0
    noise: float = 0.35
    nugget: float = 0.05
    memory_hours: float = 3.0

    def __post_init__(self) -> None:
        valid = {
            "name": (bool(self.name), "a name"),
            "grid": (len(self.grid) == 2 and min(self.grid) >= 1, "(rows, columns), both >= 1"),
            "days": (self.days >= 1, "at least 1"),
            "step_minutes": (self.step_minutes in STEP_MINUTES, f"one of {STEP_MINUTES}"),
            "seed": (0 <= self.seed < 2**63, "an integer in [0, 2^63)"),
            "tail": (0 <= self.tail <= 5, "a number in [0, 5]"),
            "dead_share": (0 <= self.dead_share < 1, "a number in [0, 1)"),
            "spatial_range_cells": (0 < self.spatial_range_cells < math.inf, "a number > 0"),
            "noise": (0 < self.noise <= 5, "a number in (0, 5]"),
            "nugget": (0 <= self.nugget <= 5, "a number in [0, 5]"),
            "memory_hours": (0 < self.memory_hours < math.inf, "a number > 0"),
        }
        for field, (good, expected) in valid.items():
            if not good:
                raise ValueError(f"{field}: {getattr(self, field)!r}, expected {expected}")

    @property
    def slots(self) -> int:
        """Number of time slots."""
        return self.days * 1440 // self.step_minutes

    @property
    def rho(self) -> float:
        """Correlation of neighbouring cells of a row or a column."""
        return math.exp(-1.0 / self.spatial_range_cells)

    @property
    def phi(self) -> float:
        """Correlation of neighbouring time slots."""
        return math.exp(-self.step_minutes / 60 / self.memory_hours)

    def generator(self, stream: int) -> np.random.Generator:
        """The random numbers of one stream of this city: Philox keyed by (seed, name), `stream` in the counter."""
        key = np.array([self.seed, text_key(self.name) & (2**64 - 1)], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], dtype=np.uint64)))


@dataclass(frozen=True)
class SyntheticCities:
    """A source of synthetic cities of unique names (ValueError otherwise); each is generated alone, when it is read."""

    cities: Sequence[SyntheticCity]

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


@dataclass(frozen=True, kw_only=True, eq=False)
class ConditionalLaw:
    """The exact law of a window given its known entries: log-traffic of the m hidden live entries is N(mean_log, cov_log).

    `hidden` (t, s) marks those m entries, row-major; `settled` (t, s) is the traffic elsewhere: known, or 0 in a dead cell.
    """

    hidden: NDArray[np.bool_]
    settled: Array
    mean_log: Array
    cov_log: Array

    @property
    def std_log(self) -> Array:
        """(m,) standard deviations of the hidden log-traffic."""
        return np.sqrt(np.diag(self.cov_log))

    def quantile(self, level: float) -> Array:
        """(t, s) traffic at a level in (0, 1) of each entry's own law (ValueError outside)."""
        if not 0 < level < 1:
            raise ValueError(f"level: {level}, expected a number in (0, 1)")
        return self._fill(np.exp(self.mean_log + self.std_log * ndtri(level)))

    def mean(self) -> Array:
        """(t, s) expected traffic."""
        return self._fill(np.exp(self.mean_log + 0.5 * np.diag(self.cov_log)))

    def cdf(self, traffic: Array) -> Array:
        """(m,) probability that each hidden entry is at most its value in `traffic` (t, s): the PIT, uniform for the truth."""
        with np.errstate(divide="ignore"):
            return np.asarray(ndtr((np.log(np.asarray(traffic, dtype=np.float64)[self.hidden]) - self.mean_log) / self.std_log))

    def sample(self, draws: int, generator: np.random.Generator) -> Array:
        """(n, t, s) joint draws of the window's traffic."""
        normal = generator.standard_normal((draws, len(self.mean_log)))
        return self._fill(np.exp(self.mean_log + normal @ np.linalg.cholesky(self.cov_log).T))

    def _fill(self, values: Array) -> Array:
        out = np.broadcast_to(self.settled, (*values.shape[:-1], *self.settled.shape)).copy()
        out[..., self.hidden] = values
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianLaw:
    """The law of a city's log-traffic, or of a window of it: slot (t,), row and column (s,), live (s,), mean_log (t, s).

    It is the law of traffic alone: users, which would say more, are not conditioned on. Which cells are dead is given.
    """

    city: SyntheticCity
    slot: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    live: NDArray[np.bool_]
    mean_log: Array

    def window(self, slots: slice | NDArray[np.int64], cells: slice | NDArray[np.int64]) -> GaussianLaw:
        """The law of some slots and some cells (row-major indices >= 0, ValueError otherwise), such as one tile's."""
        if not isinstance(cells, slice) and np.min(cells) < 0:
            raise ValueError(f"cells: {int(np.min(cells))}, expected indices >= 0 (leave a tile's missing cells out)")
        slot, row, column, live = self.slot[slots], self.row[cells], self.column[cells], self.live[cells]
        return replace(self, slot=slot, row=row, column=column, live=live, mean_log=self.mean_log[slots][:, cells])

    def covariance(self) -> Array:
        """(n, n) covariance of the log-traffic of all n = t s entries (dead cells as if they lived), row-major."""
        if self.mean_log.size > MAX_ENTRIES:
            raise ValueError(f"window: {self.mean_log.shape} has {self.mean_log.size} entries, expected at most {MAX_ENTRIES}")
        steps = np.abs(self.row[:, None] - self.row) + np.abs(self.column[:, None] - self.column)
        in_time = self.city.phi ** np.abs(self.slot[:, None] - self.slot).astype(np.float64)
        in_space = self.city.rho ** steps.astype(np.float64)
        return self.city.noise**2 * np.kron(in_time, in_space) + self.city.nugget**2 * np.eye(self.mean_log.size)

    def condition(self, known: NDArray[np.bool_], traffic: NDArray[np.floating]) -> ConditionalLaw:
        """The law given the entries of `traffic` (t, s) where `known` (t, s); the others are not looked at.

        Raises ValueError where shapes differ, a known entry of a live cell is not > 0, or the window is too large.
        """
        shape = self.mean_log.shape
        if known.shape != shape or traffic.shape != shape:
            raise ValueError(f"known, traffic: shapes {known.shape} and {traffic.shape}, expected {shape}")
        live = np.broadcast_to(self.live, shape)
        given, asked = (known & live).ravel(), (~known & live).ravel()
        values = traffic.ravel()[given].astype(np.float64)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError("traffic: a known entry of a live cell is not finite or not > 0, expected this city's own traffic")
        covariance, mean = self.covariance(), self.mean_log.ravel()
        mean_log, cov_log = mean[asked], covariance[np.ix_(asked, asked)]
        if given.any() and asked.any():
            factor = (np.linalg.cholesky(covariance[np.ix_(given, given)]), True)
            cross = covariance[np.ix_(given, asked)]
            gain = cho_solve(factor, cross).T
            mean_log = mean_log + gain @ (np.log(values) - mean[given])
            cov_log = cov_log - gain @ cross
        settled = np.where(known & live, traffic, 0.0).astype(np.float64)
        return ConditionalLaw(hidden=asked.reshape(shape), settled=settled, mean_log=mean_log, cov_log=(cov_log + cov_log.T) / 2)


def law(city: SyntheticCity) -> GaussianLaw:
    """The exact law of a whole city's log-traffic; take its `window` before conditioning."""
    return _law(city, places_of(city))


@dataclass(frozen=True, eq=False)
class Places:
    """What does not change in time: land-use mix (u, s), density and log-level (s,), live (s,)."""

    mix: Array
    density: Array
    level_log: Array
    live: NDArray[np.bool_]


def places_of(city: SyntheticCity) -> Places:
    generator = city.generator(_LAYOUT)
    cells = city.grid[0] * city.grid[1]
    fields = generator.standard_normal((len(LAND_USES) + 1, *city.grid))
    own, luck = generator.standard_normal((2, cells))
    neighbour = math.exp(-0.5 / max(city.spatial_range_cells, 1.0))  # neighbourhoods are larger than bursts of traffic
    fields = _recursion(_recursion(fields, neighbour, 1), neighbour, 2).reshape(-1, cells)
    density, weight = fields[0], np.exp(1.5 * fields[1:])
    live = np.ones(cells, dtype=np.bool_)
    dead = min(math.floor(city.dead_share * cells + 0.5), cells - 1)
    live[np.argsort(density + 0.3 * luck, kind="stable")[:dead]] = False
    return Places(mix=weight / weight.sum(axis=0), density=density, level_log=city.tail * (0.8 * density + 0.6 * own), live=live)


def _law(city: SyntheticCity, places: Places) -> GaussianLaw:
    rhythm = _rhythm(city)
    shape = np.zeros((city.slots, len(places.live)))
    for use in range(len(LAND_USES)):  # a sum of few terms in fixed order: the same bits whatever the linear algebra library
        shape += rhythm[use][:, None] * places.mix[use]
    megabytes = 200.0 * city.step_minutes / 60
    row, column = np.divmod(np.arange(len(places.live)), city.grid[1])
    return GaussianLaw(
        city=city,
        slot=np.arange(city.slots),
        row=row,
        column=column,
        live=places.live,
        mean_log=math.log(megabytes) + places.level_log + np.log(shape),
    )


def _rhythm(city: SyntheticCity) -> Array:
    """(u, t) activity of each land use in the middle of each slot."""
    hour = (np.arange(city.slots) + 0.5) * city.step_minutes / 60
    weekend = (hour // 24).astype(np.int64) % 7 >= 5
    out = np.empty((len(LAND_USES), city.slots))
    for i, use in enumerate(LAND_USES):
        days = [sum(h * np.exp(-0.5 * (((hour - at + 12) % 24 - 12) / width) ** 2) for at, width, h in peaks) for peaks in _PEAKS[use]]
        out[i] = 0.2 + np.where(weekend, days[1], days[0])
    return out


def _generate(city: SyntheticCity) -> City:
    places = places_of(city)
    truth = _law(city, places)
    mean_log, row, column = truth.mean_log, truth.row, truth.column
    z = city.noise * _process(city, _TRAFFIC)
    white = city.nugget * city.generator(_NUGGET).standard_normal(mean_log.shape)
    traffic = np.where(places.live, np.exp(mean_log + z + white), 0.0)
    users = None
    if city.users:
        # sublinear in traffic, with a process of its own: correlated with traffic, and no copy of it
        users = np.where(places.live, np.exp(1.0 + 0.7 * (mean_log + z) + 0.15 * _process(city, _USERS)), 0.0).astype(np.float32)
    mean_counts = np.exp(0.8 * places.density) * (np.array(list(_POI.values()))[:, :, None] * places.mix).sum(axis=1)
    return City(
        name=city.name,
        traffic=traffic.astype(np.float32)[None],
        start=START,
        step_minutes=city.step_minutes,
        sites=[f"r{i}c{j}" for i, j in zip(row, column, strict=True)],
        unit="MB",
        grid=city.grid,
        xy=np.stack([(column + 0.5) * CELL_METRES, (city.grid[0] - row - 0.5) * CELL_METRES], axis=1),
        users=users,
        poi=city.generator(_POINTS).poisson(mean_counts).astype(np.float32),
        poi_categories=POI_CATEGORIES,
    )


def _process(city: SyntheticCity, stream: int) -> Array:
    """(t, s) Gaussian process of unit variance with the city's correlations."""
    white = city.generator(stream).standard_normal((city.slots, *city.grid))
    return _recursion(_recursion(_recursion(white, city.phi, 0), city.rho, 1), city.rho, 2).reshape(city.slots, -1)


def _recursion(white: Array, correlation: float, axis: int) -> Array:
    """White noise made a stationary first-order autoregression along an axis: the Cholesky factor of correlation^|i - j|."""
    out = np.moveaxis(white.copy(), axis, 0)
    innovation = math.sqrt(1.0 - correlation**2)
    for i in range(1, len(out)):
        out[i] = correlation * out[i - 1] + innovation * out[i]
    return np.moveaxis(out, 0, axis)
