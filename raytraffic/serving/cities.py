"""The cities a server has measured: their statistics from a prepared store."""

from __future__ import annotations

from functools import cached_property

from raytraffic.store import CityStatistics, Store, open_store

__all__ = ["Cities"]


class Cities:
    """What the server knows of cities, from the prepared store in a folder (or s3:// URL), or nothing where there is none."""

    def __init__(self, store: str | None) -> None:
        self._location = store

    @cached_property
    def store(self) -> Store | None:
        """The open store."""
        return None if self._location is None else open_store(self._location)

    @cached_property
    def _statistics(self) -> dict[str, CityStatistics | None]:
        return {} if self.store is None else self.store.statistics("all")

    @property
    def names(self) -> tuple[str, ...]:
        """The cities, sorted."""
        return tuple(sorted(self._statistics))

    def statistics(self, city: str | None) -> CityStatistics | None:
        """What was measured of a city; None for no city, and for one in which nothing was."""
        return None if city is None else self._statistics[city]
