"""One environment vector from an image's and a text's: LSDM's weighted sum and LEC-Diff's cross-attention.

    z_env = alpha z_I + beta z_T        (LSDM, Eq. 9)

LEC-Diff says that "a cross-attention mechanism ... learns a unified representation of image and text" and no more. Here each sequence asks
the other, pre-normalised and with residuals, and the unified vector is the mean over both sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CrossAttentionFusion", "weighted_sum"]


def weighted_sum(image: Tensor, text: Tensor, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
    """z_env (..., d) of z_I and z_T (..., d); `alpha` and `beta` are numbers or tensors that are learnt (Eq. 9)."""
    return alpha * image + beta * text


class CrossAttentionFusion(nn.Module):
    """(n, dim) from image tokens (n, p, image_dim) and text tokens (n, q, text_dim), of lengths p, q >= 1.

    Sequences of one token, such as the vectors of an embedding store, fuse too, but have nothing to choose from.
    """

    def __init__(self, image_dim: int, text_dim: int, dim: int, heads: int = 4) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim: {dim}, expected a multiple of heads ({heads})")
        self.image_in, self.text_in = nn.Linear(image_dim, dim), nn.Linear(text_dim, dim)
        self.image_asks, self.text_asks = _CrossBlock(dim, heads), _CrossBlock(dim, heads)
        self.out = nn.LayerNorm(dim)

    def forward(self, image: Tensor, text: Tensor, text_known: Tensor | None = None) -> Tensor:
        """`text_known` (n, q) is True where a text token is one and no padding; at least one of each text."""
        image, text = self.image_in(image), self.text_in(text)
        known = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if text_known is None else text_known
        asked_by_image = self.image_asks(image, text, known)
        asked_by_text = self.text_asks(text, image, torch.ones(image.shape[:2], dtype=torch.bool, device=image.device))
        weight = known[..., None].to(text.dtype)
        unified: Tensor = asked_by_image.mean(1) + (asked_by_text * weight).sum(1) / weight.sum(1)
        return self.out(unified / 2)


class _CrossBlock(nn.Module):
    """Tokens (n, p, d) that ask others (n, q, d) and then pass a feed-forward layer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.asking, self.asked, self.before = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor, others: Tensor, known: Tensor) -> Tensor:
        others = self.asked(others)
        found, _ = self.attention(self.asking(tokens), others, others, key_padding_mask=~known, need_weights=False)
        tokens = tokens + found
        added: Tensor = tokens + self.feed_forward(self.before(tokens))
        return added
