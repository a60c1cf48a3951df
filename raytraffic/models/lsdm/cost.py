"""LSDM's cost in closed form from its configuration: every matrix product of the network, by part.

Convention: `env` differs from slot to slot, as that of users who move, where the model looks at it, and is one a window where it is made of
POI; a vector is then computed once a user and patch, or once a user, and not once a token. Nothing depends on what is hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raytraffic.cost import Cost, Part, attention, linear
from raytraffic.models.lsdm.conditioner import FIELDS
from raytraffic.nn.embeddings import HOUR_FEATURES, LEVEL_FEATURES, WEEKDAYS
from raytraffic.nn.transformer import MLP_RATIO

if TYPE_CHECKING:
    from raytraffic.models.lsdm.config import LsdmConfig

__all__ = ["cost", "parts"]


def cost(config: LsdmConfig, grid: tuple[int, int] = (1, 1), asked: float = 0.5) -> Cost:
    """Cost of one window of `config.window` slots of so many users; ValueError for a share that is asked for not in [0, 1]."""
    if not 0 <= asked <= 1:
        raise ValueError(f"asked: {asked}, expected a share of the window's entries in [0, 1]")
    by_part = parts(config, grid)
    whole = sum(by_part.values(), Part())
    return Cost(
        parameters=whole.parameters,
        embedding_parameters=by_part["embeddings"].parameters,
        forward_flops=whole.forward_flops,
        training_flops=whole.training_flops,
        tokens=_patches(config) * config.services * grid[0] * grid[1],
    )


def parts(config: LsdmConfig, grid: tuple[int, int] = (1, 1)) -> dict[str, Part]:
    """The same by part: `embeddings` (tokens, clock, contexts, level), `blocks` and `output`."""
    users, patches = grid[0] * grid[1], _patches(config)
    tokens = patches * config.services * users
    vectors = users * (patches if "env" in config.contexts and config.conditioning == "adaln" else 1)
    block = _layer(config, tokens, vectors, patches)
    block += _layer(config, tokens, vectors, config.services if config.attention == "2d" else patches)
    return {
        "embeddings": _embeddings(config, tokens, users),
        "blocks": block * config.depth,
        "output": linear(config.hidden, 2 * config.hidden, vectors) + linear(config.hidden, config.patch, tokens),
    }


def _patches(config: LsdmConfig) -> int:
    return -(-config.window // config.patch)


def _layer(config: LsdmConfig, tokens: int, vectors: int, length: int) -> Part:
    """Attention in lanes of `length` tokens with its MLP and adaLN."""
    hidden = config.hidden
    projections = linear(hidden, 3 * hidden, tokens) + linear(hidden, hidden, tokens)
    perceptron = linear(hidden, MLP_RATIO * hidden, tokens) + linear(MLP_RATIO * hidden, hidden, tokens)
    return projections + attention(length, hidden) * (tokens // length) + perceptron + linear(hidden, 6 * hidden, vectors)


def _embeddings(config: LsdmConfig, tokens: int, users: int) -> Part:
    hidden, clock, patches = config.hidden, config.clock_features, _patches(config)
    total = Part(WEEKDAYS * clock + config.services * hidden)
    total += linear(clock + HOUR_FEATURES, 2 * clock, config.window) + linear(2 * clock, clock, config.window)
    total += linear(config.patch * clock, hidden, patches)
    total += linear(config.patch * (1 + FIELDS), hidden, tokens, of_data=True)
    total += linear(LEVEL_FEATURES, hidden, 1, of_data=True) + linear(hidden, hidden, 1)
    if config.contexts:
        moves = "env" in config.contexts
        features = config.env_features // 2 if config.weights else config.env_features
        total += linear(features + 1, hidden, users * (config.window if moves else 1), of_data=moves)
        total += linear(config.patch * hidden, hidden, users * (patches if moves else 1))
    if "poi" in config.contexts:
        made = Part(config.env_features * (len(config.poi_categories) + 1))
        total += made if "env" in config.contexts else linear(len(config.poi_categories), config.env_features, users, of_data=True)
    return total
