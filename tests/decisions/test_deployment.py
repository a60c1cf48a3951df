"""Deployment against brute force and against Eq. 12 written out with every y as a variable; budgets, limits, time and refusals."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raytraffic.decisions.deployment import Cvar, DeploymentProblem, StationType, deployment_terms, tail_weights
from raytraffic.decisions.deployment_program import plan
from raytraffic.decisions.solver import SolverLimits, maximise

EXACT = SolverLimits(gap=1e-9)
ONE = (StationType(capacity=10.0, price=1.0),)
SLOW = settings(max_examples=40, deadline=None)


@st.composite
def problems(draw: st.DrawFn, max_types: int = 2, exactly: bool | None = None) -> DeploymentProblem:
    """Small enough to try every plan; every bound comes and goes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    draws, grids, slots, types = (draw(st.integers(1, most)) for most in (4, 3, 4, max_types))
    demand = rng.gamma(0.7, 15.0, (draws, grids, slots)) * (rng.random((draws, grids, slots)) < 0.8)
    kinds = tuple(
        StationType(
            capacity=draw(st.sampled_from([4.0, 10.0, 10.0 / 3, 25.0])),
            price=draw(st.sampled_from([0.0, 1.0, 1.7])),
            operating_cost=draw(st.sampled_from([0.0, 0.5, 6.0])),
        )
        for _ in range(types)
    )
    existing = rng.integers(0, 2, (grids, types)) if draw(st.booleans()) else None
    standing = 0 if existing is None else existing.sum(axis=1)
    most = draw(st.integers(0, 3))
    return DeploymentProblem(
        demand=demand,
        station_types=kinds,
        shortfall_weight=draw(st.sampled_from([0.0, 1.0, 3.0])),
        existing=existing,
        most_stations=most,
        exactly=draw(st.booleans()) if exactly is None else exactly,
        # Enough for `exactly`, often too little for the dearer types.
        money=draw(st.sampled_from([None, most * min(kind.price for kind in kinds) + draw(st.sampled_from([0.0, 0.7, 2.0]))])),
        grid_limit=standing + rng.integers(1, 4, grids) + (most if grids == 1 else 1) if draw(st.booleans()) else None,
        cvar=draw(st.sampled_from([None, Cvar(level=0.5, weight=1.0), Cvar(level=0.6, weight=0.4), Cvar(level=0.0)])),
    )


def value(problem: DeploymentProblem, stations: NDArray[np.integer]) -> float:
    """Eq. 12 slot by slot, and the CVaR from its definition as the best threshold, which is one of the values."""
    totals = []
    for draw in problem.demand:
        total = 0.0
        for i, row in enumerate(draw):
            capacity = sum(x * kind.capacity for x, kind in zip(stations[i], problem.station_types, strict=True))
            cost = sum(x * kind.operating_cost for x, kind in zip(stations[i], problem.station_types, strict=True))
            for u in row:
                y = min(capacity, u)
                total += y - problem.shortfall_weight * max(u - y, 0) - cost
        totals.append(total)
    if problem.cvar is None:
        return float(np.mean(totals))
    tail = max(eta - sum(max(eta - z, 0) for z in totals) / ((1 - problem.cvar.level) * len(totals)) for eta in totals)
    return (1 - problem.cvar.weight) * float(np.mean(totals)) + problem.cvar.weight * tail


def allowed(problem: DeploymentProblem, built: NDArray[np.integer]) -> bool:
    """The bounds of the problem, one by one."""
    stations = problem.standing + built
    prices = np.array([kind.price for kind in problem.station_types])
    return bool(
        (built >= 0).all()
        and (problem.most_stations is None or built.sum() <= problem.most_stations)
        and (not problem.exactly or built.sum() == problem.most_stations)
        and (problem.money is None or (built @ prices).sum() <= problem.money * (1 + 1e-6) + 1e-12)
        and (problem.grid_limit is None or (stations.sum(axis=1) <= problem.grid_limit).all())
    )


