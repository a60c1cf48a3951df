r"""Station graphs from coordinates: who hears whom, how strongly, and groups of neighbours with the halo that their answers hang on.

    a_ij = exp(-d_ij^2 / kernel^2)               for the k nearest stations j of i within a radius
    P = D^-1 (A + I),   D_ii = 1 + sum_j a_ij    a random walk that may stay

The weights are those of DCRNN (Li et al. 2018, Sec. 4.1) and STGCN (Yu et al. 2018, Eq. 10), the random walk is DCRNN's (Sec. 2.2).

Edges are directed (2, e): from the station that is heard to the one that hears, as torch_geometric has them, and come in the order of the
hearing station, the nearest first. Stations equally far are told apart by where they lie (x, then y), so the graph does not depend on the
order in which stations come; only those at one and the same place are told apart by that. A station whose place is NaN has no edges.

P is normalised by the hearing station alone, so that what L propagations make of a station depends on stations within L hops and on
nothing else: a group with a halo of L hops answers as the whole city does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

__all__ = ["MAX_GROUP", "Neighbourhood", "edge_weights", "group_edges", "partition", "random_walk", "station_edges", "with_halo"]

#: `group_edges` compares all pairs of a group; a larger city's edges are built by `station_edges`.
MAX_GROUP = 2048
#: Distances are compared to this many metres, so that rounding does not decide which of two equally near stations is heard.
_RESOLUTION = 1e-3


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """Which stations one hears: the `neighbours` nearest within `radius_metres`, weighted by a Gaussian of `kernel_metres`."""

    neighbours: int = 8
    radius_metres: float = 5000.0
    kernel_metres: float = 1000.0

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours: {self.neighbours}, expected at least 1")
        for field in ("radius_metres", "kernel_metres"):
            value = getattr(self, field)
            if not 0 < value < math.inf:
                raise ValueError(f"{field}: {value}, expected a number > 0")


def station_edges(xy: NDArray[np.float64], neighbourhood: Neighbourhood) -> NDArray[np.int64]:
    """(2, e) edges between n stations at xy (n, 2) in projected metres, by a k-d tree: O(n log n), for whole cities."""
    there = np.flatnonzero(np.isfinite(xy).all(axis=1))
    k = min(neighbourhood.neighbours, len(there) - 1)
    if k < 1:
        return np.zeros((2, 0), dtype=np.int64)
    places = np.asarray(xy[there], dtype=np.float64)
    tree = cKDTree(places)
    farthest = tree.query(places, k=k + 1)[0][:, -1]
    # Everyone as near as the k-th nearest, so that ties are broken by place and not by the tree.
    within = np.minimum(farthest, neighbourhood.radius_metres) + _RESOLUTION
    found = tree.query_ball_point(places, within)
    hearing = np.repeat(np.arange(len(places)), [len(one) for one in found])
    heard = np.concatenate([np.asarray(one, dtype=np.int64) for one in found])
    hearing, heard = hearing[hearing != heard], heard[hearing != heard]
    distance = np.linalg.norm(places[hearing] - places[heard], axis=1)
    order = np.lexsort((heard, places[heard, 1], places[heard, 0], np.rint(distance / _RESOLUTION), hearing))
    hearing, heard, distance = hearing[order], heard[order], distance[order]
    rank = np.arange(len(hearing)) - np.searchsorted(hearing, hearing)
    kept = (rank < k) & (distance <= neighbourhood.radius_metres)
    return np.stack((there[heard[kept]], there[hearing[kept]]))


def group_edges(xy: Tensor, neighbourhood: Neighbourhood) -> Tensor:
    """(2, e) edges between the b * s stations of b groups at xy (b, s, 2): those of `station_edges`, group by group, on any device.

    Raises ValueError for groups of more than MAX_GROUP stations, whose pairs are too many.
    """
    b, s, _ = xy.shape
    if s > MAX_GROUP:
        raise ValueError(f"space.xy: {s} stations a window, expected at most {MAX_GROUP}, or space.edges made by station_edges")
    k = min(neighbourhood.neighbours, s - 1)
    if k < 1:
        return torch.zeros(2, 0, dtype=torch.int64, device=xy.device)
    places = xy.double()
    # By place first; the sort by distance keeps that order where distances are equal. NaN comes last, whatever it stands beside.
    by_y = places[..., 1].argsort(dim=1, stable=True)
    by_place = by_y.gather(1, places[..., 0].gather(1, by_y).argsort(dim=1, stable=True))
    heard_at = places.gather(1, by_place[..., None].expand(-1, -1, 2))
    distance = (places[:, :, None] - heard_at[:, None]).square().sum(-1).sqrt()
    itself = by_place[:, None] == torch.arange(s, device=xy.device)[:, None]
    distance = distance.nan_to_num(nan=torch.inf).masked_fill(itself, torch.inf)
    order = (distance / _RESOLUTION).round().argsort(dim=2, stable=True)[..., :k]
    near = distance.gather(2, order) <= neighbourhood.radius_metres
    heard = by_place[:, None].expand(-1, s, -1).gather(2, order)
    group = torch.arange(b, device=xy.device)[:, None, None] * s
    hearing = (group + torch.arange(s, device=xy.device)[:, None]).expand(-1, -1, k)
    return torch.stack(((heard + group)[near], hearing[near]))


def edge_weights(xy: Tensor, edges: Tensor, neighbourhood: Neighbourhood) -> Tensor:
    """(e,) Gaussian weights of edges (2, e) between stations at xy (n, 2); float32, at least the least that is above 0."""
    distance = (xy[edges[0]].double() - xy[edges[1]].double()).square().sum(-1)
    return torch.exp(-distance / neighbourhood.kernel_metres**2).float().clamp(min=torch.finfo(torch.float32).tiny)


def random_walk(edges: Tensor, weights: Tensor, stations: int) -> Tensor:
    """P (n, n), sparse (CSR): a row is what a station hears, itself among it, and sums to 1; all that is sparse in a model."""
    itself = torch.arange(stations, device=edges.device)
    heard, hearing = torch.cat((itself, edges[0])), torch.cat((itself, edges[1]))
    weight = torch.cat((torch.ones(stations, dtype=weights.dtype, device=weights.device), weights))
    # Rows are sorted and a row keeps its order, itself first and then the nearest: sums round the same however stations are numbered.
    order = hearing.argsort(stable=True)
    heard, hearing, weight = heard[order], hearing[order], weight[order]
    count = torch.bincount(hearing, minlength=stations)
    starts = torch.cat((count.new_zeros(1), count.cumsum(0)))
    total = torch.zeros(stations, dtype=torch.float64, device=weight.device).index_add(0, hearing, weight.double())
    share = (weight.double() / total[hearing]).to(weight.dtype)
    return torch.sparse_csr_tensor(starts, heard, share, (stations, stations), check_invariants=False)


def partition(xy: NDArray[np.float64], size: int) -> tuple[NDArray[np.int64], ...]:
    """Groups of at most `size` neighbouring stations of xy (n, 2), each station in exactly one; a station without a place is alone.

    A set is cut across its longer side in the ratio of the groups that each part is to have (a k-d tree's split at the median), until it is
    one group. Groups are as full as each other, hold their stations in ascending order, and come in the order of their first stations.
    """
    if size < 1:
        raise ValueError(f"size: {size}, expected at least 1 station a group")
    placed = np.isfinite(xy).all(axis=1)
    groups = [np.array([station]) for station in np.flatnonzero(~placed)]
    waiting = [np.flatnonzero(placed)] if placed.any() else []
    while waiting:
        members = waiting.pop()
        wanted = -(-len(members) // size)
        if wanted == 1:
            groups.append(np.sort(members))
            continue
        extent = np.ptp(xy[members], axis=0)
        longer = int(extent[1] > extent[0])
        ordered = members[np.lexsort((members, xy[members, 1 - longer], xy[members, longer]))]
        cut = round(len(members) * (wanted // 2) / wanted)
        waiting += [ordered[:cut], ordered[cut:]]
    return tuple(sorted(groups, key=lambda group: int(group[0])))


def with_halo(members: NDArray[np.int64], edges: NDArray[np.int64], hops: int) -> NDArray[np.int64]:
    """The members of a group, followed by its halo in ascending order: all stations that the members hear over at most so many hops."""
    if hops < 0:
        raise ValueError(f"hops: {hops}, expected at least 0")
    inside = frontier = np.unique(members)
    for _ in range(hops):
        reached = np.unique(edges[0][np.isin(edges[1], frontier)])
        frontier = np.setdiff1d(reached, inside, assume_unique=True)
        inside = np.union1d(inside, frontier)
    return np.concatenate((members, np.setdiff1d(inside, members)))
