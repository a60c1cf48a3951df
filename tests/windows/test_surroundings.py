"""The environment of sites and of users who move, from the embedding store to the batch a model is given."""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from raytraffic.environment.embeddings import EmbeddingStore, Entry
from raytraffic.files import Location
from raytraffic.masks import SHORT, mask
from raytraffic.sources.city import City
from raytraffic.store import Layout, Store
from raytraffic.windows import Windows, environment_features
from tests.store.cities import prepared

LAYOUT = Layout(token=(4, 1, 1), tile=(1, 1), run_steps=32, overlap_steps=12)
DIMENSION = 3


def users_city(steps: int = 70, users: int = 5) -> City:
    """Users who go round four places, each an hour further than the last; user 2 is nowhere in hours 20 to 29."""
    place = ((np.arange(steps)[:, None] + np.arange(users)) % 4).astype(np.int32)
    place[20:30, 2] = -1
    return City(
        name="people",
        traffic=np.random.default_rng(0).gamma(1.0, size=(2, steps, users)).astype(np.float32),
        start=datetime(2024, 1, 1),
        step_minutes=60,
        sites=[f"u{i}" for i in range(users)],
        services=("news", "games"),
        place=place,
        places=("home", "work", "park", "nowhere"),
    )


def embedded(store: Store, sites: list[str]) -> dict[str, np.ndarray]:
    """Writes an embedding store into the prepared store; the vectors (2 d,) by site."""
    numbers = np.random.default_rng(1)
    images, texts = (numbers.normal(size=(len(sites), DIMENSION)).astype(np.float32) for _ in range(2))
    embeddings = EmbeddingStore.create(store.location.child("environment"), "an encoder", DIMENSION)
    keys = [f"key of {site}" for site in sites]
    shard = embeddings.write(keys, images, texts)
    embeddings.record({site: Entry(key=key, shard=shard, request="") for site, key in zip(sites, keys, strict=True)})
    return {site: np.concatenate(pair) for site, *pair in zip(sites, images, texts, strict=True)}


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, np.ndarray]]:
    store = prepared(tmp_path_factory.mktemp("moving"), [users_city()], layout=LAYOUT)
    return store, embedded(store, ["people/home", "people/work", "people/park", "elsewhere/home"])


def test_a_window_has_the_environment_of_the_place_its_user_is_at_each_hour(moving: tuple[Store, dict[str, np.ndarray]]) -> None:
    store, vectors = moving
    city = users_city()
    windows = Windows(store, "all", 12, environment=True)
    rows, starts = windows.evaluation("train", SHORT)
    env = windows.batch(windows.cut(rows, starts)).context["env"].numpy()
    assert env.shape == (len(rows), 12, 1, 2 * DIMENSION) and len(rows) > 50
    nothing = np.full(2 * DIMENSION, np.nan, dtype=np.float32)
    for row, start, found in zip(rows, starts, env[:, :, 0], strict=True):
        user = list(city.sites).index(store.index.places[store.index.place[row]][1])
        names = [city.places[at] if at >= 0 else "" for at in city.place[start : start + 12, user]]
        expected = [vectors.get(f"people/{name}", nothing) for name in names]  # `nowhere` has no embedding
        np.testing.assert_array_equal(found, np.stack(expected))


def test_a_forecast_does_not_know_where_its_user_will_be(moving: tuple[Store, dict[str, np.ndarray]]) -> None:
    windows = Windows(moving[0], "all", 12, environment=True)
    rows, starts = windows.evaluation("train", SHORT)
    env = windows.batch(windows.cut(rows[:4], starts[:4], window=8, horizon=4)).context["env"]
    assert env.shape[1] == 12 and bool(env[:, 8:].isnan().all()) and not bool(env[:, :8].isnan().all())


def test_a_site_that_stays_has_one_vector(tmp_path: Path) -> None:
    city = replace(users_city(), place=None, places=())
    store = prepared(tmp_path, [city], layout=LAYOUT)
    vectors = embedded(store, ["people/u0", "people/u3"])
    windows = Windows(store, "all", 12, environment=True)
    rows, starts = windows.evaluation("train", SHORT)
    batch = mask(windows.batch(windows.cut(rows, starts)), SHORT)
    env = batch.context["env"].numpy()
    assert env.shape == (len(rows), 1, 1, 2 * DIMENSION)
    for row, found in zip(rows, env[:, 0, 0], strict=True):
        user = store.index.places[store.index.place[row]][1]
        np.testing.assert_array_equal(found, vectors.get(f"people/{user}", np.full(2 * DIMENSION, np.nan, dtype=np.float32)))


def test_windows_carry_numbers_of_vectors_and_can_be_sent_away(moving: tuple[Store, dict[str, np.ndarray]]) -> None:
    windows = Windows(moving[0], "all", 12, environment=True)
    rows, starts = windows.evaluation("train", SHORT)
    columns = windows.cut(rows[:3], starts[:3])
    assert columns["environment"].dtype == np.int64 and columns["environment"].shape == (3, 12, 1)
    sent: Windows = pickle.loads(pickle.dumps(windows))
    assert torch.equal(sent.batch(columns).context["env"].nan_to_num(), windows.batch(columns).context["env"].nan_to_num())
    plain = Windows(moving[0], "all", 12)
    assert "environment" not in plain.cut(rows[:3], starts[:3]) and "env" not in plain.batch(plain.cut(rows[:3], starts[:3])).context


def test_a_store_without_embeddings_says_so(tmp_path: Path) -> None:
    store = prepared(tmp_path, [users_city()], layout=LAYOUT)
    assert environment_features(store) == 0
    windows = Windows(store, "all", 12, environment=True)
    with pytest.raises(ValueError, match=r"environment: no store\.json, expected an embedding store"):
        windows.cut(np.array([0]), np.array([0]))
    embedded(store, ["people/home"])
    assert environment_features(store) == 2 * DIMENSION


def test_places_survive_a_repeated_preparation_and_change_what_is_written(tmp_path: Path) -> None:
    store = prepared(tmp_path, [users_city()], layout=LAYOUT)
    assert store.places == {"people": ("home", "work", "park", "nowhere")}
    shards = sorted(file.name for file in Location.of(tmp_path).child("shards").list())
    again = prepared(tmp_path, [users_city()], layout=LAYOUT)
    assert sorted(file.name for file in again.location.child("shards").list()) == shards
    moved = users_city()
    assert moved.place is not None
    moved.place[0, 0] = 3
    assert sorted(f.name for f in prepared(tmp_path, [moved], layout=LAYOUT).location.child("shards").list()) != shards
