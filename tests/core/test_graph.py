"""Station graphs: both builders against brute force, what they do with ties and missing places, and groups with their halos."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import GCNConv

from raytraffic.graph import (
    MAX_GROUP,
    Neighbourhood,
    edge_weights,
    group_edges,
    partition,
    random_walk,
    station_edges,
    with_halo,
)

NEAR = Neighbourhood(neighbours=3, radius_metres=900.0, kernel_metres=400.0)


def places(n: int, seed: int, lattice: bool = False) -> np.ndarray:
    """n places in 2 x 2 km; on a lattice most distances come several times, and no place twice."""
    random = np.random.default_rng(seed)
    if not lattice:
        return random.random((n, 2)) * 2000
    return np.stack(np.divmod(random.permutation(100)[:n], 10), axis=1) * 200.0


def brute_force(xy: np.ndarray, how: Neighbourhood) -> list[tuple[int, int]]:
    """Edges in order, pair by pair."""
    edges = []
    for i, here in enumerate(xy):
        others = [j for j in range(len(xy)) if j != i and np.isfinite(xy[[i, j]]).all()]
        ranked = sorted(others, key=lambda j: (round(math.dist(here, xy[j]), 3), xy[j, 0], xy[j, 1], j))
        edges += [(j, i) for j in ranked[: how.neighbours] if math.dist(here, xy[j]) <= how.radius_metres]
    return edges


@given(n=st.integers(1, 40), seed=st.integers(0, 10**6), lattice=st.booleans(), missing=st.booleans())
@settings(max_examples=60, deadline=None)
def test_both_builders_find_the_edges_of_brute_force(n: int, seed: int, lattice: bool, missing: bool) -> None:
    xy = places(n, seed, lattice)
    if missing:
        xy[::4] = np.nan
    expected = brute_force(xy, NEAR)
    assert list(map(tuple, station_edges(xy, NEAR).T.tolist())) == expected
    assert list(map(tuple, group_edges(torch.from_numpy(xy)[None], NEAR).T.tolist())) == expected


def test_groups_of_a_batch_do_not_hear_each_other() -> None:
    groups = [torch.from_numpy(places(12, seed)) for seed in range(3)]
    together = group_edges(torch.stack(groups), NEAR)
    alone = torch.cat([group_edges(xy[None], NEAR) + 12 * i for i, xy in enumerate(groups)], dim=1)
    assert torch.equal(together, alone)


@given(seed=st.integers(0, 10**6), lattice=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_graph_does_not_depend_on_the_order_of_stations(seed: int, lattice: bool) -> None:
    xy = places(30, seed, lattice)
    order = np.random.default_rng(seed).permutation(30)
    for build in (lambda p: station_edges(p, NEAR), lambda p: group_edges(torch.from_numpy(p)[None], NEAR).numpy()):
        assert {(order[j], order[i]) for j, i in build(xy[order]).T} == {(j, i) for j, i in build(xy).T}


def test_stations_at_one_place_hear_each_other() -> None:
    xy = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [500.0, 0.0]])
    one = Neighbourhood(neighbours=2, radius_metres=100.0)
    assert station_edges(xy, one).T.tolist() == [[1, 0], [2, 0], [0, 1], [2, 1], [0, 2], [1, 2]]
    assert np.array_equal(group_edges(torch.from_numpy(xy)[None], one).numpy(), station_edges(xy, one))


def test_weights_are_gaussian_and_a_walk_goes_somewhere() -> None:
    xy = torch.tensor([[0.0, 0.0], [400.0, 0.0], [0.0, 800.0], [math.nan, math.nan]])
    edges = group_edges(xy[None], NEAR)
    weights = edge_weights(xy, edges, NEAR)
    by_edge = {(j, i): w for (j, i), w in zip(edges.T.tolist(), weights.tolist(), strict=True)}
    assert by_edge[1, 0] == pytest.approx(math.exp(-1)) and by_edge[2, 0] == pytest.approx(math.exp(-4)) and (2, 1) in by_edge
    walk = random_walk(edges, weights, 4).to_dense()
    assert torch.allclose(walk.sum(1), torch.ones(4)) and walk[3, 3] == 1
    assert walk[0, 1] == pytest.approx(math.exp(-1) / (1 + math.exp(-1) + math.exp(-4)))


def test_a_walk_is_what_torch_geometric_makes_of_the_same_edges() -> None:
    """GCNConv without its own normalisation, given the walk's weights as a list of edges."""
    xy = torch.from_numpy(places(25, 3)).float()
    edges = group_edges(xy[None], NEAR)
    walk = random_walk(edges, edge_weights(xy, edges, NEAR), 25)
    dense = walk.to_dense()
    hearing, heard = dense.nonzero().T
    layer = GCNConv(6, 6, normalize=False)
    x = torch.randn(25, 6, generator=torch.Generator().manual_seed(0))
    expected = layer(x, torch.stack((heard, hearing)), dense[hearing, heard])
    assert torch.allclose(walk @ layer.lin(x) + layer.bias, expected, atol=1e-6)


