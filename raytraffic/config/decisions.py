"""What a decision from a forecast is: where base stations are built, or which radio units sleep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raytraffic.config.conversion import at_least_one

__all__ = ["DeploymentSettings", "OptimizeConfig", "SleepSettings"]


@dataclass(frozen=True, kw_only=True)
class DeploymentSettings:
    """Which stations may be built where (UoMo, Eq. 12); every site of the forecast is a grid."""

    station_types: tuple[str, ...] = ()
    """What can be built, each as name=capacity,price,operating_cost, the last two 0 if not given: e.g. macro=200,1.9,4. Capacity is what a
    station serves in one slot, in the forecast's unit; price is in any currency; operating cost is in units served, for each slot."""
    money: float | None = None
    """Money to build with, in the unit of the prices; unlimited if not given."""
    most_stations: int | None = None
    """Stations built at most; unlimited if not given."""
    exactly: bool = False
    """Build `most_stations`, no fewer."""
    existing: str | None = None
    """Table (CSV or Parquet) of the stations that stand: unique_id, type, count (and city, where the forecast has several)."""
    grid_limit: int | None = None
    """Stations, existing ones included, that fit into one grid; unlimited if not given."""
    shortfall_weight: float = 1.0
    """What a unit of demand that is not served costs, beside not being served."""
    cvar_weight: float = 0.0
    """How much the worst draws count: 0 is the mean over all draws, 1 only the worst ones."""
    cvar_level: float = 0.9
    """The worst share 1 - level of the draws."""


@dataclass(frozen=True, kw_only=True)
class SleepSettings:
    """How radio units (RRUs) may sleep and what that costs (UoMo, Eq. 13); every site of the forecast is a cell.

    Costs are in slots of one cell wholly without service.
    """

    cells: str | None = None
    """Table (CSV or Parquet) of the cells: unique_id, rrus, rru_capacity (and city, where the forecast has several); or"""
    rrus: int | None = None
    """RRUs installed in every cell, and"""
    rru_capacity: float | None = None
    """what one RRU serves in a slot, in the forecast's unit."""
    energy_per_load: float = 0.0
    """For each unit of load served."""
    energy_per_loaded_rru: float = 0.0
    """For each RRU's worth of load served."""
    energy_per_active_rru: float = 0.05
    """For each RRU and slot it is active, loaded or not: what sleeping saves."""
    switch_cost: float = 0.05
    """For each RRU that is switched on or off."""
    served_share: float | None = None
    """Each slot is served wholly in at least this share of the draws (0 < share <= 1), as far as the installed RRUs can."""
    least_active: int = 0
    """RRUs of each cell that never sleep."""
    least_on_slots: int = 1
    """Slots from switching on until the cell may switch off."""
    least_off_slots: int = 1
    """Slots from switching off until the cell may switch on."""

    def __post_init__(self) -> None:
        if self.cells is not None and (self.rrus is not None or self.rru_capacity is not None):
            raise ValueError(f"sleep.cells: {self.cells!r} beside rrus or rru_capacity, expected either the table or the two numbers")
        if self.served_share is not None and not 0 < self.served_share <= 1:
            raise ValueError(f"sleep.served_share: {self.served_share}, expected a share in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class OptimizeConfig:
    """Decide from a forecast where base stations are built or which radio units sleep, and judge it on real traffic."""

    problem: Literal["deployment", "sleep"]
    forecast: str
    """Folder or s3:// URL of a forecast made with --keep-draws, or one table (CSV or Parquet: unique_id, ds, y) as a single draw."""
    out: str
    """Folder or s3:// URL of plan.parquet (deployment) or schedule.parquet (sleep), summary.json and report.html."""
    deployment: DeploymentSettings = field(default_factory=DeploymentSettings)
    """Of the problem `deployment`."""
    sleep: SleepSettings = field(default_factory=SleepSettings)
    """Of the problem `sleep`."""
    real: str | None = None
    """Table of what really came (unique_id, ds, y), which every strategy is judged on, beside the one that knew it."""
    history: str | None = None
    """Table of the past (unique_id, ds, y) that holds the week before the forecast: the naive strategy beside the others; needs `real`."""
    weights: str | None = None
    """Table (CSV or Parquet: unique_id, and city where the forecast has several) of points of interest, residents or the like: each further
    column is a strategy beside the others, which spreads the forecast's mean total over the sites in proportion to it; needs `real`."""
    sites: str | None = None
    """Table of the sites' places for the maps: unique_id, lat, lon; names such as r3c5 are places on a grid without it."""
    cities: tuple[str, ...] = ()
    """Cities of the forecast that are decided on; all if none is named. They must have the same slots."""
    service: str | None = None
    """The service that is decided on; needed where the forecast has several."""
    seconds: float = 60.0
    """Time limit of the deployment's solver for each strategy; the best plan so far counts then. Sleep control has none: it is exact."""
    gap: float = 1e-4
    """Gap between plan and bound, of the plan's gain, at which a deployment counts as optimal."""
    workers: int = 2
    """Most pieces of cells that are scheduled at once; the result does not depend on it."""

    def __post_init__(self) -> None:
        if self.problem == "deployment" and not self.deployment.station_types:
            raise ValueError("deployment.station_types: none, expected at least one, as macro=200,1.9,4")
        sleep = self.sleep
        if self.problem == "sleep" and sleep.cells is None and (sleep.rrus is None or sleep.rru_capacity is None):
            raise ValueError(f"sleep.rrus, rru_capacity: {sleep.rrus}, {sleep.rru_capacity}, expected both, or the table sleep.cells")
        for name in ("history", "weights"):
            if getattr(self, name) is not None and self.real is None:
                raise ValueError(f"{name}: {getattr(self, name)!r} without real, expected what the strategies are judged on")
        at_least_one(self, "workers")
