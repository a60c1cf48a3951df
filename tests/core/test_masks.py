"""Masks: exactly the papers' counts, property-tested, and functions of the window's key alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.masks import GENERATION, LONG, NEXT, RANDOM, SHORT, WHOLE, Task, mask, mixture, named_tasks
from raytraffic.types import Space, TrafficBatch
from tests.batches import ABSENT, seasonal_batch


def plain(windows: int = 8, t: int = 64, grid: tuple[int, int] = (4, 4), services: int = 1) -> TrafficBatch:
    shape = (windows, services, t, grid[0] * grid[1])
    return TrafficBatch(
        traffic=torch.ones(shape),
        known=torch.ones(shape, dtype=torch.bool),
        clock=torch.zeros(windows, t, 2, dtype=torch.int64),
        step_minutes=torch.full((windows,), 30),
        key=torch.arange(windows),
        space=Space(grid=grid),
    )


@pytest.mark.parametrize(("task", "first_hidden"), [(SHORT, 48), (LONG, 16)])
def test_short_and_long_hide_the_last_slots_of_every_cell(task: Task, first_hidden: int) -> None:
    known = mask(plain(), task).known
    assert bool(known[:, :, :first_hidden].all()) and not bool(known[:, :, first_hidden:].any())


@pytest.mark.parametrize("t", [2, 25, 49, 64, 168, 1000, 1999])
def test_next_hides_the_last_slot_alone(t: int) -> None:
    known = mask(plain(2, t), NEXT).known
    assert bool(known[:, :, :-1].all()) and not bool(known[:, :, -1].any())
    assert named_tasks(["next"]) == [NEXT]


def test_generation_hides_four_of_sixteen_whole_cells() -> None:
    known = mask(plain(32), GENERATION).known[:, 0]
    hidden_cells = ~known.any(dim=1)
    assert hidden_cells.sum(1).tolist() == [4] * 32
    assert torch.equal(known, (~hidden_cells)[:, None].expand_as(known))
    assert len({tuple(row.tolist()) for row in hidden_cells}) > 20  # each window its own draw


def test_random_hides_exactly_half_the_entries() -> None:
    known = mask(plain(8), RANDOM).known
    assert known.sum(dim=(1, 2, 3)).tolist() == [512] * 8
    assert len({tuple(row.flatten().tolist()) for row in known}) == 8


def test_whole_hides_everything() -> None:
    assert not bool(mask(plain(), WHOLE).known.any())


def test_masks_are_the_same_in_every_service() -> None:
    known = mask(plain(services=3), RANDOM).known
    assert torch.equal(known[:, 0], known[:, 1]) and torch.equal(known[:, 0], known[:, 2])


def test_absent_cells_do_not_count() -> None:
    batch = seasonal_batch(8)
    known = mask(batch, GENERATION).known[:, 0]
    hidden = ~known.any(dim=1)
    assert bool(hidden[:, ABSENT].all())
    assert hidden.sum(1).tolist() == [1 + 3] * 8  # the absent cell and int(15 * 0.25)


@given(
    share=st.floats(0.02, 1.0),
    kind=st.sampled_from(["temporal", "generation", "random"]),
    t=st.integers(2, 24),
    token=st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 2)),
    seed=st.integers(0, 10),
)
def test_any_share_hides_that_many_tokens(share: float, kind: str, t: int, token: tuple[int, int, int], seed: int) -> None:
    batch = plain(3, t, (4, 4))
    known = mask(batch, Task("any", kind, share, share), seed, token).known[:, 0]
    slots, cells = -(-t // token[0]), (4 // token[1]) * (4 // token[2])
    tokens = known.unflatten(2, (4 // token[1], token[1], 4 // token[2], token[2])).permute(0, 1, 2, 4, 3, 5).flatten(2, 3).flatten(3)
    assert bool((tokens.all(3) | ~tokens.any(3)).all()), "a spatial token is hidden as a whole or not at all"
    starts = torch.arange(slots) * token[0]
    hidden = ~tokens[:, starts].any(3)
    for first, last in zip(starts.tolist(), [*starts.tolist()[1:], t], strict=True):
        assert bool((known[:, first:last] == known[:, first : first + 1]).all()), "a temporal token is hidden as a whole or not at all"
    total = {"temporal": slots, "generation": cells, "random": slots * cells}[kind]
    per_window = {"temporal": hidden[:, :, 0].sum(1), "generation": hidden[:, 0].sum(1), "random": hidden.sum((1, 2))}[kind]
    assert per_window.tolist() == [max(1, int(total * share + 1e-4))] * 3


def test_a_mask_depends_on_seed_and_key_alone() -> None:
    batch = plain(8)
    tasks, weights = [SHORT, LONG, GENERATION, RANDOM], [1.0, 1.0, 1.0, 1.0]
    together = mixture(batch, tasks, weights, seed=3).known
    some = torch.tensor([6, 1])
    assert torch.equal(mixture(batch.select(some), tasks, weights, seed=3).known, together[some])
    assert not torch.equal(mixture(batch, tasks, weights, seed=4).known, together)


def test_mixture_weights_are_kept() -> None:
    batch = plain(4000, t=8, grid=(1, 4))
    known = mixture(batch, [SHORT, GENERATION], [3.0, 1.0]).known[:, 0]
    share = float((~known.any(dim=1)).any(dim=1).float().mean())
    assert share == pytest.approx(0.25, abs=0.03)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"task: 'shrt', expected one of .*'short'"):
        named_tasks(["shrt"])
    with pytest.raises(ValueError, match=r"hidden share 0.0..0.5, expected 0 < low"):
        Task("bad", "random", 0.0, 0.5)
    with pytest.raises(ValueError, match="expected one positive weight a task"):
        mixture(plain(), [SHORT, LONG], [1.0])


def test_unmeasured_entries_are_never_known() -> None:
    batch = plain()
    traffic = batch.traffic.clone()
    traffic[0, 0, 5, 2] = torch.nan
    assert not bool(mask(replace(batch, traffic=traffic), SHORT).known[0, 0, 5, 2])
