"""The pages of decisions: what they tell is what was found, pictures are there where places are known, and both are deterministic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from raytraffic.config.decisions import DeploymentSettings, SleepSettings
from raytraffic.decisions import outcome
from raytraffic.decisions.deployment_program import plan
from raytraffic.decisions.outcome import Deployed, Slept, plan_table, schedule_table
from raytraffic.decisions.problems import FORECAST, REAL, deployment_problem, installed, sleep_problem, strategy_demands
from raytraffic.decisions.reading import Demand, station_types
from raytraffic.decisions.sleep_chain import schedule
from raytraffic.files import Location
from raytraffic.report.decision_plots import Places, station_maps
from raytraffic.report.decisions import deployment_report, sleep_report

RNG = np.random.default_rng(3)
LEVEL = RNG.gamma(2.0, 10.0, (6, 1))
SITES = tuple(("<east>", f"r{i // 3}c{i % 3}") for i in range(6))
SLOTS = np.datetime64("2024-01-15T00:00", "s") + np.arange(8) * np.timedelta64(3600, "s")
DEMAND = Demand(sites=SITES, slots=SLOTS, draws=LEVEL * RNG.gamma(9.0, 1 / 9, (5, 6, 8)))
TRUTH = LEVEL * RNG.gamma(9.0, 1 / 9, (6, 8))


def deployed(demand: Demand = DEMAND, real: np.ndarray | None = TRUTH, weights: Mapping[str, np.ndarray] | None = None) -> Deployed:
    """A deployment of two types beside one station that stands."""
    kinds = ("macro=30,2,1", "micro=10,1,0.4")
    types = station_types(kinds)
    settings = DeploymentSettings(station_types=kinds, money=7.0)
    problem = deployment_problem(settings, demand.draws, list(types.values()), np.eye(6, 2, dtype=np.int64))
    demands = strategy_demands(demand, real, None, weights or {})
    plans = {name: plan(replace(problem, demand=one)) for name, one in demands.items()}
    return outcome.deployed(demand, real, list(types), problem, plans)


def slept(real: np.ndarray | None = TRUTH) -> Slept:
    """A schedule whose first cell has too few RRUs for its promise."""
    settings = SleepSettings(rrus=4, rru_capacity=10.0, served_share=0.8)
    cells = installed(settings, SITES)
    problem = sleep_problem(settings, DEMAND.draws, cells, promise=False)
    loads = strategy_demands(DEMAND, real, None, {})
    found = {name: schedule(sleep_problem(settings, load, cells, promise=name != REAL)) for name, load in loads.items()}
    active, proofs = {name: one.active for name, one in found.items()}, {name: one.proof for name, one in found.items()}
    return outcome.slept(DEMAND, real, cells, problem, active, proofs, found[FORECAST].overloaded)


def page(place: Location) -> str:
    """A report's text."""
    return place.read_bytes().decode()


