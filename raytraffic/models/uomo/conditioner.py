r"""UoMo's conditioner: observation and clock of a window as tokens aligned with the denoiser's, its context as tokens added to them.

Static POI features (Eq. 8) are the site embedding and are computed once a site by `embed`; the time-aware POI features
(Eq. 9) are computed here, and the contextual feature tokens are their sum with the users' (3.3.1):

    h_s = sigmoid(W_s P + B_s)                      (8)
    h_d = sigmoid(W_l [h_s (+) tau(t)] + B_l)       (9)
    y   = c^u + c^p

Context layers end in zero at construction, so a pre-trained model without context can be given one and starts as it was.

Beyond the paper, a network of learned marginals (raytraffic.models.uomo.entries) answers once a forecast, where the denoiser runs
once a sampler step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raytraffic.diffusion.priors import same_slot
from raytraffic.marginals import knots
from raytraffic.models.uomo.entries import EntryNetwork
from raytraffic.models.uomo.patching import Patching
from raytraffic.nn.embeddings import ClockEmbedding
from raytraffic.nn.transformer import ZeroLinear
from raytraffic.types import Condition, Scale, TrafficBatch

if TYPE_CHECKING:
    from raytraffic.models.uomo.config import UomoConfig

__all__ = ["FIELDS", "NUMBERS", "UomoConditioner"]

#: Fields of an entry that its token is made of, and numbers of a window that its vector is made of.
FIELDS, NUMBERS = 10, 2


class UomoConditioner(nn.Module):
    """Sees visible traffic and the declared contexts; undeclared contexts are never read."""

    def __init__(self, config: UomoConfig) -> None:
        super().__init__()
        self.contexts = config.contexts
        #: Features of the site embedding `env` that `embed` makes and `forward` takes.
        self.env_features = config.poi_features if "poi" in config.contexts else 0
        self.services = config.services
        self.patching = Patching(config.token)
        volume = config.token[0] * config.token[1] * config.token[2]
        self.clock = ClockEmbedding(config.clock_features)
        self.clock_token = nn.Linear(config.token[0] * config.clock_features, config.hidden)
        self.field_token = nn.Linear(FIELDS * config.services * volume, config.hidden)
        if "users" in self.contexts:
            self.users_token = ZeroLinear(2 * volume, config.hidden)
        if "poi" in self.contexts:
            self.poi_static = nn.Linear(len(config.poi_categories), config.poi_features)
            self.poi_dynamic = nn.Linear(config.poi_features + config.clock_features, config.poi_features)
            self.poi_token = ZeroLinear(config.poi_features * volume, config.hidden)
        self.vector = nn.Sequential(nn.Linear(NUMBERS + config.hidden, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.hidden))
        self.entries = EntryNetwork(config.entries, self.env_features) if config.entries else None

    def embed(self, batch: TrafficBatch) -> TrafficBatch:
        """The batch with its static POI turned into the site embedding `env` (b, 1, s, d) of Eq. 8 (log counts)."""
        if "poi" not in self.contexts or "env" in batch.context or "poi" not in batch.context:
            return batch
        return replace(batch, context={**batch.context, "env": self._static(batch.context["poi"])})

    def _static(self, poi: Tensor) -> Tensor:
        """h_s (b, 1, s, d) of counts (b, p, s), by Eq. 8."""
        counts = torch.nan_to_num(poi).transpose(1, 2)
        return torch.sigmoid(self.poi_static(torch.log1p(counts)))[:, None]

    def forward(self, batch: TrafficBatch, scale: Scale) -> Condition:
        t, s = batch.shape[2:]
        tau = self.clock(batch.clock, batch.step_minutes)
        tokens = self.field_token(self.patching.cut(self._traffic_fields(batch, scale), batch.space))
        if "users" in self.contexts:
            tokens = tokens + self._users_token(batch)
        env = self._env(batch) if "poi" in self.contexts else None
        if env is not None:
            tokens = tokens + self.poi_token(self.patching.cut(self._poi(env, tau).movedim(-1, 1), batch.space))
        nt, nh, nw = self.patching.shape(t, batch.space, s)
        by_time = nn.functional.pad(tau, (0, 0, 0, nt * self.patching.token[0] - t)).unflatten(1, (nt, -1)).flatten(2)
        tokens = (tokens.unflatten(1, (nt, nh * nw)) + self.clock_token(by_time)[:, :, None]).flatten(1, 2)
        share = batch.known.float().mean(dim=(1, 2, 3))
        numbers = torch.stack((torch.log(batch.step_minutes.float() / 30), share), dim=1)
        vector = self.vector(torch.cat((numbers, tokens.mean(dim=1)), dim=1))
        marginals = None if self.entries is None else knots(self.entries(batch, scale, env).float())
        return Condition(known=batch.known, space=batch.space, vector=vector, tokens=tokens, marginals=marginals)

    def _traffic_fields(self, batch: TrafficBatch, scale: Scale) -> Tensor:
        """(b, 10 c, t, s): values, where they are known, and what is known of the cell."""
        t = batch.traffic.shape[2]
        zero = torch.zeros_like(batch.traffic)
        observed = torch.where(batch.known, scale.apply(batch.traffic), zero)
        other_day, found = same_slot(batch)
        seasonal = torch.where(found, scale.apply(other_day), zero)
        history = batch.known.any(dim=2, keepdim=True)
        # The levels of a tile's cells are its fingerprint: they are told only where another cell's level has to be guessed.
        guessed = (~history).any(dim=3, keepdim=True)
        relative = torch.log(scale.level / scale.level.mean(dim=3, keepdim=True)) * history * guessed
        alive = history & ~scale.dead
        spread = torch.log(scale.spread / 0.3)
        amount = batch.known.float().mean(dim=2, keepdim=True)
        cell = [field.expand(-1, -1, t, -1) for field in (relative, alive, history, spread, amount)]
        fields = [observed, batch.known, scale.prior, seasonal, found, *cell]
        return torch.cat([field.float() for field in fields], dim=1)

    def _users_token(self, batch: TrafficBatch) -> Tensor:
        """c^u (b, l, d): users with their level removed, and where they are known or the caller expects some; zero where a city has none.

        Users that were measured count where traffic is known and nowhere else.
        """
        b, _, t, s = batch.shape
        nothing = torch.full((b, t, s), torch.nan, device=batch.traffic.device)
        users = torch.where(batch.known.any(dim=1), batch.context.get("users", nothing), nothing)
        if "expected_users" in self.contexts:
            users = torch.where(torch.isfinite(users), users, batch.context.get("expected_users", nothing))
        present = torch.isfinite(users)
        users = torch.where(present, users, torch.zeros_like(users))
        level = users.sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
        scaled = torch.asinh(users / level.clamp(min=1e-6)) * present
        token: Tensor = self.users_token(self.patching.cut(torch.stack((scaled, present.float()), dim=1), batch.space))
        return token

    def _env(self, batch: TrafficBatch) -> Tensor:
        """h_s (b, 1, s, d): the site embeddings; where a city has no POI those of counts of zero, as training drops them."""
        if "env" in batch.context:
            return batch.context["env"]
        return self._static(batch.traffic.new_zeros(len(batch.key), self.poi_static.in_features, batch.shape[3]))

    def _poi(self, env: Tensor, tau: Tensor) -> Tensor:
        """h_d (b, t, s, d): the time-aware POI features of Eq. 9."""
        t, s = tau.shape[1], env.shape[2]
        both = torch.cat((env.expand(-1, t, -1, -1), tau[:, :, None].expand(-1, -1, s, -1)), dim=-1)
        return torch.sigmoid(self.poi_dynamic(both))