def test_a_city_of_thirteen_thousand_stations_takes_seconds() -> None:
    xy = np.random.default_rng(0).normal(0, 8000, (13_269, 2))
    begin = time.perf_counter()
    edges = station_edges(xy, Neighbourhood())
    groups = partition(xy, 256)
    # About half a second; a builder that compared all pairs would take minutes.
    assert time.perf_counter() - begin < 20
    assert edges.shape[1] > 100_000 and len(groups) == math.ceil(13_269 / 256)


@given(n=st.integers(1, 120), size=st.integers(1, 20), seed=st.integers(0, 10**6), lattice=st.booleans())
@settings(max_examples=60, deadline=None)
def test_each_station_is_in_one_group_and_groups_are_evenly_full(n: int, size: int, seed: int, lattice: bool) -> None:
    groups = partition(places(min(n, 100), seed, True) if lattice else places(n, seed), size)
    members = np.concatenate(groups)
    n = len(members)
    assert np.array_equal(np.sort(members), np.arange(n))
    assert len(groups) == math.ceil(n / size) and max(map(len, groups)) <= size
    assert max(map(len, groups)) - min(map(len, groups)) <= math.ceil(math.log2(len(groups))) + 1
    assert all((np.diff(group) > 0).all() for group in groups) and [group[0] for group in groups] == sorted(group[0] for group in groups)


def test_groups_lie_side_by_side_and_stations_without_a_place_alone() -> None:
    xy = np.array([[0, 0], [9000, 0], [10, 5], [9010, 5], [np.nan, 0], [20, 0], [9020, 9]], dtype=np.float64)
    assert [group.tolist() for group in partition(xy, 3)] == [[0, 2, 5], [1, 3, 6], [4]]


@given(seed=st.integers(0, 10**6), hops=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_halo_holds_the_whole_receptive_field_and_nothing_else(seed: int, hops: int) -> None:
    """What L steps of the walk make of the members hangs on exactly the group and its halo: the non-zero columns of P^L."""
    xy = places(60, seed)
    edges = station_edges(xy, NEAR)
    walk = random_walk(torch.from_numpy(edges), torch.ones(edges.shape[1]), 60).to_dense()
    for members in partition(xy, 15):
        found = with_halo(members, edges, hops)
        reach = torch.linalg.matrix_power(walk, hops)[torch.from_numpy(members)].sum(0).nonzero()[:, 0].numpy()
        assert np.array_equal(np.sort(found), reach) and np.array_equal(found[: len(members)], members)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"neighbours: 0, expected at least 1"):
        Neighbourhood(neighbours=0)
    with pytest.raises(ValueError, match=r"kernel_metres: nan, expected a number > 0"):
        Neighbourhood(kernel_metres=math.nan)
    with pytest.raises(ValueError, match=r"size: 0, expected at least 1 station a group"):
        partition(places(3, 0), 0)
    with pytest.raises(ValueError, match=r"hops: -1, expected at least 0"):
        with_halo(np.arange(2), np.zeros((2, 0), dtype=np.int64), -1)
    with pytest.raises(ValueError, match=rf"space.xy: {MAX_GROUP + 1} stations a window, expected at most {MAX_GROUP}"):
        group_edges(torch.zeros(1, MAX_GROUP + 1, 2), NEAR)
