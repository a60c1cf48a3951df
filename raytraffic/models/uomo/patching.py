"""Mobile tokens of a batch (UoMo 3.2.1), padded where the tile or the window is not a whole number of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from raytraffic.tokens import tokenise, untokenise
from raytraffic.types import Space

__all__ = ["Patching"]


@dataclass(frozen=True)
class Patching:
    """Cuts (b, f, t, s) fields into (b, l, f * t0 * h0 * w0) tokens and back; token = (t0, h0, w0)."""

    token: tuple[int, int, int]

    def shape(self, t: int, space: Space, s: int) -> tuple[int, int, int]:
        """Tokens along (time, row, column); a lone station is a 1 x 1 grid. ValueError for many stations without a grid."""
        h, w = self._grid(space, s)
        t0, h0, w0 = self.token
        return -(-t // t0), -(-h // h0), -(-w // w0)

    def cut(self, field: Tensor, space: Space) -> Tensor:
        """(b, l, f * t0 * h0 * w0) of (b, f, t, s); what is padded is zero."""
        _, _, t, s = field.shape
        h, w = self._grid(space, s)
        nt, nh, nw = self.shape(t, space, s)
        t0, h0, w0 = self.token
        grid = nn.functional.pad(field.unflatten(3, (h, w)), (0, nw * w0 - w, 0, nh * h0 - h, 0, nt * t0 - t))
        return tokenise(grid, self.token).permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)

    def join(self, tokens: Tensor, t: int, space: Space, s: int) -> Tensor:
        """(b, f, t, s) of (b, l, f * t0 * h0 * w0); the inverse of `cut`, padding dropped."""
        h, w = self._grid(space, s)
        cells = tokens.unflatten(1, self.shape(t, space, s)).unflatten(4, (-1, *self.token)).permute(0, 4, 1, 2, 3, 5, 6, 7)
        return untokenise(cells, self.token)[:, :, :t, :h, :w].flatten(3)

    @staticmethod
    def _grid(space: Space, s: int) -> tuple[int, int]:
        if space.grid is None and s > 1:
            raise ValueError(f"space.grid: None with {s} stations, expected a grid (h, w), or one station a window")
        return space.grid or (1, 1)
