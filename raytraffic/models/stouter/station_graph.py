r"""The base-station graph (STOUTER 2): stations within 1 km of each other, described by their POI counts, and its embeddings F_s.

The encoder is pre-trained as half of an autoencoder and then frozen: its weights are buffers of the model, saved and moved with it and
never trained, and F_s of any station follows from its POI and its place, also of one that is planned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raytraffic.nn.graph_autoencoder import GcnEncoder, GraphAutoencoder, Pretraining, pretrain
from raytraffic.types import TrafficBatch

__all__ = ["HIDDEN", "RADIUS_METRES", "FrozenStationEncoder", "StationGraph", "radius_edges", "station_graphs"]

#: Stations up to this far apart are neighbours.
RADIUS_METRES = 1000.0
#: Channels between the two graph convolutions.
HIDDEN = 64

#: POI counts (b, k, s) and places (b, s, 2) of the stations of some windows.
StationGraph = tuple[Tensor, Tensor | None]


def radius_edges(xy: Tensor, radius: float = RADIUS_METRES) -> Tensor:
    """(2, e) edges, in both directions, between stations (b, s, 2) of one window at most `radius` metres apart.

    Station j of window i is node i * s + j. A station whose place is not known (NaN) has no edge.
    """
    s = xy.shape[1]
    # By differences: the distances of torch.cdist cancel where coordinates are large.
    distance = torch.linalg.vector_norm(xy[:, :, None] - xy[:, None], dim=-1)
    near = (distance <= radius) & ~torch.eye(s, dtype=torch.bool, device=xy.device)
    window, source, target = near.nonzero(as_tuple=True)
    return torch.stack((window * s + source, window * s + target))


class FrozenStationEncoder(nn.Module):
    """F_s (b, 1, s, d) of POI counts (b, k, s) and places; all its weights are buffers, random until `adopt` is given trained ones."""

    poi_mean: Tensor
    poi_deviation: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, categories: int, embedding: int, own: bool) -> None:
        super().__init__()
        self.encoder = GcnEncoder(categories, HIDDEN, embedding, own)
        self.register_buffer("poi_mean", torch.zeros(categories))
        self.register_buffer("poi_deviation", torch.ones(categories))
        self.register_buffer("mean", torch.zeros(embedding))
        self.register_buffer("deviation", torch.ones(embedding))
        _freeze(self.encoder)

    @property
    def embedding(self) -> int:
        """Features of F_s."""
        return len(self.mean)

    @torch.no_grad()
    def forward(self, poi: Tensor, xy: Tensor | None) -> Tensor:
        nodes = (_nodes(poi) - self.poi_mean) / self.poi_deviation
        embedded = (self.encoder(nodes, _edges(poi, xy)) - self.mean) / self.deviation
        return embedded.unflatten(0, (len(poi), -1))[:, None]

    def pretrain(self, graphs: Sequence[StationGraph], settings: Pretraining) -> list[float]:
        """Trains an autoencoder on these graphs, one a step in turn, and adopts its encoder; returns the losses."""
        everything = torch.cat([_nodes(poi) for poi, _ in graphs])
        self.poi_mean.copy_(everything.mean(dim=0))
        self.poi_deviation.copy_(everything.std(dim=0, correction=0).clamp(min=1e-3))
        seen = [((_nodes(poi) - self.poi_mean) / self.poi_deviation, _edges(poi, xy)) for poi, xy in graphs]
        categories = everything.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            trained = GcnEncoder(categories, HIDDEN, self.embedding, self.encoder.own is not None)
            autoencoder = GraphAutoencoder(trained, categories, self.embedding).to(everything.device)
        losses = pretrain(autoencoder, lambda step: seen[step % len(seen)], settings)
        self.encoder.load_state_dict(trained.state_dict())
        with torch.no_grad():
            embedded = torch.cat([self.encoder(nodes, edges) for nodes, edges in seen])
        self.mean.copy_(embedded.mean(dim=0))
        self.deviation.copy_(embedded.std(dim=0, correction=0).clamp(min=1e-3))
        return losses


def station_graphs(batches: Sequence[TrafficBatch]) -> list[StationGraph]:
    """The stations of every batch; ValueError for one without POI."""
    for batch in batches:
        if "poi" not in batch.context:
            raise ValueError(f"context: {sorted(batch.context)}, expected 'poi' to pre-train the station graph on")
    return [(batch.context["poi"], batch.space.xy) for batch in batches]


def _nodes(poi: Tensor) -> Tensor:
    """(b * s, k) log counts; those that are not known count as none."""
    return torch.log1p(torch.nan_to_num(poi)).transpose(1, 2).flatten(0, 1)


def _edges(poi: Tensor, xy: Tensor | None) -> Tensor:
    return torch.empty(2, 0, dtype=torch.int64, device=poi.device) if xy is None else radius_edges(xy)


def _freeze(module: nn.Module) -> None:
    """Turns the parameters of a module into buffers."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
