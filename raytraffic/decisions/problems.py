"""The problems that settings and files describe, and the demand of every strategy that stands beside the forecast's own (UoMo, Fig. 9).

forecast       the forecast's draws                                   mean forecast  their mean, as a point forecast gives
last week      the same slot a week before (with history)             real           what really came: no strategy can do better
<a column>     of a table of weights (POI, residents): the forecast's mean total of each city and slot, spread over its sites by them

Without real traffic there is nothing to judge strategies on, and the forecast's is the only one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raytraffic.config.decisions import DeploymentSettings, SleepSettings
from raytraffic.decisions.deployment import Cvar, DeploymentProblem, StationType
from raytraffic.decisions.reading import Demand, read_values
from raytraffic.decisions.site_tables import Site, read_existing, read_per_site, read_weights
from raytraffic.decisions.sleep import EnergyCosts, SleepProblem, demand_quantile
from raytraffic.decisions.strategies import mean_forecast_demand, real_demand, same_slot_last_week_demand, weighted_demand

__all__ = [
    "ALL_ON",
    "FORECAST",
    "NOTHING_BUILT",
    "REAL",
    "Installed",
    "deployment_problem",
    "installed",
    "last_week",
    "sleep_problem",
    "standing",
    "strategy_demands",
    "strategy_weights",
]

FORECAST, REAL = "forecast", "real"
#: The strategies that decide nothing: of deployment, and of sleep control.
NOTHING_BUILT, ALL_ON = "nothing built", "all on"
_MEAN, _PAST = "mean forecast", "last week"
_WEEK = np.timedelta64(7, "D")


@dataclass(frozen=True, kw_only=True, eq=False)
class Installed:
    """What stands in every cell."""

    rrus: NDArray[np.int64]
    """(cells,)"""
    rru_capacity: NDArray[np.float64]
    """(cells,) what one RRU serves in a slot."""


def standing(settings: DeploymentSettings, types: Sequence[str], sites: Sequence[Site]) -> NDArray[np.int64] | None:
    """(sites, types) the stations that stand, None where no table says so; ValueError for a table that does not fit the sites."""
    return None if settings.existing is None else read_existing(settings.existing, sites, types)


def deployment_problem(
    settings: DeploymentSettings, demand: NDArray[np.floating], types: Sequence[StationType], existing: NDArray[np.integer] | None = None
) -> DeploymentProblem:
    """The problem of a demand (draws, sites, slots) beside the `existing` stations (sites, types); ValueError for what does not fit."""
    return DeploymentProblem(
        demand=demand,
        station_types=tuple(types),
        shortfall_weight=settings.shortfall_weight,
        existing=existing,
        most_stations=settings.most_stations,
        exactly=settings.exactly,
        money=settings.money,
        grid_limit=None if settings.grid_limit is None else np.full(demand.shape[1], settings.grid_limit, dtype=np.int64),
        cvar=Cvar(level=settings.cvar_level, weight=settings.cvar_weight) if settings.cvar_weight else None,
    )


def installed(settings: SleepSettings, sites: Sequence[Site]) -> Installed:
    """The RRUs of every cell, from the table or the two numbers; ValueError for a table that does not fit the sites."""
    if settings.cells is None:
        assert settings.rrus is not None and settings.rru_capacity is not None
        return Installed(rrus=np.full(len(sites), settings.rrus), rru_capacity=np.full(len(sites), settings.rru_capacity))
    found = read_per_site(settings.cells, sites, ("rrus", "rru_capacity"))
    counts = found["rrus"].astype(np.int64)
    if (bad := counts != found["rrus"]).any():
        raise ValueError(f"{settings.cells}: rrus {found['rrus'][bad][0]:g}, expected whole numbers")
    return Installed(rrus=counts, rru_capacity=found["rru_capacity"])


def sleep_problem(settings: SleepSettings, load: NDArray[np.floating], cells: Installed, *, promise: bool = True) -> SleepProblem:
    """The problem of a load (draws, cells, slots); `promise` holds it to the settings' share of the draws that are served wholly."""
    problem = SleepProblem(
        load=load,
        rru_capacity=cells.rru_capacity,
        rrus=cells.rrus,
        energy=EnergyCosts(
            per_load=settings.energy_per_load,
            per_loaded_rru=settings.energy_per_loaded_rru,
            per_active_rru=settings.energy_per_active_rru,
        ),
        switch_cost=settings.switch_cost,
        least_active=settings.least_active,
        least_on_slots=settings.least_on_slots,
        least_off_slots=settings.least_off_slots,
    )
    if settings.served_share is None or not promise:
        return problem
    return replace(problem, must_serve=demand_quantile(load, settings.served_share))


def last_week(path: str, demand: Demand, service: str | None) -> NDArray[np.float64]:
    """(1, sites, slots) the same slot of the last week before the forecast; ValueError where the table does not hold that week."""
    step = demand.slots[1] - demand.slots[0] if len(demand.slots) > 1 else np.timedelta64(3600, "s")
    slots = np.arange(demand.slots[0] - _WEEK, demand.slots[0], step)
    return same_slot_last_week_demand(read_values(path, demand.sites, slots, service), len(demand.slots), len(slots))


def strategy_weights(path: str, sites: Sequence[Site]) -> dict[str, NDArray[np.float64]]:
    """(sites,) of every column of a table of weights; ValueError for one that does not fit, or that is called as another strategy is."""
    found = read_weights(path, sites)
    taken = sorted(set(found) & {FORECAST, REAL, NOTHING_BUILT, ALL_ON, _MEAN, _PAST})
    if taken:
        raise ValueError(f"{path}: column {taken[0]!r}, expected a name that no other strategy has")
    return found


def strategy_demands(
    demand: Demand,
    real: NDArray[np.floating] | None,
    past: NDArray[np.floating] | None,
    weights: Mapping[str, NDArray[np.floating]],
) -> dict[str, NDArray[np.floating]]:
    """Demand (draws, sites, slots) by strategy; `past` is that of `last_week`, `weights` (sites,) those of `strategy_weights`."""
    found: dict[str, NDArray[np.floating]] = {FORECAST: demand.draws}
    if real is None:
        return found
    if len(demand.draws) > 1:
        found[_MEAN] = mean_forecast_demand(demand.draws)
    if past is not None:
        found[_PAST] = past
    found |= {name: _spread(name, demand, shares) for name, shares in weights.items()}
    return found | {REAL: real_demand(real)}


def _spread(name: str, demand: Demand, weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """(1, sites, slots) each city's mean total, spread over its sites by their weights (sites,)."""
    city = np.array([city for city, _ in demand.sites], dtype=object)
    spread = mean_forecast_demand(demand.draws)
    for one in dict.fromkeys(city.tolist()):
        mine = city == one
        label = f"weights {name!r} of city {one!r}" if one else f"weights {name!r}"
        spread[:, mine] = weighted_demand(label, weights[mine], spread[0, mine].sum(axis=0))
    return spread
