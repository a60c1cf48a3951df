"""Preparation on a cluster: the same bytes as in one process, and no store before all of it is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raytraffic.cli import main
from raytraffic.files import Location
from raytraffic.sources.open import open_source
from raytraffic.store import Layout, open_store, prepare_store
from tests.ray.conftest import CITIES


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def in_process(folder: Path, specs: tuple[str, ...]) -> dict[str, bytes]:
    """The files of the same preparation without Ray."""
    sources = [open_source(spec) for spec in specs]
    prepare_store([source.read(name) for source in sources for name in source.names()], Location.of(folder), Layout())
    return contents(folder)


def test_the_cluster_writes_the_bytes_that_one_process_writes(prepared: Path, tmp_path: Path) -> None:
    ours, theirs = contents(prepared), in_process(tmp_path / "store", CITIES)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    store = open_store(prepared)
    store.verify()
    assert sorted(set(store.index.step_minutes.tolist())) == [15, 30, 60]


def test_an_interrupted_preparation_is_no_store_and_is_completed(cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, out = tmp_path / "second.npz", tmp_path / "store"
    traffic = np.random.default_rng(0).gamma(2.0, 10.0, (480, 4, 4)).astype(np.float32)
    np.savez(grid, traffic=traffic, step_minutes=60, start="2024-01-01T00:00")
    whole = grid.read_bytes()
    grid.write_bytes(whole[: len(whole) // 2])
    specs = ("synthetic:first?step=60&grid=4x4&days=20", f"grid:{grid}")
    arguments = ["prepare", "--sources", *specs, "--out", str(out)]

    assert main(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"raytraffic prepare: {grid}: cannot be read, expected a whole npz file")
    assert not (out / "manifest.json").exists()
    with pytest.raises(ValueError, match=r"no manifest\.json, expected a prepared store"):
        open_store(out)

    grid.write_bytes(whole)
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert contents(out) == in_process(tmp_path / "alone", specs)
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()} == before
