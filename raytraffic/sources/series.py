"""Compact series files, one npz a city and period, of patches of grid cells; and how patches become one City.

The UoMo release has neither dates nor coordinates. Its weekday 0, slot 0 is taken as Monday 2001-01-01 00:00, and a patch is
recognised by its POI counts: they are bit-equal wherever the same place appears again in another period.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytraffic.files import Location
from raytraffic.sources.city import STEP_MINUTES, City

__all__ = ["MONDAY", "PERIODS", "SeriesFiles", "check_name", "matching_files", "patch_city", "place_ids", "read_arrays", "read_step"]

#: Stands for weekday 0, slot 0 where a source has weekdays but no dates.
MONDAY = datetime(2001, 1, 1)
#: Usual periods, in the order in which they are read; others follow by name.
PERIODS = ("train", "val", "test")

_FILE = re.compile(r"(?P<city>.+)_(?P<period>[^_]+)\.npz")


@dataclass(frozen=True)
class SeriesFiles:
    """Files `<city>_<period>.npz` in a folder: one City a file, of p patches of h x w cells (s = p * h * w, a tile a patch).

    A file holds `traffic` (p, t, h, w), `start_weekday_slot` (2,) = [weekday (0 = Monday), slot of day] of step 0,
    `step_minutes`, and optionally `users` (p, t, h, w) and `poi` (p, k, h, w). Tile ids are those of `place_ids`.
    """

    folder: str | Path

    def names(self) -> Sequence[str]:
        """The cities, sorted; ValueError where the folder holds no such file."""
        return sorted({match["city"] for match, _ in self._files()})

    def read(self, name: str) -> Iterator[City]:
        """One record a period: train, val, test, then others by name; ValueError names the file and what it lacks."""
        check_name(name, self.names(), self.folder)
        files = {match["period"]: path for match, path in self._files() if match["city"] == name}
        steps = {path.name: read_step(path) for path in files.values()}
        if len(set(steps.values())) > 1:
            raise ValueError(f"{self.folder}: step_minutes {steps}, expected one step in all periods of {name!r}")
        for period in sorted(files, key=lambda each: (PERIODS.index(each) if each in PERIODS else len(PERIODS), each)):
            yield _read_city(name, period, files[period])

    def _files(self) -> list[tuple[re.Match[str], Location]]:
        return matching_files(self.folder, _FILE, "<city>_<period>.npz")


def _read_city(name: str, period: str, path: Location) -> City:
    arrays = read_arrays(path, ("traffic", "start_weekday_slot"), ("users", "poi"))
    traffic, start = arrays["traffic"], arrays["start_weekday_slot"]
    if traffic.ndim != 4:
        raise ValueError(f"{path}: traffic: shape {traffic.shape}, expected (patch, time, row, column)")
    patches, _, h, w = traffic.shape
    users, poi = arrays.get("users"), arrays.get("poi")
    if users is not None and users.shape != traffic.shape:
        raise ValueError(f"{path}: users: shape {users.shape}, expected that of traffic {traffic.shape}")
    if poi is not None and (poi.ndim != 4 or (poi.shape[0], *poi.shape[2:]) != (patches, h, w)):
        raise ValueError(f"{path}: poi: shape {poi.shape}, expected ({patches}, category, {h}, {w})")
    step = read_step(path)
    slots = 24 * 60 // step
    if start.shape != (2,) or start.dtype.kind not in "iu" or not (0 <= start[0] < 7 and 0 <= start[1] < slots):
        raise ValueError(f"{path}: start_weekday_slot: {start.tolist()}, expected [weekday 0..6, slot 0..{slots - 1}]")
    try:
        return patch_city(name, period, traffic, users, poi, first_slot=int(start[0]) * slots + int(start[1]), step_minutes=step)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def patch_city(
    name: str,
    period: str,
    traffic: NDArray[Any],
    users: NDArray[Any] | None,
    poi: NDArray[Any] | None,
    *,
    first_slot: int,
    step_minutes: int,
) -> City:
    """A City of traffic and users (p, t, h, w) and poi (p, k, h, w), patch by patch and row-major within each.

    `first_slot` is the slot of the week of step 0, in steps of `step_minutes`; ValueError is City's own.
    """
    patches, _, h, w = traffic.shape
    ids = place_ids(poi, patches)
    return City(
        name=name,
        period=period,
        traffic=_by_cell(traffic)[None],
        start=MONDAY + timedelta(minutes=first_slot * step_minutes),
        step_minutes=step_minutes,
        sites=[f"{tile}/r{row}c{column}" for tile in ids for row in range(h) for column in range(w)],
        users=None if users is None else _by_cell(users),
        poi=None if poi is None else _by_cell(poi),
        poi_categories=() if poi is None else [f"poi_{category:02d}" for category in range(poi.shape[1])],
        tiles=np.arange(patches * h * w, dtype=np.int64).reshape(patches, h * w),
        tile_shape=(h, w),
        tile_ids=ids,
    )


def place_ids(poi: NDArray[Any] | None, patches: int) -> list[str]:
    """An id a patch: "p" and the BLAKE2b digest (8 bytes, hex) of its POI (k, h, w) as float32, so equal POI are the same place.

    The second and later patches of one digest get "-2", "-3" ... in their order. Without POI a place cannot be recognised
    in another period, and its id is only its number, `patch-00`.
    """
    if poi is None:
        return [f"patch-{patch:02d}" for patch in range(patches)]
    seen: Counter[str] = Counter()
    ids = []
    for counts in np.ascontiguousarray(poi, dtype="<f4"):
        digest = "p" + blake2b(counts.tobytes(), digest_size=8).hexdigest()
        seen[digest] += 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids


def _by_cell(patches: NDArray[Any]) -> NDArray[np.float32]:
    """(p, n, h, w) as float32 (n, p * h * w)."""
    return np.ascontiguousarray(patches.transpose(1, 0, 2, 3).reshape(patches.shape[1], -1), dtype=np.float32)


def matching_files(folder: str | Path, pattern: re.Pattern[str], meaning: str) -> list[tuple[re.Match[str], Location]]:
    """Files of a folder whose whole name matches, sorted by name; ValueError where there is none."""
    place = Location.of(folder)
    found = [(match, path) for path in (place.list() if place.is_folder() else []) if (match := pattern.fullmatch(path.name))]
    if not found:
        raise ValueError(f"{folder}: no such file in it, expected a folder of files {meaning}")
    return found


def check_name(name: str, names: Sequence[str], where: str | Path | Location) -> None:
    """ValueError where `name` is none of a source's cities."""
    if name not in names:
        raise ValueError(f"{where}: no city {name!r}, expected one of {list(names)}")


