"""Counter-based randomness: every random number is a pure function of (seed, stream, position).

A draw of a window therefore never depends on the batch, worker, replica or retry that computed it. The generator is
Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011); seeds are mixed by splitmix64
(Steele et al., OOPSLA 2014).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["derive", "fold", "fold_numpy", "normal", "philox", "text_key", "uniform"]

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15


def text_key(text: str) -> int:
    """A signed 64-bit key of a text, the same on every machine (BLAKE2b, 8 bytes)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def fold(key: int, value: int) -> int:
    """A new signed 64-bit key from a key and an integer (splitmix64 finaliser)."""
    return int(fold_numpy(np.array([key], dtype=np.int64), np.array([value], dtype=np.int64))[0])


def fold_numpy(keys: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """`fold`, element by element (int64 in, int64 out, broadcasting)."""
    x = keys.astype(np.int64).view(np.uint64) ^ (values.astype(np.int64).view(np.uint64) * np.uint64(_GOLDEN))
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).view(np.int64)


def derive(seeds: Tensor, *values: int | Tensor) -> Tensor:
    """New seeds (the broadcast shape, int64) from seeds and integers; the same function as `fold`, on any device."""
    for value in values:
        salt = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64, device=seeds.device)
        x = seeds ^ (salt * _signed(_GOLDEN))
        x = x + _signed(_GOLDEN)
        x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
        x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
        seeds = x ^ _shift(x, 31)
    return seeds


def uniform(seeds: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """(b, *shape) float32 in (0, 1) for seeds (b,) int64."""
    words = _words(seeds, stream, math.prod(shape))
    return ((words.double() + 0.5) * 2.0**-32).float().clamp(2.0**-33, 1 - 2.0**-24).reshape(len(seeds), *shape)


def normal(seeds: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """(b, *shape) float32 standard normal for seeds (b,) int64 (Box and Muller)."""
    count = math.prod(shape)
    halves = ((_words(seeds, stream, 2 * ((count + 1) // 2)).double() + 0.5) * 2.0**-32).unflatten(1, (-1, 2))
    radius = torch.sqrt(-2.0 * torch.log(halves[..., 0]))
    angle = (2.0 * math.pi) * halves[..., 1]
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs.flatten(1)[:, :count].float().reshape(len(seeds), *shape)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words (int64 tensors in [0, 2^32)) of a counter and a key of such words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # wraps modulo 2^64, which the masks below expect
        c0, c1, c2, c3 = _high(p1) ^ c1 ^ k0, p1 & _MASK32, _high(p0) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def _words(seeds: Tensor, stream: int, count: int) -> Tensor:
    """(b, count) 32-bit words."""
    seeds = seeds.to(torch.int64)
    blocks = (count + 3) // 4
    position = torch.arange(blocks, dtype=torch.int64, device=seeds.device).expand(len(seeds), blocks)
    zero = torch.zeros_like(position)
    key = ((seeds & _MASK32)[:, None], _high(seeds)[:, None])
    return torch.stack(philox((position, zero, zero + stream, zero), key), dim=-1).flatten(1)[:, :count]


def _high(x: Tensor) -> Tensor:
    return (x >> 32) & _MASK32


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical (not arithmetic) shift right of int64."""
    return (x >> bits) & (_MASK64 >> bits)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
