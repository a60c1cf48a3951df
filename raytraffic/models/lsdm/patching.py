"""Patches of time: so many slots of a service are one token; a window ends with a whole patch and is padded before its first slot."""

from __future__ import annotations

from torch import Tensor

__all__ = ["in_patches"]


def in_patches(x: Tensor, patch: int) -> Tensor:
    """(b, l, patch, ...) of x (b, t, ...), with l = ceil(t / patch); what lies before the first slot is zero."""
    missing = -x.shape[1] % patch
    padded = x.new_zeros(x.shape[0], x.shape[1] + missing, *x.shape[2:])
    padded[:, missing:] = x
    return padded.unflatten(1, (-1, patch))
