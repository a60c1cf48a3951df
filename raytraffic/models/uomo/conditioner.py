r"""UoMo's conditioner: observation, clock, users and POI of a window as tokens aligned with the denoiser's, and a vector.

Static POI features (Eq. 8) are the site embedding and are computed once a site by `embed`; the time-aware POI features
(Eq. 9) are computed here:

    h_s = sigmoid(W_s P + B_s)                      (8)
    h_d = sigmoid(W_l [h_s (+) tau(t)] + B_l)       (9)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raytraffic.diffusion.priors import same_slot
from raytraffic.models.uomo.patching import Patching
from raytraffic.nn.embeddings import ClockEmbedding
from raytraffic.types import Condition, Scale, TrafficBatch

if TYPE_CHECKING:
    from raytraffic.models.uomo.config import UomoConfig

__all__ = ["UomoConditioner"]


class UomoConditioner(nn.Module):
    """Sees visible traffic and the declared contexts; undeclared contexts are never read."""

    def __init__(self, config: UomoConfig) -> None:
        super().__init__()
        self.contexts = config.contexts
        self.patching = Patching(config.token)
        volume = config.token[0] * config.token[1] * config.token[2]
        self.clock = ClockEmbedding(config.clock_features)
        self.clock_token = nn.Linear(config.token[0] * config.clock_features, config.hidden)
        fields = 8 * config.services
        if "users" in self.contexts:
            fields += 2
        if "poi" in self.contexts:
            self.poi_static = nn.Linear(len(config.poi_categories), config.poi_features)
            self.poi_dynamic = nn.Linear(config.poi_features + config.clock_features, config.poi_features)
            fields += config.poi_features
        self.field_token = nn.Linear(fields * volume, config.hidden)
        self.vector = nn.Sequential(nn.Linear(2 + config.hidden, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.hidden))

    def embed(self, batch: TrafficBatch) -> TrafficBatch:
        """The batch with its static POI turned into the site embedding `env` (b, 1, s, d) of Eq. 8 (log counts)."""
        if "poi" not in self.contexts or "env" in batch.context or "poi" not in batch.context:
            return batch
        counts = torch.nan_to_num(batch.context["poi"]).transpose(1, 2)
        env = torch.sigmoid(self.poi_static(torch.log1p(counts)))[:, None]
        return replace(batch, context={**batch.context, "env": env})

    def forward(self, batch: TrafficBatch, scale: Scale) -> Condition:
        t, s = batch.shape[2:]
        tau = self.clock(batch.clock, batch.step_minutes)
        field = torch.cat([*self._traffic_fields(batch, scale), *self._context_fields(batch, tau)], dim=1)
        tokens = self.field_token(self.patching.cut(field, batch.space))
        nt, nh, nw = self.patching.shape(t, batch.space, s)
        by_time = nn.functional.pad(tau, (0, 0, 0, nt * self.patching.token[0] - t)).unflatten(1, (nt, -1)).flatten(2)
        tokens = (tokens.unflatten(1, (nt, nh * nw)) + self.clock_token(by_time)[:, :, None]).flatten(1, 2)
        share = batch.known.float().mean(dim=(1, 2, 3))
        numbers = torch.stack((torch.log(batch.step_minutes.float() / 30), share), dim=1)
        vector = self.vector(torch.cat((numbers, tokens.mean(dim=1)), dim=1))
        return Condition(known=batch.known, space=batch.space, vector=vector, tokens=tokens)

    def _traffic_fields(self, batch: TrafficBatch, scale: Scale) -> list[Tensor]:
        """Eight fields a service, each (b, c, t, s): values, where they are known, and what is known of the cell."""
        t = batch.traffic.shape[2]
        zero = torch.zeros_like(batch.traffic)
        observed = torch.where(batch.known, scale.apply(batch.traffic), zero)
        other_day, found = same_slot(batch)
        seasonal = torch.where(found, scale.apply(other_day), zero)
        history = batch.known.any(dim=2, keepdim=True)
        relative = torch.log(scale.level / scale.level.mean(dim=3, keepdim=True)) * history
        alive = history & ~scale.dead
        cell = [field.expand(-1, -1, t, -1) for field in (relative, alive, history)]
        fields = [observed, batch.known, scale.prior, seasonal, found, *cell]
        return [field.float() for field in fields]

    def _context_fields(self, batch: TrafficBatch, tau: Tensor) -> list[Tensor]:
        """Users (their level removed) with their presence, and time-aware POI (Eq. 9); zeros where a city has none."""
        b, _, t, s = batch.shape
        fields = []
        if "users" in self.contexts:
            users = batch.context.get("users", torch.full((b, t, s), torch.nan, device=tau.device))
            present = batch.known.any(dim=1) & torch.isfinite(users)
            users = torch.where(present, users, torch.zeros_like(users))
            level = users.sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
            scaled = torch.asinh(users / level.clamp(min=1e-6)) * present
            fields += [scaled[:, None], present[:, None].float()]
        if "poi" in self.contexts:
            width = self.poi_static.out_features
            env = batch.context["env"] if "env" in batch.context else torch.zeros(b, 1, s, width, device=tau.device)
            both = torch.cat((env.expand(b, t, s, width), tau[:, :, None].expand(b, t, s, tau.shape[-1])), dim=-1)
            dynamic = torch.sigmoid(self.poi_dynamic(both))
            fields.append((dynamic if "env" in batch.context else torch.zeros_like(dynamic)).permute(0, 3, 1, 2))
        return fields
