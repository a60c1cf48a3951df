"""The training order visits every window once a pass and resumes anywhere; evaluation windows stay in their part."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.store import SPLITS, Split, StoreIndex, assign
from raytraffic.windows import TrainingOrder, evaluation_windows
from tests.store.test_splits import index_of

INDEX = index_of(
    {
        "a": {"train": (100, [f"t{i}" for i in range(9)]), "val": (80, ["t0", "t1"])},
        "b": {"all": (131, ["x", "y", "z"])},
        "c": {"all": (7, ["short"])},
    }
)


def windows_of(index: StoreIndex, rows: np.ndarray, starts: np.ndarray) -> list[tuple[int, int]]:
    """(series, start), after checking that each start lies in the core of its row."""
    assert ((starts >= index.first_step[rows]) & (starts < index.first_step[rows] + index.core_steps[rows])).all()
    return list(zip(index.series[rows].tolist(), starts.tolist(), strict=True))


def expected_windows(index: StoreIndex, ranges: np.ndarray, window: int) -> list[tuple[int, int]]:
    return [
        (int(index.series[row]), start)
        for row in np.flatnonzero(index.run == 0)
        for start in range(ranges[row, 0], ranges[row, 1] - window + 1)
    ]


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(SPLITS), window=st.integers(1, 8), seed=st.integers(0, 3), pool=st.integers(1, 120), turn=st.integers(0, 2))
def test_every_training_window_comes_once_a_pass(name: str, window: int, seed: int, pool: int, turn: int) -> None:
    assignment = assign(INDEX, Split(name))  # type: ignore[arg-type]
    order = TrainingOrder(INDEX, assignment, window, seed, pool)
    begin, end = turn * order.samples_per_pass, (turn + 1) * order.samples_per_pass
    seen: list[tuple[int, int]] = []
    for each in takewhile(lambda pool: pool.first < end, order.pools(begin)):
        assert each.first == begin + len(seen)
        assert len(each) <= max(pool, 24) or len(each.rows) == 1
        seen += windows_of(INDEX, *each.samples())
        assert len(seen) == each.first + len(each) - begin
    assert sorted(seen) == sorted(expected_windows(INDEX, assignment.train, window))


@settings(max_examples=30, deadline=None)
@given(position=st.integers(0, 3000), pool=st.integers(1, 200))
def test_the_order_resumes_at_any_position(position: int, pool: int) -> None:
    order = TrainingOrder(INDEX, assign(INDEX, Split("published")), 8, 0, pool)

    def samples(begin: int) -> list[tuple[int, int]]:
        pools = order.pools(begin)
        first = next(pools)
        assert first.first <= begin < first.first + len(first)
        found = windows_of(INDEX, *first.samples())[begin - first.first :]
        for each in islice(pools, 3):
            found += windows_of(INDEX, *each.samples())
        return found

    resumed = samples(position)
    whole = [
        sample
        for each in takewhile(lambda pool: pool.first < position + 60, order.pools())
        for sample in windows_of(INDEX, *each.samples())
    ]
    assert resumed[:50] == whole[position : position + 50][: len(resumed)]


def test_passes_and_seeds_differ() -> None:
    assignment = assign(INDEX, Split("published"))

    def first_pool(seed: int, turn: int) -> list[tuple[int, int]]:
        order = TrainingOrder(INDEX, assignment, 8, seed, 10**6)
        return windows_of(INDEX, *next(order.pools(turn * order.samples_per_pass)).samples())

    pools = [first_pool(seed, turn) for seed in (0, 1) for turn in (0, 1)]
    assert all(sorted(pool) == sorted(pools[0]) for pool in pools)
    assert len({tuple(pool) for pool in pools}) == 4
    assert first_pool(0, 1) == pools[1]


def test_windows_are_mixed_within_a_pool() -> None:
    order = TrainingOrder(INDEX, assign(INDEX, Split("published")), 8, 0, 200)
    rows, _ = next(order.pools()).samples()
    assert len(np.unique(rows)) > 4
    assert (np.diff(rows) != 0).mean() > 0.7


def test_runs_without_measurement_are_left_out() -> None:
    assignment = assign(INDEX, Split("published"))
    silent = replace(INDEX, measured=INDEX.run != 1)
    order = TrainingOrder(silent, assignment, 8, 0)
    rows, _ = next(order.pools()).samples()
    assert 1 not in silent.run[rows]
    assert 0 in silent.run[rows]
    rows, _ = evaluation_windows(silent, assignment, "test", 0, 8, 1)
    assert 1 not in silent.run[rows]


def test_no_training_window_is_an_error() -> None:
    index = index_of({"c": {"all": (60, ["x"])}})
    with pytest.raises(ValueError, match="window: 8 steps"):
        TrainingOrder(index, assign(index, Split("time")), 8, 0)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(SPLITS), part=st.sampled_from(["train", "validation", "test"]), window=st.integers(2, 8), data=st.data())
def test_evaluation_windows_hide_only_their_part(name: str, part: str, window: int, data: st.DataObject) -> None:
    known = data.draw(st.integers(0, window - 1))
    stride = data.draw(st.integers(1, 9))
    ranges = assign(INDEX, Split(name)).part(part)  # type: ignore[arg-type]
    found = windows_of(INDEX, *evaluation_windows(INDEX, assign(INDEX, Split(name)), part, known, window, stride))  # type: ignore[arg-type]
    expected = []
    for row in np.flatnonzero(INDEX.run == 0):
        low, high = ranges[row]
        if low < high:
            starts = range(max(0, low - known), high - window + 1, stride)
            assert all(start + known >= low and start + window <= high for start in starts)
            expected += [(int(INDEX.series[row]), start) for start in starts]
    assert found == expected


def test_history_may_lie_before_the_cut() -> None:
    index = index_of({"b": {"all": (400, ["x"])}})
    assignment = assign(index, Split("time"))
    _, forecast = evaluation_windows(index, assignment, "test", 6, 8, 1)
    _, generation = evaluation_windows(index, assignment, "test", 0, 8, 1)
    assert (forecast[0], forecast[-1]) == (294, 392)
    assert (generation[0], generation[-1]) == (300, 392)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="known_steps, window, stride: 8, 8, 1"):
        evaluation_windows(INDEX, assign(INDEX, Split("time")), "test", 8, 8, 1)
    with pytest.raises(ValueError, match="part: 'exam'"):
        evaluation_windows(INDEX, assign(INDEX, Split("time")), "exam", 0, 8, 1)  # type: ignore[arg-type]
