r"""Spatio-temporal graph fusion (LEC-Diff, Fig. 2b): recurrent state and environment of a station and of those around it, as one vector.

n_i = h_i + W_e e_i                                    a station's node: its recurrent state and its environment
g^0 = n,   g^l = SiLU(P g^{l-1} W_l)                   propagation over the station graph (raytraffic.graph)
f_i = W_f [n_i (+) g_i^L]                              what the denoiser is told
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from raytraffic.graph import Neighbourhood, edge_weights, group_edges, random_walk
from raytraffic.types import Space

__all__ = ["Fusion", "GraphConvolution", "propagation"]


class GraphConvolution(MessagePassing):
    """P x W + b of node features x (n, ..., d): torch_geometric's message passing, its messages summed by one sparse product."""

    def __init__(self, hidden: int) -> None:
        super().__init__(aggr="add")
        self.linear = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, walk: Tensor) -> Tensor:
        mixed: Tensor = self.propagate(walk, x=x.flatten(1))
        return self.linear(mixed.view_as(x))

    def message_and_aggregate(self, walk: Tensor, x: Tensor) -> Tensor:
        """Never builds the (e, d) messages: a city's would not fit."""
        return walk @ x


class Fusion(nn.Module):
    """f (n, ..., hidden) of nodes (n, ..., hidden); without a graph (Drop SGF) of each station's node alone."""

    def __init__(self, hidden: int, hops: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(GraphConvolution(hidden) for _ in range(hops))
        self.out = nn.Linear((2 if hops else 1) * hidden, hidden)

    def forward(self, nodes: Tensor, walk: Tensor) -> Tensor:
        if not self.convolutions:
            return self.out(nodes)
        around = nodes
        for convolution in self.convolutions:
            around = nn.functional.silu(convolution(around, walk))
        return self.out(torch.cat((nodes, around), dim=-1))


def propagation(space: Space, windows: int, stations: int, neighbourhood: Neighbourhood) -> Tensor:
    """P (n, n) of n = windows * stations nodes, no edge between windows: along `space.edges` where given, else between neighbours by
    `space.xy`; of stations without either each hears itself alone."""
    device = None if space.xy is None else space.xy.device
    edges = torch.zeros(2, 0, dtype=torch.int64, device=device)
    if space.edges is not None:
        edges = _repeated([space.edges], [0] * windows, stations)
    elif space.xy is not None:
        # Draws of one window have one graph, which is built once.
        distinct, which = torch.unique(space.xy.nan_to_num(nan=torch.inf).flatten(1), dim=0, return_inverse=True)
        places = distinct.unflatten(1, (stations, 2))
        found = group_edges(torch.where(torch.isfinite(places), places, torch.nan), neighbourhood)
        group = torch.div(found[1], stations, rounding_mode="floor")
        edges = _repeated([found[:, group == one] - one * stations for one in range(len(distinct))], which.tolist(), stations)
    weights = (
        torch.ones(edges.shape[1], device=edges.device) if space.xy is None else edge_weights(space.xy.flatten(0, 1), edges, neighbourhood)
    )
    return random_walk(edges, weights, windows * stations)


def _repeated(graphs: list[Tensor], which: list[int], stations: int) -> Tensor:
    """Edges (2, e) of windows side by side, window i with the edges of graphs[which[i]]."""
    return torch.cat([graphs[one] + window * stations for window, one in enumerate(which)], dim=1)
