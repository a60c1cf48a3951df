"""The UoMo release (github.com/tsinghua-fib-lab/UoMo): 64-step windows of 4 x 4 cells in JSON, rebuilt into the series they came from.

Of each patch the release holds the W = 7 * slots-a-day windows that start at every slot of a week, in shuffled order::

    x[a + k] = window_a[k],   a = 0 .. W - 1,   k = 0 .. 63

so sorting them by start slot gives one series of W + 63 steps, in which every step is told by up to 64 windows.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytraffic.files import Location
from raytraffic.sources.city import STEP_MINUTES, City
from raytraffic.sources.series import PERIODS, check_name, matching_files, patch_city

__all__ = ["CITIES", "WINDOW", "UomoRelease", "join_windows"]

#: Steps of a published window.
WINDOW = 64
#: The release's codes of its cities; any other code is a city of that name in lower case.
CITIES: Mapping[str, str] = MappingProxyType({"NC": "nanchang", "NJ": "nanjing", "SD": "shandong"})

_SIDE = 4
_FILE = re.compile(r".*Traffic(?P<city>[A-Z]{2})_(?P<kind>short64|user64|poi64)\.json(\.gz)?")


@dataclass(frozen=True)
class UomoRelease:
    """The release's files in a folder, plain or gzipped: `24_Traffic{C}_short64.json`, `Traffic{C}_user64.json`, `Traffic{C}_poi64.json`.

    Traffic and users hold `X_train`, `X_val`, `X_test` (1, N, 64, 4, 4) and `timestamps` of train, val, test (N, 64, 2) =
    [weekday, slot of day]; POI `X_*` (N, k, 4, 4), constant within a patch. Users and POI may be absent. A City a period,
    with the patches as tiles of 4 x 4 cells, ids by `place_ids`, float32. ValueError names the file, period, patch and
    window (counted in the file's order) that is not as described, or where two windows that overlap differ in any bit.

    Memory: one file is parsed at a time and each split dropped once it is joined; the peak, measured, is 81 bytes for each
    number of the largest file (1 GB for the 13 million of Nanchang's traffic).
    """

    folder: str | Path

    def names(self) -> Sequence[str]:
        """The cities, sorted, of which there is a traffic file; ValueError where no file is the release's."""
        return sorted(CITIES.get(code, code.lower()) for code, kinds in self._files().items() if "short64" in kinds)

    def read(self, name: str) -> Iterator[City]:
        """The city's periods train, val and test."""
        check_name(name, self.names(), self.folder)
        code = next(code for code in self._files() if CITIES.get(code, code.lower()) == name)
        files = self._files()[code]
        traffic, slots = _read_series(files["short64"])
        users, poi = None, None
        if "user64" in files:
            users, user_slots = _read_series(files["user64"])
            for period in PERIODS:
                if (users[period].shape, user_slots) != (traffic[period].shape, slots):
                    got = f"X_{period}: {len(users[period])} patches of {user_slots} slots a day"
                    raise ValueError(f"{files['user64']}: {got}, expected {len(traffic[period])} of {slots} as in {files['short64'].name}")
        if "poi64" in files:
            poi = _read_poi(files["poi64"], {period: len(traffic[period]) for period in PERIODS}, 7 * slots)
        for period in PERIODS:
            yield patch_city(
                name,
                period,
                traffic[period],
                None if users is None else users[period],
                None if poi is None else poi[period],
                first_slot=0,
                step_minutes=24 * 60 // slots,
            )

    def _files(self) -> dict[str, dict[str, Location]]:
        """City code and kind to file."""
        files: dict[str, dict[str, Location]] = {}
        for match, path in matching_files(self.folder, _FILE, "24_Traffic<CITY>_short64.json (or .json.gz)"):
            kinds = files.setdefault(match["city"], {})
            if match["kind"] in kinds:
                raise ValueError(f"{path}: a second {match['kind']} file of {match['city']}, expected only {kinds[match['kind']].name}")
            kinds[match["kind"]] = path
        return files


def join_windows(values: NDArray[np.float64], clock: NDArray[np.int64], label: str) -> tuple[NDArray[np.float64], int]:
    """Series (p, W + 63, h, w) of windows (p * W, 64, h, w) with clock (p * W, 64, 2) = [weekday, slot], and slots a day.

    Exact: each window is a slice of its series bit for bit. ValueError, beginning with `label`, where it cannot be so.
    """
    slots = int(clock[..., 1].max()) + 1
    if 24 * 60 % slots or 24 * 60 // slots not in STEP_MINUTES:
        raise ValueError(f"{label}: {slots} slots a day in timestamps, expected a step of {STEP_MINUTES} minutes")
    week = 7 * slots
    if len(values) % week:
        raise ValueError(f"{label}: {len(values)} windows, expected whole patches of {week} (one a slot of the week)")
    patches = len(values) // week
    order = _order(clock, slots, label).reshape(patches, week)
    first = np.arange(patches)[:, None] * week
    windows = values[first + order]
    series = np.concatenate([windows[:, :, 0], windows[:, -1, 1:]], axis=1)
    for step in range(WINDOW):
        differs = windows[:, :, step].view(np.int64) != np.ascontiguousarray(series[:, step : step + week]).view(np.int64)
        if differs.any():
            patch, start, row, column = (int(i) for i in np.argwhere(differs)[0])
            other = min(start + step, week - 1)
            where = f"{label}: patch {patch}, window {patch * week + order[patch, start]}, step {step}, row {row}, column {column}"
            told = f"window {patch * week + order[patch, other]} tells of the same slot"
            got, expected = windows[patch, start, step, row, column], windows[patch, other, start + step - other, row, column]
            raise ValueError(f"{where}: {got!r}, expected {expected!r} as {told}")
    return series, slots


def _order(clock: NDArray[np.int64], slots: int, label: str) -> NDArray[np.int64]:
    """(p * W,) for each patch the numbers, within it, of its windows by start slot; ValueError where they are not one a slot."""
    week = 7 * slots
    slot_of_week = clock[..., 0] * slots + clock[..., 1]
    starts = slot_of_week[:, 0]
    valid = (clock >= 0).all(axis=(1, 2)) & (clock[..., 0] < 7).all(axis=1)
    valid &= (slot_of_week == (starts[:, None] + np.arange(WINDOW)) % week).all(axis=1)
    if not valid.all():
        window = int(valid.argmin())
        raise ValueError(f"{label}: patch {window // week}, window {window}: timestamps do not run slot by slot, expected [weekday, slot]")
    order = np.argsort(starts.reshape(-1, week), axis=1, kind="stable")
    again = np.take_along_axis(starts.reshape(-1, week), order, axis=1) != np.arange(week)
    if again.any():
        patch = int(again.any(axis=1).argmax())
        seen, counts = np.unique(starts.reshape(-1, week)[patch], return_counts=True)
        twice = int(seen[counts.argmax()])
        window = patch * week + int(np.flatnonzero(starts.reshape(-1, week)[patch] == twice)[1])
        raise ValueError(f"{label}: patch {patch}, window {window}: start slot {twice} again, expected each of the week's {week} once")
    return order.ravel()


def _read_series(path: Location) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Series (p, t, 4, 4) of each period, and slots a day."""
    document = _read_json(path)
    stamps = _take(document, "timestamps", f"{path}: ")
    if not isinstance(stamps, dict):
        raise ValueError(f"{path}: timestamps: {type(stamps).__name__}, expected an object of train, val and test")
    series: dict[str, NDArray[np.float32]] = {}
    slots: dict[str, int] = {}
    for period in PERIODS:
        label = f"{path}: X_{period}"
        values = _numbers(_take(document, f"X_{period}", f"{path}: "), label)
        if values.ndim != 5 or values.shape != (1, values.shape[1], WINDOW, _SIDE, _SIDE):
            raise ValueError(f"{label}: shape {values.shape}, expected (1, N, {WINDOW}, {_SIDE}, {_SIDE})")
        clock = _numbers(_take(stamps, period, f"{path}: timestamps."), f"{path}: timestamps.{period}")
        if clock.shape != (values.shape[1], WINDOW, 2) or (clock % 1).any():
            raise ValueError(f"{path}: timestamps.{period}: shape {clock.shape}, expected whole numbers ({values.shape[1]}, {WINDOW}, 2)")
        joined, slots[period] = join_windows(values[0], clock.astype(np.int64), label)
        series[period] = joined.astype(np.float32)
    if len(set(slots.values())) > 1:
        raise ValueError(f"{path}: timestamps: slots a day {slots}, expected one step in all periods")
    return series, slots[PERIODS[0]]


def _read_poi(path: Location, patches: Mapping[str, int], week: int) -> dict[str, NDArray[np.float32]]:
    """POI (p, k, 4, 4) of each period, told once a window in the file."""
    document = _read_json(path)
    poi: dict[str, NDArray[np.float32]] = {}
    for period in PERIODS:
        label = f"{path}: X_{period}"
        values = _numbers(_take(document, f"X_{period}", f"{path}: "), label)
        if values.ndim != 4 or values.shape != (patches[period] * week, values.shape[1], _SIDE, _SIDE):
            raise ValueError(f"{label}: shape {values.shape}, expected ({patches[period] * week}, category, {_SIDE}, {_SIDE})")
        blocks = values.reshape(patches[period], week, *values.shape[1:])
        differs = (blocks != blocks[:, :1]).any(axis=(2, 3, 4))
        if differs.any():
            patch, window = (int(i) for i in np.argwhere(differs)[0])
            raise ValueError(f"{label}: patch {patch}, window {patch * week + window}: other POI than the patch's first, expected the same")
        poi[period] = blocks[:, 0].astype(np.float32)
    return poi


def _read_json(path: Location) -> dict[str, Any]:
    try:
        with path.open_stream() as file:
            document = json.load(file)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read, expected a whole JSON file ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: {type(document).__name__}, expected a JSON object")
    return document


def _take(document: dict[str, Any], key: str, label: str) -> Any:
    """Moves a field out, so that its lists are freed once they are an array; `label` is what stands before its name in messages."""
    if key not in document:
        raise ValueError(f"{label}{key}: not in the file (it has {sorted(document)})")
    return document.pop(key)


def _numbers(nested: Any, label: str) -> NDArray[np.float64]:
    try:
        values = np.array(nested, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{label}: not a regular array of numbers ({error})") from error
    if values.size == 0 or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"{label}: shape {values.shape}, with empty, negative or non-finite values, expected numbers >= 0")
    return values
