"""Series files: what they become, how places are recognised across periods, and what is refused."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytraffic.sources.city import City
from raytraffic.sources.series import SeriesFiles, place_ids

#: val patches are these train patches in another period (data README).
SAME_PLACES = {"nanchang": range(19, 23), "nanjing": range(4, 5), "shandong": range(21, 27)}


def arrays_of(patches: int = 3, steps: int = 50, **changed: Any) -> dict[str, Any]:
    """A valid file's arrays, some of them replaced, or left out where None."""
    rng = np.random.default_rng(5)
    traffic = rng.random((patches, steps, 4, 4), dtype=np.float32)
    arrays = {
        "traffic": traffic,
        "users": traffic / 2,
        "poi": rng.integers(0, 9, (patches, 5, 4, 4)).astype(np.float32),
        "start_weekday_slot": np.array([2, 3], np.int16),
        "step_minutes": np.int16(30),
    } | changed
    return {key: value for key, value in arrays.items() if value is not None}


def read(folder: Path, name: str = "town") -> dict[str, City]:
    return {city.period: city for city in SeriesFiles(folder).read(name)}


def test_layout_of_a_city(tmp_path: Path) -> None:
    arrays = arrays_of()
    np.savez(tmp_path / "town_train.npz", **arrays)
    city = read(tmp_path)["train"]
    assert (city.name, city.shape, city.step_minutes) == ("town", (1, 50, 48), 30)
    assert city.start == datetime(2001, 1, 3, 1, 30)
    assert city.start.weekday() == 2
    assert city.tiles is not None and city.tile_ids is not None and city.users is not None and city.poi is not None
    assert city.tile_shape == (4, 4) and city.grid is None and city.xy is None
    for patch in range(3):
        tile = city.tiles[patch]
        assert np.array_equal(city.traffic[0][:, tile].reshape(50, 4, 4), arrays["traffic"][patch])
        assert np.array_equal(city.users[:, tile].reshape(50, 4, 4), arrays["users"][patch])
        assert np.array_equal(city.poi[:, tile].reshape(5, 4, 4), arrays["poi"][patch])
    assert city.sites[16 + 4 * 2 + 3] == f"{city.tile_ids[1]}/r2c3"
    assert list(city.poi_categories) == ["poi_00", "poi_01", "poi_02", "poi_03", "poi_04"]


def test_periods_in_order_and_names_sorted(tmp_path: Path) -> None:
    for file in ("b_test", "b_extra", "b_val", "b_train", "two_words_train"):
        np.savez(tmp_path / f"{file}.npz", **arrays_of())
    (tmp_path / "notes.txt").write_text("not a series file")
    assert SeriesFiles(tmp_path).names() == ["b", "two_words"]
    assert [city.period for city in SeriesFiles(tmp_path).read("b")] == ["train", "val", "test", "extra"]


def test_users_and_poi_may_be_absent(tmp_path: Path) -> None:
    np.savez(tmp_path / "town_train.npz", **arrays_of(users=None, poi=None))
    city = read(tmp_path)["train"]
    assert city.users is None and city.poi is None and city.tile_ids == ["patch-00", "patch-01", "patch-02"]


def test_place_ids_name_the_place() -> None:
    poi = np.arange(3 * 2 * 16, dtype=np.float64).reshape(3, 2, 4, 4)
    ids = place_ids(poi, 3)
    assert len(set(ids)) == 3 and all(len(each) == 17 and each.startswith("p") for each in ids)
    assert place_ids(poi[::-1].astype(np.float32), 3) == ids[::-1]
    assert place_ids(poi[[0, 1, 0, 0]], 4) == [ids[0], ids[1], f"{ids[0]}-2", f"{ids[0]}-3"]
    assert ids[0] == "p3de61ab83651afb4"  # stored in prepared data, so it may never change


@pytest.mark.parametrize("name", SAME_PLACES)
def test_published_val_patches_are_train_places(shared_data: Path, name: str) -> None:
    cities = read(shared_data / "uomo", name)
    train, val = cities["train"].tile_ids, cities["val"].tile_ids
    assert train is not None and val is not None
    assert len(set(train)) == len(train) and not any("-" in each for each in train)
    assert list(val) == [train[patch] for patch in SAME_PLACES[name]]
    assert cities["train"].start == datetime(2001, 1, 1)


def test_published_names_and_shapes(shared_data: Path) -> None:
    source = SeriesFiles(shared_data / "uomo")
    assert source.names() == ["nanchang", "nanjing", "shandong"]
    shapes = {(c.name, c.period): (c.shape, c.step_minutes, len(c.poi_categories)) for name in source.names() for c in source.read(name)}
    assert shapes["nanchang", "train"] == ((1, 399, 448), 30, 23)
    assert shapes["nanjing", "val"] == ((1, 735, 16), 15, 21)
    assert shapes["shandong", "val"] == ((1, 231, 96), 60, 22)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"traffic": None}, "traffic: not in the file"),
        ({"start_weekday_slot": None}, "start_weekday_slot: not in the file"),
        ({"step_minutes": None}, "step_minutes: not in the file"),
        ({"traffic": np.ones((3, 50, 16), np.float32)}, r"traffic: shape \(3, 50, 16\)"),
        ({"traffic": np.full((3, 50, 4, 4), -1.0)}, "traffic: holds negative"),
        ({"traffic": np.full((3, 50, 4, 4), None)}, "cannot be read.*pickle"),
        ({"users": np.ones((3, 49, 4, 4), np.float32)}, r"users: shape \(3, 49, 4, 4\)"),
        ({"poi": np.ones((2, 5, 4, 4), np.float32)}, r"poi: shape \(2, 5, 4, 4\)"),
        ({"start_weekday_slot": np.array([7, 0])}, r"start_weekday_slot: \[7, 0\]"),
        ({"start_weekday_slot": np.array([0, 48])}, r"start_weekday_slot: \[0, 48\], expected .*0\.\.47"),
        ({"step_minutes": np.int16(7)}, "step_minutes: 7"),
    ],
)
def test_refuses_what_is_not_as_described(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "town_train.npz", **arrays_of(**changed))
    with pytest.raises(ValueError, match=rf"(?s)town_train\.npz: .*{message}"):
        read(tmp_path)


def test_refuses_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "town_val.npz"
    np.savez_compressed(path, **arrays_of())
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a zip", whole[:200] + b"\x55" * 64 + whole[264:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"town_val\.npz: cannot be read"):
            read(tmp_path)


def test_refuses_a_bare_array(tmp_path: Path) -> None:
    np.save(tmp_path / "town_val.npy", np.ones(3))
    (tmp_path / "town_val.npy").rename(tmp_path / "town_val.npz")
    with pytest.raises(ValueError, match=r"town_val\.npz: cannot be read"):
        read(tmp_path)


def test_refuses_mixed_steps(tmp_path: Path) -> None:
    np.savez(tmp_path / "town_train.npz", **arrays_of())
    np.savez(tmp_path / "town_val.npz", **arrays_of(step_minutes=np.int16(60)))
    with pytest.raises(ValueError, match=r"step_minutes .*'town_train\.npz': 30, 'town_val\.npz': 60"):
        read(tmp_path)


def test_refuses_unknown_cities_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder of files <city>_<period>\.npz"):
        SeriesFiles(tmp_path).names()
    with pytest.raises(ValueError, match="absent: no such file"):
        SeriesFiles(tmp_path / "absent").names()
    np.savez(tmp_path / "town_train.npz", **arrays_of())
    with pytest.raises(ValueError, match=r"no city 'village', expected one of \['town'\]"):
        read(tmp_path, "village")
