"""UoMo's family: one rule from the width to depth and heads, through the three shapes of the paper's Table 6.

Depth is piecewise linear in the width w, through (128, 12), (256, 16) and (768, 20); below 128 it falls in proportion to it:

    depth = 12 w / 128 (at least 2)   |   12 + (w - 128) / 32   |   16 + (w - 256) / 128          rounded, halves up

Heads have 32 features up to a width of 256 and 64 from 512 on, w / 8 between, or the nearest multiple of 8 (fused attention wants one)
that divides the width.
"""

from __future__ import annotations

import math
import re

__all__ = ["NAMED", "NARROW", "STEP", "depth", "heads", "width_of"]

#: Widths of the named sizes. The names 5m, 35m and 200m are the paper's; true counts are raytraffic.models.uomo.cost's.
NAMED = {"5m": 128, "10m": 192, "20m": 224, "35m": 256, "45m": 320, "60m": 384, "100m": 512, "150m": 640, "200m": 768}
#: Widths of the sizes below 5m, named by them (w16).
NARROW = (16, 24, 32, 48, 64, 96)
#: Widths of the family are multiples of this.
STEP = 8


def depth(width: int) -> int:
    """Blocks at a width."""
    if width < 128:
        blocks = 12 * width / 128
    elif width < 256:
        blocks = 12 + (width - 128) / 32
    else:
        blocks = 16 + (width - 256) / 128
    return max(2, math.floor(blocks + 0.5))


def heads(width: int) -> int:
    """Attention heads at a width, a multiple of 8."""
    wanted = min(max(width / 8, 32), 64)
    sizes = [size for size in range(STEP, width + 1, STEP) if width % size == 0]
    return width // min(sizes, key=lambda size: abs(math.log(size / wanted)))


def width_of(name: str) -> int | None:
    """The width that a name as w40 stands for, None for other names; ValueError where it is no multiple of 8."""
    found = re.fullmatch(r"w(\d+)", name)
    if found is None:
        return None
    width = int(found[1])
    if width < STEP or width % STEP:
        raise ValueError(f"preset: {name!r}, expected a width that is a multiple of {STEP}, as w40")
    return width
