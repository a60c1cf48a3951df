"""A store is written whole or not at all, is the same whatever the order, and says what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raytraffic.store.prepare as preparation
from raytraffic.files import Location
from raytraffic.sources.city import City
from raytraffic.sources.series import SeriesFiles
from raytraffic.store import Layout, build_index, commit_store, measure_city, open_store, prepare_city, prepare_store
from raytraffic.store.parts import CityPart
from raytraffic.store.shards import decode, encode
from raytraffic.store.tiling import tile_city
from tests.store.cities import SMALL, prepared, series_of, tiled_city


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_manifest_says_what_is_inside(tmp_path: Path) -> None:
    alpha = [tiled_city(period="train"), tiled_city(period="val", places=("p1",), steps=40)]
    store = prepared(tmp_path, [tiled_city("beta", users=False, poi=("zoo",), step_minutes=60)], alpha)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["schema_version"] == 2
    assert manifest["base_token"] == [4, 4, 4]
    assert manifest["tile"] == [4, 4]
    assert list(store.index.cities) == ["alpha", "beta"] == sorted(manifest["cities"])
    assert store.poi_categories == ("bank", "park", "zoo")
    assert manifest["cities"]["alpha"]["has_users"]
    assert not manifest["cities"]["beta"]["has_users"]
    assert manifest["cities"]["alpha"]["periods"]["val"]["steps"] == 40
    assert sum(shard["rows"] for shard in manifest["shards"]) == len(store.index) == 4 * 5 + 2 + 4 * 5
    store.verify()


def test_a_row_of_a_shard_is_a_run_of_tokens(tmp_path: Path) -> None:
    city = tiled_city(places=("x", "y"))
    store = prepared(tmp_path, [city])
    table = pq.read_table(tmp_path / store.index.shards[0])
    row = 7  # tile y (1), run 2 of 5
    assert table.column("tile")[row].as_py() == "y"
    assert table.column("run")[row].as_py() == 2
    assert table.schema.field("traffic").type.shape == [8, 1, 1, 1, 4, 4, 4]
    assert table.schema.field("users").type.shape == [8, 1, 1, 4, 4, 4]
    begin = np.datetime64("1970-01-01T00:00") + np.timedelta64(table.column("start_minute")[row].as_py(), "m")
    assert begin == np.datetime64("2024-05-07T06:00") + np.timedelta64(48 * 30, "m")
    tokens = table.column("traffic").combine_chunks().to_numpy_ndarray()[row]
    series = series_of(city, "y")
    assert np.array_equal(tokens[3, 0, 0, 0].reshape(4, 16), series[0, 48 + 12 : 48 + 16], equal_nan=True)
    sites = table.column("sites")[row].as_py()
    assert sites[5] == ""
    assert sites[6] == "alpha-22"


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 90),
    services=st.integers(1, 3),
    shape=st.sampled_from([(4, 4, 4, 12, 4), (2, 2, 4, 16, 9), (1, 1, 1, 10, 1)]),
    data=st.data(),
)
def test_every_step_lies_in_its_own_run(steps: int, services: int, shape: tuple[int, ...], data: st.DataObject) -> None:
    t0, h0, v0, run_steps, overlap = shape
    layout = Layout(token=(t0, h0, v0), run_steps=run_steps, overlap_steps=overlap)
    city = tiled_city(places=("x", "y"), steps=steps, services=[f"s{i}" for i in range(services)])
    tiles = tile_city(city, layout.tile)
    table, empty = encode(city, tiles, range(2 * layout.runs(steps)), layout)
    assert empty == []
    runs = decode(table, layout)
    tile = data.draw(st.integers(0, 1))
    start = data.draw(st.integers(0, steps - 1))
    run = start // layout.core
    offset = start - run * layout.core
    length = min(overlap, steps - start)
    found = runs[tile * layout.runs(steps) + run]
    expected = series_of(city, tiles.ids[tile])[:, start : start + length]
    assert np.array_equal(found.traffic[:, offset : offset + length], expected, equal_nan=True)
    assert np.isnan(found.traffic[:, offset + steps - start :]).all()
    assert np.isnan(found.xy[5]).all()
    assert np.array_equal(found.xy[6], city.xy[16 * tile + 6].astype(np.float32))  # type: ignore[index]
    assert np.array_equal(found.poi[:, 6], city.poi[:, 16 * tile + 6])  # type: ignore[index]


def test_shards_are_bounded_and_the_index_finds_their_rows(tmp_path: Path) -> None:
    city = tiled_city(places=[f"p{i}" for i in range(9)])
    row_bytes = 4 * 16 * (32 * 2 + 2 + 2)
    store = prepared(tmp_path, [city], layout=replace(SMALL, shard_bytes=4 * row_bytes))
    assert [shard["rows"] for shard in store.manifest["shards"]] == [4] * 11 + [1]
    for row in (0, 4, 17, 44):
        table = pq.read_table(tmp_path / store.index.shards[store.index.shard[row]])
        at = int(store.index.row[row])
        assert table.column("tile")[at].as_py() == store.index.places[store.index.place[row]][1]
        assert table.column("run")[at].as_py() == store.index.run[row]
        assert table.column("start_minute")[at].as_py() == store.index.start_minute[row]
        assert table.column("steps")[at].as_py() == store.index.steps[row]


def test_a_run_without_measurement_is_marked(tmp_path: Path) -> None:
    city = tiled_city(places=("x", "y"))
    city.traffic[:, 40:, 16:] = np.nan  # from step 40 on, tile y is silent: its runs 2, 3, 4 begin at 48, 72, 96
    store = prepared(tmp_path, [city])
    assert store.index.measured.tolist() == [True] * 5 + [True, True, False, False, False]


def test_the_order_of_cities_changes_nothing(tmp_path: Path) -> None:
    cities = [[tiled_city(name, seed=i)] for i, name in enumerate(("a", "b", "c"))]
    prepared(tmp_path / "one", *cities)
    prepared(tmp_path / "two", *reversed(cities))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_an_interrupted_preparation_is_no_store_and_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path / "whole", [tiled_city("a")], [tiled_city("b")])

    def cities() -> list[object]:
        yield [tiled_city("a")]
        raise KeyboardInterrupt

    out = Location.of(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        prepare_store(cities(), out, SMALL)
    with pytest.raises(ValueError, match="preparation was not finished"):
        open_store(out)

    written = []
    write = preparation._write_record
    monkeypatch.setattr(preparation, "_write_record", lambda city, *rest: written.append(city.name) or write(city, *rest))
    prepare_store([[tiled_city("a")], [tiled_city("b")]], out, SMALL)
    assert written == ["b"]
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_an_interrupted_commit_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path, [tiled_city("a")])
    changed = tiled_city("a", seed=1)
    out = Location.of(tmp_path)
    part = prepare_city([changed], out, SMALL)
    open_store(tmp_path).verify()  # the earlier store stands until the commit
    index = build_index([part], SMALL)
    statistics = {"a": measure_city("a", index, out, SMALL)}
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "index_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            commit_store(out, [part], statistics, SMALL)
    with pytest.raises(ValueError, match="preparation was not finished"):
        open_store(tmp_path)
    commit_store(out, [part], statistics, SMALL)
    open_store(tmp_path).verify()
    assert len(list((tmp_path / "shards").iterdir())) == 1  # the earlier store's shard is gone


def test_a_changed_layout_or_value_writes_again(tmp_path: Path) -> None:
    out = Location.of(tmp_path)
    city = tiled_city("a")
    first = prepare_city([city], out, SMALL)
    assert prepare_city([city], out, SMALL) == first
    changed = City(**{**vars(city), "traffic": city.traffic * 2})
    fingerprints = {part.records[0].fingerprint for part in (first, prepare_city([changed], out, SMALL))}
    fingerprints.add(prepare_city([replace(city, start=datetime(2024, 5, 8))], out, SMALL).records[0].fingerprint)
    fingerprints.add(prepare_city([city], out, replace(SMALL, overlap_steps=12)).records[0].fingerprint)
    assert len(fingerprints) == 4
    assert CityPart.from_json(json.loads(json.dumps(first.to_json()))) == first
    (tmp_path / "parts" / "a.json").write_text("{")
    assert prepare_city([city], out, SMALL) == first


def test_names_with_any_character(tmp_path: Path) -> None:
    store = prepared(tmp_path, [tiled_city("São Paulo/centro", period="../x")])
    store.verify()
    assert all(path.startswith("shards/S%C3%A3o%20Paulo%2Fcentro-") for path in store.index.shards)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "gave no record"),
        ([tiled_city(), tiled_city()], "period: 'all' comes twice"),
        ([tiled_city(period="a"), tiled_city(period="b", step_minutes=60)], r"alpha\.step_minutes of period 'b': 60, expected 30"),
        ([tiled_city(poi=("park", "park"))], "poi_categories: .*expected unique names"),
    ],
)
def test_records_that_do_not_fit_together(tmp_path: Path, records: list[City], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_city(records, Location.of(tmp_path), SMALL)


def test_cities_that_do_not_fit_together(tmp_path: Path) -> None:
    out = Location.of(tmp_path)
    one, calls = (prepare_city([tiled_city(name, services=service)], out, SMALL) for name, service in (("a", ["data"]), ("b", ["calls"])))
    with pytest.raises(ValueError, match=r"b\.services: \('calls',\), expected \('data',\)"):
        build_index([one, calls], SMALL)
    with pytest.raises(ValueError, match="'a' comes twice"):
        build_index([one, one], SMALL)
    with pytest.raises(ValueError, match="no city"):
        build_index([], SMALL)
    with pytest.raises(ValueError, match=r"statistics: none for \['a'\]"):
        commit_store(out, [one], {}, SMALL)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"run_steps": 30}, "run_steps: 30, expected a multiple of the token's 4"),
        ({"tile": (6, 4)}, "tile height: 6"),
        ({"overlap_steps": 512}, "overlap_steps: 512"),
        ({"token": (0, 4, 4)}, "expected positive sizes"),
    ],
)
def test_a_layout_that_cannot_be(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(**fields)


def test_a_damaged_store_says_what_is_damaged(tmp_path: Path) -> None:
    store = prepared(tmp_path, [tiled_city("a")], [tiled_city("b")])
    shard = tmp_path / store.index.shards[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"{shard.name}: sha256"):
        open_store(tmp_path).verify()
    shard.unlink()
    with pytest.raises(ValueError, match=f"1 shards are missing, the first is shards/{shard.name}"):
        open_store(tmp_path)
    shard.write_bytes(whole)
    open_store(tmp_path).verify()

    statistics = tmp_path / "statistics" / "time.json"
    statistics.write_text(statistics.read_text().replace("1", "2"))
    with pytest.raises(ValueError, match=r"time\.json: sha256"):
        open_store(tmp_path).statistics("time")

    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    with pytest.raises(ValueError, match="schema_version 99, expected 2"):
        open_store(tmp_path)
    manifest.write_text("{")
    with pytest.raises(ValueError, match="not a store's manifest"):
        open_store(tmp_path)


def test_a_store_in_s3_equals_the_local_one(tmp_path: Path, s3_bucket: str) -> None:
    records = [tiled_city("a"), tiled_city("a", period="val")]
    local = prepared(tmp_path, records)
    out = Location.of(f"{s3_bucket}/stores/one")
    with pytest.raises(ValueError, match="preparation was not finished"):
        open_store(out)
    prepare_store([records], out, SMALL)
    store = open_store(f"{s3_bucket}/stores/one")
    store.verify()
    assert store.manifest == local.manifest
    assert store.statistics("time") == local.statistics("time")


def test_the_published_series_fit_in_less_than_their_size(tmp_path: Path, shared_data: Path) -> None:
    source = SeriesFiles(shared_data / "uomo")
    store = prepared(tmp_path, *(list(source.read(name)) for name in source.names()), layout=Layout())
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert store.series_bytes == 2 * 4 * 16 * ((28 + 4) * 399 + (6 + 1) * 735 + (33 + 6) * 231)
    assert on_disk < 1.2 * store.series_bytes


def test_values_that_do_not_compress_cost_at_most_a_fifth_more(tmp_path: Path) -> None:
    city = tiled_city(places=[f"p{i}" for i in range(4)], steps=448 * 4)
    random = np.random.default_rng(0)
    noise = random.integers(0, 0x7F000000, city.traffic.size, dtype=np.int32).view(np.float32).reshape(city.traffic.shape)
    store = prepared(tmp_path, [City(**{**vars(city), "traffic": noise, "users": noise[0]})], layout=Layout())
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert 1.0 < on_disk / store.series_bytes < 1.2
