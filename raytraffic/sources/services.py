"""Synthetic users of mobile services, whose use of services depends on where they are and on each other in a known way.

Nobody is measured here: places, users and their days are made up, and of the sessions alone the laws may be real ones (see
raytraffic.sources.session_parameters). The sessions of category c that user u starts in hour t are Poisson, given all before, of mean ::

    rate(c, t, u) = level(t, u) preference(c, u) HABIT(c, hour of day)
                    exp(environment_effect sum_l ENVIRONMENT(c, l) mix(l, place(t, u)))
                    exp(coupling (sum_c' SAME_HOUR(c, c') used(c', t, u) + sum_c' HOUR_BEFORE(c, c') used(c', t - 1, u)))

with used(c, t, u) = 1 where that user started at least one session of that category in that hour, mix(l, p) the share of land use l at a
place, preference(., u) ~ Dirichlet around the categories' shares of sessions (a scaled one: shares times Gamma(_PREFERENCE), made to sum
to 1), and level the rate of a base station of one tenth of load, drawn for the user, from the published law of its busy hours where the
user is awake and of its quiet hours where not. SAME_HOUR is strictly lower triangular, so a category depends on those before it only.

A session is of a service of its category, has a volume and, from it, a duration, and starts anywhere in its hour; what of it lies beyond
goes to the next hour. The numbers of the effects are in raytraffic.sources.service_effects. All randomness is of (seed, user), so the
first users, and the first weeks, are the same however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtri

from raytraffic.sources.city import City
from raytraffic.sources.daily_life import CONSTANTS, HAZARDS, daily_life
from raytraffic.sources.service_effects import ENVIRONMENT, HABIT, HOUR_BEFORE, SAME_HOUR
from raytraffic.sources.service_places import ServicePlaces, service_places
from raytraffic.sources.session_parameters import INVENTED, SERVICE_CATEGORIES, SessionParameters, read_parameters
from raytraffic.sources.synthetic import SyntheticCity

__all__ = ["ServiceCity", "Usage", "simulate"]

Array = NDArray[np.float64]

_C = len(SERVICE_CATEGORIES)
#: Gamma shape of a preference: a quarter of its users have less than half of the mean, a tenth more than twice.
_PREFERENCE = 2.0
#: Nobody starts more sessions of a category in an hour; it also bounds exp(-rate).
_MOST_SESSIONS = 400.0
#: A phone in the night is that much quieter than a base station, which others use.
_ASLEEP = 0.2
#: Bytes and seconds of the longest sessions; a log-normal law knows no end, and what it says beyond an hour is no duration.
_MOST_BYTES, _MOST_SECONDS = 3e9, 3600.0
#: Users that are simulated together.
_BLOCK = 500
#: Streams of a user's random numbers, and uniform numbers of a session.
_CONSTANT, _DAY, _LEVEL, _COUNT, _SESSION = range(5)
_DRAWS = 4


@dataclass(frozen=True, kw_only=True)
class ServiceCity:
    """A source of one synthetic city whose users move through its places and use mobile services; equal fields give equal arrays.

    environment_effect  in [0, 1]: how far the place where users are shifts what they use; at 0 not at all
    coupling            in [0, 1]: how far services depend on each other within an hour and from hour to hour; at 0 not at all
    sessions_per_hour   that the mean user starts in a waking hour, before the effects of place, of habit and of other services
    grid                cells of the city (rows, columns), of which four in five, those with a station, are places
    parameters          folder of published session parameters (see read_parameters); None: numbers that are made up
    """

    name: str
    users: int = 2000
    weeks: int = 1
    seed: int = 0
    environment_effect: float = 1.0
    coupling: float = 1.0
    sessions_per_hour: float = 3.0
    grid: tuple[int, int] = (10, 10)
    start: date = date(2024, 1, 1)
    parameters: str | None = None

    def __post_init__(self) -> None:
        valid = {
            "users": (self.users >= 1, "at least 1"),
            "weeks": (self.weeks >= 1, "at least 1"),
            "environment_effect": (0 <= self.environment_effect <= 1, "a number in [0, 1]"),
            "coupling": (0 <= self.coupling <= 1, "a number in [0, 1]"),
            "sessions_per_hour": (0 < self.sessions_per_hour < math.inf, "a number > 0"),
        }
        for field, (good, expected) in valid.items():
            if not good:
                raise ValueError(f"{field}: {getattr(self, field)!r}, expected {expected}")
        _ = self.land  # checks name, seed and grid

    @property
    def land(self) -> SyntheticCity:
        """The city whose land this is: its landscape can be rendered (raytraffic.environment).

        Its neighbourhoods are as small as they can be, so that a small city has places of every land use.
        """
        return SyntheticCity(name=self.name, grid=self.grid, seed=self.seed, spatial_range_cells=1.0)

    @property
    def hours(self) -> int:
        """Number of time slots."""
        return 168 * self.weeks

    @cached_property
    def layout(self) -> ServicePlaces:
        """The places, in the order of City.places."""
        return service_places(self.land)

    @cached_property
    def session_parameters(self) -> SessionParameters:
        """What sessions are like; ValueError where the folder does not hold what it should."""
        return INVENTED if self.parameters is None else read_parameters(self.parameters)

    def names(self) -> Sequence[str]:
        """The one name of this city."""
        return (self.name,)

    def read(self, name: str) -> Iterator[City]:
        """The city, one record: bytes of the 10 categories by hour and user, and the users' places; ValueError for another name."""
        if name != self.name:
            raise ValueError(f"name: {name!r}, expected {self.name!r}")
        traffic = np.empty((_C, self.hours, self.users), dtype=np.float32)
        place = np.empty((self.hours, self.users), dtype=np.int32)
        for first in range(0, self.users, _BLOCK):
            block = range(first, min(first + _BLOCK, self.users))
            usage = simulate(self, block)
            traffic[:, :, block.start : block.stop], place[:, block.start : block.stop] = usage.traffic, usage.place
        yield City(
            name=self.name,
            traffic=traffic,
            services=SERVICE_CATEGORIES,
            unit="bytes",
            start=datetime.combine(self.start, time()),
            step_minutes=60,
            sites=[f"synthetic-user-{user:06d}" for user in range(self.users)],
            place=place,
            places=self.layout.ids,
        )

    def place_poi(self) -> NDArray[np.float32]:
        """(places, 17) counts of POI around each place by LSDM_CATEGORIES (Table II)."""
        return self.layout.poi

    def place_vectors(self, d: int) -> NDArray[np.float32]:
        """(places, d) plain environment vectors, for studies without an image-text encoder: see ServicePlaces.vectors."""
        return self.layout.vectors(d)

    def generator(self, user: int, stream: int) -> np.random.Generator:
        """The random numbers of one stream of one user: Philox keyed by the seed and the user."""
        key = np.array([self.seed, user], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], dtype=np.uint64)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Usage:
    """What some users did.

    traffic     (c, t, u) float32 bytes
    sessions    (c, t, u) how many were started; rate (c, t, u) the mean that they were drawn with, given all before
    place       (t, u)
    """

    traffic: NDArray[np.float32]
    sessions: NDArray[np.int64]
    rate: Array
    place: NDArray[np.int32]


