"""Residual blocks of dilated convolutions (temporal convolutional networks, Bai et al. 2018), not causal: a week is generated whole."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DILATIONS", "DilatedNetwork"]

#: The last reaches further than a day of hours, and all together further than two.
DILATIONS = (1, 2, 4, 8, 16, 32)


class DilatedNetwork(nn.Module):
    """(r, fan_out, t) of (r, fan_in, t); it sees rows and slots through convolutions alone, so any length will do."""

    def __init__(self, fan_in: int, hidden: int, fan_out: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(fan_in, hidden, 1)
        self.layers = nn.ModuleList(nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS)
        self.leave = nn.Conv1d(hidden, fan_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = x + layer(nn.functional.leaky_relu(x, 0.2))
        return self.leave(nn.functional.leaky_relu(x, 0.2))
