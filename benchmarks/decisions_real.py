"""What forecasts are worth in decisions on real traffic: UoMo's Figure 9 on places that the model never saw (split by place).

python benchmarks/decisions_real.py --checkpoint RUN/best --store STORE [--city nanchang] [--json figures.json] [--report page.html]

Deployment (Eq. 12): one station a grid on average, exactly so many, each of the capacity of a training grid's mean traffic.
  generation       every cell generated from the other three quarters of its tile (four masks in turn), clock and city
  whole tiles      every cell generated from clock and city alone: nothing near it was ever measured
  users told       every cell generated from clock, city and the users it will have: the most a forecast of users is worth
  POI, POI fitted  the true total divided by POI counts, each category alike, or weighted as the training cells' traffic says
  residents        the true total divided by mean active users from 0 to 6 h: the nearest thing to residents that the data hold
  even             the true total divided alike; gains are measured from here to `real`, which knew the traffic
The last four are told the true mean total, which the forecasts are not. `users told` wants a model trained with expected_users.

Sleep control (Eq. 13): cells with traffic on the first day, `rrus` units each, dimensioned for 1.25 times that day's peak. Every
forecast knows a quarter of a window and schedules the other three, window after window; `users told` knows the users of those too, and
`yesterday` is the same slot a day before. Gains are measured from `all on` to `real`. Energy and switches cost 0.05 slots without service
a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from measure import write_figures
from numpy.typing import NDArray
from scipy.optimize import nnls

from raytraffic.checkpoint import load_forecaster
from raytraffic.decisions.deployment import DeploymentProblem, StationType
from raytraffic.decisions.deployment_program import plan
from raytraffic.decisions.evaluation import Measure, Measures, deployment_measures, side_by_side, sleep_measures
from raytraffic.decisions.sleep import EnergyCosts, SleepProblem
from raytraffic.decisions.sleep_chain import schedule
from raytraffic.decisions.strategies import forecast_demand, mean_forecast_demand, poi_demand, real_demand, resident_demand
from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster
from raytraffic.report.decision_plots import strategy_bars
from raytraffic.report.html import Cell, Column, Gallery, Group, Section, Table, write_report
from raytraffic.store import open_store
from raytraffic.types import TrafficBatch
from raytraffic.windows import Windows, windows_for

_DEPLOYMENT = {"served_ratio": "demand served", "idle_ratio": "capacity idle", "deficit_ratio": "slots short"}
_SLEEP = {"refused_ratio": "service refused", "switching": "switches per RRU and slot", "energy_ratio": "energy of all on"}
#: Draws (tiles, n, t, s) of a batch, of what is not known in it.
Draw = Callable[[TrafficBatch], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class _Places:
    """The held-out places of a city: rows of their published validation series, and what the strategies know of them."""

    windows: Windows
    rows: NDArray[np.int64]
    steps: int
    slots_per_day: int
    traffic: NDArray[np.float64]
    """(sites, steps)"""
    users: NDArray[np.float64]
    """(sites, steps)"""
    poi: NDArray[np.float64]
    """(categories, sites)"""

    def batch(self, start: int, length: int) -> TrafficBatch:
        """The tiles' window from a step on."""
        return self.windows.batch(self.windows.cut(self.rows, np.full(len(self.rows), start), length))


def _columns(windows: Windows, rows: NDArray[np.int64], steps: int) -> dict[str, NDArray[np.float64]]:
    """Traffic and users (sites, steps), POI (categories, sites) of tiles, read window by window."""
    pieces = []
    for start in range(0, steps, windows.window):
        pieces.append(windows.cut(rows, np.full(len(rows), start), min(windows.window, steps - start)))
    traffic = np.concatenate([piece["traffic"][:, 0] for piece in pieces], axis=1)
    users = np.concatenate([piece["users"] for piece in pieces], axis=1)
    poi = pieces[0]["poi"]
    return {
        "traffic": traffic.transpose(0, 2, 1).reshape(-1, steps).astype(np.float64),
        "users": users.transpose(0, 2, 1).reshape(-1, steps).astype(np.float64),
        "poi": poi.transpose(1, 0, 2).reshape(poi.shape[1], -1).astype(np.float64),
    }


def held_out(windows: Windows, city: str, steps: int) -> _Places:
    """The places of a city whose published validation series are held back by the split by place."""
    index = windows.store.index
    test = windows.assignment.test
    here = (index.city == index.cities.index(city)) & (index.period == index.periods.index("val")) & (index.run == 0)
    rows = np.flatnonzero(here & (test[:, 0] < test[:, 1]))
    everything = _columns(Windows(windows.store, "place"), rows, steps)
    return _Places(
        windows=windows,
        rows=rows,
        steps=steps,
        slots_per_day=24 * 60 // int(index.step_minutes[rows[0]]),
        traffic=everything["traffic"],
        users=everything["users"],
        poi=everything["poi"],
    )