def simulate(city: ServiceCity, users: range) -> Usage:
    """What the users of these numbers do: the same whichever others are simulated with them."""
    layout, days = city.layout, 7 * city.weeks
    life = daily_life(
        _uniform(city, users, _CONSTANT, (CONSTANTS,)),
        _uniform(city, users, _DAY, (days, HAZARDS)),
        city.start.weekday(),
        mix=layout.mix,
        density=layout.density,
        xy=layout.xy,
    )
    place = np.ascontiguousarray(life.place.T)
    base = _base_rate(city, users, life.awake.T)
    shift = np.zeros((_C, len(layout.ids)))
    for use, mix in enumerate(layout.mix):  # a sum in fixed order: the same bits whatever the linear algebra library
        shift += ENVIRONMENT[:, use, None] * mix
    base *= np.exp(city.environment_effect * shift)[:, place]
    sessions, rate = _sessions(city, users, base)
    return Usage(traffic=_traffic(city, users, sessions), sessions=sessions, rate=rate, place=place)


def _base_rate(city: ServiceCity, users: range, awake: NDArray[np.bool_]) -> Array:
    """(c, t, u) rates before the effects of place and of other services."""
    parameters = city.session_parameters
    drawn = _uniform(city, users, _LEVEL, (_C + 1 + city.hours,))
    gamma = gammaincinv(_PREFERENCE, drawn[:, :_C]) * parameters.shares()
    preference = gamma / gamma.sum(axis=1, keepdims=True)
    load = (drawn[:, _C] * len(parameters.peak_mean)).astype(np.int64)
    luck = drawn[:, _C + 1 :].T
    busy = np.maximum(parameters.peak_mean[load] + parameters.peak_deviation[load] * ndtri(np.clip(luck, 1e-12, 1 - 1e-12)), 0.0)
    quiet = np.minimum(parameters.quiet_scale[load] * (1.0 - luck) ** (-1.0 / parameters.quiet_shape[load]), parameters.peak_mean[load])
    level = np.where(awake, busy, _ASLEEP * quiet) * (city.sessions_per_hour / parameters.peak_mean.mean())
    habit = np.tile(HABIT, 7 * city.weeks)
    return preference.T[:, None] * level[None] * habit[:, :, None]


