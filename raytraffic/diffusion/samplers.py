r"""Samplers: from pure noise to a draw in a few steps. A sampler only sees a function (x_k, k) -> estimate of x.

With (alpha_t, sigma_t) at the current level, (alpha_s, sigma_s) at the next and m the estimate of x:

ddpm   x_s = alpha_s m + sigma_s sqrt(1 - tau) (x_t - alpha_t m) / sigma_t + sigma_s sqrt(tau) eps,
       tau = 1 - (alpha_t sigma_s / (alpha_s sigma_t))^2      (Ho et al. 2020 on any subset of levels; Song et al. 2021, eta = 1)
ddim   the same with tau = 0                                   (Song et al. 2021, eta = 0)
dpm++  x_s = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) D,  h = lambda_s - lambda_t, lambda = log(alpha / sigma),
       D = m + (m - m_previous) / (2 r), r = h_previous / h; first and last step D = m   (Lu et al. 2022, DPM-Solver++(2M))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raytraffic.diffusion.schedule import Schedule

__all__ = ["Sampler"]

Estimate = Callable[[Tensor, int], Tensor]
Noise = Callable[[int], Tensor]


@dataclass(frozen=True)
class Sampler:
    """A method with its number of steps; `clip` bounds the estimate of x to [-clip, clip] at every step (the release: 1).

    `guidance` w is classifier-free guidance on context (Ho & Salimans 2022): estimates are w times those with context minus
    (w - 1) times those without; 1 asks the network once a step.

    `rows` is how many draws a call of the network holds, always: matrix products round in ways that depend on their shape, so with
    calls of one shape a draw is the same to the last bit whatever else is drawn with it. 64 suit a CPU core; a GPU wants some 1,000.
    """

    method: Literal["ddpm", "ddim", "dpm++"] = "dpm++"
    steps: int = 20
    clip: float | None = None
    guidance: float = 1.0
    rows: int = 64

    def __post_init__(self) -> None:
        if self.method not in ("ddpm", "ddim", "dpm++"):
            raise ValueError(f"sampler.method: {self.method!r}, expected 'ddpm', 'ddim' or 'dpm++'")
        if self.steps < 1:
            raise ValueError(f"sampler.steps: {self.steps}, expected at least 1")
        if self.rows < 1:
            raise ValueError(f"sampler.rows: {self.rows}, expected at least 1")

    def levels(self, schedule: Schedule) -> list[int]:
        """The visited levels k, descending from the noisiest, evenly spaced; the clean end is implied."""
        if self.steps > schedule.steps:
            raise ValueError(f"sampler.steps: {self.steps}, expected at most the schedule's {schedule.steps}")
        return [round(schedule.steps * (1 - i / self.steps)) - 1 for i in range(self.steps)]

    def run(self, estimate: Estimate, noise: Noise, schedule: Schedule) -> Tensor:
        """A draw of x from `noise(0)`; `noise(i)` gives the fresh noise of step i (ddpm only), `estimate(x_k, k)` the model's x."""
        bar = schedule.alpha_bar
        levels = self.levels(schedule)
        x = noise(0)
        previous: Tensor | None = None
        previous_h = 1.0
        for i, k in enumerate(levels):
            last = i == len(levels) - 1
            m = estimate(x, k)
            if self.clip is not None:
                m = m.clamp(-self.clip, self.clip)
            if last:
                return m
            here, there = float(bar[k]), float(bar[levels[i + 1]])
            if self.method == "dpm++":
                h = 0.5 * (_log_snr(there) - _log_snr(here))
                direction = m if previous is None else m + (m - previous) * (h / (2 * previous_h))
                shrink = ((1 - there) / (1 - here)) ** 0.5
                x = shrink * x - there**0.5 * torch.expm1(torch.tensor(-h, dtype=torch.float64)).item() * direction
                previous, previous_h = m, h
            else:
                tau = 1 - (here * (1 - there)) / (there * (1 - here)) if self.method == "ddpm" else 0.0
                spread = ((1 - there) * (1 - tau) / (1 - here)) ** 0.5
                x = there**0.5 * m + spread * (x - here**0.5 * m)
                if tau > 0:
                    x = x + ((1 - there) * tau) ** 0.5 * noise(i + 1)
        raise AssertionError("levels is never empty")


def _log_snr(bar: float) -> float:
    """log(alpha^2 / sigma^2) = 2 lambda."""
    return float(torch.logit(torch.tensor(bar, dtype=torch.float64)))