def brute_force(problem: DeploymentProblem) -> float:
    shape = problem.standing.shape
    assert problem.most_stations is not None
    plans = itertools.product(range(problem.most_stations + 1), repeat=shape[0] * shape[1])
    builds = (np.array(numbers).reshape(shape) for numbers in plans if sum(numbers) <= problem.most_stations)
    return max(value(problem, problem.standing + built) for built in builds if allowed(problem, built))


def written_out(problem: DeploymentProblem) -> float:
    """The optimum of Eq. 12 with y and the shortfall of every draw, grid and slot as variables of a linear programme."""
    model = pulp.LpProblem("oracle", pulp.LpMaximize)
    (draws, grids, slots), kinds = problem.demand.shape, problem.station_types
    built = [[model.add_variable(f"x_{i}_{k}", 0, cat="Integer") for k in range(len(kinds))] for i in range(grids)]
    stations = [[int(problem.standing[i, k]) + built[i][k] for k in range(len(kinds))] for i in range(grids)]
    totals = []
    for s, i, t in itertools.product(range(draws), range(grids), range(slots)):
        y = model.add_variable(f"y_{s}_{i}_{t}", 0, float(problem.demand[s, i, t]))
        short = model.add_variable(f"q_{s}_{i}_{t}", 0)
        model += y <= pulp.lpSum(kind.capacity * x for kind, x in zip(kinds, stations[i], strict=True))
        model += short >= float(problem.demand[s, i, t]) - y
        cost = pulp.lpSum(kind.operating_cost * x for kind, x in zip(kinds, stations[i], strict=True))
        totals.append((s, y - problem.shortfall_weight * short - cost))
    everything = [x for row in built for x in row]
    model += pulp.lpSum(everything) <= problem.most_stations
    if problem.exactly:
        model += pulp.lpSum(everything) >= problem.most_stations
    if problem.money is not None:
        model += pulp.lpSum(kind.price * row[k] for row in built for k, kind in enumerate(kinds)) <= problem.money + 1e-9
    if problem.grid_limit is not None:
        for i in range(grids):
            model += pulp.lpSum(stations[i]) <= int(problem.grid_limit[i])
    per_draw = [pulp.lpSum(term for s, term in totals if s == draw) for draw in range(draws)]
    objective = pulp.lpSum(per_draw) * (1 / draws)
    if problem.cvar is not None:
        eta, below = model.add_variable("eta"), [model.add_variable(f"b_{s}", 0) for s in range(draws)]
        for z, b in zip(per_draw, below, strict=True):
            model += b >= eta - z
        tail = eta - pulp.lpSum(below) * (1 / ((1 - problem.cvar.level) * draws))
        objective = (1 - problem.cvar.weight) * objective + problem.cvar.weight * tail
    model += objective
    model.solve(pulp.HiGHS(msg=False, gapRel=1e-9, threads=1))
    return float(pulp.value(model.objective))


@SLOW
@given(problems())
def test_a_plan_is_as_good_as_the_best_of_all_plans_and_keeps_every_bound(problem: DeploymentProblem) -> None:
    found = plan(problem, EXACT)
    best = brute_force(problem)
    assert found.proof.status == "optimal"
    assert value(problem, found.stations) == pytest.approx(best, rel=1e-7, abs=1e-4)
    assert allowed(problem, found.built)
    np.testing.assert_array_equal(found.stations, problem.standing + found.built)


@SLOW
@given(problems())
def test_the_separable_programme_has_the_optimum_of_eq_12_written_out(problem: DeploymentProblem) -> None:
    assert plan(problem, EXACT).proof.objective == pytest.approx(written_out(problem), rel=1e-6, abs=1e-4)