def read_step(path: Location) -> int:
    """The `step_minutes` of an npz file."""
    step = read_arrays(path, ("step_minutes",))["step_minutes"]
    if step.size != 1 or step.dtype.kind not in "iu" or int(step.item()) not in STEP_MINUTES:
        raise ValueError(f"{path}: step_minutes: {step.tolist()}, expected one of {STEP_MINUTES}")
    return int(step.item())


def read_arrays(path: Location, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """The named arrays of an npz file (those of `optional` that it has); ValueError where it is damaged or lacks one."""
    try:
        with path.open_file() as file, np.load(file, allow_pickle=False) as archive:
            present = list(archive)
            arrays = {key: archive[key] for key in (*required, *optional) if key in present}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file, expected an npz file") from error
    except Exception as error:  # on a damaged file numpy raises anything from BadZipFile to tokenize.TokenError
        raise ValueError(f"{path}: cannot be read, expected a whole npz file without pickled objects ({error})") from error
    for key in required:
        if key not in arrays:
            raise ValueError(f"{path}: {key}: not in the file, expected {list(required)} (it has {present})")
    for key, array in arrays.items():
        if array.dtype.kind not in "iufU":
            raise ValueError(f"{path}: {key}: dtype {array.dtype}, expected numbers")
    return arrays
