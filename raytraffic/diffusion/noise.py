r"""The noise of the diffusion: white, or correlated in time as what is left to forecast is.

With a linear map L every draw of noise is eps = L w of white w, with variance 1 at every entry. In the coordinates L^-1 x this is the
usual process; DDIM and DPM-Solver++ combine x_k and estimates of x linearly, so they are the same in either, and the mean squared
error has the same minimiser. An untrained denoiser then draws courses that hang together and not entries (NPDiff, Sheng et al. 2025,
mixes its noise from a window's own frequencies to the same end).

    eps_t = phi eps_{t-1} + sqrt(1 - phi^2) w_t,   phi = exp(-step / hours)                   an Ornstein-Uhlenbeck process
    eps = sqrt(share) w_cell + sqrt(1 - share) eps_t                                          where a cell has no history
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raytraffic.randomness import normal
from raytraffic.types import TrafficBatch

__all__ = ["Noise"]

_CELLS = 1 << 16  # added to a stream: its numbers of whole cells


@dataclass(frozen=True)
class Noise:
    """Correlation time in `hours` (0: white), and the `share` of a cell's variance that is one number for all its slots where nothing of
    the cell is known: its level is unknown then, and wrong by the same at every slot."""

    hours: float = 0.0
    share: float = 0.0

    def __post_init__(self) -> None:
        if not self.hours >= 0:
            raise ValueError(f"noise.hours: {self.hours}, expected a correlation time >= 0")
        if not 0 <= self.share < 1:
            raise ValueError(f"noise.share: {self.share}, expected a share in [0, 1)")

    def draw(self, batch: TrafficBatch, seeds: Tensor, stream: int) -> Tensor:
        """(n, c, t, s) noise, a function of (seeds, stream) alone; `seeds` (n,) are those of the windows, n a multiple of b."""
        _, c, t, s = batch.shape
        draws = len(seeds) // len(batch.key)
        white = normal(seeds, stream, (c, t, s))
        if self.hours:
            keep = torch.exp(-batch.step_minutes.float() / 60 / self.hours).repeat_interleave(draws)[:, None, None]
            fresh = (1 - keep**2).sqrt()
            course = [white[:, :, 0]]
            for slot in range(1, t):
                course.append(keep * course[-1] + fresh * white[:, :, slot])
            white = torch.stack(course, dim=2)
        if self.share:
            alone = ~batch.known.any(dim=2, keepdim=True).repeat_interleave(draws, dim=0)
            cell = normal(seeds, stream + _CELLS, (c, 1, s))
            white = torch.where(alone, self.share**0.5 * cell + (1 - self.share) ** 0.5 * white, white)
        return white