def _sessions(city: ServiceCity, users: range, base: Array) -> tuple[NDArray[np.int64], Array]:
    """(c, t, u) sessions started and the rates they were drawn with, hour by hour and category by category."""
    uniform = _uniform(city, users, _COUNT, (city.hours, _C)).transpose(2, 1, 0)
    sessions, rate = np.zeros(base.shape, dtype=np.int64), np.empty(base.shape)
    before = np.zeros(base.shape[::2])
    for hour in range(city.hours):
        now = np.zeros_like(before)
        for c in range(_C):
            link = _weighted(HOUR_BEFORE[c], before) + _weighted(SAME_HOUR[c], now)
            rate[c, hour] = np.minimum(base[c, hour] * np.exp(city.coupling * link), _MOST_SESSIONS)
            sessions[c, hour] = _poisson_quantile(uniform[c, hour], rate[c, hour])
            now[c] = sessions[c, hour] > 0
        before = now
    return sessions, rate


def _weighted(weights: Array, used: Array) -> Array:
    """(u,) sum over categories of weights (c,) times used (c, u), in fixed order, so that a user's bits do not depend on the others."""
    out = np.zeros(used.shape[1])
    for source in np.flatnonzero(weights):
        out += weights[source] * used[source]
    return out


def _poisson_quantile(uniform: Array, rate: Array) -> NDArray[np.int64]:
    """(u,) the smallest k with P(Poisson(rate) <= k) >= uniform: numbers of a user make a count of that user and nobody else."""
    out = np.zeros(len(rate), dtype=np.int64)
    left = np.arange(len(rate))
    term = np.exp(-rate)
    total = term.copy()
    k = 0
    while True:
        # terms below 1e-17 no longer change the sum, which rounding may have stopped short of a number next to 1
        going = (uniform[left] > total) & ((term > 1e-17) | (k < rate[left]))
        left, term, total = left[going], term[going], total[going]
        if not len(left):
            return out
        k += 1
        term = term * rate[left] / k
        total = total + term
        out[left] = k


def _traffic(city: ServiceCity, users: range, sessions: NDArray[np.int64]) -> NDArray[np.float32]:
    """(c, t, u) bytes of these sessions, each in its hour and, as far as it lasts longer, in the next."""
    counts = np.ascontiguousarray(sessions.transpose(2, 1, 0))  # user by user and hour by hour, so that more hours only add draws
    cell = np.repeat(np.arange(counts.size), counts.ravel())
    drawn = np.concatenate(
        [city.generator(user, _SESSION).random((n, _DRAWS)) for user, n in zip(users, counts.sum(axis=(1, 2)).tolist(), strict=True)]
    )
    volume, seconds = _volumes(city.session_parameters, cell % _C, drawn)
    begin = drawn[:, 3] * 3600.0
    now = np.rint(volume * np.minimum((3600.0 - begin) / seconds, 1.0))
    out = np.bincount(cell, weights=now, minlength=counts.size).reshape(counts.shape)
    later = np.bincount(cell, weights=volume - now, minlength=counts.size).reshape(counts.shape)
    out[:, 1:] += later[:, :-1]
    return np.ascontiguousarray(out.transpose(2, 1, 0), dtype=np.float32)


def _volumes(parameters: SessionParameters, category: NDArray[np.int64], drawn: Array) -> tuple[Array, Array]:
    """(n,) whole bytes and seconds of sessions, of uniform numbers (n, 3): the service of its category, the component, the volume."""
    order = np.argsort(parameters.category, kind="stable")
    own = parameters.shares()[parameters.category[order]]
    bound = np.concatenate([np.cumsum(parameters.share[order][parameters.category[order] == c]) for c in range(_C)]) / own
    place = np.searchsorted(parameters.category[order] + np.minimum(bound, 1.0), category + drawn[:, 0], side="right")
    last = np.searchsorted(parameters.category[order], category, side="right") - 1
    service = order[np.minimum(place, last)]
    component = (np.cumsum(parameters.weight, axis=1)[service, :-1] <= drawn[:, 1, None]).sum(axis=1)
    normal = ndtri(np.clip(drawn[:, 2], 1e-12, 1 - 1e-12))
    log_volume = parameters.mean[service, component] + parameters.deviation[service, component] * normal
    volume = np.rint(10.0 ** np.clip(log_volume, 0.0, math.log10(_MOST_BYTES)))
    log_seconds = (log_volume - np.log10(parameters.scale[service])) / parameters.exponent[service]
    return volume, 10.0 ** np.clip(log_seconds, 0.0, math.log10(_MOST_SECONDS))


def _uniform(city: ServiceCity, users: range, stream: int, shape: tuple[int, ...]) -> Array:
    """(u, *shape) uniform numbers of a stream of each user; a longer first axis only adds to them."""
    return np.stack([city.generator(user, stream).random(shape) for user in users])
