"""The candidates that only the fitted baselines use, on windows small enough to work out by hand."""

from __future__ import annotations

import pytest
import torch

from raytraffic.baselines.candidates import (
    Candidate,
    adjacent_mean,
    borrowed_mean,
    borrowed_median,
    entry_scale,
    lead,
    profile_recent_level,
    profile_tile_recent_level,
    recent_sum,
    yesterday_recent_level,
)
from raytraffic.types import Space, TrafficBatch


def window(
    traffic: list[list[float]], known: list[list[int]], profile: list[float] | None = None, grid: tuple[int, int] | None = None
) -> TrafficBatch:
    """What may be seen of one window with rows of time slots of six hours and columns of cells."""
    slots = torch.arange(len(traffic))
    return TrafficBatch(
        traffic=torch.tensor(traffic, dtype=torch.float64)[None, None],
        known=torch.tensor(known, dtype=torch.bool)[None, None],
        clock=torch.stack((slots % 4, slots // 4 % 7), dim=-1)[None],
        step_minutes=torch.tensor([360]),
        key=torch.tensor([5]),
        space=Space(grid=grid),
        context={} if profile is None else {"profile": torch.tensor([profile], dtype=torch.float64)},
    ).visible()


def column(candidate: Candidate, seen: TrafficBatch, cell: int = 0) -> list[float | None]:
    value, found = candidate(seen)
    assert value.shape == found.shape == seen.traffic.shape
    return [round(v, 4) if f else None for v, f in zip(value[0, 0, :, cell].tolist(), found[0, 0, :, cell].tolist(), strict=True)]


def test_recent_sum_takes_the_latest_known_slots_before_and_never_the_slot_itself() -> None:
    value = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])[:, None]
    known = torch.tensor([0, 1, 1, 0, 1, 0], dtype=torch.bool)[:, None]
    total, found = recent_sum(value[None, None], known[None, None], slots=2)
    assert total[0, 0, :, 0].tolist() == [0, 0, 2, 6, 6, 20]
    assert found[0, 0, :, 0].tolist() == [False, False, True, True, True, True]


def test_profile_recent_level_follows_the_latest_entries() -> None:
    seen = window([[1], [9], [6], [0]], [[1], [1], [1], [0]], profile=[1.0, 1.0, 2.0, 0.5])
    assert column(lambda batch: profile_recent_level(batch, slots=2), seen)[3] == 2.5  # (9 + 6) / (1 + 2) * .5


def test_profile_tile_recent_level_corrects_by_what_the_tile_does_lately() -> None:
    traffic = [[10, 30], [10, 30], [20, 60], [0, 0]]
    seen = window(traffic, [[1, 1]] * 3 + [[0, 0]], profile=[1.0] * 4)
    # levels 40/3 and 40; the last row is 80 / (160 / 3) = 1.5 of what they expect
    assert column(lambda batch: profile_tile_recent_level(batch, slots=1), seen)[3] == pytest.approx(20)


def test_yesterday_recent_level_compares_the_same_hours_of_two_days() -> None:
    seen = window([[4], [2], [6], [1], [8], [4], [0], [0]], [[1]] * 6 + [[0]] * 2)
    assert column(lambda batch: yesterday_recent_level(batch, slots=2), seen) == [None] * 5 + [4, 12, 2]  # twice yesterday


def test_borrowed_levels_are_those_of_cells_with_history() -> None:
    seen = window([[0, 2, 4, 12], [0, 2, 4, 12]], [[0, 1, 1, 1]] * 2, profile=[0.5, 1.5])
    assert column(borrowed_mean, seen) == [3, 9]
    assert column(borrowed_median, seen) == [2, 6]
    assert column(borrowed_mean, window([[1.0]], [[0]])) == [None]
    scale, dead = entry_scale(window([[0, 2, 0, 12]], [[0, 1, 1, 1]]))
    assert scale.flatten().tolist() == [pytest.approx(14 / 3), 2, 0, 12]
    assert dead.flatten().tolist() == [False, False, True, False]


def test_adjacent_cells_touch_on_the_grid() -> None:
    values, known = [[1.0, 2, 3, 4, 5, 6, 7, 8, 9]], [[1, 1, 1, 0, 0, 1, 1, 1, 1]]
    seen = window(values, known, grid=(3, 3))
    assert column(adjacent_mean, seen, cell=0) == [2]
    assert column(adjacent_mean, seen, cell=4) == [pytest.approx(36 / 7, abs=1e-4)]
    assert column(adjacent_mean, window(values, known)) == [None]


def test_lead_counts_from_the_latest_known_slot() -> None:
    assert lead(window([[1]] * 6, [[0], [1], [0], [0], [1], [0]])).flatten().tolist() == [0, 0, 1, 2, 0, 1]
