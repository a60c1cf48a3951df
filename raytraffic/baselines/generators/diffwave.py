r"""A DiffWave-style diffusion (Kong et al. 2021): a WaveNet of gated dilated convolutions that predicts the noise of a station-window.

    h_{l+1} = (h_l + r_l) / sqrt(2),   r_l, skip_l = W_l [tanh(a) * sigmoid(g)],   a, g = conv_l(h_l + U_l e_k) + V_l y

with condition y and the diffusion step's embedding e_k. 200 linear noise levels, as the paper's for audio; DDPM sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raytraffic.baselines.generators.dilated import DILATIONS
from raytraffic.baselines.generators.rows import Fitting, Rows, RowScale, row_noise, trained
from raytraffic.diffusion.process import Process
from raytraffic.diffusion.samplers import Sampler
from raytraffic.diffusion.schedule import Schedule
from raytraffic.nn.embeddings import LevelEmbedding
from raytraffic.types import TrafficBatch

__all__ = ["DiffWave", "WaveNet", "fit_diffwave"]

_NOISE_STREAM = 112


class WaveNet(nn.Module):
    """Noise (r, c, t) in rows x_k (r, c, t) at noise levels (r,) under conditions (r, f, t); zero at construction."""

    def __init__(self, services: int, features: int, hidden: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(services, hidden, 1)
        self.level = LevelEmbedding(hidden)
        self.steps = nn.ModuleList(nn.Linear(hidden, hidden) for _ in DILATIONS)
        self.dilated = nn.ModuleList(nn.Conv1d(hidden, 2 * hidden, 3, padding=d, dilation=d) for d in DILATIONS)
        self.conditions = nn.ModuleList(nn.Conv1d(features, 2 * hidden, 1) for _ in DILATIONS)
        self.out = nn.ModuleList(nn.Conv1d(hidden, 2 * hidden, 1) for _ in DILATIONS)
        self.last = nn.Sequential(nn.Conv1d(hidden, hidden, 1), nn.ReLU(), nn.Conv1d(hidden, services, 1))
        for parameter in self.last[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        h = nn.functional.relu(self.enter(x))
        step = nn.functional.silu(self.level(level))
        skipped = torch.zeros_like(h)
        for to_step, dilated, to_condition, out in zip(self.steps, self.dilated, self.conditions, self.out, strict=True):
            a, g = (dilated(h + to_step(step)[..., None]) + to_condition(condition)).chunk(2, dim=1)
            residual, skip = out(torch.tanh(a) * torch.sigmoid(g)).chunk(2, dim=1)
            h = (h + residual) / math.sqrt(2)
            skipped = skipped + skip
        return self.last(skipped / math.sqrt(len(DILATIONS)))


@dataclass(frozen=True, eq=False)
class DiffWave:
    """A trained WaveNet with its scale and process, and the contract of a Generator."""

    network: WaveNet
    scale: RowScale
    process: Process
    sampler: Sampler
    name: str = "DiffWave"

    @torch.no_grad()
    def generate(self, context: TrafficBatch, draws: int, seed: int) -> Tensor:
        b, c, t, s = context.shape
        condition = self.scale.condition(context).unflatten(0, (b, 1, s)).expand(-1, draws, -1, -1, -1).flatten(0, 2)

        def estimate(x: Tensor, k: int) -> Tensor:
            at = torch.full((len(x),), k, device=x.device)
            return self.process.to_sample(self.network(x, self.process.schedule.level(at), condition), x, at)

        z = self.sampler.run(estimate, lambda i: row_noise(context, draws, seed, _NOISE_STREAM + i, (c, t)), self.process.schedule)
        return self.scale.invert(z).unflatten(0, (b, draws, s)).permute(0, 1, 3, 4, 2)


def fit_diffwave(batches: Sequence[TrafficBatch], fitting: Fitting, sampler: Sampler | None = None) -> DiffWave:
    """A DiffWave of training windows of one length; ValueError where none was measured throughout."""
    scale, process = RowScale.of(batches), Process(Schedule("linear", 200), "epsilon")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fitting.seed)
        network = WaveNet(scale.services, scale.features, fitting.hidden)

    def loss(z: Tensor, condition: Tensor) -> Tensor:
        k = torch.randint(process.schedule.steps, (len(z),))
        noise = torch.randn_like(z)
        return (network(process.noised(z, noise, k), process.schedule.level(k), condition) - noise).square().mean()

    trained(network, Rows.of(batches, scale), loss, fitting)
    # An estimate of the sample from the noise alone is off by sigma / alpha at the noisiest levels: it is kept to what traffic there is.
    return DiffWave(network, scale, process, sampler or Sampler("ddpm", 50, clip=5.0))
