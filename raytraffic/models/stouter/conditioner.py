"""STOUTER's conditioner: F_t of the window's slots, F_s of its stations, and what is known of its traffic as input channels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raytraffic.diffusion.priors import same_slot
from raytraffic.models.stouter.station_graph import FrozenStationEncoder
from raytraffic.models.stouter.temporal_graph import at_slots, clock_waves
from raytraffic.types import Condition, Scale, TrafficBatch

if TYPE_CHECKING:
    from raytraffic.models.stouter.config import StouterConfig

__all__ = ["FIELDS", "NUMBERS", "StouterConditioner"]

#: Fields of an entry beside the noisy one, and numbers of a window that its vector is made of.
FIELDS, NUMBERS = 8, 2


class StouterConditioner(nn.Module):
    """Condition of a window: `tokens` (b, t + s, d) are F_t of its slots and then F_s of its stations, those of them that the model has."""

    week: Tensor | None

    def __init__(self, config: StouterConfig) -> None:
        super().__init__()
        self.contexts = config.contexts
        #: Features of the site embedding F_s that `embed` makes and `forward` takes.
        self.env_features = config.embedding if "poi" in config.contexts else 0
        self.station_edges = config.station_graph
        #: F_t of every slot of the week: harmonics of the clock until the temporal graph is pre-trained.
        self.register_buffer("week", clock_waves(1440 // config.node_minutes, config.embedding) if config.temporal_graph else None)
        if self.env_features:
            self.stations = FrozenStationEncoder(len(config.poi_categories), config.embedding, own=config.own_features)
        self.vector = nn.Sequential(nn.Linear(NUMBERS, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.hidden))

    def embed(self, batch: TrafficBatch) -> TrafficBatch:
        """The batch with F_s of its stations as the site embedding `env` (b, 1, s, d), of its POI and places."""
        if not self.env_features or "env" in batch.context or "poi" not in batch.context:
            return batch
        env = self.stations(batch.context["poi"], batch.space.xy if self.station_edges else None)
        return replace(batch, context={**batch.context, "env": env})

    def forward(self, batch: TrafficBatch, scale: Scale) -> Condition:
        parts = []
        if self.week is not None:
            parts.append(at_slots(self.week, batch.clock, batch.step_minutes))
        if self.env_features:
            parts.append(self._places(batch))
        share = batch.known.float().mean(dim=(1, 2, 3))
        numbers = torch.stack((torch.log(batch.step_minutes.float() / 60), share), dim=1)
        return Condition(
            known=batch.known,
            space=batch.space,
            vector=self.vector(numbers),
            tokens=torch.cat(parts, dim=1) if parts else None,
            field=_fields(batch, scale),
        )

    def _places(self, batch: TrafficBatch) -> Tensor:
        """F_s (b, s, d); zero, which is a mean station's, where a city has no POI. ValueError where it changes in time."""
        env = batch.context.get("env")
        if env is None:
            return batch.traffic.new_zeros(len(batch.key), batch.shape[3], self.env_features)
        if env.shape[1] != 1:
            raise ValueError(f"env: shape {tuple(env.shape)}, expected (b, 1, s, d): a station stays where it is")
        return env[:, 0]


def _fields(batch: TrafficBatch, scale: Scale) -> Tensor:
    """(b, 8 c, t, s): values, where they are known, what they are relative to, and what is known of the station."""
    zero = torch.zeros_like(batch.traffic)
    observed = torch.where(batch.known, scale.apply(batch.traffic), zero)
    other_day, found = same_slot(batch)
    seasonal = torch.where(found, scale.apply(other_day), zero)
    history = batch.known.any(dim=2, keepdim=True)
    station = [field.expand(batch.shape) for field in (history, history & ~scale.dead, torch.log(scale.spread / 0.3))]
    return torch.cat([field.float() for field in (observed, batch.known, scale.prior, seasonal, found, *station)], dim=1)
