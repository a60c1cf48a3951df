"""A decision on one page: what is built or sleeps, maps or day curves, and the strategies side by side (UoMo, Figure 9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from raytraffic.decisions.outcome import LEVEL, Decision, Deployed, Judged, Slept
from raytraffic.decisions.problems import FORECAST
from raytraffic.files import Location
from raytraffic.report.decision_plots import Places, day_curve, station_maps, strategy_bars
from raytraffic.report.html import Cell, Column, Folded, Gallery, Group, Part, Picture, Section, Table, Text, write_report
from raytraffic.report.plots import picture

__all__ = ["deployment_report", "sleep_report"]

#: What a measure is called, and the value it should be near to.
_DEPLOYMENT = {
    "served_ratio": ("demand served, share", 1.0),
    "idle_ratio": ("capacity idle, share", 0.0),
    "deficit_ratio": ("slots short, share", 0.0),
    "operating_cost": ("operating cost", None),
    "objective": ("objective (more is better)", None),
}
_SLEEP = {
    "served_ratio": ("load served, share", 1.0),
    "refused_ratio": ("service refused, share", 0.0),
    "switching": ("switches per RRU and slot", 0.0),
    "energy_ratio": ("energy, share of all on", 0.0),
    "objective": ("cost (less is better)", 0.0),
}
_REAL = "On what really came; gain: the objective's share of the way from deciding nothing (0 %) to knowing what comes (100 %)"
_PROMISES = f"What the forecast promises: the mean over its draws and the central interval of {LEVEL:.0%} of them"
_MAPS, _MAP = 6, (7.2, 3.3)  # so many at most, of so many inches
_ROWS = 20


def deployment_report(
    out: Location, found: Deployed, degrees: Mapping[str, NDArray[np.float64]] | None, settings: Mapping[str, Any]
) -> Location:
    """Writes report.html of a deployment into `out`; `degrees` are lat and lon (sites,) of the sites, where known."""
    plan, built, standing = found.plan, found.plan.built.sum(axis=1), int(found.problem.standing.sum())
    beside = f", beside {standing:,} that stand" if standing else ""
    told = [
        f"{int(built.sum()):,} stations to build on {int((built > 0).sum()):,} of {len(built):,} sites{beside}; "
        f"they cost {plan.spent:,.6g}. Demand served: {_share(found.value('served_ratio'))}.",
        _proof(found),
    ]
    sections = [Section("Summary", [Text(told, lead=True)])]
    maps = _maps(found, degrees)
    if maps:
        sections.append(Section("Where stations stand", [Gallery(maps, wide=True)]))
    sections += [
        Section("Strategies side by side", _strategies(found, _DEPLOYMENT, ("served_ratio", "idle_ratio", "deficit_ratio"))),
        Section("Sites", [_most_unserved(found)]),
        Section("Settings", [Folded("All settings", [_settings(settings)])]),
    ]
    return write_report(out.child("report.html"), "Base-station deployment", sections)


def sleep_report(out: Location, found: Slept, settings: Mapping[str, Any]) -> Location:
    """Writes report.html of sleep control into `out`."""
    energy, refused = found.value("energy_ratio"), found.value("refused_ratio")
    sleeping = 1 - float(found.active.sum()) / max(1.0, float(found.cells.rrus.sum()) * found.problem.slots)
    told = [
        f"{len(found.demand.sites):,} cells over {found.problem.slots:,} slots: {sleeping:.1%} of the radio units sleep on average. "
        f"Energy, of that with all always on: {_share(energy)}. Service refused: {_share(refused)}.",
        _proof(found),
    ]
    if found.overloaded.any():
        told.append(
            f"In {int(found.overloaded.sum()):,} slots of {int(found.overloaded.any(axis=1).sum()):,} cells the load that must be served "
            "is more than all installed radio units can; all of them are active there."
        )
    sections = [
        Section("Summary", [Text(told, lead=True)]),
        Section("Radio units over time", [Gallery(_curves(found), wide=True)]),
        Section("Strategies side by side", _strategies(found, _SLEEP, ("refused_ratio", "switching", "energy_ratio"))),
        Section("Settings", [Folded("All settings", [_settings(settings)])]),
    ]
    return write_report(out.child("report.html"), "Sleep control", sections)


def _share(row: Judged) -> str:
    """A share as it is promised and, where known, as it was."""
    spread = f" ({LEVEL:.0%} of draws: {row.low:.1%} to {row.high:.1%})" if row.high > row.low else ""
    was = "" if row.real is None else f", {row.real:.1%} as it really came"
    return f"{row.promised:.1%} as forecast{spread}{was}"


def _proof(found: Decision) -> str:
    proof, demand = found.proofs[FORECAST], found.demand
    told = f"Solver: {proof.status}, gap {proof.gap:.2%}, {proof.seconds:.1f} s. "
    open_ended = {name: one.gap for name, one in found.proofs.items() if one.status != "optimal" and name != FORECAST}
    if open_ended:
        gaps = ", ".join(f"{name} by {gap:.2%}" for name, gap in open_ended.items())
        told += f"Strategies beside it that the time limit cut short, and may be below their best: {gaps}. "
    return told + (
        f"Decided on {len(demand.draws)} draws of {len(demand.slots)} slots of {demand.step_minutes:g} minutes from {_moment(found)}."
    )


def _moment(found: Decision) -> str:
    return str(found.demand.slots[0].astype("datetime64[m]")).replace("T", " ")


def _maps(found: Deployed, degrees: Mapping[str, NDArray[np.float64]] | None) -> list[Picture]:
    """A map of each of the first cities, where the places of its sites are known."""
    maps = []
    city_of = np.array([city for city, _ in found.demand.sites])
    demand, unserved = _per_slot(found)
    for city in list(dict.fromkeys(city_of.tolist()))[:_MAPS]:
        mine = np.flatnonzero(city_of == city)
        names = [found.demand.sites[i][1] for i in mine]
        places = Places.of_names(names) if degrees is None else Places.of_degrees(degrees["lat"][mine], degrees["lon"][mine])
        if places is None:
            continue
        of = "what really came" if found.real is not None else "the forecast"
        caption = f"mean demand a slot of {of}, with circles for stations, larger where there are more, and what of it no station serves"
        draw = partial(
            station_maps,
            places=places,
            demand=demand[mine],
            unserved=unserved[mine],
            built=found.plan.built[mine].sum(axis=1),
            existing=found.problem.standing[mine].sum(axis=1),
        )
        alt = f"Maps of demand, stations and unserved demand{' of ' + city if city else ''}"
        maps.append(
            picture(draw, alt=alt, caption=f"{city}: {caption}." if city else f"{caption[0].upper()}{caption[1:]}.", columns=2, size=_MAP)
        )
    return maps


def _per_slot(found: Deployed) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(sites,) mean demand a slot, and what of it is unserved: of what really came, where that is known, else of the forecast."""
    if found.real is None:
        terms = found.plan.terms
        return terms.offered.mean(axis=0) / found.problem.slots, terms.shortfall.mean(axis=0) / found.problem.slots
    capacity = found.plan.stations @ found.problem.capacities
    return found.real.mean(axis=1), np.maximum(found.real - capacity[:, None], 0).mean(axis=1)