@SLOW
@given(problems())
def test_the_objective_reported_is_the_original_one_of_the_stations_and_within_the_bound(problem: DeploymentProblem) -> None:
    found = plan(problem, EXACT)
    assert found.proof.objective == pytest.approx(value(problem, found.stations), rel=1e-12, abs=1e-9)
    assert found.proof.bound == pytest.approx(found.proof.objective, rel=1e-6, abs=1e-4)
    assert found.proof.bound >= found.proof.objective


@SLOW
@given(problems(exactly=False), st.sampled_from([0.125, 1e-9, 3.7, 1e12]))
def test_the_unit_of_demand_and_capacity_changes_nothing(problem: DeploymentProblem, factor: float) -> None:
    kinds = tuple(replace(k, capacity=factor * k.capacity, operating_cost=factor * k.operating_cost) for k in problem.station_types)
    scaled = replace(problem, demand=factor * problem.demand, station_types=kinds)
    first, second = plan(problem, EXACT), plan(scaled, EXACT)
    assert second.proof.objective == pytest.approx(factor * first.proof.objective, rel=1e-6, abs=1e-4 * factor)
    assert value(problem, second.stations) == pytest.approx(value(problem, first.stations), rel=1e-6, abs=1e-4)
    if factor == 0.125:  # a power of two rounds nothing
        np.testing.assert_array_equal(first.stations, second.stations)


@SLOW
@given(problems(exactly=False), st.integers(0, 3), st.floats(0, 3))
def test_more_budget_is_never_worse(problem: DeploymentProblem, stations: int, money: float) -> None:
    assert problem.most_stations is not None
    richer = replace(
        problem, most_stations=problem.most_stations + stations, money=None if problem.money is None else problem.money + money
    )
    before, after = plan(problem, EXACT).proof.objective, plan(richer, EXACT).proof.objective
    assert after >= before - 1e-4 - 1e-7 * abs(before)


def test_one_grid_by_hand() -> None:
    # Demand 5, 25; a station serves 10. One: 5 + 10 = 15, short 15. Two: 25, short 5. Three: 30. Each costs 2 x 2.
    problem = DeploymentProblem(
        demand=np.array([[[5.0, 25.0]]]), station_types=(StationType(capacity=10.0, price=3.0, operating_cost=2.0),), shortfall_weight=0.1
    )
    found = plan(problem)
    assert found.stations.tolist() == [[3]] and found.spent == 9.0
    assert found.terms.objective.tolist() == [pytest.approx(30 - 0 - 12)]
    one = deployment_terms(problem, np.array([[1]]))
    assert (one.served.item(), one.shortfall.item(), one.operating_cost.item()) == (15.0, 15.0, 4.0)
    assert one.objective.item() == pytest.approx(15 - 1.5 - 4)


def test_the_gap_is_relative_to_the_gain_so_an_objective_near_zero_has_one() -> None:
    """Half of the demand is served, so that served and short cancel; the gain over building nothing is what it was."""
    problem = DeploymentProblem(demand=np.full((1, 2, 3), 10.0), station_types=ONE, most_stations=1)
    proof = plan(problem).proof
    assert (proof.objective, proof.baseline, proof.gap) == (0.0, -60.0, 0.0)
    assert replace(proof, bound=6.0).gap == pytest.approx(0.1)


def test_a_station_that_costs_more_than_it_serves_is_not_built_unless_exactly_so_many_are_asked_for() -> None:
    dear = (StationType(capacity=10.0, operating_cost=6.0),)
    problem = DeploymentProblem(demand=np.full((1, 2, 3), 2.0), station_types=dear, most_stations=2)
    assert plan(problem).built.sum() == 0
    forced = plan(replace(problem, exactly=True))
    assert forced.built.sum() == 2
    assert forced.terms.operating_cost.sum() == 36.0


def test_no_station_is_built_where_it_would_be_idle_even_at_no_cost() -> None:
    problem = DeploymentProblem(demand=np.array([[[9.0], [31.0], [0.0]]]), station_types=ONE)
    assert plan(problem).built.ravel().tolist() == [1, 4, 0]


