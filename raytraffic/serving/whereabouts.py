"""Where users are, slot by slot, as a request says it: names of places, whose environment the server's store knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raytraffic.serving.known import KnownCity
from raytraffic.serving.refused import Refused

__all__ = ["Whereabouts", "check_places"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Whereabouts:
    """The `names` of places, each once, and which of them each user is at: `place` (t, s), -1 where that is unknown."""

    names: tuple[str, ...]
    place: NDArray[np.int32]

    @classmethod
    def of(cls, names: pa.Array, stations: int) -> Whereabouts:
        """What one text a slot says, or null, the slots of a station side by side."""
        coded = names.dictionary_encode()
        place = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        return cls(names=tuple(coded.dictionary.to_pylist()), place=place.reshape(stations, -1).T)

    @property
    def slots(self) -> int:
        """How many slots are spoken of."""
        return len(self.place)


def check_places(places: Whereabouts, city: str | None, known: KnownCity | None) -> None:
    """Refused, by the path of the first, for places of which the server's store knows nothing."""
    if known is None:
        raise Refused.of(["places"], "given without city", "the city whose places they are")
    if known.surroundings is None:
        raise Refused.of(["places"], f"of city {city!r}", "a city whose environment vectors the server has")
    strange = np.flatnonzero([not known.has_place(name) for name in places.names])
    if len(strange):
        station, slot = (int(i) for i in np.argwhere(np.isin(places.place.T, strange))[0])
        name = places.names[places.place[slot, station]]
        raise Refused.of(["places", station, slot], repr(name[:40]), f"null or a place of city {city!r}")
