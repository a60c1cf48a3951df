"""Dense arrays of a grid: clock, places and aggregation, on files written here and on Shanghai and Milan."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.sources.city import City
from raytraffic.sources.grid import GridArrays
from raytraffic.sources.resample import resample

MILAN = "milan/internet_10min_5x5_nov2013.npz"
SHANGHAI = "npdiff_shanghai/SH16.npz"


def write(folder: Path, **changed: Any) -> Path:
    """A valid file of 7 steps of 3 x 2 cells, some of its arrays replaced, or left out where None."""
    arrays = {
        "traffic": np.arange(42, dtype=np.float32).reshape(7, 3, 2),
        "start": np.array("2013-11-01T00:30"),
        "step_minutes": np.int32(30),
    } | changed
    path = folder / "town.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def read(path: Path, **options: Any) -> City:
    source = GridArrays(path, **options)
    (city,) = source.read(source.names()[0])
    return city


def weekly(first: int, steps: int, slots: int = 48) -> np.ndarray:
    """Days of week and slots of day that go on slot by slot."""
    return np.stack(np.divmod((first + np.arange(steps)) % (7 * slots), slots), axis=1)


def test_layout_of_a_city(tmp_path: Path) -> None:
    city = read(write(tmp_path), name="somewhere", unit="GB")
    assert (city.name, city.unit, city.shape, city.grid, city.step_minutes) == ("somewhere", "GB", (1, 7, 6), (3, 2), 30)
    assert city.start == datetime(2013, 11, 1, 0, 30)
    assert city.traffic[0, 3].tolist() == [18, 19, 20, 21, 22, 23]
    assert list(city.sites) == ["r0c0", "r0c1", "r1c0", "r1c1", "r2c0", "r2c1"]
    assert city.xy is None and city.tiles is None and city.users is None and city.poi is None


def test_places_by_row_order(tmp_path: Path) -> None:
    path = write(tmp_path)
    north, south = (read(path, cell_metres=100, row_order=order) for order in ("north-first", "south-first"))
    assert north.name == "town"
    assert north.xy is not None and south.xy is not None
    assert north.xy.tolist() == [[50, 250], [150, 250], [50, 150], [150, 150], [50, 50], [150, 50]]
    assert south.xy.tolist() == [[50, 50], [150, 50], [50, 150], [150, 150], [50, 250], [150, 250]]
    assert np.array_equal(north.traffic, south.traffic)


def test_clock_of_weekdays_and_slots(tmp_path: Path) -> None:
    path = write(tmp_path, start=None, dow_slot=weekly(7 * 48 - 3, 7))
    city = read(path)
    assert city.start == datetime(2001, 1, 7, 22, 30)
    assert city.start.weekday() == 6
    assert read(path, start="2024-05-05T10:00").start == datetime(2024, 5, 5, 10)


def test_gaps_stay_gaps(tmp_path: Path) -> None:
    traffic = np.arange(42, dtype=np.float64).reshape(7, 3, 2)
    traffic[2, 1, 1] = np.nan
    city = read(write(tmp_path, traffic=traffic))
    assert np.argwhere(np.isnan(city.traffic)).tolist() == [[0, 2, 3]]


def test_milan(shared_data: Path) -> None:
    fine = read(shared_data / MILAN, name="milan", cell_metres=235, row_order="south-first")
    raw = np.load(shared_data / MILAN)["traffic"]
    assert (fine.shape, fine.grid, fine.step_minutes, fine.start) == ((1, 4320, 25), (5, 5), 10, datetime(2013, 11, 1))
    assert np.array_equal(fine.traffic[0].reshape(raw.shape), raw)
    coarse = read(shared_data / MILAN, aggregate_minutes=60)
    assert (coarse.shape, coarse.step_minutes, coarse.start) == ((1, 720, 25), 60, datetime(2013, 11, 1))
    np.testing.assert_allclose(coarse.traffic[0, 9].reshape(5, 5), raw[54:60].astype(np.float64).sum(axis=0), rtol=1e-6)


def test_shanghai_needs_a_start_as_its_weekdays_are_wrong(shared_data: Path) -> None:
    """Its day of week moves on every 28 steps instead of 96; its first row, a Tuesday, fits the quiet days that follow."""
    with pytest.raises(ValueError, match=r"SH16\.npz: dow_slot: row 28 is \[2, 28\], expected \[1, 28\] \(or start to be given"):
        read(shared_data / SHANGHAI)
    city = read(shared_data / SHANGHAI, start="2001-01-02T00:00")
    assert (city.shape, city.grid, city.step_minutes, city.start.weekday()) == ((1, 672, 400), (20, 20), 15, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"traffic": None}, "traffic: not in the file"),
        ({"step_minutes": None}, "step_minutes: not in the file"),
        ({"step_minutes": np.array([30, 60])}, r"step_minutes: \[30, 60\]"),
        ({"traffic": np.ones((7, 6), np.float32)}, r"traffic: shape \(7, 6\)"),
        ({"traffic": np.full((7, 3, 2), -1.0)}, "traffic: holds negative"),
        ({"start": None}, "start, dow_slot: neither in the file"),
        ({"dow_slot": weekly(0, 7)}, "start, dow_slot: both in the file"),
        ({"start": np.array("yesterday")}, "start: 'yesterday', expected ISO 8601"),
        ({"start": np.array("2013-11-01T00:10")}, r"start: 2013-11-01T00:10:00, expected .* whole 30-minute step"),
        ({"start": None, "dow_slot": weekly(0, 6)}, r"dow_slot: int64 of shape \(6, 2\)"),
        ({"start": None, "dow_slot": weekly(0, 7) / 1}, "dow_slot: float64"),
        ({"start": None, "dow_slot": weekly(0, 7)[:, ::-1]}, r"dow_slot: row 1 is \[1, 0\], expected \[0, 1\]"),
        ({"start": None, "dow_slot": weekly(0, 14)[::2]}, r"dow_slot: row 1 is \[0, 2\], expected \[0, 1\]"),
        ({"start": None, "dow_slot": weekly(0, 7) + np.array([7, 0])}, r"dow_slot: row 0 is \[7, 0\], expected \[0, 0\]"),
    ],
)
def test_refuses_what_is_not_as_described(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"town\.npz: .*{message}"):
        read(write(tmp_path, **changed))


def test_refuses_damaged_and_absent_files(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"town\.npz: cannot be read"):
        read(path)
    with pytest.raises(ValueError, match=r"absent\.npz: no such file"):
        read(tmp_path / "absent.npz")


def test_refuses_arguments(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(ValueError, match="row_order: 'up'"):
        GridArrays(path, row_order="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cell_metres: 0"):
        GridArrays(path, cell_metres=0)
    with pytest.raises(ValueError, match=r"no city 'village', expected one of \['town'\]"):
        next(GridArrays(path).read("village"))
    with pytest.raises(ValueError, match=r"town\.npz: .*to 20 minutes, expected one of \[30, 60\]"):
        read(path, aggregate_minutes=20)


def city_of(traffic: np.ndarray, start: datetime, step: int, users: np.ndarray | None = None) -> City:
    sites = [f"s{i}" for i in range(traffic.shape[2])]
    return City(name="town", traffic=traffic, start=start, step_minutes=step, sites=sites, services=["a", "b"], users=users)


@given(
    pair=st.sampled_from([(5, 20), (10, 30), (10, 60), (15, 60), (20, 60), (30, 30)]),
    first=st.integers(0, 143),
    steps=st.integers(24, 60),
    seed=st.integers(0, 2**32 - 1),
)
def test_resample_sums_traffic_and_averages_users(pair: tuple[int, int], first: int, steps: int, seed: int) -> None:
    fine, minutes = pair
    rng = np.random.default_rng(seed)
    traffic = rng.integers(0, 1000, (2, steps, 3)).astype(np.float32)
    users = rng.integers(0, 1000, (steps, 3)).astype(np.float32)
    traffic[rng.random(traffic.shape) < 0.02] = np.nan
    users[rng.random(users.shape) < 0.02] = np.nan
    minute = first * fine % (24 * 60)
    city = city_of(traffic, datetime(2024, 1, 1, *divmod(minute, 60)), fine, users)
    coarse = resample(city, minutes)
    assert coarse.step_minutes == minutes and coarse.users is not None
    skipped = int((coarse.start - city.start).total_seconds()) // 60 // fine
    ratio = minutes // fine
    assert 0 <= skipped < ratio and (coarse.start.hour * 60 + coarse.start.minute) % minutes == 0
    assert 0 <= steps - skipped - ratio * coarse.shape[1] < ratio
    for slot in range(coarse.shape[1]):
        members = slice(skipped + slot * ratio, skipped + (slot + 1) * ratio)
        np.testing.assert_array_equal(coarse.traffic[:, slot], traffic[:, members].sum(axis=1))
        np.testing.assert_allclose(coarse.users[slot], users[members].mean(axis=0), rtol=1e-6)


def test_resample_refuses(tmp_path: Path) -> None:
    city = city_of(np.ones((2, 5, 1), np.float32), datetime(2024, 1, 1, 0, 10), 10)
    for minutes in (5, 15, 120):
        with pytest.raises(ValueError, match=rf"town: cannot be aggregated to {minutes} minutes, expected one of \[10, 20, 30, 60\]"):
            resample(city, minutes)
    with pytest.raises(ValueError, match="town: 5 steps of 10 minutes hold no whole slot of 60 minutes"):
        resample(city, 60)