def test_a_peak_of_one_station_s_capacity_takes_one_station_whatever_rounding_says() -> None:
    kinds = (StationType(capacity=10 / 3), StationType(capacity=25.0, operating_cost=1.0))
    assert plan(DeploymentProblem(demand=np.full((1, 1, 1), 10 / 3), station_types=kinds)).built.tolist() == [[1, 0]]


def test_cvar_protects_the_bad_draw_where_the_mean_does_not() -> None:
    """Grid 0 wants 4 always. Grid 1 wants 10 in one draw of three, where all that is short is badly missed; one station fits the budget."""
    demand = np.array([[[4.0], [0.0]], [[4.0], [0.0]], [[4.0], [10.0]]])
    problem = DeploymentProblem(demand=demand, station_types=ONE, most_stations=1)
    assert plan(problem).built.ravel().tolist() == [1, 0]
    assert plan(replace(problem, cvar=Cvar(level=0.6))).built.ravel().tolist() == [0, 1]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.floats(0, 0.99))
@settings(deadline=None)
def test_tail_weights_give_the_least_mean_of_bounded_weights(values: list[float], level: float) -> None:
    array = np.array(values)
    weights = tail_weights(array, level)
    most = 1 / ((1 - level) * len(array))
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all() and (weights <= most * (1 + 1e-9)).all()
    by_threshold = max(eta - np.maximum(eta - array, 0).sum() * most for eta in array)
    assert weights @ array == pytest.approx(by_threshold, rel=1e-7, abs=1e-7)


def large(cvar: Cvar | None) -> DeploymentProblem:
    rng = np.random.default_rng(5)
    kinds = (StationType(capacity=7.0, price=1.0), StationType(capacity=16.0, price=1.9), StationType(capacity=23.0, price=3.1))
    return DeploymentProblem(demand=rng.gamma(0.8, 30.0, (6, 40, 8)), station_types=kinds, money=30.0, cvar=cvar)


@pytest.mark.parametrize("cvar", [None, Cvar(level=0.7, weight=0.5)])
def test_out_of_time_the_best_so_far_comes_back_with_its_gap(cvar: Cvar | None) -> None:
    problem = large(cvar)
    hasty = plan(problem, SolverLimits(seconds=0))
    assert hasty.proof.status == "time limit"
    assert allowed(problem, hasty.built) and hasty.spent > 25  # greedy spends while something is gained
    patient = plan(problem, SolverLimits(seconds=5, gap=1e-3))
    assert hasty.proof.bound >= patient.proof.objective >= hasty.proof.objective
    assert hasty.proof.gap > patient.proof.gap >= 0


def test_a_programme_of_too_many_capacities_is_refused() -> None:
    problem = DeploymentProblem(demand=np.full((1, 2, 1), 30.0), station_types=(StationType(capacity=1.0),))
    assert plan(problem, SolverLimits(segments=60)).built.tolist() == [[30], [30]]
    with pytest.raises(ValueError, match=r"station_types: 1 types combine into more than 59 capacities over 2 grids"):
        plan(problem, SolverLimits(segments=59))


def test_stations_too_small_to_count_are_built_as_far_as_they_may() -> None:
    problem = DeploymentProblem(demand=np.full((1, 1, 1), 1e15), station_types=(StationType(capacity=1e-9),), most_stations=2)
    assert plan(problem).built.tolist() == [[2]]


def test_out_of_time_exactly_so_many_stations_are_built_within_the_money() -> None:
    """The large type gains most, but one of them leaves too little for the second station."""
    kinds = (StationType(capacity=4.0, price=1.0), StationType(capacity=25.0, price=1.7))
    problem = DeploymentProblem(demand=np.full((1, 2, 1), 30.0), station_types=kinds, most_stations=2, exactly=True, money=2.5)
    found = plan(problem, SolverLimits(seconds=0))
    assert allowed(problem, found.built)
    assert found.built.sum(axis=0).tolist() == [2, 0]


