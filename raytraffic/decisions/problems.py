"""The problems that settings and files describe, and the demand of every strategy that stands beside the forecast's own (UoMo, Fig. 9).

forecast       the forecast's draws                                   mean forecast  their mean, as a point forecast gives
last week      the same slot a week before (with history)             real           what really came: no strategy can do better

Without real traffic there is nothing to judge strategies on, and the forecast's is the only one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raytraffic.config.decisions import DeploymentSettings, SleepSettings
from raytraffic.decisions.deployment import Cvar, DeploymentProblem
from raytraffic.decisions.reading import Demand, Site, read_existing, read_per_site, read_values, station_types
from raytraffic.decisions.sleep import EnergyCosts, SleepProblem, demand_quantile
from raytraffic.decisions.strategies import mean_forecast_demand, real_demand, same_slot_last_week_demand

__all__ = ["FORECAST", "REAL", "Installed", "deployment_problem", "installed", "last_week", "sleep_problem", "strategy_demands"]

FORECAST, REAL = "forecast", "real"
_WEEK = np.timedelta64(7, "D")


@dataclass(frozen=True, kw_only=True, eq=False)
class Installed:
    """What stands in every cell."""

    rrus: NDArray[np.int64]
    """(cells,)"""
    rru_capacity: NDArray[np.float64]
    """(cells,) what one RRU serves in a slot."""


def deployment_problem(settings: DeploymentSettings, demand: Demand) -> tuple[list[str], DeploymentProblem]:
    """Names of the station types, and the problem of a forecast; ValueError for settings or tables that do not fit it."""
    types = station_types(settings.station_types)
    sites = len(demand.sites)
    problem = DeploymentProblem(
        demand=demand.draws,
        station_types=tuple(types.values()),
        shortfall_weight=settings.shortfall_weight,
        existing=None if settings.existing is None else read_existing(settings.existing, demand.sites, list(types)),
        most_stations=settings.most_stations,
        exactly=settings.exactly,
        money=settings.money,
        grid_limit=None if settings.grid_limit is None else np.full(sites, settings.grid_limit, dtype=np.int64),
        cvar=Cvar(level=settings.cvar_level, weight=settings.cvar_weight) if settings.cvar_weight else None,
    )
    return list(types), problem


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


def strategy_demands(
    demand: Demand, real: NDArray[np.floating] | None, past: NDArray[np.floating] | None
) -> dict[str, NDArray[np.floating]]:
    """Demand (draws, sites, slots) by strategy; `past` is that of `last_week`."""
    found: dict[str, NDArray[np.floating]] = {FORECAST: demand.draws}
    if real is None:
        return found
    if len(demand.draws) > 1:
        found["mean forecast"] = mean_forecast_demand(demand.draws)
    if past is not None:
        found["last week"] = past
    return found | {REAL: real_demand(real)}