def cells(text: str, row: str) -> list[list[str]]:
    """The cells of every table row of this name."""
    found = re.findall(rf'<th scope="row">{re.escape(row)}</th>(.*?)</tr>', text)
    return [[unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", one)] for one in found]


def test_the_deployment_page_tells_the_plan(tmp_path: Path) -> None:
    found = deployed()
    text = page(deployment_report(Location.of(tmp_path), found, None, {"out": "x"}))
    served = found.value("served_ratio")
    assert f"{int(found.plan.built.sum())} stations to build" in text and "beside 2 that stand" in text
    assert (
        f"{served.promised:.1%} as forecast (80% of draws: {served.low:.1%} to {served.high:.1%}), {served.real:.1%} as it really" in text
    )
    assert "Solver: optimal" in text and "5 draws of 8 slots of 60 minutes from 2024-01-15 00:00" in text
    judged, promised = cells(text, "forecast")
    assert float(judged[0]) == pytest.approx(served.real, abs=1e-3) and promised[0].startswith(f"{served.promised:.3g} (")
    assert cells(text, "real")[0][-1] == "100.0%" and cells(text, "nothing built")[0][-1] == "0.0%"
    unserved = np.maximum(TRUTH - (found.plan.stations @ found.problem.capacities)[:, None], 0).mean(axis=1)
    worst = int(unserved.argmax())
    (row,) = cells(text, f"&lt;east&gt;/{SITES[worst][1]}")
    assert float(row[-1]) == pytest.approx(unserved[worst], abs=0.01) and int(row[1]) == found.plan.stations[worst].sum()
    listed = re.findall(r'<th scope="row">&lt;east&gt;/(r\dc\d)</th>', text)
    assert listed == [SITES[i][1] for i in np.argsort(-unserved, kind="stable")]
    assert len(re.findall("<img", text)) == 2
    assert "<east>" not in text and "&lt;east&gt;" in text


def test_strategies_of_weights_stand_beside_the_others(tmp_path: Path) -> None:
    found = deployed(weights={"poi": np.arange(6.0), "<residents>": np.ones(6)})
    text = page(deployment_report(Location.of(tmp_path), found, None, {}))
    assert list(found.proofs) == ["forecast", "mean forecast", "poi", "<residents>", "real"]
    for name in ("poi", "<residents>"):
        judged, promised = cells(text, escape(name))
        row = found.value("served_ratio", name)
        assert float(judged[0]) == pytest.approx(row.real, abs=1e-3) and promised[0].startswith(f"{row.promised:.3g}")


def test_a_page_without_real_traffic_says_so(tmp_path: Path) -> None:
    text = page(deployment_report(Location.of(tmp_path), deployed(real=None), None, {}))
    assert "give `real`" in text and "as it really came" not in text and len(cells(text, "forecast")) == 1
    assert "really came" not in page(sleep_report(Location.of(tmp_path), slept(real=None), {}))


def test_maps_follow_places_and_not_names_where_degrees_are_given(tmp_path: Path) -> None:
    named = replace(DEMAND, sites=tuple(("", f"site {i}") for i in range(6)))
    unplaced = page(deployment_report(Location.of(tmp_path), deployed(named), None, {}))
    assert "Where stations stand" not in unplaced
    degrees = {"lat": 28.6 + 0.01 * np.arange(6), "lon": np.full(6, 115.9)}
    assert "Where stations stand" in page(deployment_report(Location.of(tmp_path), deployed(named), degrees, {}))


def test_grid_names_are_places() -> None:
    found = Places.of_names(["r2c0", "r0c11"])
    assert found is not None and found.grid and found.xy.tolist() == [[0, 2], [11, 0]]
    assert Places.of_names(["r0c0", "a"]) is None and Places.of_names(["r0c0", "r0c0"]) is None
    plane = Places.of_degrees(np.array([0.0, 0.01]), np.array([10.0, 10.0]))
    assert not plane.grid and plane.xy[1, 1] - plane.xy[0, 1] == pytest.approx(1106, abs=2) and plane.xy[:, 0] == pytest.approx([0, 0])


@pytest.mark.parametrize("grid", [True, False])
def test_stations_are_drawn_on_their_sites(grid: bool) -> None:
    degrees = 28.6 + 0.01 * np.arange(6), 115.9 + 0.02 * np.arange(6) ** 2
    places = Places.of_names([name for _, name in SITES]) if grid else Places.of_degrees(*degrees)
    assert places is not None
    left, right = Figure().subplots(1, 2)
    built, existing = np.array([0, 2, 0, 0, 1, 0]), np.array([0, 0, 0, 3, 0, 0])
    station_maps(left, right, places, demand=LEVEL[:, 0], unserved=LEVEL[:, 0] / 2, built=built, existing=existing)
    circles = [one for one in left.collections if len(one.get_offsets()) in (1, 2)]
    assert [one.get_offsets().tolist() for one in circles] == [places.drawn[counts > 0].tolist() for counts in (existing, built)]
    assert circles[1].get_sizes()[0] == 2 * circles[1].get_sizes()[1]
    if grid:
        shown = np.asarray(left.images[0].get_array())
        assert [shown[int(row), int(column)] for column, row in places.drawn] == LEVEL[:, 0].tolist()
    else:
        np.testing.assert_allclose(left.collections[0].get_offsets(), places.drawn)
        assert np.abs(places.drawn).max() < 100


def test_the_sleep_page_tells_the_schedule(tmp_path: Path) -> None:
    found = slept()
    text = page(sleep_report(Location.of(tmp_path), found, {}))
    assert f"{1 - found.active.sum() / (4 * 6 * 8):.1%} of the radio units sleep" in text
    assert f"{found.overloaded.sum()} slots of" in text and found.overloaded.any()
    cost = {row.strategy: row.real for row in found.judged if row.name == "objective"}
    assert cost[REAL] == min(cost.values())  # type: ignore[type-var]
    assert cells(text, "real")[0][-1] == "100.0%" and cells(text, "all on")[0][-1] == "0.0%"
    assert len(re.findall("<img", text)) == 3


def test_pages_are_the_same_bytes(tmp_path: Path) -> None:
    plan_found, sleep_found = deployed(), slept()
    for name in ("a", "b"):
        deployment_report(Location.of(tmp_path / name / "plan"), plan_found, None, {})
        sleep_report(Location.of(tmp_path / name / "sleep"), sleep_found, {})
    for kind in ("plan", "sleep"):
        assert (tmp_path / "a" / kind / "report.html").read_bytes() == (tmp_path / "b" / kind / "report.html").read_bytes()


def test_tables_have_a_row_a_site_and_slot() -> None:
    plan_rows, found = plan_table(deployed()).to_pandas(), deployed()
    assert [tuple(row) for row in plan_rows[["city", "unique_id"]].to_numpy().tolist()] == list(SITES)
    np.testing.assert_array_equal(plan_rows[["stations_macro", "stations_micro"]], found.plan.stations)
    np.testing.assert_allclose(plan_rows["capacity"], 30 * plan_rows["stations_macro"] + 10 * plan_rows["stations_micro"])
    np.testing.assert_allclose(
        plan_rows["unserved"], np.maximum(DEMAND.draws - plan_rows["capacity"].to_numpy()[:, None], 0).mean(axis=(0, 2))
    )
    rows, schedule_of = schedule_table(slept()).to_pandas(), slept()
    assert len(rows) == 48 and rows["unique_id"].tolist()[7:9] == ["r0c0", "r0c1"]
    np.testing.assert_array_equal(rows["active"].to_numpy().reshape(6, 8), schedule_of.active)
    np.testing.assert_array_equal(rows["real_load"].to_numpy().reshape(6, 8), TRUTH)
    np.testing.assert_array_equal(rows["ds"].to_numpy()[:8].astype("datetime64[s]"), SLOTS)
