"""Statistics of the training part: against NumPy on the whole series, and blind to what is held out."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from raytraffic.sources.city import City
from raytraffic.store import Split, assign
from raytraffic.store.statistics import SHRINK, clock
from tests.store.cities import SMALL, prepared, series_of, tiled_city


def changed(city: City, **fields: object) -> City:
    return City(**{**vars(city), **fields})


def test_the_clock_of_a_city() -> None:
    minute = np.array([np.datetime64("2024-05-07T06:30").astype("datetime64[m]").astype(np.int64)])
    slot, weekday = clock(minute, 30)
    assert slot.tolist() == [13]
    assert weekday.tolist() == [datetime(2024, 5, 7).weekday()] == [1]


@pytest.mark.parametrize("name", ["place", "time"])
def test_against_numpy_on_the_training_part(tmp_path: Path, name: str) -> None:
    city = tiled_city(places=[f"p{i}" for i in range(6)], steps=500, services=("data", "calls"))
    store = prepared(tmp_path, [city])
    found = store.statistics(name)["alpha"]  # type: ignore[arg-type]
    assert found is not None
    assignment = assign(store.index, Split(name))  # type: ignore[arg-type]
    parts = []
    for row in np.flatnonzero(store.index.run == 0):
        low, high = assignment.train[row]
        tile = store.index.places[store.index.place[row]][1]
        if low < high:
            parts.append(series_of(city, tile)[:, low:high])
    steps = parts[0].shape[1]
    train = np.concatenate(parts, axis=2).astype(np.float64)
    expected = [np.nanpercentile(values, 99.99) for values in train]
    assert found.reference == pytest.approx(expected, rel=1e-9)
    means = np.nanmean(train[:, :, np.isfinite(train).any((0, 1))], axis=1)
    assert found.level == pytest.approx([np.median(mean[mean > 0]) for mean in means], rel=1e-6)
    assert found.live_share == pytest.approx(14 / 15)
    assert found.entries == np.isfinite(train).sum()

    live = train[:, :, np.nanmax(np.nan_to_num(train), axis=(0, 1)) > 0]
    ratio = live / np.nanmean(live, axis=1, keepdims=True)
    when = np.datetime64(city.start, "m") + np.arange(steps) * np.timedelta64(30, "m")
    slot = (when - when.astype("datetime64[D]")).astype(int) // 30
    weekday = np.array([moment.weekday() for moment in when.tolist()])
    profile = np.zeros((7, 48))
    for day in range(7):
        for s in range(48):
            there = (slot == s) & (weekday == day)
            days = int(there.sum())
            by_slot = np.nanmean(ratio[:, slot == s])
            by_day = np.nanmean(ratio[:, there]) if days else 0.0
            profile[day, s] = (days * by_day + SHRINK * by_slot) / (days + SHRINK)
    assert np.array(found.profile) == pytest.approx(profile / profile.mean(), rel=1e-6)


@pytest.mark.parametrize("name", ["place", "time"])
def test_what_is_held_out_changes_nothing(tmp_path: Path, name: str) -> None:
    city = tiled_city(places=[f"p{i}" for i in range(6)], steps=300)
    store = prepared(tmp_path / "one", [city])
    assignment = assign(store.index, Split(name))  # type: ignore[arg-type]
    traffic, users = city.traffic.copy(), city.users.copy()  # type: ignore[union-attr]
    for row in np.flatnonzero(store.index.run == 0):
        held = np.ones(300, dtype=bool)
        held[slice(*assignment.train[row])] = False
        cells = 16 * int(store.index.places[store.index.place[row]][1][1:]) + np.arange(16)
        traffic[:, np.ix_(held, cells)[0], cells] = 1e6
        users[np.ix_(held, cells)] = 1e6
    assert (traffic == 1e6).any()
    other = prepared(tmp_path / "two", [changed(city, traffic=traffic, users=users)])
    assert other.statistics(name) == store.statistics(name)  # type: ignore[arg-type]


def test_a_city_without_a_training_part_has_none(tmp_path: Path) -> None:
    city = [tiled_city(period="train"), tiled_city(period="val")]  # every place is published as val, so `place` holds all out
    store = prepared(tmp_path, city, [tiled_city("beta")])
    assert store.statistics("place")["alpha"] is None
    assert store.statistics("place")["beta"] is not None
    assert store.statistics("published")["alpha"] is not None


def test_dead_users_and_silent_cities(tmp_path: Path) -> None:
    dead = changed(tiled_city("dead", users=False), traffic=np.zeros_like(tiled_city().traffic))
    late = tiled_city("late", steps=400)
    late.traffic[:, :300] = np.nan  # the training part of `time` holds no measurement
    store = prepared(tmp_path, [dead], [late])
    found = store.statistics("published")["dead"]
    assert found is not None
    assert (found.reference, found.level, found.live_share, found.users_reference) == ((0.0,), (0.0,), 0.0, None)
    assert np.array_equal(found.profile, np.ones((7, 48)))
    assert store.statistics("time")["late"] is None


def test_statistics_belong_to_the_seed_of_the_store(tmp_path: Path) -> None:
    store = prepared(tmp_path, [tiled_city()], layout=replace(SMALL, seed=7))
    assert store.split("place") == Split("place", seed=7)
    with pytest.raises(ValueError, match="split: 'random'"):
        store.split("random")  # type: ignore[arg-type]