def _most_unserved(found: Deployed) -> Table:
    demand, unserved = _per_slot(found)
    order = np.argsort(-unserved, kind="stable")[:_ROWS]
    rows: list[list[Cell]] = [
        [
            "/".join(part for part in found.demand.sites[i] if part),
            int(found.plan.built[i].sum()),
            int(found.plan.stations[i].sum()),
            float(demand[i]),
            float(unserved[i]),
        ]
        for i in order
    ]
    names = ("site", "built", "stations", "demand a slot", "unserved a slot")
    of = "what really came" if found.real is not None else "the forecast"
    return Table(
        caption=f"The {len(rows)} sites where most demand of {of} is left unserved; all of them stand in plan.parquet",
        columns=[Column(name=name) for name in names],
        groups=[Group(label="", rows=rows)],
    )


def _curves(found: Slept) -> list[Picture]:
    """The fleet, and the cells of the most, the middle and the least load that is not none."""
    fleet = np.arange(len(found.demand.sites))
    told = "Load in radio units' worth, as drawn"
    told += ", with what really came," if found.real is not None else ""
    told += " beside the radio units that are active and those installed"
    pictures = [
        picture(
            lambda ax: _curve(ax, found, fleet, "", legend=True),
            alt="Load, active and installed radio units of the fleet over time",
            caption=f"The whole fleet. {told}.",
            size=(9.0, 2.9),
        )
    ]
    mean = found.problem.load.mean(axis=(0, 2), dtype=np.float64) / found.cells.rru_capacity
    order = [i for i in np.argsort(-mean, kind="stable").tolist() if mean[i] > 0]
    chosen = dict.fromkeys([order[0], order[len(order) // 2], order[-1]]) if order else {}

    def draw(*axes: Axes) -> None:
        for ax, cell in zip(axes, chosen, strict=True):
            _curve(ax, found, np.array([cell]), "/".join(part for part in found.demand.sites[cell] if part), legend=False)

    if chosen:
        alt = "Load, active and installed radio units of single cells over time"
        caption = f"The cells of the most, the middle and the least load. {told}."
        pictures.append(picture(draw, alt=alt, caption=caption, columns=len(chosen), size=(3.6 * len(chosen), 2.5)))
    return pictures


def _curve(ax: Axes, found: Slept, cells: NDArray[np.integer], title: str, *, legend: bool) -> None:
    """Some cells together, in RRUs."""
    share = 1 / found.cells.rru_capacity[cells]
    day_curve(
        ax,
        start=_start(found),
        step_minutes=int(found.demand.step_minutes),
        load=np.stack([share @ load[cells] for load in found.problem.load]),
        active=found.active[cells].sum(axis=0, dtype=np.int64).astype(np.float64),
        installed=float(found.cells.rrus[cells].sum()),
        real=None if found.real is None else share @ found.real[cells],
        title=title,
        legend=legend,
    )


def _start(found: Decision) -> datetime:
    moment = found.demand.slots[0].astype("datetime64[s]").item()
    assert isinstance(moment, datetime)
    return moment


def _strategies(found: Decision, names: Mapping[str, tuple[str, float | None]], drawn: Sequence[str]) -> list[Part]:
    """Tables of every strategy and measure, and bars of three."""
    strategies = list(dict.fromkeys(row.strategy for row in found.judged))
    known = found.real is not None
    parts: list[Part] = []
    if known:
        values = {names[name][0]: {s: _real(found.value(name, s)) for s in strategies} for name in drawn}
        caption = "As Figure 9 of UoMo: each strategy on what really came. 'real' knew it beforehand."
        bars = strategy_bars(values, ours=FORECAST, alt="Bars of measures by strategy", caption=caption)
        parts += [
            Gallery([bars], wide=True),
            _judged(found, names, strategies),
        ]
    else:
        parts.append(Text(["Without real traffic there is only the forecast's own promise; give `real` to see strategies judged."]))
    return [*parts, _table(_PROMISES, found, names, strategies, _promise)]


def _table(
    caption: str,
    found: Decision,
    names: Mapping[str, tuple[str, float | None]],
    strategies: Sequence[str],
    cell: Callable[[Judged], Cell],
) -> Table:
    """A row a strategy and a column a measure; the best numbers are emphasised, texts are not compared."""
    columns = [Column(name="strategy"), *(Column(name=name, target=target) for name, target in names.values())]
    rows: list[list[Cell]] = [[s, *(cell(found.value(name, s)) for name in names)] for s in strategies]
    return Table(caption=caption, columns=columns, groups=[Group(label="", rows=rows)], ours=FORECAST)


def _judged(found: Decision, names: Mapping[str, tuple[str, float | None]], strategies: Sequence[str]) -> Table:
    """Every measure on real traffic, and the share of the possible gain."""
    table = _table(_REAL, found, names, strategies, _real)
    rows = [[*row, _gain(found.value("objective", s))] for row, s in zip(table.groups[0].rows, strategies, strict=True)]
    return replace(table, columns=[*table.columns, Column(name="gain")], groups=[Group(label="", rows=rows)])


def _real(row: Judged) -> float:
    assert row.real is not None
    return row.real


def _gain(row: Judged) -> str:
    return "–" if row.gain_share is None else f"{row.gain_share + 0.0:.1%}"


def _promise(row: Judged) -> str:
    middle, low, high = (f"{value:,.0f}" if abs(row.promised) >= 1000 else f"{value:.3g}" for value in (row.promised, row.low, row.high))
    return f"{middle} ({low} to {high})" if row.high > row.low else middle


def _settings(settings: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for name, value in settings.items():
        inner = {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        rows += [[key, "–" if one is None else str(one)] for key, one in inner.items()]
    return Table(caption="Settings", columns=[Column(name="setting"), Column(name="value")], groups=[Group(label="", rows=rows)])
