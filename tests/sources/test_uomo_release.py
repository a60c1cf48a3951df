"""The UoMo release's JSON: shuffled windows become the series they were cut from, bit for bit, or are refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raytraffic.sources.city import City
from raytraffic.sources.series import PERIODS, SeriesFiles
from raytraffic.sources.uomo_release import WINDOW, UomoRelease, join_windows

SLOTS = 24
WEEK = 7 * SLOTS
SAMPLE = {kind: f"release_format_sample_{kind}.json.gz" for kind in ("24_TrafficSD_short64", "TrafficSD_user64", "TrafficSD_poi64")}


def any_series(rng: np.random.Generator, patches: int, slots: int, side: int = 4) -> NDArray[np.float32]:
    """Series (p, W + 63, side, side) of arbitrary finite float32 >= 0: every exponent, subnormals too."""
    bits = rng.integers(0, 0x7F7FFFFF, (patches, 7 * slots + WINDOW - 1, side, side), dtype=np.uint32, endpoint=True)
    return bits.view(np.float32)


def cut(series: NDArray[np.float32], slots: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Windows (p * W, 64, h, w) of series, shuffled inside each patch, and their clock (p * W, 64, 2)."""
    windows, clocks = [], []
    for patch in series:
        slot = rng.permutation(7 * slots)[:, None] + np.arange(WINDOW)
        windows.append(patch[slot])
        clocks.append(np.stack(np.divmod(slot % (7 * slots), slots), axis=-1))
    return np.concatenate(windows), np.concatenate(clocks)


def write(path: Path, document: Any) -> None:
    text = json.dumps(document)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(), compresslevel=1))
    else:
        path.write_text(text)


def windows_document(series: dict[str, NDArray[np.float32]], slots: int, rng: np.random.Generator) -> dict[str, Any]:
    document: dict[str, Any] = {"timestamps": {}}
    for period, each in series.items():
        windows, clock = cut(each, slots, rng)
        document[f"X_{period}"], document["timestamps"][period] = [windows.tolist()], clock.tolist()
    return document


def poi_document(poi: NDArray[np.float32], week: int) -> dict[str, Any]:
    return {f"X_{period}": np.repeat(poi, week, axis=0).tolist() for period in PERIODS}


def read(folder: Path, name: str = "shandong") -> dict[str, City]:
    return {city.period: city for city in UomoRelease(folder).read(name)}


def patches_of(city: City) -> NDArray[np.float32]:
    """The traffic as (p, t, 4, 4)."""
    assert city.tiles is not None
    return city.traffic[0][:, city.tiles].transpose(1, 0, 2).reshape(len(city.tiles), -1, 4, 4)


@given(seed=st.integers(0, 2**32 - 1), patches=st.integers(1, 3), slots=st.sampled_from([24, 48, 72, 96]))
@settings(max_examples=25, deadline=None)
def test_shuffled_windows_become_their_series(seed: int, patches: int, slots: int) -> None:
    rng = np.random.default_rng(seed)
    series = any_series(rng, patches, slots, side=1)
    windows, clock = cut(series, slots, rng)
    joined, found = join_windows(windows.astype(np.float64), clock, "label")
    assert found == slots
    assert np.array_equal(joined.astype(np.float32).view(np.uint32), series.view(np.uint32))


