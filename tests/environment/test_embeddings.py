"""The embedding store: found by content, written in one piece, the same whatever came first, and honest about what it has not."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raytraffic.environment.embeddings import EmbeddingStore, Entry, content_key
from raytraffic.files import Location
from tests.fixtures_s3 import _s3_server, s3_bucket

__all__ = ["_s3_server", "s3_bucket"]

ENCODER = "e" * 64


def new_store(folder: Path | str, encoder: str = ENCODER, dimension: int = 3) -> EmbeddingStore:
    return EmbeddingStore.create(Location.of(folder), encoder, dimension)


def vectors(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)


def filled(folder: Path | str, sites: int = 5) -> tuple[EmbeddingStore, NDArray[np.float32], NDArray[np.float32]]:
    """Sites town/0, town/1, ... of the content a, b, ... in two shards."""
    store, images, texts = new_store(folder), vectors(sites, 1), vectors(sites, 2)
    keys = [chr(ord("a") + i) for i in range(sites)]
    shards = [store.write(keys[part], images[part], texts[part]) for part in (slice(0, 2), slice(2, None))]
    store.record({f"town/{i}": Entry(key=key, shard=shards[i >= 2], request="r") for i, key in enumerate(keys)})
    return store, images, texts


def test_a_key_is_of_the_encoder_the_pixels_their_shape_and_the_text() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    changed = image.copy()
    changed[1, 3, 2] ^= 1
    keys = [
        content_key("e", image, "water"),
        content_key("f", image, "water"),
        content_key("e", changed, "water"),
        content_key("e", image.reshape(4, 2, 3), "water"),
        content_key("e", image, "Water"),
        content_key("ew", image, "ater"),
    ]
    assert len(set(keys)) == 6 and all(len(key) == 64 for key in keys)
    assert content_key("e", np.asfortranarray(image), "water") == keys[0]
    # SHA-256 of '["e", [2, 4, 3], "water"]' and the bytes 0..23, computed apart
    assert keys[0] == "de01bab42b1a0192da3d72291f24be9ec5b90ebb79c1aaa6507c56cb12ff0278"


def test_what_is_read_is_what_was_written_in_the_order_asked_for(tmp_path: Path) -> None:
    store, images, texts = filled(tmp_path)
    order = [4, 0, 3, 0]
    found_images, found_texts = store.read_both([f"town/{i}" for i in order])
    assert np.array_equal(found_images, images[order]) and np.array_equal(found_texts, texts[order])
    assert found_images.dtype == np.float32


def test_reading_fuses_as_equation_9_says(tmp_path: Path) -> None:
    store, images, texts = filled(tmp_path)
    assert np.array_equal(store.read(["town/2"], alpha=1.0, beta=0.0), images[2:3])
    assert np.array_equal(store.read(["town/2"], alpha=0.0, beta=1.0), texts[2:3])
    assert np.allclose(store.read(["town/1"], alpha=0.3, beta=0.9), 0.3 * images[1] + 0.9 * texts[1])


def test_sites_without_vectors_are_named(tmp_path: Path) -> None:
    store, *_ = filled(tmp_path)
    with pytest.raises(ValueError, match="no embedding of town/9, village/1, expected one of every site"):
        store.read(["town/0", "town/9", "village/1", "town/9"])
    with pytest.raises(ValueError, match="and 3 more"):
        store.read([f"x/{i}" for i in range(8)])


def test_missing_are_those_not_there_once_and_in_order(tmp_path: Path) -> None:
    store, *_ = filled(tmp_path)
    assert store.missing(["z", "a", "y", "z", "e"]) == ["z", "y"]
    assert new_store(tmp_path / "empty").missing(["a", "a"]) == ["a"]


def test_the_same_keys_make_the_same_file_wherever_they_are_written(tmp_path: Path) -> None:
    names = []
    for folder in ("one", "two"):
        store = new_store(tmp_path / folder)
        names += [store.write(["b", "a"], vectors(2), vectors(2)), store.write(["b", "a"], vectors(2), vectors(2))]
    assert len(set(names)) == 1
    assert (tmp_path / "one/shards" / names[0]).read_bytes() == (tmp_path / "two/shards" / names[0]).read_bytes()
    assert len(list((tmp_path / "one/shards").iterdir())) == 1
    assert new_store(tmp_path / "two").write(["a", "b"], vectors(2), vectors(2)) != names[0]


@settings(max_examples=20, deadline=None)
@given(batches=st.lists(st.dictionaries(st.integers(0, 6), st.integers(0, 4), min_size=1), max_size=4))
def test_the_index_holds_what_was_recorded_last(tmp_path_factory: pytest.TempPathFactory, batches: list[dict[int, int]]) -> None:
    store, expected = new_store(tmp_path_factory.mktemp("store")), {}
    for batch in batches:
        entries = {f"s/{site}": Entry(key=f"k{key}", shard="x", request=str(key)) for site, key in batch.items() if key}
        gone = [f"s/{site}" for site, key in batch.items() if not key]
        store.record(entries, without=gone)
        expected = {site: entry for site, entry in {**expected, **entries}.items() if site not in gone}
    assert store.index() == expected


def test_a_store_is_of_one_encoder(tmp_path: Path) -> None:
    filled(tmp_path)
    assert new_store(tmp_path).index().keys() == EmbeddingStore.open(str(tmp_path)).index().keys() != set()
    with pytest.raises(ValueError, match=r"its vectors are of encoder eeee.*give another folder"):
        new_store(tmp_path, encoder="f" * 64)
    with pytest.raises(ValueError, match=r"no store\.json, expected an embedding store"):
        EmbeddingStore.open(str(tmp_path / "elsewhere"))


def test_a_damaged_shard_counts_as_missing_and_is_refused_by_name(tmp_path: Path) -> None:
    store, *_ = filled(tmp_path)
    name = store.index()["town/0"].shard
    file = tmp_path / "shards" / name
    file.write_bytes(file.read_bytes()[:-20])
    assert store.missing(["a", "b", "c"]) == ["a", "b"]
    with pytest.raises(ValueError, match=f"{name}: truncated or corrupt.*embed with --refetch"):
        store.read(["town/0"])
    assert len(store.read(["town/4"])) == 1


def test_a_file_that_was_not_finished_is_no_shard(tmp_path: Path) -> None:
    store, *_ = filled(tmp_path)
    (tmp_path / "shards" / ".tmp-half").write_bytes(b"PAR1")
    assert set(store.keys()) == set("abcde")


def test_content_of_two_shards_is_found_in_the_first(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    names = [store.write(keys, vectors(2), vectors(2)) for keys in (["a", "b"], ["b", "c"])]
    assert store.keys()["b"] == min(names)


def test_a_store_in_s3_is_the_same(tmp_path: Path, s3_bucket: str) -> None:
    local, images, _ = filled(tmp_path)
    remote, *_ = filled(f"{s3_bucket}/embeddings")
    again = pickle.loads(pickle.dumps(EmbeddingStore.open(f"{s3_bucket}/embeddings")))
    assert np.array_equal(again.read(["town/3"], alpha=1.0, beta=0.0), images[3:4])
    for name in ("sites.parquet", "store.json", f"shards/{local.index()['town/4'].shard}"):
        assert remote.location.child(name).read_bytes() == local.location.child(name).read_bytes()
