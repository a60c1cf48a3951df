"""Stations whose own rows are at fault: the error that carries all of them, and what a reader notes of those it leaves out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FaultyStationsError", "Label", "Refused"]


@dataclass(frozen=True)
class Label:
    """What messages call a table: its role and, where it was read from a file, that file."""

    role: str
    file: str | None = None

    def __str__(self) -> str:
        return self.role if self.file is None else f"{self.role} ({self.file})"


class FaultyStationsError(ValueError):
    """Rows of some stations are at fault, all in one way; `stations` are their (unique_id, reason), sorted.

    The message names the table's file and its first fault. A reason is the message that its station alone would have
    caused, without the file.
    """

    stations: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, label: Label, faults: Mapping[str, str], first: str | None = None) -> FaultyStationsError:
        """The error of these faults by station; `first` is the one its message names, the first station's unless given."""
        error = cls(f"{label}: {first or next(iter(faults.values()))}")
        error.stations = tuple(sorted((station, f"{label.role}: {fault}") for station, fault in faults.items()))
        return error

    @classmethod
    def of_rows(
        cls,
        label: Label,
        ids: Sequence[str],
        station: NDArray[np.int64],
        bad: NDArray[np.bool_],
        fault: Callable[[int], str],
        first: int | None = None,
    ) -> FaultyStationsError:
        """The error of `bad` rows (n,), not none, of stations that `station` (n,) indexes; `fault` says what is wrong with a row.

        A station's reason is its first bad row; the message names row `first`, the table's first bad one unless given.
        """
        rows = np.flatnonzero(bad)
        stations, own = np.unique(station[rows], return_index=True)
        faults = {ids[i]: fault(row) for i, row in zip(stations.tolist(), rows[own].tolist(), strict=True)}
        return cls.of(label, faults, fault(int(rows[0]) if first is None else first))


class Refused:
    """The stations that one reading leaves out, `reasons` by id; without `skip` the first fault found ends the reading."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.reasons: dict[str, str] = {}

    def note(self, fault: FaultyStationsError) -> None:
        """Adds the stations, those known already with their earlier reason; without `skip` the fault is raised."""
        if not self.skip:
            raise fault
        for station, reason in fault.stations:
            self.reasons.setdefault(station, reason)
