"""Site embeddings that were computed once: the static context of tiles by its hash, the least recently used dropped first."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["SiteCache"]


class SiteCache:
    """At most `most_bytes` of embeddings (s, d) float32 of tiles; one whose context changes has another hash, so nothing goes stale."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._held: OrderedDict[bytes, Tensor] = OrderedDict()

    def embed(self, model: str, contexts: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """(m, s, d) of the tiles' static contexts (m, k); `compute` is asked, once, for the different ones that are not held."""
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16, key=model.encode()[:64]).digest() for row in contexts.numpy()]
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            if key not in self._held:
                first.setdefault(key, i)
        self.misses += len(first)
        self.hits += len(keys) - len(first)
        fresh = dict(zip(first, compute(contexts[list(first.values())]), strict=True)) if first else {}
        found = torch.stack([fresh[key] if key in fresh else self._touched(key) for key in keys])
        self._keep(list(fresh), list(fresh.values()))
        return found

    def _touched(self, key: bytes) -> Tensor:
        self._held.move_to_end(key)
        return self._held[key]

    def _keep(self, keys: Sequence[bytes], values: Sequence[Tensor]) -> None:
        for key, value in zip(keys, values, strict=True):
            self._held[key] = value.clone()
            self.bytes += value.nbytes + len(key)
        while self.bytes > self.most_bytes and self._held:
            key, value = self._held.popitem(last=False)
            self.bytes -= value.nbytes + len(key)
