"""Site embeddings are computed once each, never go stale, and never take more than they may."""

from __future__ import annotations

import torch
from torch import Tensor

from raytraffic.serving.cache import SiteCache

#: Bytes of an embedding of 4 numbers with its key.
ONE = 4 * 4 + 16


class Embedding:
    """Doubles contexts, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[float]] = []

    def __call__(self, contexts: Tensor) -> Tensor:
        self.asked.append(contexts[:, 0].tolist())
        return 2 * contexts


def sites(*numbers: float) -> Tensor:
    """Contexts (m, 4) that differ in one number."""
    return torch.tensor([[number, 1.0, 2.0, 3.0] for number in numbers])


def test_each_different_site_is_computed_once() -> None:
    cache, embedding = SiteCache(10 * ONE), Embedding()
    contexts = sites(5, 6, 5, 7, 6)
    assert torch.equal(cache.embed("m", contexts, embedding), 2 * contexts)
    assert torch.equal(cache.embed("m", contexts.flip(0), embedding), 2 * contexts.flip(0))
    assert embedding.asked == [[5, 6, 7]]
    assert (cache.misses, cache.hits) == (3, 7) and cache.bytes == 3 * ONE


def test_another_context_or_model_is_another_site() -> None:
    cache, embedding = SiteCache(10 * ONE), Embedding()
    cache.embed("m", sites(5), embedding)
    cache.embed("m", sites(5) + torch.tensor([0, 0, 0, 1e-6]), embedding)
    cache.embed("n", sites(5), embedding)
    cache.embed("m", torch.cat((sites(5)[:, :1], sites(5)[:, 1:].flip(1)), dim=1), embedding)
    assert len(embedding.asked) == 4


def test_the_least_recently_asked_for_goes_first() -> None:
    cache, embedding = SiteCache(2 * ONE), Embedding()
    cache.embed("m", sites(1, 2), embedding)
    cache.embed("m", sites(1), embedding)
    cache.embed("m", sites(3), embedding)
    assert cache.bytes == 2 * ONE
    cache.embed("m", sites(1, 3), embedding)
    cache.embed("m", sites(2), embedding)
    assert embedding.asked == [[1, 2], [3], [2]]


def test_more_sites_than_fit_are_answered_all_the_same() -> None:
    cache, embedding = SiteCache(3 * ONE), Embedding()
    cache.embed("m", sites(0, 1, 2), embedding)
    many = sites(*range(50))
    assert torch.equal(cache.embed("m", many, embedding), 2 * many) and cache.bytes == 3 * ONE
    nothing = SiteCache(0)
    assert torch.equal(nothing.embed("m", many, embedding), 2 * many) and nothing.bytes == 0


def test_what_is_held_is_nobody_else_s() -> None:
    cache, computed = SiteCache(10 * ONE), 2 * sites(5, 6)
    cache.embed("m", sites(5, 6), lambda _: computed).zero_()
    computed.zero_()
    embedding = Embedding()
    assert torch.equal(cache.embed("m", sites(6, 5), embedding), 2 * sites(6, 5)) and not embedding.asked
