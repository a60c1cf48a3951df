"""Windows equal the slices of the series they are cut from, wherever they start and however they are asked for."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import Table
from pyarrow.parquet import FileMetaData

from raytraffic.files import Location
from raytraffic.randomness import fold, text_key
from raytraffic.sources.series import SeriesFiles
from raytraffic.store import CityStatistics, Layout, Store, assign, open_store, prepare_store
from raytraffic.windows import RunReader, cut_windows, evaluation_windows, to_batch
from tests.fixtures_s3 import _s3_server, s3_bucket
from tests.store.cities import SMALL, prepared, series_of, tiled_city

__all__ = ["_s3_server", "s3_bucket"]

ALPHA = tiled_city("alpha", places=("x", "y", "z"), steps=100)
BETA = tiled_city("beta", places=("x",), steps=50, step_minutes=60, users=False, poi=("zoo", "bank"), seed=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepared(tmp_path_factory.mktemp("store"), [ALPHA], [BETA])


def row_of(store: Store, city: str, tile: str, start: int) -> int:
    index = store.index
    place = index.places.index((city, tile))
    return int(np.flatnonzero((index.place == place) & (index.run == start // store.layout.core))[0])


wanted = st.lists(
    st.one_of(
        st.tuples(st.just("alpha"), st.sampled_from("xyz"), st.integers(0, 99)),
        st.tuples(st.just("beta"), st.just("x"), st.integers(0, 49)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(windows=wanted, length=st.integers(1, 8), cache=st.sampled_from([0, 20_000, 2**20]))
def test_a_window_is_a_slice_of_its_series(store: Store, windows: list[tuple[str, str, int]], length: int, cache: int) -> None:
    rows = np.array([row_of(store, *window) for window in windows])
    starts = np.array([start for _, _, start in windows])
    columns = cut_windows(RunReader(store, cache), rows, starts, length)
    for i, (name, tile, start) in enumerate(windows):
        city = ALPHA if name == "alpha" else BETA
        series = series_of(city, tile)[:, start : start + length]
        there = series.shape[1]
        assert np.array_equal(columns["traffic"][i][:, :there], series, equal_nan=True)
        assert np.isnan(columns["traffic"][i][:, there:]).all()
        cells = city.tiles[list(city.tile_ids).index(tile)]  # type: ignore[index,arg-type]
        real = cells >= 0
        if city.users is not None:
            assert np.array_equal(columns["users"][i][:there][:, real], city.users[start : start + length][:, cells[real]])
        else:
            assert np.isnan(columns["users"][i]).all()
        poi = dict(zip(city.poi_categories, city.poi[:, cells], strict=True))  # type: ignore[index]
        for k, category in enumerate(store.poi_categories):
            assert np.array_equal(columns["poi"][i, k][real], poi.get(category, np.zeros(16))[real])
        assert np.array_equal(columns["xy"][i][real], city.xy[cells[real]].astype(np.float32))  # type: ignore[index]
        begin = np.datetime64(city.start, "m") + start * np.timedelta64(city.step_minutes, "m")
        assert columns["key"][i] == fold(text_key(f"{name}|all|{tile}"), int(begin.astype(np.int64)))
        for t in range(length):
            moment = (begin + t * np.timedelta64(city.step_minutes, "m")).item()
            assert columns["clock"][i, t].tolist() == [(moment.hour * 60 + moment.minute) // city.step_minutes, moment.weekday()]
        assert columns["step_minutes"][i] == city.step_minutes
        assert store.index.cities[columns["city"][i]] == name


def test_columns_have_fixed_types(store: Store) -> None:
    columns = cut_windows(RunReader(store), np.array([0, 0, 5]), np.array([3, 0, 2]), 8, store.statistics("published"))
    expected = {
        "traffic": ((3, 1, 8, 16), "float32"),
        "users": ((3, 8, 16), "float32"),
        "poi": ((3, 3, 16), "float32"),
        "xy": ((3, 16, 2), "float32"),
        "clock": ((3, 8, 2), "int64"),
        "step_minutes": ((3,), "int64"),
        "key": ((3,), "int64"),
        "profile": ((3, 8), "float32"),
        "reference": ((3, 1), "float32"),
        "modes": ((3, 8, 8), "float32"),
        "persistence": ((3, 5), "float32"),
        "city": ((3,), "int32"),
        "row": ((3,), "int64"),
        "start": ((3,), "int64"),
    }
    assert {name: (column.shape, str(column.dtype)) for name, column in columns.items()} == expected
    assert {name: column.shape[1:] for name, column in cut_windows(RunReader(store), np.array([], int), np.array([], int), 8).items()} == {
        name: shape[1:] for name, (shape, _) in expected.items()
    }


def test_what_is_measured_of_a_city_comes_from_the_statistics(store: Store) -> None:
    profile, modes = np.arange(7 * 48).reshape(7, 48), np.arange(48 * 8).reshape(48, 8)
    known = CityStatistics(
        reference=(123.0,),
        level=(1.0,),
        profile=tuple(map(tuple, profile.tolist())),
        live_share=1.0,
        users_reference=None,
        entries=1,
        modes=tuple(map(tuple, modes.tolist())),
        persistence=(1.0, 2.0, 3.0, 4.0, 5.0),
    )
    rows = np.array([row_of(store, "beta", "x", 0), row_of(store, "alpha", "y", 40)])
    columns = cut_windows(RunReader(store), rows, np.array([0, 40]), 8, {"alpha": known, "beta": None})
    slot, weekday = columns["clock"][1].T
    assert np.array_equal(columns["profile"], [np.ones(8), profile[weekday, slot]])
    assert np.isnan(columns["reference"][0, 0])
    assert columns["reference"][1, 0] == 123.0
    assert np.isnan(columns["modes"][0]).all() and np.isnan(columns["persistence"][0]).all()
    assert np.array_equal(columns["modes"][1], modes[slot])
    assert columns["persistence"][1].tolist() == [1, 2, 3, 4, 5]
    short = cut_windows(RunReader(store), rows, np.array([0, 40]), 8, {"alpha": replace(known, persistence=()), "beta": None})
    assert np.isnan(short["persistence"]).all() and np.array_equal(short["modes"][1], modes[slot])


def test_wrong_windows_are_refused(store: Store) -> None:
    reader = RunReader(store)
    with pytest.raises(ValueError, match=r"window: 9 steps, expected 1\.\.8"):
        cut_windows(reader, np.array([0]), np.array([0]), 9)
    with pytest.raises(ValueError, match=r"starts\[1\]: 24, expected 0\.\.23, the core of row 0"):
        cut_windows(reader, np.array([0, 0]), np.array([0, 24]), 8)
    with pytest.raises(ValueError, match="rows: "):
        list(reader.read(np.array([-1])))


def test_a_row_group_is_read_once_and_the_cache_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    whole = Location.read_table

    def count(self: Location, columns: list[str], groups: list[int], footer: FileMetaData) -> Table:
        read.append(groups)
        return whole(self, columns, groups, footer)

    monkeypatch.setattr(Location, "read_table", count)
    reader = RunReader(store)
    rows = np.array([3, 0, 1, 2, 0, 3])
    assert [row for row, _ in reader.read(rows)] == [0, 1, 2, 3]
    assert read == [[0], [1]]  # two rows a group
    list(reader.read(rows))
    assert len(read) == 2
    one_run = next(reader.read(rows))[1].nbytes
    small = RunReader(store, cache_bytes=2 * one_run)
    list(small.read(np.arange(8)))
    read.clear()
    assert [row for row, _ in small.read(np.array([6, 7]))] == [6, 7]
    assert read == []
    list(small.read(np.array([0])))
    assert read == [[0]]


def test_a_corrupt_shard_is_named(tmp_path: Path) -> None:
    store = prepared(tmp_path, [ALPHA])
    shard = tmp_path / store.index.shards[0]
    data = shard.read_bytes()
    for damaged in (data[: len(data) // 2], data[:4] + bytes(3000) + data[3004:]):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{shard.name}: truncated or corrupt"):
            cut_windows(RunReader(store), np.array([0]), np.array([0]), 8)


def test_a_store_without_poi_and_users(tmp_path: Path) -> None:
    store = prepared(tmp_path, [tiled_city(poi=(), users=False)])
    columns = cut_windows(RunReader(store), np.array([0]), np.array([0]), 8)
    assert columns["poi"].shape == (1, 0, 16)
    assert np.isnan(columns["users"]).all()


def test_windows_from_s3(store: Store, s3_bucket: str) -> None:
    out = Location.of(f"{s3_bucket}/store")
    prepare_store([[ALPHA], [BETA]], out, SMALL)
    rows, starts = np.array([2, 16, 4]), np.array([50, 30, 99])
    here = cut_windows(RunReader(store), rows, starts, 8)
    there = cut_windows(RunReader(pickle.loads(pickle.dumps(open_store(out)))), rows, starts, 8)
    assert all(np.array_equal(here[name], there[name], equal_nan=True) for name in here)


def test_batches_keep_what_was_not_measured(store: Store) -> None:
    columns = cut_windows(RunReader(store), np.array([0, 15]), np.array([0, 0]), 8, {"alpha": None, "beta": None})
    batch = to_batch(columns, None, (4, 4)).check_values()
    assert torch.equal(batch.known, batch.measured)
    assert batch.space.grid == (4, 4)
    assert batch.space.xy is not None
    assert set(batch.context) == {"users", "poi", "profile", "reference", "modes", "persistence"}
    assert torch.isnan(batch.context["users"][1]).all()
    assert not torch.isnan(batch.context["users"][0, :, 0]).any()
    assert torch.isnan(batch.context["reference"]).all()
    some = to_batch({name: column for name, column in columns.items() if name != "poi"}, batch.known & False, (4, 4))
    assert "poi" not in some.context
    assert not some.known.any()
    with pytest.raises(ValueError, match="known: True where traffic is NaN"):
        to_batch(columns, torch.ones_like(batch.known), (4, 4))


def test_batches_of_read_only_columns_and_unknown_places(store: Store) -> None:
    columns = cut_windows(RunReader(store), np.array([0]), np.array([0]), 8)
    columns["xy"][:] = np.nan
    columns["traffic"].flags.writeable = False
    batch = to_batch(columns, None, (4, 4))
    assert batch.space.xy is None
    assert not np.shares_memory(batch.traffic.numpy(), columns["traffic"])


def test_every_published_window_is_rebuilt(tmp_path: Path, shared_data: Path) -> None:
    source = SeriesFiles(shared_data / "uomo")
    store = prepared(tmp_path, list(source.read("nanjing")), layout=Layout())
    with np.load(shared_data / "uomo" / "nanjing_train.npz", allow_pickle=False) as data:
        series = data["traffic"].reshape(6, 735, 16)
    rows, starts = evaluation_windows(store.index, assign(store.index, store.split("published")), "train", 0, 64, 1)
    columns = cut_windows(RunReader(store), rows, starts, 64, store.statistics("published"))
    patch = store.index.series[rows]
    expected = np.lib.stride_tricks.sliding_window_view(series, 64, axis=1)[patch, starts].swapaxes(1, 2)
    assert len(rows) % 672 == 0
    assert np.array_equal(columns["traffic"][:, 0], expected)
