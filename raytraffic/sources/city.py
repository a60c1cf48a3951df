"""The one record every source yields: a city (or one period of it) as traffic series with their place and context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["STEP_MINUTES", "City", "Source"]

#: Minutes in a day that a step may have; a day holds a whole number of slots.
STEP_MINUTES = (5, 10, 15, 20, 30, 60)


@dataclass(frozen=True, kw_only=True, eq=False)
class City:
    """Traffic of one city over one period (axes: c service, t time slot, s cell or station, k POI category).

    name, period     "nanchang", "train": several records of one name are several periods of the same places
    traffic          (c, t, s) float32, physical units, >= 0, NaN where nothing was measured
    services, unit   names of the c channels, unit of the traffic
    start            local wall-clock time of slot 0 (naive), on a whole step; step_minutes one of STEP_MINUTES
    sites            s identifiers, unique within the city
    grid             (h, w) with s = h * w, row-major; None for stations
    xy               (s, 2) metres in a local projection, or None where only the grid is known
    users            (t, s) active users, NaN where not measured, or None
    poi              (k, s) counts with their poi_categories, or None
    tiles            (m, h * w) index into s of the tiles the series is cut into, -1 for "no cell there", with
                     tile_shape (h, w) and m tile_ids that name the PLACE (equal ids in two periods = the same place);
                     None lets the store cut the grid into tiles, or make a tile of each station or of neighbouring ones
    place            (t, s) int32 where a user who moves is, an index into places, -1 where that is unknown; None where nobody moves
    places           the names of those places, unique within the city
    refused          (unique_id, reason) of the stations that the source left out because their own rows are at fault
    """

    name: str
    traffic: NDArray[np.float32]
    start: datetime
    step_minutes: int
    sites: Sequence[str]
    period: str = "all"
    services: Sequence[str] = ("traffic",)
    unit: str = "unknown"
    grid: tuple[int, int] | None = None
    xy: NDArray[np.float64] | None = None
    users: NDArray[np.float32] | None = None
    poi: NDArray[np.float32] | None = None
    poi_categories: Sequence[str] = ()
    tiles: NDArray[np.int64] | None = None
    tile_shape: tuple[int, int] | None = None
    tile_ids: Sequence[str] | None = None
    place: NDArray[np.int32] | None = None
    places: Sequence[str] = ()
    refused: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        self._check_traffic()
        self._check_context()
        self._check_tiles()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, t, s)."""
        c, t, s = self.traffic.shape
        return c, t, s

    def _expect(self, field: str, got: object, expected: object) -> None:
        if got != expected:
            raise ValueError(f"{self.name}.{field}: {got}, expected {expected}")

    def _check_traffic(self) -> None:
        if self.traffic.ndim != 3 or 0 in self.traffic.shape:
            raise ValueError(f"{self.name}.traffic: shape {self.traffic.shape}, expected (service, time, space), none of them empty")
        c, _, s = self.traffic.shape
        self._expect("traffic dtype", str(self.traffic.dtype), "float32")
        if np.isinf(self.traffic).any() or (self.traffic < 0).any():
            raise ValueError(f"{self.name}.traffic: holds negative or infinite values, expected values >= 0 or NaN")
        if np.isnan(self.traffic).all():
            raise ValueError(f"{self.name}.traffic: every value is NaN, expected at least one measurement")
        self._expect("services", len(self.services), c)
        self._expect("sites", len(self.sites), s)
        self._expect("sites (unique)", len(set(self.sites)), s)
        if self.step_minutes not in STEP_MINUTES:
            raise ValueError(f"{self.name}.step_minutes: {self.step_minutes}, expected one of {STEP_MINUTES}")
        minutes = self.start.hour * 60 + self.start.minute
        if self.start.tzinfo is not None or self.start.second or self.start.microsecond or minutes % self.step_minutes:
            expected = f"a local time without zone on a whole {self.step_minutes}-minute step"
            raise ValueError(f"{self.name}.start: {self.start.isoformat()}, expected {expected}")

    def _check_context(self) -> None:
        _, t, s = self.traffic.shape
        if self.grid is not None:
            self._expect("grid cells", self.grid[0] * self.grid[1], s)
        if self.xy is not None:
            self._expect("xy shape", self.xy.shape, (s, 2))
        if self.users is not None:
            self._expect("users shape", self.users.shape, (t, s))
        if self.poi is not None:
            self._expect("poi shape", self.poi.shape, (len(self.poi_categories), s))
            if not np.isfinite(self.poi).all() or (self.poi < 0).any():
                raise ValueError(f"{self.name}.poi: holds negative or non-finite counts, expected counts >= 0")

        self._check_places()

    def _check_places(self) -> None:
        self._expect("places (unique)", len(set(self.places)), len(self.places))
        if self.place is None:
            return
        self._expect("place shape", self.place.shape, self.traffic.shape[1:])
        self._expect("place dtype", str(self.place.dtype), "int32")
        if self.place.min() < -1 or self.place.max() >= len(self.places):
            found = f"{self.place.min()}..{self.place.max()}"
            raise ValueError(f"{self.name}.place: indices {found}, expected -1..{len(self.places) - 1}, those of places")

    def _check_tiles(self) -> None:
        if self.tiles is None:
            return
        if self.tile_shape is None or self.tile_ids is None:
            raise ValueError(f"{self.name}.tiles: given without tile_shape and tile_ids, expected all three")
        cells = self.tile_shape[0] * self.tile_shape[1]
        self._expect("tiles shape", self.tiles.shape, (len(self.tile_ids), cells))
        self._expect("tile_ids (unique)", len(set(self.tile_ids)), len(self.tile_ids))
        if self.tiles.min() < -1 or self.tiles.max() >= self.shape[2]:
            raise ValueError(f"{self.name}.tiles: indices {self.tiles.min()}..{self.tiles.max()}, expected -1..{self.shape[2] - 1}")


class Source(Protocol):
    """A place traffic comes from; it lists its cities cheaply and reads one of them at a time."""

    def names(self) -> Sequence[str]:
        """Names of the cities, without reading their traffic."""
        ...

    def read(self, name: str) -> Iterator[City]:
        """The city's records, one a period (usually one)."""
        ...
