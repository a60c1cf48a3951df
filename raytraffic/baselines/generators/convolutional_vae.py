r"""A convolutional variational autoencoder of station-windows (after Semeniuta et al. 2017, the VAE of STOUTER's Table 1):

    L = E_q[-log N(z; mu(u, y), s^2)] + KL(q(u | z, y) || N(0, 1))

with condition y. The code u has numbers of the whole row and numbers of every eight slots of it; s is learned, one a service.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raytraffic.baselines.generators.dilated import DilatedNetwork
from raytraffic.baselines.generators.rows import Fitting, Rows, RowScale, row_noise, trained
from raytraffic.types import TrafficBatch

__all__ = ["ConvolutionalVae", "fit_vae"]

_WHOLE, _LOCAL, _EVERY = 8, 4, 8  # numbers of a row, numbers of a piece of it, slots of a piece
_WHOLE_STREAM, _LOCAL_STREAM, _NOISE_STREAM = 96, 97, 98


class ConvolutionalVae(nn.Module):
    """A trained VAE with the contract of a Generator."""

    name = "convolutional VAE"

    def __init__(self, scale: RowScale, hidden: int) -> None:
        super().__init__()
        self.scale = scale
        self.encoder = DilatedNetwork(scale.services + scale.features, hidden, 2 * (_WHOLE + _LOCAL))
        self.decoder = DilatedNetwork(_WHOLE + _LOCAL + scale.features, hidden, scale.services)
        self.log_deviation = nn.Parameter(torch.zeros(scale.services, 1))

    def loss(self, z: Tensor, condition: Tensor) -> Tensor:
        """The negative evidence bound of rows (r, c, t), a slot."""
        t = z.shape[2]
        whole, local = self.encoder(torch.cat((z, condition), dim=1)).split((2 * _WHOLE, 2 * _LOCAL), dim=1)
        whole = whole.mean(dim=2, keepdim=True)
        local = nn.functional.avg_pool1d(local, _EVERY, ceil_mode=True)
        codes, divergence = [], torch.zeros((), device=z.device)
        for part in (whole, local):
            mean, log_variance = part.chunk(2, dim=1)
            codes.append(mean + (log_variance / 2).exp() * torch.randn_like(mean))
            divergence = divergence + 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2)).mean()
        error = (z - self.decode(codes[0], codes[1], condition)) / self.log_deviation.exp()
        likelihood = (0.5 * error**2 + self.log_deviation + 0.5 * math.log(2 * math.pi)).sum(dim=(1, 2)).mean()
        return (likelihood + divergence) / t

    def decode(self, whole: Tensor, local: Tensor, condition: Tensor) -> Tensor:
        """mu (r, c, t) of codes (r, _WHOLE, 1) and (r, _LOCAL, pieces)."""
        t = condition.shape[2]
        local = local.repeat_interleave(_EVERY, dim=2)[..., :t]
        return self.decoder(torch.cat((whole.expand(-1, -1, t), local, condition), dim=1))

    @torch.no_grad()
    def generate(self, context: TrafficBatch, draws: int, seed: int) -> Tensor:
        b, c, t, s = context.shape
        condition = self.scale.condition(context).unflatten(0, (b, 1, s)).expand(-1, draws, -1, -1, -1).flatten(0, 2)
        whole = row_noise(context, draws, seed, _WHOLE_STREAM, (_WHOLE, 1))
        local = row_noise(context, draws, seed, _LOCAL_STREAM, (_LOCAL, -(-t // _EVERY)))
        noise = row_noise(context, draws, seed, _NOISE_STREAM, (c, t))
        z = self.decode(whole, local, condition) + self.log_deviation.exp() * noise
        return self.scale.invert(z).unflatten(0, (b, draws, s)).permute(0, 1, 3, 4, 2)


def fit_vae(batches: Sequence[TrafficBatch], fitting: Fitting) -> ConvolutionalVae:
    """A VAE of training windows of one length; ValueError where none was measured throughout."""
    scale = RowScale.of(batches)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fitting.seed)
        vae = ConvolutionalVae(scale, fitting.hidden)
    trained(vae, Rows.of(batches, scale), vae.loss, fitting)
    return vae
