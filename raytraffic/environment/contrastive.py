"""Bidirectional InfoNCE over image-text pairs (LEC-Diff; LSDM, Eq. 8), on one process or over many, and retrieval recall@k.

    L = -1/N sum_i log( exp(z_I^i . z_T^i / tau) / sum_j exp(z_I^i . z_T^j / tau) )
        -1/N sum_i log( exp(z_T^i . z_I^i / tau) / sum_j exp(z_T^i . z_I^j / tau) )

with unit vectors z and a learnable temperature tau; `scale` below is 1 / tau. Over W processes of N / W pairs each, every process takes the
terms of its own pairs against the candidates of all: the mean over processes is L, and so is the mean of their gradients that of L, since
the gradient of a gathered feature returns to the process that it came from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Retrieval", "gather", "gathered_info_nce", "info_nce", "retrieval"]


def info_nce(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The loss of a whole batch of features (n, d), pair i being images[i] and texts[i]."""
    return _terms(images, texts, images, texts, scale, first=0)


def gathered_info_nce(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """This process's part of the loss: features (n, d) of its own pairs, as many on every process, against those of all.

    Gradients must be averaged over processes, as DistributedDataParallel does, to be those of the whole batch.
    """
    pairs = gather(torch.cat([images, texts], dim=1))
    every_image, every_text = pairs.split(images.shape[1], dim=1)
    return _terms(images, texts, every_image, every_text, scale, first=dist.get_rank() * len(images))


def gather(rows: Tensor) -> Tensor:
    """(W n, d) the rows (n, d) of all W processes in the order of their ranks; differentiable with respect to one's own."""
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def _terms(images: Tensor, texts: Tensor, every_image: Tensor, every_text: Tensor, scale: Tensor, first: int) -> Tensor:
    """Both directions for pairs whose own candidates begin at row `first`."""
    own = torch.arange(first, first + len(images), device=images.device)
    return F.cross_entropy(scale * images @ every_text.T, own) + F.cross_entropy(scale * texts @ every_image.T, own)


class _Gather(torch.autograd.Function):
    """all_gather whose gradient is the sum of what every process found for one's own rows."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How often the right one of `candidates` is among the first k: shares by k both ways, and what blind guessing reaches."""

    candidates: int
    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    chance: dict[int, float]


def retrieval(images: Tensor, texts: Tensor, captions: Sequence[str], at: Sequence[int] = (1, 5)) -> Retrieval:
    """Recall@k of n pairs of features (n, d), each the candidates of all; ValueError for fewer than two pairs.

    Pairs of one caption are right answers to each other. A wrong candidate that ties with the best right one counts as before it, so
    that an encoder which tells nothing apart reaches 0.
    """
    if not len(captions) == len(images) == len(texts) >= 2:
        raise ValueError(f"pairs: {len(images)} images, {len(texts)} texts, {len(captions)} captions, expected as many, at least 2")
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    codes = torch.tensor([number[caption] for caption in captions])
    right = codes[:, None] == codes[None, :]
    scores = (images.double() @ texts.double().T).cpu()
    twins = right.sum(1).tolist()
    return Retrieval(
        candidates=len(captions),
        image_to_text=_recall(scores, right, at),
        text_to_image=_recall(scores.T, right, at),
        chance={k: sum(_blind(len(captions), count, k) for count in twins) / len(captions) for k in at},
    )


def _recall(scores: Tensor, right: Tensor, at: Sequence[int]) -> dict[int, float]:
    """Shares of the queries (rows) of which fewer than k wrong candidates score at least what the best right one does."""
    best = scores.masked_fill(~right, -math.inf).amax(dim=1, keepdim=True)
    before = ((scores >= best) & ~right).sum(dim=1)
    return {k: float((before < k).double().mean()) for k in at}


def _blind(candidates: int, right: int, k: int) -> float:
    """The probability that k of the candidates, taken blindly, hold a right one."""
    return 1.0 - math.prod(max(candidates - right - i, 0) / (candidates - i) for i in range(min(k, candidates)))
