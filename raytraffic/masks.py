"""A task is a mask: which entries of a window are hidden (UoMo 3.2.2, Eq. 1-3), and mixtures of tasks for training.

short, long   the last share of the time slots of every cell is hidden (Eq. 1)
next          the last time slot alone is hidden (one step ahead: LSDM Eq. 6)
generation    whole cells are hidden for all time slots, the others are known throughout (Eq. 2)
random        a share of all (time slot, cell) entries is hidden (Eq. 3)

Masks act on mobile tokens of `token` = (t0, h0, v0) entries; (1, 1, 1), as in the public release, masks single entries.
Cells that were never measured in a window do not exist for its mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from raytraffic.randomness import derive, uniform
from raytraffic.types import TrafficBatch

__all__ = ["GENERATION", "HORIZON", "LONG", "NEXT", "RANDOM", "SHORT", "TASKS", "WHOLE", "Task", "mask", "mixture", "named_tasks"]

Kind = Literal["temporal", "generation", "random"]
_STREAM = 1


@dataclass(frozen=True)
class Task:
    """A kind of mask with the share of tokens it hides, drawn evenly from [low, high] for every window."""

    name: str
    kind: Kind
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"task {self.name!r}: kind {self.kind!r}, expected one of {get_args(Kind)}")
        if not 0.0 < self.low <= self.high <= 1.0:
            raise ValueError(f"task {self.name!r}: hidden share {self.low}..{self.high}, expected 0 < low <= high <= 1")


SHORT = Task("short", "temporal", 0.25, 0.25)
LONG = Task("long", "temporal", 0.75, 0.75)
GENERATION = Task("generation", "generation", 0.25, 0.25)
RANDOM = Task("random", "random", 0.5, 0.5)
#: Whole-tile generation from context alone.
WHOLE = Task("whole", "generation", 1.0, 1.0)
#: Any horizon: what a model meets when it is asked for some other number of slots than the papers'.
HORIZON = Task("horizon", "temporal", 0.05, 0.95)
#: One step ahead: a share that is one slot of any window of less than 2,000.
NEXT = Task("next", "temporal", 0.001, 0.001)
TASKS: dict[str, Task] = {task.name: task for task in (SHORT, LONG, GENERATION, RANDOM, WHOLE, HORIZON, NEXT)}


def named_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of these names; ValueError lists the valid ones."""
    for name in names:
        if name not in TASKS:
            raise ValueError(f"task: {name!r}, expected one of {sorted(TASKS)}")
    return [TASKS[name] for name in names]


def mask(batch: TrafficBatch, task: Task, seed: int = 0, token: tuple[int, int, int] = (1, 1, 1)) -> TrafficBatch:
    """The batch with `known` set by one task; the mask of a window depends on (seed, its key) alone."""
    return mixture(batch, [task], [1.0], seed, token)


def mixture(
    batch: TrafficBatch, tasks: Sequence[Task], weights: Sequence[float], seed: int | Tensor = 0, token: tuple[int, int, int] = (1, 1, 1)
) -> TrafficBatch:
    """The batch with `known` set window by window to a task drawn with probability proportional to `weights`.

    `seed` is one integer or one a window (b,). Raises ValueError on an empty mixture or weights that are not positive.
    """
    if not tasks or len(tasks) != len(weights) or min(weights) <= 0:
        raise ValueError(f"tasks: {[task.name for task in tasks]} with weights {list(weights)}, expected one positive weight a task")
    _, _, t, s = batch.shape
    seeds = derive(batch.key, seed)
    choice, share = uniform(seeds, _STREAM, (2,)).unbind(dim=1)
    edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    which = torch.bucketize(choice.double(), (edges / edges[-1]).to(choice.device)[:-1])
    low = torch.tensor([task.low for task in tasks], device=choice.device)[which]
    high = torch.tensor([task.high for task in tasks], device=choice.device)[which]
    share = low + (high - low) * share

    grid = batch.space.grid or (1, s)
    cells = _token_cells(grid, token, batch.traffic.device)
    exists = _any_in_token(batch.measured.any(dim=1).any(dim=1), cells)
    slots = torch.arange(t, device=cells.device) // token[0]
    by_kind = {
        "temporal": _temporal(share, slots, len(exists[0])),
        "generation": _generation(share, exists, seeds, int(slots[-1]) + 1),
        "random": _random(share, exists, seeds, int(slots[-1]) + 1),
    }
    kinds = torch.tensor([list(by_kind).index(task.kind) for task in tasks], device=cells.device)[which]
    hidden = torch.stack(list(by_kind.values()))[kinds, torch.arange(len(kinds), device=kinds.device)]
    hidden = hidden[:, slots][:, :, cells]
    return replace(batch, known=~hidden[:, None] & batch.measured)


def _token_cells(grid: tuple[int, int], token: tuple[int, int, int], device: torch.device) -> Tensor:
    """(s,) the spatial token each cell of the grid belongs to."""
    row = torch.arange(grid[0], device=device) // token[1]
    column = torch.arange(grid[1], device=device) // token[2]
    return (row[:, None] * (int(column[-1]) + 1) + column).flatten()


def _any_in_token(exists: Tensor, cells: Tensor) -> Tensor:
    """(b, tokens) bool: a token exists where any of its cells does."""
    count = torch.zeros(len(exists), int(cells[-1]) + 1, device=exists.device)
    return count.index_add(1, cells, exists.float()) > 0


def _temporal(share: Tensor, slots: Tensor, tokens: int) -> Tensor:
    """Eq. 1: hides the last int(T' * share) token slots of every cell; at least one."""
    total = int(slots[-1]) + 1
    hidden = (total * share + 1e-4).floor().clamp(min=1)
    late = torch.arange(total, device=share.device) >= total - hidden[:, None]
    return late[:, :, None].expand(-1, -1, tokens)


def _generation(share: Tensor, exists: Tensor, seeds: Tensor, total: int) -> Tensor:
    """Eq. 2: hides a share of the existing cells for all time; at least one."""
    hidden = _smallest(uniform(derive(seeds, 2), _STREAM, (exists.shape[1],)), exists, share)
    return hidden[:, None, :].expand(-1, total, -1)


def _random(share: Tensor, exists: Tensor, seeds: Tensor, total: int) -> Tensor:
    """Eq. 3: hides a share of the existing (slot, cell) tokens; at least one."""
    order = uniform(derive(seeds, 3), _STREAM, (total * exists.shape[1],))
    candidates = exists[:, None, :].expand(-1, total, -1).flatten(1)
    return _smallest(order, candidates, share).unflatten(1, (total, -1))


def _smallest(order: Tensor, candidates: Tensor, share: Tensor) -> Tensor:
    """True at the int(count * share) candidates of each row with the smallest `order`."""
    count = (candidates.sum(1) * share + 1e-4).floor().clamp(min=1)
    rank = order.masked_fill(~candidates, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < count[:, None]) & candidates
