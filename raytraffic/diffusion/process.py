r"""The diffusion process: what is added, what the network predicts, and how the loss is weighted.

    x_k = alpha_k x + sigma_k eps                                      (UoMo Eq. 5, with the usual sigma_k)
    epsilon target eps | sample target x | v target alpha_k eps - sigma_k x      (Salimans & Ho 2022)

min-SNR weights (Hang et al. 2023): with snr = alpha^2 / sigma^2 the loss on the sample is weighted by min(snr, gamma),
which is min(snr, gamma) / snr for epsilon and min(snr, gamma) / (snr + 1) for v.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from raytraffic.diffusion.schedule import Schedule

__all__ = ["Prediction", "Process", "Weighting"]

Prediction = Literal["epsilon", "sample", "v"]
Weighting = Literal["uniform", "min_snr"]


@dataclass(frozen=True)
class Process:
    """A schedule with what the network predicts and how its squared error is weighted."""

    schedule: Schedule = field(default_factory=Schedule)
    prediction: Prediction = "v"
    weighting: Weighting = "uniform"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "sample", "v"):
            raise ValueError(f"prediction: {self.prediction!r}, expected 'epsilon', 'sample' or 'v'")
        if self.weighting not in ("uniform", "min_snr"):
            raise ValueError(f"weighting: {self.weighting!r}, expected 'uniform' or 'min_snr'")

    def noised(self, x: Tensor, eps: Tensor, k: Tensor) -> Tensor:
        """x_k (b, ...) of clean x and noise eps at levels k (b,)."""
        alpha, sigma = self._coefficients(k, x)
        return alpha * x + sigma * eps

    def target(self, x: Tensor, eps: Tensor, k: Tensor) -> Tensor:
        """What the network should predict."""
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "sample":
            return x
        alpha, sigma = self._coefficients(k, x)
        return alpha * eps - sigma * x

    def to_sample(self, prediction: Tensor, x_k: Tensor, k: Tensor) -> Tensor:
        """The clean x (b, ...) that a prediction at x_k stands for."""
        if self.prediction == "sample":
            return prediction
        alpha, sigma = self._coefficients(k, x_k)
        if self.prediction == "epsilon":
            return (x_k - sigma * prediction) / alpha
        return alpha * x_k - sigma * prediction

    def weight(self, k: Tensor) -> Tensor:
        """(b,) loss weights at levels k (b,)."""
        if self.weighting == "uniform":
            return torch.ones(k.shape, device=k.device)
        alpha, sigma = self.schedule.alpha_sigma(k)
        snr = (alpha / sigma) ** 2
        on_sample = snr.clamp(max=self.gamma)
        return {"sample": on_sample, "epsilon": on_sample / snr, "v": on_sample / (snr + 1)}[self.prediction]

    def _coefficients(self, k: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1,) + (1,) * (like.ndim - 1)
        alpha, sigma = self.schedule.alpha_sigma(k)
        return alpha.reshape(shape), sigma.reshape(shape)
