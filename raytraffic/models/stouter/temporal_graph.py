r"""The temporal graph (STOUTER 2): a week of 7 x 24 nodes, or of any whole number of nodes an hour, and its embeddings F_t.

Node n = weekday * slots + slot of day, Monday first. Directed edges lead from every slot to the next (hourly edges) and to the same slot
of the next day (daily edges); both wrap round, the week's last slot to its first and Sunday to Monday, since weeks follow each other.
A node's features are the mean, the standard deviation and three quantiles of the traffic in its slot, over stations and weeks, for each
service; traffic is taken relative to the station's own mean in its window, as else the busiest stations alone would be described.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from raytraffic.nn.graph_autoencoder import GinEncoder, GraphAutoencoder, Pretraining, pretrain
from raytraffic.types import TrafficBatch

__all__ = ["QUANTILES", "at_slots", "clock_waves", "embed_week", "standardised", "week_edges", "week_statistics"]

#: Quantiles of a slot's traffic that describe it, beside mean and standard deviation.
QUANTILES = (0.1, 0.5, 0.9)
_HIDDEN = 64


def week_edges(slots: int) -> Tensor:
    """(2, 14 * slots) directed edges [from, to] of a week of `slots` nodes a day: 7 * slots hourly ones, then as many daily ones."""
    nodes = 7 * slots
    node = torch.arange(nodes)
    hourly = torch.stack((node, (node + 1) % nodes))
    daily = torch.stack((node, (node + slots) % nodes))
    return torch.cat((hourly, daily), dim=1)


def week_statistics(batches: Iterable[TrafficBatch], slots: int) -> Tensor:
    """(7 * slots, services * 5) statistics of measured traffic by slot of the week; a slot without any has the mean of the others.

    A window's slot belongs to the node that its middle lies in. Raises ValueError for windows of longer steps than the graph's, for no
    measured traffic at all, and for batches of different services.
    """
    node_minutes = 1440 // slots
    found: list[list[tuple[Tensor, Tensor]]] = []
    for batch in batches:
        longest = int(batch.step_minutes.max())
        if longest > node_minutes:
            raise ValueError(f"step_minutes: {longest}, expected at most the temporal graph's {node_minutes}")
        if found and len(found) != batch.shape[1]:
            raise ValueError(f"traffic: {batch.shape[1]} services after {len(found)}, expected the same in every batch")
        found = found or [[] for _ in range(batch.shape[1])]
        minute = batch.clock[..., 0] * batch.step_minutes[:, None] + batch.step_minutes[:, None] / 2
        node = batch.clock[..., 1] * slots + (minute / node_minutes).long()
        mean = batch.traffic.nanmean(dim=2, keepdim=True)
        relative = batch.traffic / mean
        for service, parts in enumerate(found):
            counted = torch.isfinite(relative[:, service])
            parts.append((node[:, :, None].expand_as(counted)[counted], relative[:, service][counted]))
    if not any(len(node) for parts in found for node, _ in parts):
        raise ValueError("batches: no measured traffic above zero, expected training windows")
    return torch.cat([_by_node(torch.cat([n for n, _ in parts]), torch.cat([v for _, v in parts]), 7 * slots) for parts in found], dim=1)


def _by_node(node: Tensor, value: Tensor, nodes: int) -> Tensor:
    """(nodes, 5) mean, standard deviation and quantiles of the values of each node."""
    order = node.argsort(stable=True)
    groups = value[order].split(torch.bincount(node, minlength=nodes).tolist())
    level = torch.tensor(QUANTILES, dtype=value.dtype, device=value.device)
    nothing = torch.full((2 + len(QUANTILES),), torch.nan, dtype=value.dtype, device=value.device)
    rows = [
        torch.cat((group.mean()[None], group.std(correction=0)[None], group.quantile(level))) if len(group) else nothing for group in groups
    ]
    table = torch.stack(rows)
    return torch.where(torch.isfinite(table), table, table.nanmean(dim=0))


def standardised(table: Tensor) -> Tensor:
    """The columns of a table (v, f) with mean 0 and standard deviation 1, 0 where a column is constant."""
    centred = table - table.mean(dim=0)
    return centred / centred.std(dim=0, correction=0).clamp(min=1e-6)


def embed_week(statistics: Tensor, slots: int, embedding: int, settings: Pretraining) -> tuple[Tensor, list[float]]:
    """F_t (7 * slots, embedding) with standardised columns, by a GIN autoencoder of the week's statistics, and its losses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        features = statistics.shape[1]
        autoencoder = GraphAutoencoder(GinEncoder(features, _HIDDEN, embedding), features, embedding).to(statistics.device)
    nodes, edges = standardised(statistics), week_edges(slots).to(statistics.device)
    losses = pretrain(autoencoder, lambda _: (nodes, edges), settings)
    with torch.no_grad():
        return standardised(autoencoder.encoder(nodes, edges)), losses


def clock_waves(slots: int, embedding: int) -> Tensor:
    """(7 * slots, embedding) harmonics of the day and of the week: F_t before pre-training, so that the clock is told even then."""
    turn = 2 * math.pi * (torch.arange(7 * slots, dtype=torch.float64) + 0.5) / slots
    rates = [rate for k in range(1, embedding // 4 + 2) for rate in (float(k), k / 7)]
    waves = torch.stack([wave for rate in rates for wave in (torch.sin(turn * rate), torch.cos(turn * rate))], dim=1)
    return math.sqrt(2) * waves[:, :embedding].float()


def at_slots(embeddings: Tensor, clock: Tensor, step_minutes: Tensor) -> Tensor:
    """F_t (b, t, d) at slots [slot of day, weekday] (b, t, 2) of `step_minutes` (b,) each, of the week's nodes (7 * slots, d).

    It is that of the node where steps and nodes are of one length, and interpolated between the middles of nodes where they are not.
    """
    nodes = len(embeddings)
    node_minutes = 7 * 1440 / nodes
    middle = clock[..., 1] * 1440 + (clock[..., 0] + 0.5) * step_minutes[:, None]
    position = middle / node_minutes - 0.5
    below = position.floor()
    share = (position - below)[..., None]
    index = below.long() % nodes
    return torch.lerp(embeddings[index], embeddings[(index + 1) % nodes], share)
