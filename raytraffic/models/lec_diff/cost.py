"""LEC-Diff's cost in closed form from its configuration: every matrix product of the network, by part.

Convention: the window is a grid of stations that has a site embedding where the model looks at one, and a share `asked` of its slots asks
for something; the denoiser runs on these slots alone, all else on every slot. Propagation over the graph (sums over edges, entry by entry)
is left out, as scaling is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raytraffic.cost import Cost, Part, linear
from raytraffic.models.lec_diff.conditioner import NUMBERS
from raytraffic.models.lec_diff.recurrence import LAGS
from raytraffic.nn.embeddings import HOUR_FEATURES, LEVEL_FEATURES, WEEKDAYS

if TYPE_CHECKING:
    from raytraffic.models.lec_diff.config import LecDiffConfig

__all__ = ["cost", "parts"]


def cost(config: LecDiffConfig, grid: tuple[int, int] = (4, 4), asked: float = 0.5) -> Cost:
    """Cost of one window of `config.window` slots of h * w stations, of whose slots a share is asked for; ValueError for one not in [0, 1].

    Its tokens are its entries: one a station and slot.
    """
    by_part = parts(config, grid, asked)
    whole = sum(by_part.values(), Part())
    return Cost(
        parameters=whole.parameters,
        embedding_parameters=by_part["embeddings"].parameters,
        forward_flops=whole.forward_flops,
        training_flops=whole.training_flops,
        tokens=config.window * grid[0] * grid[1],
    )


def parts(config: LecDiffConfig, grid: tuple[int, int] = (4, 4), asked: float = 0.5) -> dict[str, Part]:
    """The same by part: `embeddings` (clock, stations, environment), `recurrence` and `fusion` of the conditioner, and the `denoiser`."""
    if not 0 <= asked <= 1:
        raise ValueError(f"asked: {asked}, expected a share of the window's slots in [0, 1]")
    stations = grid[0] * grid[1]
    entries = config.window * stations
    return {
        "embeddings": _embeddings(config, stations),
        "recurrence": _recurrence(config, entries),
        "fusion": _fusion(config, entries),
        "denoiser": _denoiser(config, asked * config.window, stations),
    }


def _embeddings(config: LecDiffConfig, stations: int) -> Part:
    hidden, clock, services = config.hidden, config.clock_features, config.services
    total = Part(WEEKDAYS * clock)
    total += linear(clock + HOUR_FEATURES, 2 * clock, config.window) + linear(2 * clock, clock, config.window)
    total += linear(1 + NUMBERS * services, hidden, stations, of_data=True)
    if config.site_features:
        poi = "poi" in config.seen
        total += (linear(config.site_features, hidden, stations, of_data=not poi)) * 2
        if poi:
            total += linear(len(config.poi_categories), config.site_features, stations, of_data=True)
    return total


def _recurrence(config: LecDiffConfig, entries: int) -> Part:
    hidden, gates = config.hidden, 3 if config.cell == "gru" else 4
    told = linear((2 * LAGS + 1) * config.services + config.clock_features, hidden, entries)
    # Of the first slot's state nothing hangs: it is zero, and no gradient of it is asked for.
    first = 2 * (entries / config.window) * hidden * gates * hidden
    from_state = linear(hidden, gates * hidden, entries) + Part(0, 0, -first)
    return told + (linear(hidden, gates * hidden, entries) + from_state) * config.layers


def _fusion(config: LecDiffConfig, entries: int) -> Part:
    hidden = config.hidden
    if not config.graph:
        return linear(hidden, hidden, entries)
    return linear(hidden, hidden, entries) * config.hops + linear(2 * hidden, hidden, entries)


def _denoiser(config: LecDiffConfig, slots: float, stations: int) -> Part:
    hidden, entries = config.hidden, slots * stations
    level = linear(LEVEL_FEATURES, hidden, slots, of_data=True) + linear(hidden, hidden, slots)
    block = linear(hidden, hidden, slots) + linear(hidden, 2 * hidden, entries) * 3
    first, mix = linear(config.services, hidden, entries, of_data=True), linear(hidden, hidden, entries)
    return level + first + block * config.blocks + mix + linear(hidden, config.services, entries)
