"""Locations: the same behaviour on a local disk and in S3, whole files or none, errors that name the file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raytraffic.files import Location
from tests.fixtures_s3 import _s3_server, s3_bucket

__all__ = ["_s3_server", "s3_bucket"]

TABLE = pa.table({"x": np.arange(1000), "y": np.arange(1000) / 7})


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty place on disk or in S3."""
    return Location.of(tmp_path) if request.param == "local" else Location.of(request.getfixturevalue("s3_bucket") + "/run")


def test_bytes_come_back_and_a_second_write_replaces_the_first(folder: Location) -> None:
    file = folder.child("a", "b.bin")
    assert not file.exists()
    file.write_bytes(b"one")
    file.write_bytes(b"second")
    assert file.exists()
    assert file.read_bytes() == b"second"
    assert file.name == "b.bin"


def test_list_is_sorted_and_direct_and_empty_where_nothing_is(folder: Location) -> None:
    for name in ("b/2", "a", "b/1", "c"):
        folder.child(name).write_bytes(b"x")
    assert [child.name for child in folder.list()] == ["a", "b", "c"]
    assert folder.child("b").list() == [folder.child("b/1"), folder.child("b/2")]
    assert folder.child("nothing").list() == []


def test_delete_takes_files_folders_and_nothing(folder: Location) -> None:
    for name in ("b/2", "a", "b/1"):
        folder.child(name).write_bytes(b"x")
    folder.child("a").delete()
    folder.child("b").delete()
    folder.child("b").delete()
    assert not folder.child("b/1").exists()
    assert not folder.child("b").exists()
    assert folder.list() == []


def test_tables_come_back_whole_and_in_part(folder: Location) -> None:
    file = folder.child("t.parquet")
    file.write_table(TABLE)
    assert file.read_table().equals(TABLE)
    assert file.read_table(["y"]).equals(TABLE.select(["y"]))
    assert file.read_table(row_groups=[]).num_rows == 0
    assert file.read_metadata().num_rows == 1000


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_table_is_named(folder: Location, damage: str) -> None:
    file = folder.child("t.parquet")
    file.write_table(TABLE)
    data = file.read_bytes()
    file.write_bytes({"cut": data[:-100], "flip": data[:8] + bytes(2000) + data[2008:], "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"t\.parquet: truncated or corrupt"):
        file.read_table()


def test_an_absent_table_is_named(folder: Location) -> None:
    with pytest.raises(ValueError, match=r"t\.parquet: no such file"):
        folder.child("t.parquet").read_table()


def test_a_location_survives_the_way_to_another_process(folder: Location) -> None:
    folder.child("a").write_bytes(b"x")
    there = pickle.loads(pickle.dumps(folder))
    assert there == folder
    assert there.child("a").read_bytes() == b"x"
    assert Location.of(str(folder)) == folder


def test_an_interrupted_write_leaves_the_old_content_and_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Location.of(tmp_path / "a")
    file.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        file.write_bytes(b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Location.of("store") == Location.of(tmp_path / "store")
    assert Location.of(Location.of("store")) == Location.of(tmp_path / "store")


@pytest.mark.parametrize("wrong", ["gs://bucket/key", "s3://", "http://host/file"])
def test_other_schemes_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="path: "):
        Location.of(wrong)


@pytest.mark.parametrize("wrong", ["..", "a/../../b", "", "/a"])
def test_a_child_stays_below(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected a relative path"):
        Location.of("s3://bucket/run").child(wrong)
