"""What decisions are worth on traffic that they were not made for, strategies side by side (UoMo, Fig. 9).

A decision is made for one demand and judged on another: `replace(problem, demand=real[None])` has the terms of what really came,
`replace(problem, demand=draws)` those a forecast promises, whose spread over the draws is an interval. The paper gives no formula for
its normalised cost, deficit, QoS and depreciation; every measure here is a share, defined where it is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytraffic.decisions.deployment import DeploymentProblem, deployment_terms
from raytraffic.decisions.sleep import SleepProblem, sleep_terms

__all__ = ["Measure", "Measures", "deployment_measures", "interval", "share_of_gain", "side_by_side", "sleep_measures"]

#: One value a draw of each measure, by its name.
Measures = dict[str, NDArray[np.float64]]


def deployment_measures(problem: DeploymentProblem, stations: NDArray[np.integer]) -> Measures:
    """How stations (grids, types) do on the problem's demand, each measure (draws,).

    served_ratio  demand that is served, of all (1 where there is none)           Fig. 9(a): served users; more is better
    idle_ratio    installed capacity over all slots that serves nothing, of all   Fig. 9(a): cost; less is better
    deficit_ratio slots of grids with demand in which some of it is not served    Fig. 9(a): deficit; less is better
    operating_cost, objective                                                     the terms of Eq. 12 in unit-slots
    """
    terms = deployment_terms(problem, stations)
    capacity = stations @ problem.capacities
    served, offered = terms.served.sum(axis=1), terms.offered.sum(axis=1)
    # Draw by draw: the demand of all draws may be most of the memory there is.
    short = np.array([np.count_nonzero(draw > capacity[:, None]) for draw in problem.demand], dtype=np.float64)
    wanted = np.array([np.count_nonzero(draw) for draw in problem.demand], dtype=np.float64)
    return {
        "served_ratio": _ratio(served, offered, empty=1.0),
        "idle_ratio": 1 - _ratio(served, np.full_like(served, capacity.sum() * problem.slots), empty=1.0),
        "deficit_ratio": _ratio(short, wanted, empty=0.0),
        "operating_cost": np.full_like(served, terms.operating_cost.sum()),
        "objective": terms.objective,
    }


def sleep_measures(problem: SleepProblem, active: NDArray[np.integer]) -> Measures:
    """How active RRUs (cells, slots) do on the problem's load, each measure (draws,).

    served_ratio   load that is served, of all (1 where there is none)                     more is better
    refused_ratio  mean refused share of slots of cells with load: Q of Eq. 13 normalised  Fig. 9(b): QoS; less is better
    switching      switches per installed RRU and slot: W normalised                       Fig. 9(b): depreciation; less is better
    energy_ratio   energy, of that with all RRUs always on: E normalised                   Fig. 9(b): energy; less is better
    objective      Q + cost of W + E, summed over cells
    """
    terms = sleep_terms(problem, active)
    always = sleep_terms(problem, np.repeat(problem.rrus[:, None], problem.slots, axis=1))
    capacity = active * problem.rru_capacity[:, None]
    served = np.array([np.minimum(load, capacity).sum(dtype=np.float64) for load in problem.load])
    offered = np.array([load.sum(dtype=np.float64) for load in problem.load])
    loaded = np.array([np.count_nonzero(load) for load in problem.load], dtype=np.float64)
    slots = float(problem.rrus.sum()) * problem.slots
    return {
        "served_ratio": _ratio(served, offered, empty=1.0),
        "refused_ratio": _ratio(terms.refused.sum(axis=1), loaded, empty=0.0),
        "switching": _ratio(np.full_like(served, terms.switches.sum()), np.full_like(served, slots), empty=0.0),
        "energy_ratio": _ratio(terms.energy.sum(axis=1), always.energy.sum(axis=1), empty=1.0),
        "objective": terms.objective.sum(axis=1),
    }


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure of one strategy on real traffic."""

    strategy: str
    name: str
    real: float
    """On what really came."""
    promised: float | None
    """Mean over the draws of the forecast that the intervals come from; None where none was given."""
    low: float | None
    """Lower end of the central interval over those draws."""
    high: float | None
    """Upper end."""
    gain_share: float | None
    """Share of the possible gain reached, (strategy - naive) / (best - naive); None where naive and best are equal."""


def side_by_side(
    real: Mapping[str, Measures], *, naive: str, best: str, promised: Mapping[str, Measures] | None = None, level: float = 0.8
) -> list[Measure]:
    """The table of Fig. 9: every strategy and measure, on real traffic (one draw each) and, where given, over a forecast's draws.

    `naive` and `best` name the strategies that gains are measured between; `level` is that of the intervals. All strategies must have
    been judged on the same traffic. ValueError names a strategy or measure that is missing.
    """
    for role, strategy in (("naive", naive), ("best", best)):
        if strategy not in real:
            raise ValueError(f"{role}: {strategy!r}, expected one of {sorted(real)}")
    if promised is not None and set(promised) != set(real):
        raise ValueError(f"promised: strategies {sorted(promised)}, expected {sorted(real)}")
    rows = []
    for strategy, measures in real.items():
        _check_measures(f"real[{strategy!r}]", measures, list(real[naive]), draws=1)
        if promised is not None:
            _check_measures(f"promised[{strategy!r}]", promised[strategy], list(measures), draws=None)
        for name, values in measures.items():
            drawn = None if promised is None else promised[strategy][name]
            low, high = (None, None) if drawn is None else interval(drawn, level)
            rows.append(
                Measure(
                    strategy=strategy,
                    name=name,
                    real=float(values[0]),
                    promised=None if drawn is None else float(drawn.mean()),
                    low=low,
                    high=high,
                    gain_share=share_of_gain(float(values[0]), naive=float(real[naive][name][0]), best=float(real[best][name][0])),
                )
            )
    return rows


def share_of_gain(value: float, *, naive: float, best: float) -> float | None:
    """(value - naive) / (best - naive), whichever way is better: 0 is no better than naive, 1 as good as the best; None for 0 / 0."""
    return None if best == naive else (value - naive) / (best - naive)


def interval(values: NDArray[np.float64], level: float = 0.8) -> tuple[float, float]:
    """The central interval of equally likely values (draws,); ValueError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ValueError(f"level: {level}, expected a central interval in (0, 1)")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64], empty: float) -> NDArray[np.float64]:
    """part / whole per draw; `empty` where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, empty), where=whole > 0)


def _check_measures(name: str, measures: Measures, expected: Sequence[str], draws: int | None) -> None:
    if list(measures) != list(expected):
        raise ValueError(f"{name}: measures {list(measures)}, expected {list(expected)}")
    lengths = {len(values) for values in measures.values()}
    if draws is not None and lengths != {draws}:
        raise ValueError(f"{name}: {sorted(lengths)} draws, expected {draws}: what really came")
