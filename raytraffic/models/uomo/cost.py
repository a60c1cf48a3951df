"""UoMo's cost in closed form from its configuration: every matrix product of the network, by part.

Convention: the entry network runs on the entries that are asked for alone (hidden, and not of a dead cell), a share `asked` of the window;
all else does not depend on what is hidden. adaLN and the condition vector are computed once a window and not once a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raytraffic.cost import Cost, Part, attention, linear
from raytraffic.marginals import NODES
from raytraffic.models.uomo.conditioner import FIELDS, NUMBERS
from raytraffic.models.uomo.entries import FEATURES
from raytraffic.models.uomo.patching import Patching
from raytraffic.nn.embeddings import HOUR_FEATURES, LEVEL_FEATURES, WEEKDAYS
from raytraffic.nn.transformer import MLP_RATIO
from raytraffic.types import Space

if TYPE_CHECKING:
    from raytraffic.models.uomo.config import UomoConfig

__all__ = ["cost", "parts"]


def cost(config: UomoConfig, grid: tuple[int, int] = (4, 4), asked: float = 0.5) -> Cost:
    """Cost of one window of `config.window` slots on a grid, of whose entries a share is asked for; ValueError for one not in [0, 1]."""
    by_part = parts(config, grid, asked)
    whole = sum(by_part.values(), Part())
    nt, nh, nw = _tokens(config, grid)
    return Cost(
        parameters=whole.parameters,
        embedding_parameters=by_part["embeddings"].parameters,
        forward_flops=whole.forward_flops,
        training_flops=whole.training_flops,
        tokens=nt * nh * nw,
    )


def parts(config: UomoConfig, grid: tuple[int, int] = (4, 4), asked: float = 0.5) -> dict[str, Part]:
    """The same by part: `embeddings` (tokens, clock, contexts, condition vector), `blocks`, `output` and `entries`."""
    if not 0 <= asked <= 1:
        raise ValueError(f"asked: {asked}, expected a share of the window's entries in [0, 1]")
    nt, nh, nw = _tokens(config, grid)
    entries = asked * config.services * config.window * grid[0] * grid[1]
    return {
        "embeddings": _embeddings(config, grid),
        "blocks": _block(config.hidden, nt * nh * nw) * config.depth,
        "output": linear(config.hidden, 2 * config.hidden, 1) + linear(config.hidden, config.services * _volume(config), nt * nh * nw),
        "entries": _entries(config, entries) if config.entries else Part(),
    }


def _tokens(config: UomoConfig, grid: tuple[int, int]) -> tuple[int, int, int]:
    return Patching(config.token).shape(config.window, Space(grid=grid), grid[0] * grid[1])


def _volume(config: UomoConfig) -> int:
    """Entries of a token, of one service."""
    return config.token[0] * config.token[1] * config.token[2]


def _embeddings(config: UomoConfig, grid: tuple[int, int]) -> Part:
    nt, nh, nw = _tokens(config, grid)
    tokens, volume, hidden, clock = nt * nh * nw, _volume(config), config.hidden, config.clock_features
    total = Part(WEEKDAYS * clock)
    total += linear(clock + HOUR_FEATURES, 2 * clock, config.window) + linear(2 * clock, clock, config.window)
    total += linear(config.token[0] * clock, hidden, nt)
    total += linear(FIELDS * config.services * volume, hidden, tokens, of_data=True)
    total += linear(config.services * volume, hidden, tokens, of_data=True)
    total += linear(LEVEL_FEATURES, hidden, 1, of_data=True) + linear(hidden, hidden, 1)
    total += linear(NUMBERS + hidden, hidden, 1) + linear(hidden, hidden, 1)
    if "users" in config.contexts:
        total += linear(2 * volume, hidden, tokens, of_data=True)
    if "poi" in config.contexts:
        cells, features = grid[0] * grid[1], config.poi_features
        total += linear(len(config.poi_categories), features, cells, of_data=True)
        total += linear(features + clock, features, config.window * cells)
        total += linear(features * volume, hidden, tokens)
    return total


def _block(hidden: int, tokens: int) -> Part:
    projections = linear(hidden, 3 * hidden, tokens) + linear(hidden, hidden, tokens)
    perceptron = linear(hidden, MLP_RATIO * hidden, tokens) + linear(MLP_RATIO * hidden, hidden, tokens)
    return projections + attention(tokens, hidden) + perceptron + linear(hidden, 6 * hidden, 1)


def _entries(config: UomoConfig, entries: float) -> Part:
    width = config.entries
    total = linear(FEATURES, width, entries, of_data=True) + linear(width, width, entries) * 2 + linear(width, len(NODES), entries)
    return total + linear(config.poi_features, width, entries) if "poi" in config.contexts else total
