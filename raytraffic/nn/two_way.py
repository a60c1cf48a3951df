r"""2-D attention over a grid of tokens (LSDM IV-C, Fig. 5): a layer over time for each service, then one over services for each slot.

    x <- x + alpha_t A_time(beta_t x + gamma_t),    x <- x + alpha_c A_service(beta_c x + gamma_c)        each with its MLP

Both layers are adaLN-Zero (raytraffic.nn.transformer), so a block starts as the identity. The condition vector may differ from slot to
slot, as the place of a moving user does; the paper has one vector a window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raytraffic.nn.transformer import AdaLNBlock

__all__ = ["LaneBlock", "TwoWayBlock"]


class LaneBlock(AdaLNBlock):
    """An adaLN block over tokens (r, m, l, d): those of one of the m lanes attend to each other along l, and to no others.

    Its vector (r, 1|m, 1|l, d) may be one for all tokens, one a lane, or one a place along the lanes.
    """

    def _forward(self, x: Tensor, vector: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(nn.functional.silu(vector)).chunk(6, dim=-1)
        asked = torch.addcmul(shift1, self.norm1(x), 1 + scale1)
        x = torch.addcmul(x, gate1, self.dropout(self.attention(asked.flatten(0, 1)).unflatten(0, x.shape[:2])))
        return torch.addcmul(x, gate2, self.dropout(self.mlp(torch.addcmul(shift2, self.norm2(x), 1 + scale2))))


class TwoWayBlock(nn.Module):
    """Tokens (r, t, c, d) through a layer over t and then one over c, both told a vector (r, 1|t, d).

    Without `across` the second layer runs over t too: as many weights, and no service sees another.
    """

    def __init__(self, hidden: int, heads: int, *, across: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.across = across
        self.time = LaneBlock(hidden, heads, dropout=dropout)
        self.service = LaneBlock(hidden, heads, dropout=dropout)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        along = self.time(x.transpose(1, 2), vector[:, None])
        if not self.across:
            return self.service(along, vector[:, None]).transpose(1, 2)
        return self.service(along.transpose(1, 2), vector[:, :, None])
