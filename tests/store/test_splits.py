"""Splits: parts never share an entry, places are held out whole, every choice is a function of seed, city and tile."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.store import SPLITS, Assignment, Layout, Split, StoreIndex, assign, restrict
from raytraffic.store.parts import CityPart, RecordPart, ShardPart, checked, index_table
from raytraffic.store.splits import PARTS

LAYOUT = Layout(run_steps=32, overlap_steps=8)


def index_of(cities: dict[str, dict[str, tuple[int, list[str]]]]) -> StoreIndex:
    """The index of cities given as {city: {period: (steps, tiles)}}; nothing is written."""
    parts = []
    for city, periods in cities.items():
        records = []
        for period, (steps, tiles) in periods.items():
            rows = len(tiles) * LAYOUT.runs(steps)
            shard = ShardPart(path=f"shards/{city}-{period}.parquet", rows=rows, bytes=0, sha256="")
            records.append(
                RecordPart(
                    period=period,
                    fingerprint="",
                    start_minute=0,
                    steps=steps,
                    tiles=tuple(tiles),
                    empty_rows=(),
                    has_users=False,
                    series_bytes=0,
                    shards=(shard,),
                )
            )
        parts.append(CityPart(city=city, step_minutes=30, services=("x",), unit="", poi_categories=(), grid=None, records=tuple(records)))
    return StoreIndex.of(index_table(checked(parts), LAYOUT), LAYOUT)


def ranges_of(index: StoreIndex, split: Split) -> dict[tuple[str, str, str], dict[str, tuple[int, int]]]:
    """{(city, period, tile): {part: (lo, hi)}} without empty parts, read from every run (all runs of a series must agree)."""
    return ranges_in(index, assign(index, split))


def ranges_in(index: StoreIndex, assignment: Assignment) -> dict[tuple[str, str, str], dict[str, tuple[int, int]]]:
    """`ranges_of` of an assignment."""
    found: dict[tuple[str, str, str], dict[str, tuple[int, int]]] = {}
    for row in range(len(index)):
        city, tile = index.places[index.place[row]]
        here = {part: (int(lo), int(hi)) for part in PARTS for lo, hi in [assignment.part(part)[row]] if lo < hi}
        assert found.setdefault((city, index.periods[index.period[row]], tile), here) == here
    return found


def tiles_in(ranges: dict, part: str, city: str) -> set[str]:
    return {tile for (name, _, tile), parts in ranges.items() if part in parts and name == city}


PUBLISHED = index_of(
    {
        "uomo": {"train": (100, [f"t{i}" for i in range(12)]), "val": (80, ["t0", "t1"])},
        "three": {"train": (100, ["a", "b", "c"]), "val": (50, ["a"]), "test": (60, ["b"])},
        "plain": {"all": (200, [f"p{i}" for i in range(10)])},
    }
)


def test_published_keeps_the_publishers_periods() -> None:
    ranges = ranges_of(PUBLISHED, Split("published"))
    assert ranges["uomo", "val", "t0"] == {"test": (0, 80)}
    assert ranges["three", "val", "a"] == {"validation": (0, 50)}
    assert ranges["three", "test", "b"] == {"test": (0, 60)}
    assert all(ranges["three", "train", tile] == {"train": (0, 100)} for tile in "abc")
    held = [tiles_in(ranges, "validation", city) for city in ("uomo", "plain")]
    assert sum(map(len, held)) == round(22 / 12)
    assert not held[0] & {"t0", "t1"}  # a tested place validates only when no other is left
    assert tiles_in(ranges, "test", "plain") == set()


def test_place_holds_out_published_places_and_else_a_seeded_share() -> None:
    ranges = ranges_of(PUBLISHED, Split("place"))
    assert ranges["uomo", "val", "t0"] == {"test": (0, 80)}
    assert ranges["uomo", "train", "t0"] == {}
    assert ranges["three", "train", "c"] in ({"train": (0, 100)}, {"validation": (0, 100)})
    assert ranges["three", "val", "a"] == {"test": (0, 50)}
    assert len(tiles_in(ranges, "test", "plain")) == 2
    choices = {frozenset(tiles_in(ranges_of(PUBLISHED, Split("place", seed=seed)), "test", "plain")) for seed in range(5)}
    assert len(choices) > 1


def test_time_cuts_every_training_series() -> None:
    ranges = ranges_of(PUBLISHED, Split("time", validation_share=0.5))
    assert ranges["uomo", "val", "t0"] == {}
    assert ranges["three", "test", "b"] == {}
    for parts in (ranges["uomo", "train", "t0"], ranges["plain", "all", "p0"]):
        assert parts["test"] in ((36, 100), (136, 200))  # the last 64, more than a quarter
        assert [parts[part] for part in ("train", "validation") if part in parts] == [(0, parts["test"][0])]
    long = ranges_of(index_of({"long": {"all": (1001, ["x"])}}), Split("time"))
    assert long["long", "all", "x"] == {"train": (0, 750), "test": (750, 1001)}
    short = ranges_of(index_of({"short": {"all": (60, ["x"])}}), Split("time"))
    assert short["short", "all", "x"] == {"test": (0, 60)}


def test_two_places_are_too_few_to_validate_on() -> None:
    index = index_of({"two": {"all": (500, ["x", "y"])}})
    for name in SPLITS:
        ranges = ranges_of(index, Split(name))
        assert tiles_in(ranges, "validation", "two") == set()
        assert tiles_in(ranges, "train", "two") == {"x", "y"}


def test_a_city_of_another_name_changes_no_place_choice() -> None:
    alone = ranges_of(index_of({"plain": {"all": (200, [f"p{i}" for i in range(10)])}}), Split("place"))
    assert tiles_in(alone, "test", "plain") == tiles_in(ranges_of(PUBLISHED, Split("place")), "test", "plain")


periods = st.dictionaries(
    st.sampled_from(["train", "val", "test", "all", "2023"]),
    st.tuples(st.integers(1, 200), st.lists(st.sampled_from([f"t{i}" for i in range(8)]), min_size=1, max_size=8, unique=True)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(cities=st.dictionaries(st.sampled_from(["a", "b", "c"]), periods, min_size=1), name=st.sampled_from(SPLITS), seed=st.integers(0, 3))
def test_parts_share_no_entry_and_held_out_places_are_whole(cities: dict, name: str, seed: int) -> None:
    index = index_of(cities)
    ranges = ranges_of(index, Split(name, seed=seed))  # type: ignore[arg-type]
    for (city, period, tile), parts in ranges.items():
        steps = cities[city][period][0]
        entries = {part: set(range(lo, hi)) for part, (lo, hi) in parts.items()}
        assert all(numbers <= set(range(steps)) for numbers in entries.values())
        assert all(not one & other for one, other in combinations(entries.values(), 2)), (city, period, tile)
    if name == "place":
        for city in cities:
            seen = [tiles_in(ranges, part, city) for part in PARTS]
            assert all(not one & other for one, other in combinations(seen, 2))
    if name == "time":
        assert all("train" not in parts or parts["train"][1] == parts["test"][0] for parts in ranges.values())


@pytest.mark.parametrize(
    ("fields", "message"), [({"name": "random"}, "split: 'random'"), ({"name": "place", "place_share": 1.0}, "place_share: 1.0")]
)
def test_a_split_that_cannot_be(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Split(**fields)


def test_the_index_knows_its_series() -> None:
    series = PUBLISHED.table_of_series()
    assert sorted(series.steps.tolist()) == sorted([100] * 12 + [80] * 2 + [100] * 3 + [50, 60] + [200] * 10)
    assert np.array_equal(PUBLISHED.run[series.first_row], np.zeros(len(series.steps)))
    with pytest.raises(ValueError, match="city: 'nowhere'"):
        PUBLISHED.rows_of("nowhere")


def test_all_trains_on_everything() -> None:
    ranges = ranges_of(PUBLISHED, Split("all"))
    assert ranges["uomo", "val", "t0"] == {"train": (0, 80)}
    assert all(set(parts) == {"train"} for parts in ranges.values())


ALL = ("uomo", "three", "plain")


def restricted(split: Split, cities: tuple[str, ...] = (), share: float = 1.0, seed: int = 0) -> dict:
    """`ranges_of` a restricted assignment of the published index."""
    return ranges_in(PUBLISHED, restrict(PUBLISHED, assign(PUBLISHED, split), cities, share, seed))


@pytest.mark.parametrize("name", SPLITS)
def test_everything_is_kept_if_nothing_is_asked_for(name: str) -> None:
    split = Split(name)  # type: ignore[arg-type]
    assert restricted(split) == ranges_of(PUBLISHED, split)


@pytest.mark.parametrize("name", SPLITS)
def test_only_the_named_cities_train_and_validate(name: str) -> None:
    split = Split(name)  # type: ignore[arg-type]
    whole, ours = ranges_of(PUBLISHED, split), restricted(split, ("plain", "three"))
    for place, parts in whole.items():
        expected = {part: steps for part, steps in parts.items() if part == "test" or place[0] != "uomo"}
        assert ours[place] == expected, "the part that is tested stays, of every city"


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 0.5])
def test_a_share_of_each_city_s_training_places_trains(name: str, share: float) -> None:
    split = Split(name)  # type: ignore[arg-type]
    whole, ours = ranges_of(PUBLISHED, split), restricted(split, share=share)
    for city in ALL:
        before, after = tiles_in(whole, "train", city), tiles_in(ours, "train", city)
        assert after <= before
        assert len(after) == (max(1, round(len(before) * share)) if share else 0)
        for part in ("validation", "test"):
            assert tiles_in(ours, part, city) == tiles_in(whole, part, city)
    for place, parts in ours.items():
        assert all(whole[place][part] == steps for part, steps in parts.items()), "ranges are kept whole or not at all"


def test_the_chosen_places_hang_on_the_seed_and_their_own_names() -> None:
    split = Split("time")
    chosen = [frozenset(tiles_in(restricted(split, share=0.5, seed=seed), "train", "plain")) for seed in range(6)]
    assert chosen[0] == tiles_in(restricted(split, share=0.5, seed=0), "train", "plain")
    assert len(set(chosen)) > 1
    assert tiles_in(restricted(split, ("plain",), 0.5), "train", "plain") == chosen[0], "other cities change nothing"
    for seed in range(6):
        few, more = (tiles_in(restricted(split, share=share, seed=seed), "train", "plain") for share in (0.2, 0.6))
        assert few < more, "a larger share adds places to a smaller one"


def test_all_periods_of_a_chosen_place_train() -> None:
    index = index_of({"two": {"2023": (100, [f"t{i}" for i in range(8)]), "2024": (80, [f"t{i}" for i in range(8)])}})
    ranges = ranges_in(index, restrict(index, assign(index, Split("all")), (), 0.25, 0))
    by_period = [{tile for (_, p, tile), parts in ranges.items() if p == period and "train" in parts} for period in ("2023", "2024")]
    assert by_period[0] == by_period[1] and len(by_period[0]) == 2


def test_a_city_the_store_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match=r"cities: \['nowhere'\], expected some of \['plain', 'three', 'uomo'\]"):
        restrict(PUBLISHED, assign(PUBLISHED, Split("time")), ("plain", "nowhere"), 1.0, 0)
