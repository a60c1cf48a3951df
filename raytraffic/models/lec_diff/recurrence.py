"""The recurrent network that goes through the slots of every station, and the past values that it hears at each of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["LAGS", "Cell", "Recurrence", "lagged"]

Cell = Literal["gru", "lstm"]
#: Past values that a slot hears: of the slot before, of the same slot yesterday, of the same slot last week.
LAGS = 3
_LARGEST = 6.0  # values beyond so many spreads say no more


def lagged(values: Tensor, present: Tensor, step_minutes: Tensor, slots: Tensor) -> Tensor:
    """(b, k, s, 2 c LAGS): the values (b, c, t, s) that the slots (k,) hear, 0 where the window holds none, and where there are some.

    Lags follow from the granularity of the data, `step_minutes` (b,), as in TimeGrad.
    """
    day = 1440 // step_minutes
    lag = torch.stack((torch.ones_like(day), day, 7 * day), dim=1)
    past = slots[None, :, None] - lag[:, None, :]
    window = torch.arange(len(values), device=values.device)[:, None, None]
    there = present.movedim(2, 1)[window, past.clamp(min=0)] & (past >= 0)[..., None, None]
    value = values.movedim(2, 1)[window, past.clamp(min=0)].clamp(-_LARGEST, _LARGEST) * there
    return torch.cat((value, there.to(value.dtype)), dim=3).movedim(4, 2).flatten(3)


class Recurrence(nn.Module):
    """A stack of GRU or LSTM cells; its whole state is one tensor (n, `state_features`), all zero at the beginning."""

    def __init__(self, hidden: int, layers: int, cell: Cell) -> None:
        super().__init__()
        self.hidden = hidden
        kind = nn.GRUCell if cell == "gru" else nn.LSTMCell
        self.cells = nn.ModuleList(kind(hidden, hidden) for _ in range(layers))
        self.kept = 1 if cell == "gru" else 2
        self.state_features = layers * self.kept * hidden

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Output (n, hidden) and state (n, state_features) after one slot with input (n, hidden)."""
        after = []
        for cell, before in zip(self.cells, state.chunk(len(self.cells), dim=-1), strict=True):
            if self.kept == 1:
                x = cell(x, before)
                after.append(x)
            else:
                x, memory = cell(x, before.chunk(2, dim=-1))
                after += [x, memory]
        return x, torch.cat(after, dim=-1)
