r"""Noise schedules: x_k = alpha_k x + sigma_k eps with alpha_k^2 = prod_{i<=k} (1 - beta_i), sigma_k^2 = 1 - alpha_k^2.

linear   betas from 1e-4 to 0.02 at 1,000 steps, multiplied by 1000 / steps otherwise (Ho et al. 2020; the UoMo release
         uses 200 steps, so 0.0005 ... 0.1)
cosine   alpha_bar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), betas at most 0.999 (Nichol & Dhariwal 2021)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """`steps` discrete noise levels k = 0 (almost clean) ... steps - 1 (almost pure noise)."""

    kind: Literal["linear", "cosine"] = "cosine"
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "cosine"):
            raise ValueError(f"schedule.kind: {self.kind!r}, expected 'linear' or 'cosine'")
        if self.steps < 20:
            raise ValueError(f"schedule.steps: {self.steps}, expected at least 20")

    @cached_property
    def alpha_bar(self) -> Tensor:
        """(steps,) float64: alpha_k squared."""
        if self.kind == "linear":
            scale = 1000 / self.steps
            betas = torch.linspace(1e-4 * scale, 0.02 * scale, self.steps, dtype=torch.float64)
        else:
            edge = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
            bar = torch.cos((edge + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
        return torch.cumprod(1 - betas, dim=0)

    def alpha_sigma(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_k and sigma_k (float32, the shape of `k`) at noise levels k int64."""
        bar = self.alpha_bar.to(k.device)[k]
        return bar.sqrt().float(), (1 - bar).sqrt().float()

    def level(self, k: Tensor) -> Tensor:
        """The noise level (0, 1] a denoiser is told for k."""
        return (k + 1).float() / self.steps
