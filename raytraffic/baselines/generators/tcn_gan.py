r"""A GAN of temporal convolutions (the TCN-GAN of STOUTER's Table 1), trained as WGAN-GP (Gulrajani et al. 2017):

    critic      E[D(G(u, y), y)] - E[D(z, y)] + 10 E[(|grad D(z', y)| - 1)^2],   z' between real and generated
    generator   -E[D(G(u, y), y)]

with condition y and white noise u of every slot and of the whole row; the critic is trained twice as often as the generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raytraffic.baselines.generators.dilated import DilatedNetwork
from raytraffic.baselines.generators.rows import Fitting, Rows, RowScale, row_noise
from raytraffic.types import TrafficBatch

__all__ = ["TcnGan", "fit_tcn_gan"]

_WHOLE, _LOCAL = 8, 4  # numbers of noise of a row, and of each of its slots
_WHOLE_STREAM, _LOCAL_STREAM = 104, 105
_PENALTY, _CRITIC_STEPS, _BETAS = 10.0, 2, (0.5, 0.9)


class TcnGan(nn.Module):
    """A trained generator with the contract of a Generator."""

    name = "TCN-GAN"

    def __init__(self, scale: RowScale, hidden: int) -> None:
        super().__init__()
        self.scale = scale
        self.network = DilatedNetwork(_WHOLE + _LOCAL + scale.features, hidden, scale.services)

    def forward(self, whole: Tensor, local: Tensor, condition: Tensor) -> Tensor:
        """z (r, c, t) of noise (r, _WHOLE, 1) and (r, _LOCAL, t)."""
        return self.network(torch.cat((whole.expand(-1, -1, local.shape[2]), local, condition), dim=1))

    def made(self, condition: Tensor) -> Tensor:
        """z (r, c, t) of fresh noise from torch's global generator."""
        r, _, t = condition.shape
        made: Tensor = self(torch.randn(r, _WHOLE, 1), torch.randn(r, _LOCAL, t), condition)
        return made

    @torch.no_grad()
    def generate(self, context: TrafficBatch, draws: int, seed: int) -> Tensor:
        b, _, t, s = context.shape
        condition = self.scale.condition(context).unflatten(0, (b, 1, s)).expand(-1, draws, -1, -1, -1).flatten(0, 2)
        whole = row_noise(context, draws, seed, _WHOLE_STREAM, (_WHOLE, 1))
        local = row_noise(context, draws, seed, _LOCAL_STREAM, (_LOCAL, t))
        return self.scale.invert(self(whole, local, condition)).unflatten(0, (b, draws, s)).permute(0, 1, 3, 4, 2)


def fit_tcn_gan(batches: Sequence[TrafficBatch], fitting: Fitting) -> TcnGan:
    """A TCN-GAN of training windows of one length; a step is one of the critic. ValueError where none was measured throughout."""
    scale = RowScale.of(batches)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fitting.seed)
        gan = TcnGan(scale, fitting.hidden)
        critic = DilatedNetwork(scale.services + scale.features, fitting.hidden, 1)
        adams = [torch.optim.Adam(network.parameters(), lr=fitting.learning_rate, betas=_BETAS) for network in (gan, critic)]
        for step, (z, condition) in enumerate(Rows.of(batches, scale).batches(fitting)):
            _take(adams[1], _critic_loss(critic, z, gan.made(condition).detach(), condition))
            if step % _CRITIC_STEPS == 0:
                _take(adams[0], -_judged(critic, gan.made(condition), condition).mean())
    return gan.eval()


def _judged(critic: nn.Module, z: Tensor, condition: Tensor) -> Tensor:
    """(r,) what the critic says of rows, averaged over their slots."""
    said: Tensor = critic(torch.cat((z, condition), dim=1))
    return said.mean(dim=(1, 2))


def _critic_loss(critic: nn.Module, real: Tensor, made: Tensor, condition: Tensor) -> Tensor:
    between = torch.lerp(made, real, torch.rand(len(real), 1, 1)).requires_grad_(True)
    (slope,) = torch.autograd.grad(_judged(critic, between, condition).sum(), between, create_graph=True)
    penalty = _PENALTY * (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return _judged(critic, made, condition).mean() - _judged(critic, real, condition).mean() + penalty


def _take(adam: torch.optim.Optimizer, loss: Tensor) -> None:
    adam.zero_grad()
    loss.backward()
    adam.step()
