"""Splits: which steps of which series are trained on, validated on and tested on; pure functions of the store's index.

published  the publisher's periods: "test" (or, where there is none, "val") is tested, "val" beside a "test" validates
place      whole places are held out: those of the published val and test periods with all their series, else a seeded choice
time       the end of every training series is tested; published val and test periods are not used
all        everything is trained on, nothing is held back: the statistics a forecast of the future uses

Without a validation period a seeded share of the training places (over all cities) validates instead of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from raytraffic.randomness import text_key
from raytraffic.store.index import Series, StoreIndex

__all__ = ["PARTS", "SPLITS", "Assignment", "Part", "Split", "assign", "restrict"]

SplitName = Literal["published", "place", "time", "all"]
Part = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
PARTS: tuple[Part, ...] = get_args(Part)
_HELD_PERIODS = ("val", "test")

_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """A way to split: `place_share` of a city's places and `validation_share` of all training places are held back, and the
    last `test_share` of a series, at least `test_steps` steps. Raises ValueError for an unknown name or a share outside (0, 1)."""

    name: SplitName
    seed: int = 0
    place_share: float = 0.2
    validation_share: float = 1 / 12
    test_share: float = 0.25
    test_steps: int = 64

    def __post_init__(self) -> None:
        if self.name not in SPLITS:
            raise ValueError(f"split: {self.name!r}, expected one of {SPLITS}")
        for field in ("place_share", "validation_share", "test_share"):
            if not 0 < getattr(self, field) < 1:
                raise ValueError(f"split {field}: {getattr(self, field)}, expected a share between 0 and 1")


@dataclass(frozen=True, eq=False)
class Assignment:
    """Per part an (n, 2) array: for each run of the index the steps [lo, hi) of its series that belong to the part (lo == hi: none)."""

    train: _Ints
    validation: _Ints
    test: _Ints

    def part(self, name: Part) -> _Ints:
        """One part's ranges; ValueError for an unknown part."""
        if name not in PARTS:
            raise ValueError(f"part: {name!r}, expected one of {PARTS}")
        ranges: _Ints = getattr(self, name)
        return ranges


def assign(index: StoreIndex, split: Split) -> Assignment:
    """The ranges of every run's series under a split."""
    series = index.table_of_series()
    held = np.isin(np.array(index.periods)[series.period], _HELD_PERIODS)
    if split.name == "all":
        nothing = np.zeros_like(held)
        whole = _whole(series, train=~nothing, validation=nothing, test=nothing)
        return Assignment(**{part: values[index.series] for part, values in whole.items()})
    choose = {"published": _published, "place": _place, "time": _time}[split.name]
    ranges, spare_last = choose(index, series, held, split)
    _hold_back_validation(index, series, ranges, spare_last, split)
    return Assignment(**{part: values[index.series] for part, values in ranges.items()})


def restrict(
    index: StoreIndex, assignment: Assignment, cities: Sequence[str], share: float, seed: int, days: float | None = None
) -> Assignment:
    """The assignment with fewer training data: of `cities` only (all if none is named), of each city a seeded `share` of the places, at
    least one unless it is 0, and of each series the last `days`. Validation keeps to the cities too. ValueError for a city the store
    does not have."""
    unknown = sorted(set(cities) - set(index.cities))
    if unknown:
        raise ValueError(f"cities: {unknown}, expected some of {list(index.cities)}")
    wanted = np.isin(index.city, [index.cities.index(name) for name in cities or index.cities])
    kept = np.zeros(len(index.places), dtype=bool)
    trains = (_width(assignment.train) > 0) & wanted
    for city in np.unique(index.city[trains]):
        places = np.unique(index.place[trains & (index.city == city)])
        kept[_smallest(index, places, seed, "share", max(1, round(len(places) * share)) if share else 0)] = True
    train = assignment.train
    if days is not None:
        steps = np.round(days * 1440 / index.step_minutes).astype(np.int64)
        train = np.stack((np.maximum(train[:, 0], train[:, 1] - steps), train[:, 1]), axis=1)
    return Assignment(
        train=np.where(kept[index.place][:, None], train, 0) * wanted[:, None],
        validation=assignment.validation * wanted[:, None],
        test=assignment.test,
    )


