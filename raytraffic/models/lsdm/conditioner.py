r"""LSDM's conditioner: the history as channels beside the noisy entries, the clock as tokens, the environment of every slot.

    z_env = alpha z_I + beta z_T        (Eq. 9) of the halves of `env`, or comes as `env`, or is made of POI counts P:
    z_env = tanh(W log(1 + P) + b)

The projected z_env enters through adaLN (`vector`), token by token because users move, or is added to the tokens, Table IV's "directly
adding CON".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raytraffic.diffusion.priors import same_slot
from raytraffic.models.lsdm.patching import in_patches
from raytraffic.nn.embeddings import ClockEmbedding
from raytraffic.nn.transformer import ZeroLinear
from raytraffic.types import TYPICAL_LEVEL, Condition, Scale, TrafficBatch

if TYPE_CHECKING:
    from raytraffic.models.lsdm.config import LsdmConfig

__all__ = ["FIELDS", "LsdmConditioner"]

#: Channels of an entry: what is known of it, of the same slot of another day, and of the user's use of the service.
FIELDS = 9


class LsdmConditioner(nn.Module):
    """Sees visible traffic, the clock and the declared contexts; undeclared contexts are never read."""

    def __init__(self, config: LsdmConfig) -> None:
        super().__init__()
        self.contexts = config.contexts
        #: Features of the environment `env` that `embed` makes of POI, or that is given.
        self.env_features = config.env_features if config.contexts else 0
        self.added = config.conditioning == "added"
        self.weights, self.next_place = config.weights, config.next_place
        self.patch = config.patch
        self.clock = ClockEmbedding(config.clock_features)
        self.clock_token = nn.Linear(config.patch * config.clock_features, config.hidden)
        if "poi" in config.contexts:
            self.poi = nn.Linear(len(config.poi_categories), config.env_features)
        if config.contexts:
            self.env_in = nn.Linear((config.env_features // 2 if config.weights else config.env_features) + 1, config.hidden)
            self.env_out = ZeroLinear(config.patch * config.hidden, config.hidden)

    def embed(self, batch: TrafficBatch) -> TrafficBatch:
        """The batch with `env` (b, 1, s, d) made of its POI counts, where there is none and the model looks at POI."""
        if "poi" not in self.contexts or "env" in batch.context or "poi" not in batch.context:
            return batch
        counts = torch.nan_to_num(batch.context["poi"]).transpose(1, 2)
        return replace(batch, context={**batch.context, "env": torch.tanh(self.poi(torch.log1p(counts)))[:, None]})

    def forward(self, batch: TrafficBatch, scale: Scale) -> Condition:
        tokens = self.clock_token(in_patches(self.clock(batch.clock, batch.step_minutes), self.patch).flatten(2))[:, :, None]
        vector = self._environment(batch) if self.contexts else None
        if self.added and vector is not None:
            tokens, vector = tokens + vector, None
        return Condition(known=batch.known, space=batch.space, vector=vector, tokens=tokens, field=_history(batch, scale))

    def _environment(self, batch: TrafficBatch) -> Tensor:
        """(b, l|1, s, hidden): z_env of each patch projected, one for all where it is the same at all slots; the network is told where none
        is known."""
        b, _, _, s = batch.shape
        nothing = torch.full((b, 1, s, self.env_features), torch.nan, device=batch.traffic.device)
        env = batch.context.get("env", nothing)
        if env.shape[1] > 1 and not self.next_place:
            env = torch.where(batch.known.any(dim=1)[..., None], env, torch.nan)
        if self.weights is not None:
            images, texts = env.chunk(2, dim=-1)
            env = self.weights[0] * images + self.weights[1] * texts
        missing = env.isnan().any(-1, keepdim=True)
        hidden = nn.functional.silu(self.env_in(torch.cat((torch.where(missing, 0.0, env), missing.float()), dim=-1)))
        if hidden.shape[1] == 1:
            hidden = hidden.expand(-1, self.patch, -1, -1)
        projected: Tensor = self.env_out(in_patches(hidden, self.patch).transpose(2, 3).flatten(3))
        return projected


def _history(batch: TrafficBatch, scale: Scale) -> Tensor:
    """(b, FIELDS * c, t, s), the channels of a service side by side."""
    zero = torch.zeros_like(batch.traffic)
    observed = torch.where(batch.known, scale.apply(batch.traffic), zero)
    other_day, found = same_slot(batch)
    seasonal = torch.where(found, scale.apply(other_day), zero)
    reference = batch.context.get("reference", torch.zeros_like(zero[:, :, 0, 0]))[:, :, None, None]
    # A user is one of thousands and drawn alone: unlike a cell's among those of a tile, a level is no fingerprint here.
    centre = scale.level * (torch.sinh(scale.prior) if scale.asinh else scale.prior)
    relative = torch.where(reference > 0, torch.log(centre / (TYPICAL_LEVEL * reference)).clamp(-6, 6) / 3, zero)
    fields = (
        observed,
        batch.known,
        batch.known & (batch.traffic > 0),
        seasonal,
        found,
        scale.silent,
        torch.log(scale.spread),
        relative,
        batch.known.float().mean(2, keepdim=True),
    )
    return torch.stack([field.float().expand(batch.shape) for field in fields], dim=2).flatten(1, 2)
