r"""Graph autoencoders of node features, trained by the scaled cosine error (STOUTER Eq. 1; GraphMAE, Hou et al. 2022):

    L = 1 / |V| sum_i (1 - h_i^T z_i / (|h_i| |z_i|))^gamma,   gamma > 1        (1)

with h_i the features of node i and z_i what the decoder restores of them. gamma > 1 makes little of nodes that are restored well already.
With `masked` > 0 it is GraphMAE: that share of the nodes shows a learned token in place of its features, and these alone are scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, GINConv

__all__ = ["GcnEncoder", "GinEncoder", "GraphAutoencoder", "Pretraining", "pretrain", "scaled_cosine_error"]


def scaled_cosine_error(features: Tensor, restored: Tensor, gamma: float) -> Tensor:
    """Eq. 1 of features and restored features (v, f), a scalar; ValueError unless gamma > 1. A node of zeros counts as orthogonal."""
    if not gamma > 1:
        raise ValueError(f"gamma: {gamma}, expected a scaling factor > 1")
    # Rounding may leave a cosine of 1 + 1e-7, of whose difference to 1 a power that is no whole number is NaN.
    distance = (1 - nn.functional.cosine_similarity(features, restored, dim=-1)).clamp(min=0)
    return (distance**gamma).mean()


class GinEncoder(nn.Module):
    """Two graph isomorphism layers (Xu et al. 2019) from node features (v, f) to embeddings (v, d)."""

    def __init__(self, features: int, hidden: int, out: int) -> None:
        super().__init__()
        self.first = _gin(features, hidden, hidden)
        self.second = _gin(hidden, hidden, out)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(nn.functional.relu(self.first(x, edges)), edges)


class GcnEncoder(nn.Module):
    """Two graph convolutions (Kipf & Welling 2017) from node features (v, f) to embeddings (v, d).

    With `own` a linear map of a node's own features is added: between nodes that are all each other's neighbours a graph convolution
    answers the same for each of them.
    """

    def __init__(self, features: int, hidden: int, out: int, own: bool) -> None:
        super().__init__()
        self.first = GCNConv(features, hidden)
        self.second = GCNConv(hidden, out)
        self.own = nn.Linear(features, out, bias=False) if own else None

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        around = self.second(nn.functional.relu(self.first(x, edges)), edges)
        return around if self.own is None else around + self.own(x)


class GraphAutoencoder(nn.Module):
    """An encoder and a decoder of one layer of its kind, with the token of masked nodes."""

    def __init__(self, encoder: GinEncoder | GcnEncoder, features: int, embedding: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = _gin(embedding, embedding, features) if isinstance(encoder, GinEncoder) else GCNConv(embedding, features)
        self.token = nn.Parameter(torch.zeros(features))

    def forward(self, features: Tensor, edges: Tensor, hidden: Tensor) -> Tensor:
        """Restored features (v, f); where `hidden` (v,) the token stands for the node's own."""
        seen = torch.where(hidden[:, None], self.token, features)
        return self.decoder(self.encoder(seen, edges), edges)


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How a graph autoencoder is trained: `gamma` of Eq. 1, the share of nodes that are `masked` (0: Eq. 1 as printed), Adam's `steps`."""

    gamma: float = 2.0
    masked: float = 0.0
    steps: int = 300
    learning_rate: float = 5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.gamma > 1:
            raise ValueError(f"gamma: {self.gamma}, expected a scaling factor > 1")
        if not 0 <= self.masked < 1:
            raise ValueError(f"masked: {self.masked}, expected a share of the nodes in [0, 1)")
        if self.steps < 1 or not self.learning_rate > 0:
            raise ValueError(f"steps, learning_rate: {self.steps}, {self.learning_rate}, expected both > 0")


def pretrain(model: GraphAutoencoder, graph: Callable[[int], tuple[Tensor, Tensor]], settings: Pretraining) -> list[float]:
    """Trains an autoencoder on the features (v, f) and edges (2, e) that `graph` gives for each step; returns the losses."""
    generator = torch.Generator().manual_seed(settings.seed)
    adam = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    losses = []
    for step in range(settings.steps):
        features, edges = graph(step)
        hidden = _masked(len(features), settings.masked, generator).to(features.device)
        restored = model(features, edges, hidden)
        scored = hidden if settings.masked else torch.ones_like(hidden)
        loss = scaled_cosine_error(features[scored], restored[scored], settings.gamma)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    return losses


def _masked(nodes: int, share: float, generator: torch.Generator) -> Tensor:
    """(v,) bool: True at a share of the nodes, at least one where the share is not 0."""
    count = max(1, round(nodes * share)) if share else 0
    return torch.zeros(nodes, dtype=torch.bool).index_fill(0, torch.randperm(nodes, generator=generator)[:count], True)


def _gin(features: int, hidden: int, out: int) -> GINConv:
    return GINConv(nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out)), train_eps=True)