def test_a_start_that_the_solver_rejects_for_rounding_is_kept_where_it_finds_nothing() -> None:
    model = pulp.LpProblem("start", pulp.LpMaximize)
    x, y = model.add_variable("x", lowBound=0, upBound=9, cat="Integer"), model.add_variable("y", lowBound=0)
    model += -1.0 * x - y
    model += x + y >= 2.5
    x.setInitialValue(2)
    y.setInitialValue(0.5 - 1e-5)
    status, _ = maximise(model, SolverLimits(seconds=0), time.monotonic())
    assert (status, x.varValue, y.varValue) == ("time limit", 2, 0.5 - 1e-5)


def test_time_is_kept() -> None:
    found = plan(large(Cvar(level=0.7, weight=0.5)), SolverLimits(seconds=1.0, gap=0.0))
    assert found.proof.seconds < 6  # a second for the solver, the rest for a busy machine


def test_the_same_problem_has_the_same_plan() -> None:
    coarse = SolverLimits(gap=0.02)  # far from the time limit, which is no stopping rule that repeats
    np.testing.assert_array_equal(plan(large(None), coarse).stations, plan(large(None), coarse).stations)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"existing": np.array([[3], [0]]), "grid_limit": np.array([2, 2])},
            r"existing: 3 stations in grid 0, expected at most its grid_limit of 2",
        ),
        ({"exactly": True}, r"exactly: True without most_stations"),
        (
            {"exactly": True, "most_stations": 4, "grid_limit": np.array([2, 2]), "existing": np.array([[1], [0]])},
            r"most_stations: exactly 4 to build, expected at most 3",
        ),
        ({"exactly": True, "most_stations": 4, "money": 3.0}, r"money: 3, expected at least 4: exactly 4 stations"),
        ({"money": -1.0}, r"money: -1\.0, expected a finite number of at least 0"),
        ({"most_stations": -1}, r"most_stations: -1"),
        ({"demand": np.array([[[1.0], [np.nan]]])}, r"demand\[0, 1, 0\]: nan, expected a finite number of at least 0 \(1 of 2"),
        ({"demand": np.array([[[1.0], [-2.0]]])}, r"demand\[0, 1, 0\]: -2\.0"),
        ({"demand": np.ones((2, 3))}, r"demand: shape \(2, 3\), expected \(draws, grids, slots\)"),
        ({"existing": np.array([[1.0], [0.0]])}, r"existing: dtype float64, expected whole numbers"),
        ({"existing": np.array([[1, 0]])}, r"existing: shape \(1, 2\), expected \(grids, types\) of sizes \(2, 1\)"),
        ({"grid_limit": np.array([1])}, r"grid_limit: shape \(1,\)"),
        ({"station_types": ()}, r"station_types: none given"),
        ({"shortfall_weight": float("nan")}, r"shortfall_weight: nan"),
    ],
)
def test_a_mistake_is_named(change: dict[str, object], message: str) -> None:
    fine = {"demand": np.ones((1, 2, 1)), "station_types": ONE}
    with pytest.raises(ValueError, match=message):
        DeploymentProblem(**(fine | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("capacity", [0.0, -1.0, float("inf"), float("nan")])
def test_a_capacity_that_is_none_is_named(capacity: float) -> None:
    with pytest.raises(ValueError, match="capacity"):
        StationType(capacity=capacity)


def test_too_many_combinations_are_refused_with_a_way_out() -> None:
    kinds = tuple(StationType(capacity=float(capacity)) for capacity in (1.0, np.sqrt(2), np.sqrt(3)))
    with pytest.raises(ValueError, match="expected a smaller grid_limit"):
        plan(DeploymentProblem(demand=np.full((1, 300, 1), 60.0), station_types=kinds))
