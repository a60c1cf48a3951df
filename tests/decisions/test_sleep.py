"""Sleep control: the chain against brute force and against the integer programme; constraints, invariances, refusals."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raytraffic.decisions import sleep_chain
from raytraffic.decisions.sleep import EnergyCosts, SleepProblem, demand_quantile, sleep_terms
from raytraffic.decisions.sleep_chain import schedule
from raytraffic.decisions.sleep_program import schedule_by_program
from raytraffic.decisions.solver import SolverLimits

EXACT = SolverLimits(gap=1e-9)
SLOW = settings(max_examples=60, deadline=None)


@st.composite
def problems(draw: st.DrawFn, slots: int = 6, cells: int = 3, most: int = 3) -> SleepProblem:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cells = draw(st.integers(1, cells))
    draws, slots = draw(st.integers(1, 4)), draw(st.integers(1, slots))
    least = draw(st.integers(0, 1))
    rrus = rng.integers(least, most + 1, cells)
    load = rng.gamma(0.8, 1.5, (draws, cells, slots)) * (rng.random((draws, cells, slots)) < 0.8)
    return SleepProblem(
        load=load,
        rru_capacity=rng.uniform(0.5, 1.5, cells),
        rrus=rrus,
        energy=EnergyCosts(
            # 2.0 makes it dearer to serve than to refuse: the terms are then concave in x.
            per_load=draw(st.sampled_from([0.0, 0.05, 2.0])),
            per_loaded_rru=draw(st.sampled_from([0.0, 0.1])),
            per_active_rru=draw(st.sampled_from([0.0, 0.02, 0.3])),
        ),
        switch_cost=draw(st.sampled_from([0.0, 0.05, 0.3, 1.0])),
        must_serve=demand_quantile(load, draw(st.sampled_from([0.3, 0.9]))) if draw(st.booleans()) else None,
        least_active=least,
        initial=rng.integers(0, rrus + 1) if draw(st.booleans()) else None,
        least_on_slots=draw(st.integers(1, 4)),
        least_off_slots=draw(st.integers(1, 4)),
    )


def value(problem: SleepProblem, active: NDArray[np.integer]) -> float:
    """Eq. 13 slot by slot, the mean over draws."""
    total = 0.0
    for m, c0 in enumerate(problem.rru_capacity):
        before = active[m, 0] if problem.initial is None else problem.initial[m]
        for t in range(problem.slots):
            x = int(active[m, t])
            total += problem.switch_cost * abs(x - int(before)) + problem.energy.per_active_rru * x
            before = x
            for load in problem.load[:, m, t]:
                refused = max(load - x * c0, 0) / load if load > 0 else 0.0
                served = min(load, x * c0)
                total += (refused + problem.energy.per_load * served + problem.energy.per_loaded_rru * served / c0) / len(problem.load)
    return total


def allowed(problem: SleepProblem, m: int, active: NDArray[np.integer]) -> bool:
    """Whether counts (slots,) of cell m keep every constraint, from their definitions."""
    course = active if problem.initial is None else np.concatenate([problem.initial[m : m + 1], active])
    change = np.diff(course)
    for t, step in enumerate(change):
        if step < 0 and (change[max(0, t - problem.least_on_slots + 1) : t] > 0).any():
            return False
        if step > 0 and (change[max(0, t - problem.least_off_slots + 1) : t] < 0).any():
            return False
    needed = np.full(problem.slots, problem.least_active)
    if problem.must_serve is not None:
        needed = np.maximum(needed, np.ceil(problem.must_serve[m] / problem.rru_capacity[m] - 1e-9))
    return bool((active <= problem.rrus[m]).all() and (active >= np.minimum(needed, problem.rrus[m])).all())


def brute_force(problem: SleepProblem) -> float:
    total = 0.0
    for m in range(problem.cells):
        one = problem.of_cells(slice(m, m + 1))
        courses = (np.array(x) for x in itertools.product(range(int(problem.rrus[m]) + 1), repeat=problem.slots))
        total += min(value(one, course[None]) for course in courses if allowed(problem, m, course))
    return total


@SLOW
@given(problems(slots=5, cells=2, most=2))
def test_the_chain_is_as_good_as_the_best_of_all_schedules(problem: SleepProblem) -> None:
    assert -schedule(problem).proof.objective == pytest.approx(brute_force(problem), rel=1e-9, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_the_chain_and_the_integer_programme_agree(problem: SleepProblem) -> None:
    chain, programme = schedule(problem), schedule_by_program(problem, EXACT)
    assert programme.proof.status == "optimal"
    assert chain.proof.objective == pytest.approx(programme.proof.objective, rel=1e-6, abs=1e-5)
    np.testing.assert_array_equal(chain.overloaded, programme.overloaded)


@SLOW
@given(problems(slots=12))
def test_every_schedule_keeps_its_constraints_and_reports_the_original_objective(problem: SleepProblem) -> None:
    for found in (schedule(problem), schedule_by_program(problem, SolverLimits(seconds=0.05))):
        assert all(allowed(problem, m, row) for m, row in enumerate(found.active))
        assert -found.proof.objective == pytest.approx(value(problem, found.active), rel=1e-9, abs=1e-9)
        assert found.proof.bound >= found.proof.objective


@SLOW
@given(problems(slots=12), st.sampled_from([0.125, 1e-9, 3.7, 1e12]))
def test_the_unit_of_load_and_capacity_changes_nothing(problem: SleepProblem, factor: float) -> None:
    scaled = replace(
        problem,
        load=factor * problem.load,
        rru_capacity=factor * problem.rru_capacity,
        must_serve=None if problem.must_serve is None else factor * problem.must_serve,
        energy=replace(problem.energy, per_load=problem.energy.per_load / factor),
    )
    first, second = schedule(problem), schedule(scaled)
    assert first.proof.objective == pytest.approx(second.proof.objective, rel=1e-9, abs=1e-9)
    if factor == 0.125:  # a power of two rounds nothing
        np.testing.assert_array_equal(first.active, second.active)


@given(problems(slots=12, cells=5), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_cells_are_independent_so_pieces_of_a_fleet_are_the_fleet(problem: SleepProblem, step: int) -> None:
    whole = schedule(problem)
    pieces = [schedule(problem.of_cells(slice(first, first + step))) for first in range(0, problem.cells, step)]
    np.testing.assert_array_equal(whole.active, np.concatenate([piece.active for piece in pieces]))
    assert whole.proof.objective == pytest.approx(sum(piece.proof.objective for piece in pieces))


def test_the_pieces_that_bound_memory_leave_the_schedule_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = fleet(cells=7)
    whole = schedule(problem)
    monkeypatch.setattr(sleep_chain, "_PIECE_BYTES", 20_000)
    pieced = schedule(problem)
    np.testing.assert_array_equal(whole.active, pieced.active)
    np.testing.assert_array_equal(whole.terms.refused, pieced.terms.refused)
    np.testing.assert_array_equal(whole.overloaded, pieced.overloaded)


def fleet(cells: int) -> SleepProblem:
    rng = np.random.default_rng(3)
    load = rng.gamma(2.0, 1.0, (3, cells, 30))
    return SleepProblem(
        load=load,
        rru_capacity=np.full(cells, 1.0),
        rrus=np.full(cells, 5),
        energy=EnergyCosts(per_active_rru=0.1),
        switch_cost=0.1,
        must_serve=demand_quantile(load, 0.7),
        least_on_slots=2,
    )


def one_cell(slots: list[float], **changes: object) -> SleepProblem:
    problem = SleepProblem(
        load=np.array(slots)[None, None],
        rru_capacity=np.array([1.0]),
        rrus=np.array([2]),
        energy=EnergyCosts(per_active_rru=0.1),
        switch_cost=0.15,
    )
    return replace(problem, **changes)  # type: ignore[arg-type]


def test_a_day_by_hand() -> None:
    """Load 2, 0, 0, 0, 2: sleeping three slots saves 2 x 3 x 0.1 = 0.6, and four switches cost as much at 0.15."""
    cheap = schedule(one_cell([2, 0, 0, 0, 2], switch_cost=0.14))
    assert cheap.active.tolist() == [[2, 0, 0, 0, 2]]
    assert cheap.terms.switches.tolist() == [4] and cheap.terms.refused.item() == 0
    assert -cheap.proof.objective == pytest.approx(0.4 + 4 * 0.14)
    assert schedule(one_cell([2, 0, 0, 0, 2], switch_cost=0.16)).active.tolist() == [[2, 2, 2, 2, 2]]


def test_the_terms_of_eq_13_by_hand() -> None:
    problem = one_cell([4.0, 0.0, 1.0], initial=np.array([2]), energy=EnergyCosts(per_load=0.5, per_loaded_rru=0.25, per_active_rru=0.1))
    terms = sleep_terms(problem, np.array([[1, 1, 2]]))
    assert terms.refused.item() == 0.75  # 3 of 4, nothing of nothing, nothing of 1
    assert terms.switches.item() == 2
    assert terms.energy.item() == pytest.approx(0.75 * (1 + 0 + 1) + 0.1 * 4)
    assert terms.objective.item() == pytest.approx(0.75 + 0.15 * 2 + terms.energy.item())


def test_the_first_slot_s_switches_cost_only_where_the_state_before_is_given() -> None:
    assert schedule(one_cell([2.0])).terms.switches.tolist() == [0]
    found = schedule(one_cell([2.0], initial=np.array([0])))
    assert (found.active.tolist(), found.terms.switches.tolist()) == ([[2]], [2])


def test_as_printed_sleeping_saves_nothing_so_everything_stays_on() -> None:
    """Why the header adds gamma: with alpha and beta alone no schedule is better than all RRUs always on."""
    problem = one_cell([2, 0, 1, 0, 2], energy=EnergyCosts(per_load=0.1, per_loaded_rru=0.2), initial=np.array([2]))
    always = np.full((1, 5), 2)
    assert -schedule(problem).proof.objective == pytest.approx(value(problem, always))


def test_a_least_time_off_keeps_a_cell_awake_through_a_short_lull() -> None:
    lull = [2.0, 2.0, 0.0, 0.0, 2.0, 2.0]
    assert schedule(one_cell(lull, switch_cost=0.01)).active.tolist() == [[2, 2, 0, 0, 2, 2]]
    assert schedule(one_cell(lull, switch_cost=0.01, least_off_slots=2)).active.tolist() == [[2, 2, 0, 0, 2, 2]]
    assert schedule(one_cell(lull, switch_cost=0.01, least_off_slots=3)).active.tolist() == [[2, 2, 2, 2, 2, 2]]


def test_a_least_time_on_keeps_a_cell_on_after_a_short_peak() -> None:
    peak, off = [2.0, 0.0, 0.0, 0.0], np.array([0])
    assert schedule(one_cell(peak, switch_cost=0.01, initial=off)).active.tolist() == [[2, 0, 0, 0]]
    assert schedule(one_cell(peak, switch_cost=0.01, initial=off, least_on_slots=3)).active.tolist() == [[2, 2, 2, 0]]


@given(st.integers(0, 1000), st.integers(1, 12), st.floats(0.01, 1))
@settings(max_examples=50, deadline=None)
def test_the_chance_constraint_serves_the_share_of_draws_and_one_rru_less_does_not(seed: int, draws: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    load = rng.gamma(1.0, 2.0, (draws, 2, 4))
    problem = SleepProblem(
        load=load,
        rru_capacity=np.array([0.7, 1.1]),
        rrus=np.array([60, 60]),
        # Refusing is cheap beside power: only the constraint keeps RRUs on, so no more are active than it needs.
        energy=EnergyCosts(per_active_rru=100.0),
        switch_cost=0.0,
        must_serve=demand_quantile(load, share),
    )
    active = schedule(problem).active
    served = (load <= active * problem.rru_capacity[:, None] * (1 + 1e-9)).mean(axis=0)
    fewer = (load <= (active - 1) * problem.rru_capacity[:, None]).mean(axis=0)
    assert (served >= share - 1e-9).all() and (fewer < share).all()


def test_more_load_than_all_rrus_can_serve_is_reported_and_all_of_them_are_on() -> None:
    found = schedule(one_cell([1.0, 9.0, 1.0], must_serve=np.array([[1.0, 9.0, 1.0]]), switch_cost=0.0))
    assert found.overloaded.tolist() == [[False, True, False]]
    assert found.active.tolist() == [[1, 2, 1]]


def test_a_load_of_whole_rrus_needs_no_rru_more_for_rounding() -> None:
    problem = one_cell([0.3], must_serve=np.array([[0.1 + 0.2]]), rru_capacity=np.array([0.1]), rrus=np.array([9]))
    assert problem.needed().tolist() == [[3]]


def test_out_of_time_the_programme_returns_a_schedule_that_holds() -> None:
    problem = replace(fleet(cells=4), least_off_slots=3)
    hasty = schedule_by_program(problem, SolverLimits(seconds=0))
    exact = schedule(problem)
    assert hasty.proof.status == "time limit" and hasty.proof.gap > 0
    assert hasty.proof.bound >= exact.proof.objective - 1e-6 and exact.proof.objective >= hasty.proof.objective
    assert all(allowed(problem, m, row) for m, row in enumerate(hasty.active))


def test_out_of_time_cells_that_were_not_reached_keep_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = fleet(cells=5)
    monkeypatch.setattr("raytraffic.decisions.sleep_chain._PIECE_BYTES", 1.0)  # every cell a piece
    best, clock = schedule(problem), itertools.count()
    # A second goes by before each piece, by a clock that no other thread looks at.
    monkeypatch.setattr("raytraffic.decisions.sleep_chain.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    found = schedule(problem, seconds=3)
    np.testing.assert_array_equal(found.active[:2], best.active[:2])
    assert (found.active[2:] == problem.rrus[2:, None]).all() and (best.active[2:] != problem.rrus[2:, None]).any()
    assert found.proof.status == "time limit" and found.proof.gap == math.inf and found.proof.objective < best.proof.objective
    assert -found.proof.objective == pytest.approx(value(problem, found.active))
    np.testing.assert_array_equal(found.overloaded, best.overloaded)


def test_demand_quantile_is_an_order_statistic() -> None:
    draws = np.arange(1.0, 11.0)[::-1, None, None]
    assert [demand_quantile(draws, share).item() for share in (0.01, 0.1, 0.11, 0.7, 0.9, 1.0)] == [1, 1, 2, 7, 9, 10]
    with pytest.raises(ValueError, match=r"share: 0, expected a share in \(0, 1\]"):
        demand_quantile(draws, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"load": np.full((1, 1, 2), np.nan)}, r"load\[0, 0, 0\]: nan"),
        ({"load": np.array([["a"]])[None]}, r"load: dtype <U1, expected numbers"),
        ({"rru_capacity": np.array([0.0])}, r"rru_capacity\[0\]: 0\.0, expected a finite number above 0"),
        ({"rru_capacity": 3.0}, r"rru_capacity: a float, expected a numpy array \(cells,\)"),
        ({"rrus": np.array([2.0])}, r"rrus: dtype float64, expected whole numbers"),
        ({"rrus": np.array([2, 2])}, r"rrus: shape \(2,\)"),
        ({"initial": np.array([3])}, r"initial: 3 for cell 0, expected at most its 2 rrus"),
        ({"least_active": 3}, r"least_active: 3 for cell 0, expected at most its 2 rrus \(1 of 1 cells"),
        ({"must_serve": np.array([[1.0]])}, r"must_serve: shape \(1, 1\), expected \(cells, slots\) of sizes \(1, 2\)"),
        ({"switch_cost": -0.1}, r"switch_cost: -0\.1"),
        ({"least_on_slots": 0}, r"least_on_slots: 0, expected a whole number of at least 1"),
    ],
)
def test_a_mistake_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_cell([1.0, 2.0], **change)


def test_a_negative_energy_is_named() -> None:
    with pytest.raises(ValueError, match="per_load: -1"):
        EnergyCosts(per_load=-1)
