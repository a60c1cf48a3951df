"""STOUTER's cost in closed form from its configuration: every matrix product and convolution of the network, by part.

A convolution of kernel k is a linear layer from k times its input's channels, at every slot; F_s comes from frozen layers, which are no
parameters and have no backward pass. What a graph convolution sums over edges is no matrix product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raytraffic.cost import Cost, Part, linear
from raytraffic.models.stouter.conditioner import FIELDS, NUMBERS
from raytraffic.models.stouter.station_graph import HIDDEN
from raytraffic.nn.embeddings import LEVEL_FEATURES

if TYPE_CHECKING:
    from raytraffic.models.stouter.config import StouterConfig

__all__ = ["cost", "parts"]


def cost(config: StouterConfig, grid: tuple[int, int] = (4, 4), asked: float = 0.5) -> Cost:
    """Cost of one window of `config.window` slots of h * w stations; a token is a slot of a station. Nothing depends on what is `asked`."""
    if not 0 <= asked <= 1:
        raise ValueError(f"asked: {asked}, expected a share of the window's entries in [0, 1]")
    by_part = parts(config, grid[0] * grid[1])
    whole = sum(by_part.values(), Part())
    return Cost(
        parameters=whole.parameters,
        embedding_parameters=by_part["embeddings"].parameters,
        forward_flops=whole.forward_flops,
        training_flops=whole.training_flops,
        tokens=config.window * grid[0] * grid[1],
    )


def parts(config: StouterConfig, stations: int) -> dict[str, Part]:
    """The same by part: `embeddings` (F_s, condition vector, diffusion step, first convolution), `fusion`, `blocks` and `output`."""
    slots = config.window + -config.window % 2 ** (len(config.channels) - 1)
    return {
        "embeddings": _embeddings(config, stations, slots),
        "fusion": _fusion(config, stations, slots),
        "blocks": _blocks(config, stations, slots),
        "output": linear(config.channels[0], config.services, stations * config.window) + Part(2 * config.channels[0]),
    }


def _embeddings(config: StouterConfig, stations: int, slots: int) -> Part:
    hidden = config.hidden
    total = linear(NUMBERS, hidden, 1, of_data=True) + linear(hidden, hidden, 1)
    total += linear(LEVEL_FEATURES, hidden, 1, of_data=True) + linear(hidden, hidden, 1)
    total += linear(3 * (1 + FIELDS) * config.services, config.channels[0], stations * slots, of_data=True)
    if "poi" in config.contexts:
        categories = len(config.poi_categories)
        widths = [(categories, HIDDEN), (HIDDEN, config.embedding)] + [(categories, config.embedding)] * config.own_features
        frozen = sum(2 * stations * fan_in * fan_out for fan_in, fan_out in widths)
        total += Part(0, frozen, frozen)
    return total


def _fusion(config: StouterConfig, stations: int, slots: int) -> Part:
    total = Part()
    for i, width in enumerate(config.channels):
        total += linear(config.hidden, width, 1)
        if config.temporal_graph:
            total += linear(config.embedding, width, slots >> i, of_data=True)
        if "poi" in config.contexts:
            total += linear(config.embedding, width, stations, of_data=True)
    return total


def _blocks(config: StouterConfig, stations: int, slots: int) -> Part:
    total = Part()
    for i, width in enumerate(config.channels):
        rows = stations * (slots >> i)
        total += _block(width, width, rows) * config.blocks
        if i + 1 < len(config.channels):
            coarse = config.channels[i + 1]
            total += linear(3 * width, coarse, rows // 2) + linear(3 * coarse, width, rows)
            total += _block(2 * width, width, rows) + _block(width, width, rows) * (config.blocks - 1)
    return total


def _block(fan_in: int, fan_out: int, rows: int) -> Part:
    norms = Part(2 * fan_in + 2 * fan_out)
    skip = Part() if fan_in == fan_out else linear(fan_in, fan_out, rows)
    return norms + linear(3 * fan_in, fan_out, rows) + linear(3 * fan_out, fan_out, rows) + skip