def _published(index: StoreIndex, series: Series, held: _Bools, split: Split) -> tuple[dict[Part, _Ints], _Bools]:
    is_test = np.array(index.periods)[series.period] == "test"
    has_test = _any_by(series.city, is_test, len(index.cities))[series.city]
    test = is_test | (held & ~has_test)
    tested_places = _any_by(series.place, test, len(index.places))
    return _whole(series, train=~held, validation=held & ~test, test=test), tested_places


def _place(index: StoreIndex, series: Series, held: _Bools, split: Split) -> tuple[dict[Part, _Ints], _Bools]:
    has_held = _any_by(series.city, held, len(index.cities))
    out = _any_by(series.place, held, len(index.places))
    city_of = np.zeros(len(index.places), dtype=np.int64)
    city_of[series.place] = series.city
    for city in np.flatnonzero(~has_held):
        places = np.flatnonzero(city_of == city)
        out[_smallest(index, places, split.seed, "place", _share(len(places), split.place_share))] = True
    tested = np.where(has_held[series.city], held, out[series.place])
    ranges = _whole(series, train=~held & ~out[series.place], validation=np.zeros_like(held), test=tested)
    return ranges, np.zeros(len(index.places), dtype=bool)


def _time(index: StoreIndex, series: Series, held: _Bools, split: Split) -> tuple[dict[Part, _Ints], _Bools]:
    test_steps = np.maximum(np.ceil(series.steps * split.test_share).astype(np.int64), split.test_steps)
    cut = np.maximum(series.steps - test_steps, 0)
    ranges: dict[Part, _Ints] = {
        "train": np.stack((np.zeros_like(cut), cut), axis=1),
        "validation": np.zeros((len(cut), 2), dtype=np.int64),
        "test": np.stack((cut, series.steps), axis=1),
    }
    for values in ranges.values():
        values[held] = 0
    return ranges, np.zeros(len(index.places), dtype=bool)


def _hold_back_validation(index: StoreIndex, series: Series, ranges: dict[Part, _Ints], spare_last: _Bools, split: Split) -> None:
    """Move a share of the training places to validation, in place; places of `spare_last` only when no others are left."""
    has_validation = _any_by(series.city, _width(ranges["validation"]) > 0, len(index.cities))
    candidates = np.unique(series.place[(_width(ranges["train"]) > 0) & ~has_validation[series.city]])
    chosen = _smallest(index, candidates, split.seed, "validation", _share(len(candidates), split.validation_share), spare_last)
    moved = np.isin(series.place, chosen) & (_width(ranges["train"]) > 0)
    ranges["validation"][moved] = ranges["train"][moved]
    ranges["train"][moved] = 0


def _share(places: int, share: float) -> int:
    """At least one place, and none when there are fewer than three."""
    return 0 if places < 3 else max(1, round(places * share))


def _smallest(index: StoreIndex, places: _Ints, seed: int, purpose: str, count: int, late: _Bools | None = None) -> _Ints:
    """`count` places with the smallest hashes of (purpose, seed, city, tile), those marked `late` after all others."""
    hashes = np.array([text_key("|".join((purpose, str(seed), *index.places[place]))) for place in places], dtype=np.int64)
    order = np.lexsort((hashes, np.zeros(len(places), dtype=bool) if late is None else late[places]))
    return places[order[:count]]


def _whole(series: Series, **parts: _Bools) -> dict[Part, _Ints]:
    """Whole series, [0, steps), where a part's mask is True."""
    return {part: np.stack((np.zeros_like(series.steps), series.steps * parts[part]), axis=1) for part in PARTS}


def _any_by(code: _Ints, flag: _Bools, size: int) -> _Bools:
    out = np.zeros(size, dtype=bool)
    out[code[flag]] = True
    return out


def _width(ranges: _Ints) -> _Ints:
    return ranges[:, 1] - ranges[:, 0]
