"""Mobile tokens (UoMo 3.2.1): S of t x h x w cut into T' x H' x V' basic units of t0 x h0 x v0, without losing a value."""

from __future__ import annotations

from torch import Tensor

__all__ = ["tokenise", "untokenise"]


def tokenise(x: Tensor, token: tuple[int, int, int]) -> Tensor:
    """(..., T', H', V', t0, h0, v0) of (..., t, h, w); ValueError unless every axis is a whole number of tokens."""
    for axis, size, unit in zip(("t", "h", "w"), x.shape[-3:], token, strict=True):
        if size % unit:
            raise ValueError(f"{axis}: length {size}, expected a multiple of the token's {unit}")
    counts = [size // unit for size, unit in zip(x.shape[-3:], token, strict=True)]
    split = x.reshape(*x.shape[:-3], counts[0], token[0], counts[1], token[1], counts[2], token[2])
    lead = range(x.ndim - 3)
    n = x.ndim - 3
    return split.permute(*lead, n, n + 2, n + 4, n + 1, n + 3, n + 5)


def untokenise(tokens: Tensor, token: tuple[int, int, int]) -> Tensor:
    """(..., t, h, w) of (..., T', H', V', t0, h0, v0); the inverse of `tokenise`."""
    if tuple(tokens.shape[-3:]) != tuple(token):
        raise ValueError(f"tokens: units of {tuple(tokens.shape[-3:])}, expected {tuple(token)}")
    n = tokens.ndim - 6
    lead = tokens.shape[:-6]
    joined = tokens.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2, n + 5)
    return joined.reshape(*lead, *(count * unit for count, unit in zip(tokens.shape[-6:-3], token, strict=True)))