@pytest.mark.parametrize("suffix", ["json", "json.gz"])
def test_files_become_cities(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(1)
    series = {period: any_series(rng, patches, SLOTS) for period, patches in zip(PERIODS, (2, 1, 1), strict=True)}
    users = {period: each / np.float32(2) for period, each in series.items()}
    poi = {period: rng.integers(0, 9, (len(each), 3, 4, 4)).astype(np.float32) for period, each in series.items()}
    poi["val"] = poi["train"][1:]
    write(tmp_path / f"24_TrafficQX_short64.{suffix}", windows_document(series, SLOTS, rng))
    write(tmp_path / f"TrafficQX_user64.{suffix}", windows_document(users, SLOTS, rng))  # shuffled in another order
    write(tmp_path / f"TrafficQX_poi64.{suffix}", {f"X_{p}": np.repeat(each, WEEK, axis=0).tolist() for p, each in poi.items()})
    assert UomoRelease(tmp_path).names() == ["qx"]
    cities = read(tmp_path, "qx")
    assert list(cities) == list(PERIODS)
    for period, city in cities.items():
        assert city.users is not None and city.poi is not None and city.tiles is not None
        assert patches_of(city).tobytes() == series[period].tobytes()
        assert np.array_equal(city.users[:, city.tiles[0]].reshape(-1, 4, 4), users[period][0])
        assert np.array_equal(city.poi[:, city.tiles[0]].reshape(3, 4, 4), poi[period][0])
        assert (city.step_minutes, city.start.isoformat()) == (60, "2001-01-01T00:00:00")
    train, val = cities["train"].tile_ids, cities["val"].tile_ids
    assert train is not None and val is not None and list(val) == [train[1]]


def test_published_sample_equals_the_series_files(shared_data: Path) -> None:
    """The sample holds train patches 0 and 1, val patch 0, and as its test split val patch 1."""
    folder = shared_data / "uomo"
    whole = {city.period: city for city in SeriesFiles(folder).read("shandong")}
    assert UomoRelease(folder).names() == ["shandong"]
    sample = read(folder)
    for period, (origin, patches) in {"train": ("train", [0, 1]), "val": ("val", [0]), "test": ("val", [1])}.items():
        city, series = sample[period], whole[origin]
        assert series.tiles is not None and series.tile_ids is not None and series.users is not None and series.poi is not None
        cells = series.tiles[patches].ravel()
        assert city.tile_ids == [series.tile_ids[patch] for patch in patches]
        assert list(city.sites) == [series.sites[cell] for cell in cells.tolist()]
        assert (city.start, city.step_minutes, city.poi_categories) == (series.start, series.step_minutes, series.poi_categories)
        assert city.users is not None and city.poi is not None
        assert city.traffic.tobytes() == np.ascontiguousarray(series.traffic[:, :, cells]).tobytes()
        assert city.users.tobytes() == np.ascontiguousarray(series.users[:, cells]).tobytes()
        assert city.poi.tobytes() == np.ascontiguousarray(series.poi[:, cells]).tobytes()


@pytest.mark.parametrize("kind", ["24_TrafficSD_short64", "TrafficSD_user64"])
def test_published_windows_are_cut_from_the_rebuilt_series(shared_data: Path, kind: str) -> None:
    cities = read(shared_data / "uomo")
    with gzip.open(shared_data / "uomo" / SAMPLE[kind]) as file:
        document = json.load(file)
    for period, city in cities.items():
        published = np.array(document[f"X_{period}"][0], dtype=np.float32)
        clock = np.array(document["timestamps"][period])
        series = city.users if "user" in kind else city.traffic[0]
        assert series is not None and city.tiles is not None
        for window, (stamp, values) in enumerate(zip(clock, published, strict=True)):
            slot = int(stamp[0, 0]) * SLOTS + int(stamp[0, 1])
            again = series[slot : slot + WINDOW, city.tiles[window // WEEK]].reshape(WINDOW, 4, 4)
            assert again.tobytes() == values.tobytes(), (period, window)


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    """One patch of the first period alone, JSON-ready; tests change a copy."""
    rng = np.random.default_rng(2)
    series = rng.integers(0, 9, (1, WEEK + WINDOW - 1, 4, 4)).astype(np.float32)
    return windows_document({"train": series}, SLOTS, rng)


@pytest.fixture(scope="module")
def whole(small: dict[str, Any]) -> dict[str, Any]:
    """The same patch in every period."""
    same = {f"X_{period}": small["X_train"] for period in PERIODS}
    return same | {"timestamps": dict.fromkeys(PERIODS, small["timestamps"]["train"])}


def _set(container: Any, *path_and_value: Any) -> Any:
    *path, last, value = path_and_value
    for key in path:
        container = container[key]
    container[last] = value


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing split": (lambda d: d.pop("X_train"), "X_train: not in the file"),
    "missing timestamps": (lambda d: d.pop("timestamps"), "timestamps: not in the file"),
    "missing timestamps of a split": (lambda d: d["timestamps"].pop("train"), r"timestamps\.train: not in the file"),
    "timestamps are a list": (lambda d: d.update(timestamps=[]), "timestamps: list, expected an object"),
    "no leading axis": (lambda d: d.update(X_train=d["X_train"][0]), r"X_train: shape \(168, 64, 4, 4\), expected \(1, N, 64, 4, 4\)"),
    "short windows": (lambda d: d.update(X_train=[[w[:63] for w in d["X_train"][0]]]), r"X_train: shape \(1, 168, 63, 4, 4\)"),
    "ragged": (lambda d: d["X_train"][0][5].pop(), "X_train: not a regular array of numbers"),
    "text": (lambda d: _set(d, "X_train", 0, 5, 0, 0, 0, "much"), "X_train: not a regular array of numbers"),
    "null": (lambda d: _set(d, "X_train", 0, 5, 0, 0, 0, None), "X_train: .*expected numbers >= 0"),
    "negative": (lambda d: _set(d, "X_train", 0, 5, 0, 0, 0, -1.0), "X_train: .*expected numbers >= 0"),
    "empty": (lambda d: d.update(X_train=[]), "X_train: .*empty"),
    "fewer timestamps": (lambda d: d["timestamps"]["train"].pop(), r"timestamps\.train: shape \(167, 64, 2\)"),
    "fractional timestamps": (lambda d: _set(d, "timestamps", "train", 3, 0, 1, 0.5), r"timestamps\.train: .*whole numbers"),
    "incomplete patch": (
        lambda d: (d["X_train"][0].pop(), d["timestamps"]["train"].pop()),
        "X_train: 167 windows, expected whole patches of 168",
    ),
    "no step": (lambda d: _set(d, "timestamps", "train", 3, 0, 1, 24), "X_train: 25 slots a day"),
    "swapped channels": (
        lambda d: d["timestamps"].update(train=[[[slot, day] for day, slot in w] for w in d["timestamps"]["train"]]),
        "X_train: 7 slots a day",
    ),
    "timestamps jump": (lambda d: _set(d, "timestamps", "train", 3, 10, 1, 30 % 24), "X_train: patch 0, window 3: timestamps do not run"),
    "repeated start": (
        lambda d: (_set(d, "X_train", 0, 90, d["X_train"][0][7]), _set(d, "timestamps", "train", 90, d["timestamps"]["train"][7])),
        r"X_train: patch 0, window 90: start slot \d+ again",
    ),
    "other overlap": (lambda d: _set(d, "X_train", 0, 33, 63, 2, 1, 7.5), r"X_train: patch 0, window 33, step 63, row 2, column 1: .*7\.5"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refuses_what_is_not_as_described(tmp_path: Path, small: dict[str, Any], case: str) -> None:
    change, message = BROKEN[case]
    document = deepcopy(small)
    change(document)
    write(tmp_path / "24_TrafficSD_short64.json", document)
    with pytest.raises(ValueError, match=rf"24_TrafficSD_short64\.json: {message}"):
        read(tmp_path)


@given(
    patch=st.integers(0, 1),
    window=st.integers(0, WEEK - 1),
    step=st.integers(0, WINDOW - 1),
    bit=st.integers(0, 62),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_one_flipped_bit_is_found(patch: int, window: int, step: int, bit: int, seed: int) -> None:
    """Whichever entry changes, unless it is the only one that tells of its slot (the first and the last of a series)."""
    rng = np.random.default_rng(seed)
    cut_windows, clock = cut(any_series(rng, 2, SLOTS, side=1), SLOTS, rng)
    windows, number = cut_windows.astype(np.float64), patch * WEEK + window
    start = int(clock[number, 0] @ (SLOTS, 1))
    windows.view(np.int64)[number, step] ^= 1 << bit
    if (start, step) in ((0, 0), (WEEK - 1, WINDOW - 1)):
        join_windows(windows, clock, "label")
        return
    with pytest.raises(ValueError, match=rf"label: patch {patch}, .*window {number}(,| tells)"):
        join_windows(windows, clock, "label")


def test_refuses_periods_of_different_steps(tmp_path: Path, whole: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    other = windows_document({"val": any_series(rng, 1, 48)}, 48, rng)
    document = whole | {"X_val": other["X_val"], "timestamps": whole["timestamps"] | other["timestamps"]}
    write(tmp_path / "24_TrafficSD_short64.json", document)
    with pytest.raises(ValueError, match=r"24_TrafficSD_short64\.json: timestamps: slots a day .*'val': 48"):
        read(tmp_path)


def test_refuses_users_and_poi_that_do_not_fit(tmp_path: Path, whole: dict[str, Any]) -> None:
    rng = np.random.default_rng(4)
    write(tmp_path / "24_TrafficSD_short64.json", whole)
    users, poi = tmp_path / "TrafficSD_user64.json", tmp_path / "TrafficSD_poi64.json"
    doubled = {period: np.zeros((2 if period == "train" else 1, WEEK + WINDOW - 1, 4, 4), np.float32) for period in PERIODS}
    write(users, windows_document(doubled, SLOTS, rng))
    with pytest.raises(ValueError, match=r"TrafficSD_user64\.json: X_train: 2 patches of 24 slots a day, expected 1 of 24"):
        read(tmp_path)
    users.unlink()
    counts = rng.integers(0, 9, (1, 3, 4, 4)).astype(np.float32)
    write(poi, poi_document(counts[:, :, :3], WEEK))
    with pytest.raises(ValueError, match=r"TrafficSD_poi64\.json: X_train: shape \(168, 3, 3, 4\)"):
        read(tmp_path)
    document = poi_document(counts, WEEK)
    document["X_test"][100][1][2][3] += 1
    write(poi, document)
    with pytest.raises(ValueError, match=r"TrafficSD_poi64\.json: X_test: patch 0, window 100: other POI"):
        read(tmp_path)


def test_refuses_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "24_TrafficSD_short64.json.gz"
    whole = gzip.compress(json.dumps({"X_train": list(range(1000))}).encode())
    for damaged in (
        whole[:-20],
        whole[: len(whole) // 2],
        b"",
        b"plain text",
        gzip.compress(b'{"X_train": [[1.0, 2'),
        gzip.compress(b"\xff"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"short64\.json\.gz: cannot be read, expected a whole JSON file"):
            read(tmp_path)
    path.write_bytes(gzip.compress(b"[1]"))
    with pytest.raises(ValueError, match="list, expected a JSON object"):
        read(tmp_path)


def test_refuses_unknown_cities_and_doubled_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder of files 24_Traffic<CITY>_short64"):
        UomoRelease(tmp_path).names()
    for name in ("24_TrafficNJ_short64.json", "24_TrafficNC_short64.json.gz", "TrafficXX_user64.json", "24_TrafficNC_long64.json"):
        (tmp_path / name).touch()
    assert UomoRelease(tmp_path).names() == ["nanchang", "nanjing"]
    with pytest.raises(ValueError, match=r"no city 'NC', expected one of \['nanchang', 'nanjing'\]"):
        read(tmp_path, "NC")
    (tmp_path / "24_TrafficNC_short64.json").touch()
    with pytest.raises(ValueError, match=r"a second short64 file of NC, expected only 24_TrafficNC_short64\.json"):
        UomoRelease(tmp_path).names()
