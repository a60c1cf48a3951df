"""Where the users of a synthetic city are, hour by hour: at home, at work, on the way through a transport hub, or out.

Everything here is made up. A user is a few constants (home, place of work, hub, three favourite places, hours of rising and of going to
bed, whether there is work to go to) and, for each day, the hazards of that day. Both are given as uniform numbers in [0, 1), so a user's
days are a function of that user's numbers alone, and all users are computed together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytraffic.sources.synthetic import LAND_USES

__all__ = ["CONSTANTS", "HAZARDS", "Life", "daily_life"]

Array = NDArray[np.float64]
Bool = NDArray[np.bool_]
Index = NDArray[np.int64]

#: Uniform numbers that a user, and that each of a user's days, takes.
CONSTANTS = 9
HAZARDS = 13
_FAVOURITES = 3
_WORKERS = 0.75
#: Metres over which the pull of a place of work, of a hub and of a favourite place on someone's home falls to 1/e.
_WORK_METRES, _HUB_METRES, _FAVOURITE_METRES = 2500.0, 800.0, 2000.0
_HOURS = np.arange(24)


@dataclass(frozen=True, kw_only=True, eq=False)
class Life:
    """place (u, t) index of each user's place in each hour; awake (u, t)."""

    place: NDArray[np.int32]
    awake: Bool


def daily_life(constants: Array, hazards: Array, first_weekday: int, *, mix: Array, density: Array, xy: Array) -> Life:
    """Days of u users from their uniform numbers, constants (u, CONSTANTS) and hazards (u, days, HAZARDS), from hour 0 of a weekday on.

    The places (p,) have a mix of LAND_USES (4, p), a density (p,) and metres (p, 2).
    """
    users, days = hazards.shape[:2]
    home, work, hub, favourites = _anchors(constants, mix, density, xy)
    weekend = (first_weekday + np.arange(days)) % 7 >= 5
    goes, leaves, stays, hungry, lunch, free, starts, lasts, where, evening, evening_starts, evening_lasts, evening_where = np.moveaxis(
        hazards, 2, 0
    )
    place = np.broadcast_to(home[:, None, None], (users, days, 24)).astype(np.int32)
    works = (constants[:, None, 6] < _WORKERS) & (goes < np.where(weekend, 0.08, 0.9))
    leave = 7.0 + 2.5 * constants[:, None, 7] + 0.8 * leaves
    back = leave + 8.5 + 2.0 * stays
    _put(place, works, leave, back - leave, work[:, None])
    _put(place, works & (hungry < 0.25), np.where(hungry < 0.1, 13.0, 12.0), 1.0, _chosen(favourites, lunch, len(density)))
    for ride in (leave, back):
        _put(place, works, ride, 1.0, hub[:, None])
    outing, start = ~works & (free < 0.65), 9.0 + 7.0 * starts
    _put(place, outing, start, 1.0 + 5.0 * lasts, _chosen(favourites, where, len(density)))
    _put(place, outing & (lasts > 0.5), start - 1.0, 1.0, hub[:, None])  # a long outing begins with a ride
    late = evening < np.where(weekend, 0.5, 0.3)
    _put(place, late, 19.0 + 2.0 * evening_starts, 1.0 + 2.5 * evening_lasts, _chosen(favourites, evening_where, len(density)))
    awake = _awake(5.5 + 3.0 * constants[:, 7], 22.0 + 3.5 * constants[:, 8])
    return Life(place=place.reshape(users, -1), awake=np.repeat(awake[:, None], days, axis=1).reshape(users, -1))


def _anchors(constants: Array, mix: Array, density: Array, xy: Array) -> tuple[Index, Index, Index, Index]:
    """Home, work, hub (u,) and favourites (u, 3): drawn by land use, density and distance from home."""
    use = {name: share**2 * np.exp(density) for name, share in zip(LAND_USES, mix, strict=True)}
    metres = np.sqrt(((xy[:, None] - xy[None]) ** 2).sum(axis=2))
    anywhere = np.zeros(len(constants), dtype=np.int64)
    home = _drawn(np.broadcast_to(use["residential"], metres.shape), anywhere, constants[:, 0])
    work = _drawn(use["business"] * np.exp(-metres / _WORK_METRES), home, constants[:, 1])
    hub = _drawn(use["transport"] * np.exp(-metres / _HUB_METRES), home, constants[:, 2])
    favourite = use["leisure"] * np.exp(-metres / _FAVOURITE_METRES)
    favourites = np.stack([_drawn(favourite, home, constants[:, 3 + i]) for i in range(_FAVOURITES)], axis=1)
    return home, work, hub, favourites


def _drawn(weights: Array, row: Index, uniform: Array) -> Index:
    """(u,) a place for each user, with the probabilities of row (u,) of weights (p, p)."""
    bound = np.cumsum(weights, axis=1)
    bound /= bound[:, -1:]
    return np.minimum((bound[row] <= uniform[:, None]).sum(axis=1), len(bound) - 1)


def _chosen(favourites: Index, uniform: Array, places: int) -> Index:
    """(u, days) one of the favourites, or in one case of four any place of the city."""
    scaled = uniform * (_FAVOURITES + 1)
    which = scaled.astype(np.int64)
    anywhere = ((scaled - which) * places).astype(np.int64)
    own = np.take_along_axis(favourites, np.minimum(which, _FAVOURITES - 1), axis=1)
    return np.where(which == _FAVOURITES, anywhere, own)


def _put(place: NDArray[np.int32], where: Bool, start: Array, hours: Array | float, target: Index) -> None:
    """Sets the hours from the one that holds `start` on, on the days that are so, to a place (u, days) or (u, 1)."""
    first = np.floor(start)[:, :, None]
    during = (first <= _HOURS) & (first + np.broadcast_to(hours, start.shape)[:, :, None] > _HOURS)
    np.copyto(place, target[:, :, None].astype(np.int32), where=during & where[:, :, None])


def _awake(rise: Array, bed: Array) -> Bool:
    """(u, 24) between the hour of rising and that of going to bed, which may lie after midnight."""
    return np.asarray((np.floor(rise)[:, None] <= _HOURS) & (bed[:, None] > _HOURS) | (bed[:, None] - 24.0 > _HOURS))
