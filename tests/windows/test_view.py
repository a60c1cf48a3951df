"""A selection of training places: what is trained on, and that nothing is measured anywhere else."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from raytraffic.masks import SHORT
from raytraffic.sources.city import City
from raytraffic.store import Store
from raytraffic.windows import Selection, Windows
from tests.store.cities import prepared, series_of, tiled_city

PLACES = tuple(f"p{i}" for i in range(8))
CITY = tiled_city("alpha", places=PLACES, steps=300)
OTHER = tiled_city("beta", places=("x", "y", "z"), steps=200, step_minutes=60, seed=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepared(tmp_path_factory.mktemp("view"), [CITY], [OTHER])


def trained_places(windows: Windows, city: str) -> list[str]:
    """The tiles of a city that are trained on."""
    index = windows.store.index
    rows = np.flatnonzero(windows.assignment.train[:, 1] > windows.assignment.train[:, 0])
    return sorted({index.places[index.place[row]][1] for row in rows if index.places[index.place[row]][0] == city})


def only(city: City, places: list[str]) -> City:
    """The city with these places and no others."""
    assert city.tiles is not None and city.tile_ids is not None
    rows = np.array([list(city.tile_ids).index(place) for place in places])
    return City(**{**vars(city), "tiles": city.tiles[rows], "tile_ids": places})


def test_statistics_are_measured_on_the_chosen_places_only(store: Store, tmp_path: Path) -> None:
    windows = Windows(store, "all", 8, selection=Selection(share=0.25, seed=1))
    places = trained_places(windows, "alpha")
    assert len(places) == 2
    small = prepared(tmp_path, [only(CITY, places)], [only(OTHER, trained_places(windows, "beta"))])
    assert windows.statistics == small.statistics("all")
    assert windows.statistics["alpha"] != store.statistics("all")["alpha"]


@pytest.mark.parametrize("split", ["place", "time"])
def test_the_reference_is_that_of_the_chosen_places_training_steps(store: Store, split: str) -> None:
    windows = Windows(store, split, 8, selection=Selection(share=0.5))  # type: ignore[arg-type]
    entries = []
    for row in np.flatnonzero(store.index.run == 0):
        city, tile = store.index.places[store.index.place[row]]
        low, high = windows.assignment.train[row]
        if city == "alpha" and low < high:
            entries.append(series_of(CITY, tile)[0, low:high].ravel())
    found = windows.statistics["alpha"]
    assert found is not None and len(entries) == len(trained_places(windows, "alpha"))
    assert found.reference[0] == pytest.approx(np.nanpercentile(np.concatenate(entries).astype(np.float64), 99.99), rel=1e-9)


def test_a_whole_share_has_the_store_s_statistics(store: Store) -> None:
    assert Windows(store, "time", 8, selection=Selection(seed=9)).statistics == store.statistics("time")


def test_with_nothing_measured_every_city_is_new(store: Store) -> None:
    windows = Windows(store, "time", 8, selection=Selection(share=0))
    assert windows.statistics == {"alpha": None, "beta": None}
    rows, starts = windows.evaluation("test", SHORT, 5)
    columns = windows.cut(rows, starts)
    assert len(rows) and (columns["profile"] == 1).all() and np.isnan(columns["reference"]).all()
    assert np.isnan(columns["modes"]).all() and np.isnan(columns["persistence"]).all()
    whole = Windows(store, "time", 8)
    for ours, theirs in zip((rows, starts), whole.evaluation("test", SHORT, 5), strict=True):
        assert np.array_equal(ours, theirs)
    told = whole.cut(rows, starts)
    assert np.array_equal(columns["traffic"], told["traffic"], equal_nan=True) and np.isfinite(told["reference"]).all()
    with pytest.raises(ValueError, match="window: 8 steps, expected no more than the longest training series"):
        windows.training(0)


def test_only_chosen_places_come_up_in_training(store: Store) -> None:
    windows = Windows(store, "time", 8, selection=Selection(("alpha",), 0.25, 3))
    rows, _ = next(windows.training(0).pools()).samples()
    seen = {store.index.places[place] for place in store.index.place[rows]}
    assert seen == {("alpha", tile) for tile in trained_places(windows, "alpha")}
    assert 0 < len(seen) <= 2
    validation = windows.validation(50)
    assert validation is None or set(validation["city"]) == {store.index.cities.index("alpha")}


def test_a_selection_goes_along_to_another_process(store: Store) -> None:
    windows = Windows(store, "time", 8, selection=Selection(("alpha",), 0.25, 3))
    there = pickle.loads(pickle.dumps(windows))
    assert there.selection == windows.selection
    assert np.array_equal(there.assignment.train, windows.assignment.train)
    assert there.statistics == windows.statistics


def test_a_selection_that_cannot_be(store: Store) -> None:
    with pytest.raises(ValueError, match=r"share: 1\.5, expected a share of the training places in \[0, 1\]"):
        Selection(share=1.5)
    with pytest.raises(ValueError, match=r"cities: \['gamma'\], expected some of \['alpha', 'beta'\]"):
        _ = Windows(store, "time", 8, selection=Selection(("gamma",))).assignment


def test_fewer_days_are_the_last_of_every_series_and_contained_in_more(store: Store) -> None:
    ranges = {days: Windows(store, "all", 8, selection=Selection(days=days)).assignment.train for days in (1.0, 2.0, None)}
    whole = ranges[None]
    steps = 1440 // store.index.step_minutes
    assert (ranges[1.0][:, 1] == whole[:, 1]).all() and (ranges[2.0][:, 1] == whole[:, 1]).all()
    assert (ranges[1.0][:, 0] == whole[:, 1] - steps).all()
    assert (ranges[2.0][:, 0] == whole[:, 1] - 2 * steps).all() and (whole[:, 0] < ranges[2.0][:, 0]).all()


def test_statistics_are_measured_on_the_chosen_days_only(store: Store) -> None:
    few = Windows(store, "all", 8, selection=Selection(days=1.0)).statistics
    assert few["alpha"] != store.statistics("all")["alpha"]


def test_a_number_of_days_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="days: 0, expected a number > 0"):
        Selection(days=0)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_city_that_is_not_selected_is_new(store: Store, share: float) -> None:
    statistics = Windows(store, "all", 8, selection=Selection(cities=("alpha",), share=share)).statistics
    assert statistics["alpha"] is not None and statistics["beta"] is None
