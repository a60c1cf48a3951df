"""Decisions over HTTP: those of raytraffic.decisions on the same draws; what does not fit is named by its path; time limits are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import httpx2
import numpy as np
import pyarrow as pa
import pytest

from raytraffic.config.decisions import DeploymentSettings, SleepSettings
from raytraffic.decisions import sleep_chain
from raytraffic.decisions.deployment import Cvar, DeploymentProblem, StationType
from raytraffic.decisions.deployment_program import plan
from raytraffic.decisions.evaluation import deployment_measures, interval, sleep_measures
from raytraffic.decisions.problems import Installed, sleep_problem
from raytraffic.decisions.reading import Demand, demand_of_table
from raytraffic.decisions.sleep_chain import schedule
from raytraffic.serving.access import Access
from raytraffic.serving.admission import Admission, Busy
from raytraffic.serving.limits import Limits
from raytraffic.serving.planner import Answer, SleepControl, Wanted, decide_by
from raytraffic.serving.planning import DeploymentBody, SleepBody
from raytraffic.serving.query import ARROW
from raytraffic.serving.routes import build_api, guarded
from raytraffic.serving.service import ForecastService
from tests.serving.local_stages import LocalPlanner, arrow_bytes, body_of, grid_city, json_bytes, service_of, small_model, station_city

SECRET = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {SECRET}"}
CITY = station_city(steps=14)
FORECAST = body_of(CITY, horizon=6, draws=4, steps=2, seed=4)
TYPES = {"macro": {"capacity": 180.0, "price": 2.0, "operating_cost": 5.0}, "micro": {"capacity": 60.0, "price": 1.0}}
BUILD: dict[str, Any] = {"station_types": TYPES, "money": 9.0, "grid_limit": 3, "existing": {"site 02": {"micro": 2}}, "cvar_weight": 0.5}
RRUS = {site: 2 + i for i, site in enumerate(CITY.sites)}
SLEEP: dict[str, Any] = {"rrus": RRUS, "rru_capacity": 40.0, "served_share": 0.75, "least_active": 1, "least_on_slots": 2}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ForecastService:
    """A small model, and one of two services."""
    folder = tmp_path_factory.mktemp("planning")
    models = small_model(folder / "one"), small_model(folder / "two", "two", services=2)
    return service_of(*models, chunk_tiles=2, limits=Limits(timeout_s=60))


async def _ready() -> bool:
    return True


def post(service: ForecastService, path: str, body: Any, kind: str = "application/json", faults: bool = False) -> httpx2.Response:
    """One request."""

    async def asked() -> httpx2.Response:
        app = guarded(build_api(service, _ready), service, Access(SECRET), lambda *_: None)
        transport = httpx2.ASGITransport(app, raise_app_exceptions=not faults)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            content = body if isinstance(body, bytes) else json_bytes(body)
            return await client.post(path, content=content, headers={**BEARER, "Content-Type": kind})

    return asyncio.run(asked())


def decided(service: ForecastService, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The decision."""
    answer = post(service, path, body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def drawn(service: ForecastService, forecast: dict[str, Any]) -> tuple[dict[str, Any], Demand]:
    """The columns that /v1/forecast answers, and the demand they are."""
    asked = arrow_bytes({**forecast, "keep_draws": True})
    table = pa.ipc.open_stream(post(service, "/v1/forecast", asked, ARROW).content).read_all()
    columns = post(service, "/v1/forecast", {**forecast, "keep_draws": True}).json()["columns"]
    return columns, demand_of_table("draws", table)


def direct_plan(demand: Demand, **changes: Any) -> DeploymentProblem:
    """What BUILD describes, without any of the server's code."""
    existing = np.zeros((len(demand.sites), 2), dtype=np.int64)
    existing[[name for _, name in demand.sites].index("site 02"), 1] = 2
    types = (StationType(capacity=180.0, price=2.0, operating_cost=5.0), StationType(capacity=60.0, price=1.0))
    limit = np.full(len(demand.sites), 3)

    problem = DeploymentProblem(
        demand=demand.draws, station_types=types, money=9.0, grid_limit=limit, existing=existing, cvar=Cvar(level=0.9, weight=0.5)
    )
    return replace(problem, **changes)


@pytest.mark.parametrize("given", ["forecast", "draws"])
def test_a_deployment_is_the_plan_for_the_same_draws(service: ForecastService, given: str) -> None:
    columns, demand = drawn(service, FORECAST)
    problem = direct_plan(demand)
    best = plan(problem)
    answer = decided(service, "/v1/deployment", {**BUILD, given: FORECAST if given == "forecast" else columns})
    assert answer["plan"]["unique_id"] == [name for _, name in demand.sites]
    for k, name in enumerate(TYPES):
        assert answer["plan"][f"built_{name}"] == best.built[:, k].tolist()
        assert answer["plan"][f"stations_{name}"] == best.stations[:, k].tolist()
    assert best.built.sum() == answer["built"] > 0 and answer["spent"] == best.spent <= 9
    assert answer["status"] == "optimal" and answer["solver_objective"] == pytest.approx(best.proof.objective) and answer["gap"] < 1e-3
    assert 0 < answer["solver_seconds"] < 60 and (answer["stations"], answer["slots"], answer["draws"]) == (5, 6, 4)
    assert (answer["forecast"] or {}).get("version") == (service.models["tiny"].version if given == "forecast" else None)


def test_what_is_promised_is_measured_over_the_draws(service: ForecastService) -> None:
    _, demand = drawn(service, FORECAST)
    problem = direct_plan(demand)
    answer = decided(service, "/v1/deployment", {**BUILD, "forecast": FORECAST})
    assert list(answer["measures"]) == ["forecast", "nothing built"]
    for strategy, stations in (("forecast", plan(problem).stations), ("nothing built", problem.standing)):
        for name, values in deployment_measures(problem, stations).items():
            low, high = interval(values, answer["interval_level"])
            assert answer["measures"][strategy][name] == pytest.approx({"mean": values.mean(), "low": low, "high": high})
    found = answer["measures"]["forecast"]["served_ratio"]
    assert found["low"] < found["mean"] < found["high"]


@pytest.mark.parametrize("given", ["forecast", "draws"])
def test_sleep_is_the_schedule_for_the_same_draws(service: ForecastService, given: str) -> None:
    columns, demand = drawn(service, FORECAST)
    cells = Installed(rrus=np.array([RRUS[name] for _, name in demand.sites]), rru_capacity=np.full(5, 40.0))
    problem = sleep_problem(SleepSettings(served_share=0.75, least_active=1, least_on_slots=2), demand.draws, cells)
    best = schedule(problem)
    answer = decided(service, "/v1/sleep", {**SLEEP, given: FORECAST if given == "forecast" else columns})
    told = answer["schedule"]
    assert told["active"] == best.active.tolist() and told["rrus"] == cells.rrus.tolist()
    assert told["overloaded_slots"] == best.overloaded.sum(axis=1).tolist() and sum(told["overloaded_slots"]) > 0
    assert answer["ds"] == [
        "2024-05-07T13:00",
        "2024-05-07T13:30",
        "2024-05-07T14:00",
        "2024-05-07T14:30",
        "2024-05-07T15:00",
        "2024-05-07T15:30",
    ]
    assert answer["status"] == "optimal" and answer["gap"] == 0 and answer["solver_objective"] == pytest.approx(best.proof.objective)
    energy = sleep_measures(problem, best.active)["energy_ratio"]
    assert answer["measures"]["forecast"]["energy_ratio"]["mean"] == pytest.approx(energy.mean())
    assert list(answer["measures"]) == ["forecast", "all on"]


def test_in_generation_what_was_measured_is_taken_as_it_is(service: ForecastService) -> None:
    city = replace(grid_city(steps=16), sites=[f"g{i}" for i in range(36)])
    city.traffic[:, :, [3, 20]] = np.nan
    forecast = body_of(city, task="generation", draws=3, steps=2)
    answer = decided(service, "/v1/sleep", {"rrus": 8, "rru_capacity": 30.0, "forecast": forecast})
    assert (answer["stations"], answer["slots"], answer["draws"]) == (36, 16, 3)
    assert sorted(answer["schedule"]["unique_id"]) == sorted(city.sites)
    planner = service.planner
    assert isinstance(planner, LocalPlanner) and isinstance(planner.asked[-1], SleepControl)
    demand = planner.asked[-1].demand
    order = [list(city.sites).index(name) for _, name in demand.sites]
    real = city.traffic[0].T[order]
    assert (demand.draws == real)[:, np.isfinite(real)].all() and np.isnan(real).sum() > 32
    spread = demand.draws.max(axis=0) - demand.draws.min(axis=0)
    assert (spread[np.isnan(real)] > 0).any() and (spread[np.isfinite(real)] == 0).all()


def test_one_of_several_services_is_decided_on(service: ForecastService) -> None:
    city = station_city("twice", steps=14, services=("video", "chat"))
    forecast = body_of(city, horizon=4, draws=3, steps=2, model="two")
    asked = {"station_types": TYPES, "forecast": forecast}
    refused = post(service, "/v1/deployment", asked)
    assert refused.status_code == 422 and refused.json()["detail"][0]["loc"] == ["body", "service"], refused.text
    answers = [decided(service, "/v1/deployment", {**asked, "service": name})["plan"]["demand"] for name in ("video", "chat")]
    assert answers[0] != answers[1]


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no forecast": ("deployment", {"forecast": None}, "body.forecast"),
    "two forecasts": ("deployment", {"draws": {"unique_id": ["a"], "ds": ["2024-01-01T00:00"], "draws": [[1.0]]}}, "body.forecast"),
    "a field of the forecast": ("deployment", {"forecast": FORECAST | {"horizon": 0}}, "body.forecast.horizon"),
    "a station of the forecast": (
        "sleep",
        {"forecast": FORECAST | {"traffic": [[None] * 14, *FORECAST["traffic"][1:]]}},
        "body.forecast.traffic.0",
    ),
    "an unknown city": ("sleep", {"forecast": FORECAST | {"city": "atlantis"}}, "body.forecast.city"),
    "a forecast's quantiles": ("sleep", {"forecast": FORECAST | {"quantiles": [0.5]}}, "body.forecast.quantiles"),
    "a forecast's deadline": ("sleep", {"forecast": FORECAST | {"timeout_s": 5}}, "body.forecast.timeout_s"),
    "an unknown field": ("deployment", {"moeny": 3}, "body.moeny"),
    "the other problem's field": ("deployment", {"rrus": 3}, "body.rrus"),
    "a capacity of nothing": ("deployment", {"station_types": {"macro": {"capacity": 0}}}, "body.station_types.macro.capacity"),
    "no type": ("deployment", {"station_types": {}}, "body.station_types"),
    "a negative budget": ("deployment", {"money": -1}, "body.money"),
    "an infeasible budget": ("deployment", {"money": 1.0, "most_stations": 4, "exactly": True}, "body.money"),
    "exactly nothing": ("deployment", {"exactly": True}, "body.exactly"),
    "more existing ones than fit": ("deployment", {"existing": {"site 02": {"micro": 4}}}, "body.existing"),
    "an unknown station": ("deployment", {"existing": {"site 99": {"micro": 1}}}, "body.existing.site 99"),
    "an unknown type": ("deployment", {"existing": {"site 02": {"nano": 1}}}, "body.existing.site 02.nano"),
    "too long a solver": ("deployment", {"seconds": 1e6}, "body.seconds"),
    "too long a deadline": ("sleep", {"timeout_s": 1e6}, "body.timeout_s"),
    "RRUs of some": ("sleep", {"rrus": {"site 01": 4}}, "body.rrus"),
    "RRUs of another": ("sleep", {"rrus": RRUS | {"site 99": 4}}, "body.rrus.site 99"),
    "half an RRU": ("sleep", {"rrus": {**RRUS, "site 01": 2.5}}, "body.rrus.site 01"),
    "more active than there are": ("sleep", {"least_active": 3}, "body.least_active"),
    "a share beyond one": ("sleep", {"served_share": 1.5}, "body.served_share"),
    "an unnamed service": ("sleep", {"service": "voice"}, "body.service"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named_by_its_path(service: ForecastService, name: str) -> None:
    path, changes, where = REFUSED[name]
    body = {**(BUILD if path == "deployment" else SLEEP), "forecast": FORECAST, **changes}
    answer = post(service, f"/v1/{path}", {key: value for key, value in body.items() if value is not None})
    assert answer.status_code == 422, answer.text
    told = {".".join(str(part) for part in problem["loc"]): problem["msg"] for problem in answer.json()["detail"]}
    assert told.get(where), told
    assert service.admission.requests == 0


DRAWS = {"unique_id": ["a", "a", "b", "b"], "ds": ["2024-01-01T00:00", "2024-01-01T01:00"] * 2, "draws": [[1.0, 2.0]] * 4}
DRAWN: dict[str, tuple[dict[str, Any], str, str]] = {
    "a hole": ({name: values[:3] for name, values in DRAWS.items()}, "body.draws", "no value of site 'b' at 2024-01-01T01:00:00"),
    "a negative draw": ({**DRAWS, "draws": [[1.0, -2.0]] * 4}, "body.draws", "a negative value of site 'a'"),
    "draws of several lengths": ({**DRAWS, "draws": [[1.0], [1.0], [1.0], [1.0, 2.0]]}, "body.draws", "[1, 2] draws a row"),
    "no draws": ({**DRAWS, "draws": [[]] * 4}, "body.draws", "(0, 2, 2)"),
    "columns of several lengths": ({**DRAWS, "ds": DRAWS["ds"][:3]}, "body.draws", "{'unique_id': 4, 'ds': 3, 'draws': 4}"),
    "a time with a zone": ({**DRAWS, "ds": ["2024-01-01T00:00Z", *DRAWS["ds"][1:]]}, "body.draws.ds.0", "timezone"),
    "too much": ({**DRAWS, "draws": [[1.0, 1e16]] * 4}, "body.draws.draws", "1e+16"),
    "uneven slots": (
        {**DRAWS, "unique_id": ["a"] * 4, "ds": [f"2024-01-01T0{hour}:00" for hour in (0, 1, 2, 4)]},
        "body.draws",
        "after slot",
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_that_are_none_are_refused(service: ForecastService, name: str) -> None:
    draws, where, told = DRAWN[name]
    answer = post(service, "/v1/sleep", {"rrus": 2, "rru_capacity": 1.0, "draws": draws})
    assert answer.status_code == 422, answer.text
    first = answer.json()["detail"][0]
    assert ".".join(str(part) for part in first["loc"]) == where and told in first["msg"], first


def test_large_decisions_are_refused_before_anything_is_drawn(service: ForecastService) -> None:
    small = replace(service, limits=Limits(plan_values=5 * 6 * 4 - 1))
    answer = post(small, "/v1/sleep", {**SLEEP, "forecast": FORECAST})
    assert answer.status_code == 413 and answer.json()["detail"][0]["loc"] == ["body", "forecast"]
    assert "120 values of demand, expected at most 119" in answer.text
    answer = post(small, "/v1/sleep", {"rrus": 1, "rru_capacity": 1.0, "draws": {**DRAWS, "draws": [[1.0] * 30] * 4}})
    assert answer.status_code == 413 and answer.json()["detail"][0]["loc"] == ["body", "draws"]
    few = replace(service, limits=Limits(plan_capacities=3))
    answer = post(few, "/v1/deployment", {**BUILD, "forecast": FORECAST})
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", "station_types"]


def test_a_solver_out_of_time_answers_with_the_best_so_far(service: ForecastService, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sites, slots = [f"s{i}" for i in range(40)], [f"2024-01-01T{hour:02d}:00" for hour in range(8)]
    values = rng.gamma(0.8, 30.0, (40 * 8, 6))
    draws = {"unique_id": list(np.repeat(sites, 8)), "ds": slots * 40, "draws": values.tolist()}
    types = {str(c): {"capacity": c, "price": p} for c, p in ((7.0, 1.0), (16.0, 1.9), (23.0, 3.1))}
    asked = {"draws": draws, "station_types": types, "money": 30.0, "cvar_weight": 0.5, "cvar_level": 0.7}
    hasty = decided(service, "/v1/deployment", {**asked, "seconds": 1e-6})
    assert hasty["solver_seconds"] < 10
    assert hasty["status"] == "time limit" and 25 < hasty["spent"] <= 30 and (hasty["gap"] is None or hasty["gap"] > 0)
    monkeypatch.setattr(sleep_chain, "_PIECE_BYTES", 1.0)
    asleep = decided(service, "/v1/sleep", {"draws": draws, "rrus": 4, "rru_capacity": 20.0, "seconds": 1e-9})
    assert asleep["status"] == "time limit" and asleep["gap"] is asleep["bound"] is None
    assert asleep["schedule"]["active"] == [[4] * 8] * 40
    patient = decided(service, "/v1/sleep", {"draws": draws, "rrus": 4, "rru_capacity": 20.0})
    assert patient["status"] == "optimal" and patient["solver_objective"] > asleep["solver_objective"]


def test_no_solver_takes_longer_than_the_server_lets_it(service: ForecastService) -> None:
    planner = service.planner
    assert isinstance(planner, LocalPlanner)
    decided(replace(service, limits=Limits(plan_seconds=7.0)), "/v1/deployment", {**BUILD, "forecast": FORECAST})
    assert planner.asked[-1].limits.seconds == 7.0  # type: ignore[attr-defined]
    decided(service, "/v1/deployment", {**BUILD, "forecast": FORECAST, "seconds": 3.0})
    assert planner.asked[-1].limits.seconds == 3.0  # type: ignore[attr-defined]


def test_a_deadline_leaves_the_solver_most_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        def decide(self, seconds: float) -> Answer:
            return {"seconds": seconds}

    monkeypatch.setattr("time.time", lambda: 100.0)
    assert decide_by(Asked(), 110.0) == {"seconds": pytest.approx(8.0)}
    assert decide_by(Asked(), 100.0) is None and decide_by(Asked(), 99.0) is None


class _Instead:
    """A planner that does something else."""

    def __init__(self, instead: Callable[[], Any]) -> None:
        self.instead = instead

    async def decide(self, wanted: Wanted, deadline: float) -> Answer:
        """It."""
        return await self.instead()


async def _busy() -> Answer:
    raise Busy(2.3)


async def _asleep() -> Answer:
    await asyncio.sleep(30)
    return {}


async def _broken() -> Answer:
    raise RuntimeError("a solver's fault")


@pytest.mark.parametrize(("instead", "status"), [(_busy, 503), (_asleep, 408), (_broken, 500)])
def test_what_becomes_of_the_planner_is_told(service: ForecastService, instead: Callable[[], Any], status: int) -> None:
    other = replace(service, planner=_Instead(instead))
    answer = post(other, "/v1/deployment", {**BUILD, "draws": drawn(service, FORECAST)[0], "timeout_s": 1.0}, faults=True)
    assert answer.status_code == status, answer.text
    assert (answer.headers.get("retry-after") == "3") == (status == 503) and "solver's fault" not in answer.text


def test_a_deadline_that_passes_while_drawing_is_told(service: ForecastService) -> None:
    assert post(service, "/v1/sleep", {**SLEEP, "forecast": FORECAST, "timeout_s": 1e-6}).status_code == 408
    assert service.admission.requests == 0 and service.admission.waiting == 0


def test_busy_and_other_content_are_told_before_the_body_is_read(service: ForecastService) -> None:
    full = replace(service, admission=Admission(most_wait_s=1, most_requests=0))
    assert post(full, "/v1/sleep", b"{").status_code == 503
    assert post(service, "/v1/deployment", arrow_bytes(FORECAST), ARROW).status_code == 415
    assert post(service, "/v1/deployment", b"{").status_code == 422


def test_the_fields_are_those_of_the_settings() -> None:
    """What the verb's settings can say, a request can, with the same meaning where nothing is said: only files are replaced by values."""
    for body, settings, elsewhere in (
        (DeploymentBody, DeploymentSettings, {"station_types", "existing"}),
        (SleepBody, SleepSettings, {"cells", "rrus", "rru_capacity"}),
    ):
        given = {field.name: field.default for field in fields(settings) if field.name not in elsewhere}
        assert given == {name: body.model_fields[name].default for name in given}


def test_the_document_describes_both(service: ForecastService) -> None:
    document = build_api(service, _ready).openapi()
    text = json.dumps(document)
    for path, field in (("/v1/deployment", "station_types"), ("/v1/sleep", "rrus")):
        operation = document["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert {field, "forecast", "draws", "seconds", "timeout_s"} <= set(schema["properties"])
        assert {"200", "408", "413", "422", "503"} <= set(operation["responses"])
    named = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(document["components"]["schemas"]) and {"JsonBody", "Drawn", "Kind"} <= named