def training_cells(windows: Windows, city: str, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(sites,) mean traffic and (categories, sites) POI of a city's training places."""
    index, train = windows.store.index, windows.assignment.train
    rows = np.flatnonzero((index.city == index.cities.index(city)) & (index.run == 0) & (train[:, 0] < train[:, 1]))
    found = _columns(Windows(windows.store, "place"), rows, steps)
    return found["traffic"].mean(axis=1), found["poi"]


def _sites(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, tiles x s, t) of draws (tiles, n, t, s)."""
    b, n, t, s = draws.shape
    return draws.transpose(1, 0, 3, 2).reshape(n, b * s, t)


def generated(places: _Places, window: int, draw: Draw, *, whole: bool) -> NDArray[np.float64]:
    """(n, sites, slots) draws of every cell of consecutive windows; `whole` hides a tile at once, else its quarters in turn."""
    rows, columns = np.divmod(np.arange(places.windows.store.layout.cells), places.windows.store.layout.tile[1])
    quarter = np.zeros(len(rows), dtype=int) if whole else 2 * (rows % 2) + columns % 2
    pieces = []
    for start in range(0, places.steps - window + 1, window):
        batch = places.batch(start, window)
        merged = np.zeros(0)
        for fold in np.unique(quarter):
            hidden = quarter == fold
            drawn = draw(replace(batch, known=batch.known & ~torch.from_numpy(hidden)))
            merged = drawn if fold == 0 else np.where(hidden, drawn, merged)
        pieces.append(_sites(merged))
    return np.concatenate(pieces, axis=2)


def continued(places: _Places, window: int, first: int, draw: Draw) -> NDArray[np.float64]:
    """(n, sites, slots) draws of the slots from `first` on: each window knows its first quarter, and the next begins where it ends."""
    known = window // 4
    pieces = []
    for start in range(first - known, places.steps - window + 1, window - known):
        batch = places.batch(start, window)
        seen = torch.zeros_like(batch.known)
        seen[:, :, :known] = batch.known[:, :, :known]
        pieces.append(_sites(draw(replace(batch, known=seen))[:, :, known:]))
    return np.concatenate(pieces, axis=2)


def deployment(
    places: _Places, drawn: Mapping[str, NDArray[np.float64]], capacity: float, poi_weights: NDArray[np.float64]
) -> list[Measure]:
    """Every strategy of deployment judged on real traffic."""
    slots = next(iter(drawn.values())).shape[2]
    real = places.traffic[:, :slots]
    total = np.full(slots, real.sum(axis=0).mean())
    night = np.arange(slots) % places.slots_per_day < places.slots_per_day // 4
    demands = {name: forecast_demand(draws) for name, draws in drawn.items()} | {
        "POI": poi_demand(places.poi, total),
        "POI fitted": poi_demand(places.poi, total, poi_weights),
        "residents": resident_demand(np.nan_to_num(places.users[:, :slots][:, night]).mean(axis=1), total),
        "even": resident_demand(np.ones(len(real)), total),
        "real": real_demand(real),
    }
    kinds = (StationType(capacity=capacity),)
    problems = {
        name: DeploymentProblem(demand=demand, station_types=kinds, most_stations=len(real), exactly=True)
        for name, demand in demands.items()
    }
    stations = {name: plan(problem).stations for name, problem in problems.items()}
    on_real = {name: deployment_measures(replace(problems[name], demand=real[None]), x) for name, x in stations.items()}
    first = problems[next(iter(drawn))]
    promised = {name: deployment_measures(first, x) for name, x in stations.items()}
    return side_by_side(on_real, naive="even", best="real", promised=promised)


def sleep(places: _Places, drawn: Mapping[str, NDArray[np.float64]], first: int, rrus: int) -> list[Measure]:
    """Every strategy of sleep control judged on real traffic, of the cells with any on the days before."""
    slots, day = drawn["forecast"].shape[2], places.slots_per_day
    peak = places.traffic[:, :first].max(axis=1)
    alive = peak > 0
    real = places.traffic[alive, first : first + slots]
    yesterday = places.traffic[alive, first - day : first - day + slots]

    def problem(load: NDArray[np.float64]) -> SleepProblem:
        return SleepProblem(
            load=load,
            rru_capacity=1.25 * peak[alive] / rrus,
            rrus=np.full(int(alive.sum()), rrus),
            energy=EnergyCosts(per_active_rru=0.05),
            switch_cost=0.05,
        )

    loads = {name: forecast_demand(draws[:, alive]) for name, draws in drawn.items()} | {
        "mean forecast": mean_forecast_demand(drawn["forecast"][:, alive]),
        "yesterday": yesterday[None],
        "real": real_demand(real),
    }
    active = {name: schedule(problem(load)).active for name, load in loads.items()}
    active |= {"all on": np.full((int(alive.sum()), slots), rrus, dtype=np.int16)}
    on_real: dict[str, Measures] = {name: sleep_measures(problem(real[None]), x) for name, x in active.items()}
    promised = {name: sleep_measures(problem(loads["forecast"]), x) for name, x in active.items()}
    return side_by_side(on_real, naive="all on", best="real", promised=promised)


def drawing(forecaster: Forecaster, draws: int, steps: int) -> Draw:
    """A forecast's draws (tiles, n, t, s) of the only service."""

    def draw(batch: TrafficBatch) -> NDArray[np.float64]:
        found = forecaster.forecast(batch, Sampler("dpm++", steps), draws, 0).draws[:, :, 0]
        return np.maximum(found.double().numpy(), 0.0)

    return draw


def told_users(draw: Draw) -> Draw:
    """The same draws, with the true users as the caller's forecast of them."""
    return lambda batch: draw(replace(batch, context={**batch.context, "expected_users": batch.context["users"]}))


def _table(title: str, found: list[Measure], names: Mapping[str, str]) -> Table:
    by = {(row.strategy, row.name): row for row in found}
    rows: list[list[Cell]] = []
    for strategy in dict.fromkeys(row.strategy for row in found):
        gain = by[strategy, "objective"].gain_share
        rows.append([strategy, *(by[strategy, name].real for name in names), "–" if gain is None else f"{gain + 0.0:.0%}"])
    columns = [Column(name="strategy"), *(Column(name=name, decimals=3) for name in names.values()), Column(name="gain")]
    return Table(caption=title, columns=columns, groups=[Group(label="", rows=rows)])


def _section(title: str, found: list[Measure], names: Mapping[str, str], ours: str) -> Section:
    values = {label: {row.strategy: row.real for row in found if row.name == name} for name, label in names.items()}
    caption = f"{title} on the real traffic of held-out places. Gain: share of the way from the least to the most that can be known."
    bars = strategy_bars(values, ours=ours, alt=f"{title}: bars of measures by strategy", caption=caption)
    return Section(title, [Gallery([bars], wide=True), _table(title, found, names)])


def _figures(prefix: str, found: list[Measure]) -> dict[str, float]:
    figures = {}
    for row in found:
        name = f"{prefix}_{row.strategy}_{row.name}".replace(" ", "_").lower()
        figures[name] = row.real
        if row.gain_share is not None and row.name == "objective":
            figures[f"{name}_gain"] = row.gain_share + 0.0  # no negative zero
    return figures


def main(
    checkpoint: str,
    store: str,
    city: str = "nanchang",
    draws: int = 20,
    steps: int = 10,
    rrus: int = 8,
    quick: bool = False,
    json: Path | None = None,
    report: Path | None = None,
) -> None:
    """Judge decisions on real traffic.

    Args:
        checkpoint: Folder of a model trained with --split place on the store.
        store: The prepared store of UoMo's published series.
        city: The city whose held-out places are decided on.
        draws: Draws of every forecast.
        steps: Sampler steps.
        rrus: RRUs of a cell.
        quick: Two draws of one step; the figures mean nothing.
        json: Where the figures are written.
        report: Where a page of tables and bars is written.
    """
    if quick:
        draws, steps = 2, 1
    forecaster, _, config = load_forecaster(checkpoint)
    windows = windows_for(open_store(store), "place", config)
    index = windows.store.index
    length = int(index.steps[(index.city == index.cities.index(city)) & (index.run == 0)].min())
    places = held_out(windows, city, length)
    mean, poi = training_cells(windows, city, length)
    draw = drawing(forecaster, draws, steps)
    drawn = {
        "generation": generated(places, config.window, draw, whole=False),
        "whole tiles": generated(places, config.window, draw, whole=True),
    }
    first = max(places.slots_per_day, config.window)
    continuations = {"forecast": continued(places, config.window, first, draw)}
    if "expected_users" in config.contexts:
        drawn["users told"] = generated(places, config.window, told_users(draw), whole=True)
        continuations["users told"] = continued(places, config.window, first, told_users(draw))
    built = deployment(places, drawn, float(mean.mean()), nnls(poi.T, mean)[0])
    slept = sleep(places, continuations, first, rrus)
    figures = _figures("deployment", built) | _figures("sleep", slept)
    if report is not None:
        sections = [_section("Deployment", built, _DEPLOYMENT, "generation"), _section("Sleep control", slept, _SLEEP, "forecast")]
        write_report(report, f"Decisions on {city}", sections)
    write_figures(figures, json)


if __name__ == "__main__":
    tyro.cli(main)
