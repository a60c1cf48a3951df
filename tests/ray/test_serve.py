"""The service on a real cluster, through HTTP: served = fleet job, bit for bit; a killed replica and a new version cost no request."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import requests
import torch
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from raytraffic import registry
from raytraffic.checkpoint import load_forecaster, save_forecaster
from raytraffic.config.decisions import SleepSettings
from raytraffic.decisions.deployment import DeploymentProblem, StationType
from raytraffic.decisions.deployment_program import plan
from raytraffic.decisions.problems import Installed, sleep_problem
from raytraffic.decisions.reading import demand_of_table
from raytraffic.decisions.sleep_chain import schedule
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.forecasting import ForecastRequest, forecast_table, issue_windows
from raytraffic.on_ray.serve import ServeArgs
from raytraffic.registry import MODELS
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity
from raytraffic.store import Layout, open_store, prepare_store
from raytraffic.windows import Windows, windows_for

CONFIGS = Path(__file__).parents[2] / "serve_configs"
TOKEN = "a-token-for-the-tests"
CITY, STEP, HORIZON, DRAWS = "middle", 30, 12, 3


@dataclass(frozen=True)
class Served:
    """Where the application listens, and how to deploy it again."""

    url: str
    args: ServeArgs

    def ask(self, **changes: Any) -> requests.Response:
        """A small forecast of one station."""
        body = {
            "start": "2024-03-04T00:00",
            "step_minutes": STEP,
            "stations": {"id": ["a"]},
            "traffic": [[10.0 + i % 7 for i in range(48)]],
            "horizon": 4,
            "draws": 2,
            "steps": 2,
        }
        return requests.post(f"{self.url}/v1/forecast", json=body | changes, headers=bearer(TOKEN), timeout=60)


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one city, prepared in this process."""
    folder = tmp_path_factory.mktemp("serve") / "store"
    city = SyntheticCity(name=CITY, grid=(8, 8), days=8, step_minutes=STEP)
    prepare_store([SyntheticCities([city]).read(CITY)], Location.of(folder), Layout())
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose random weights depend on everything they are told."""
    config = replace(registry.model("uomo").preset("tiny"), contexts=("users",), poi_categories=())
    return save(tmp_path_factory.mktemp("serve") / "model", config, 0.0)


def save(folder: Path, config: Any, shift: float) -> Path:
    """A version of the checkpoint."""
    torch.manual_seed(0)
    weights = registry.model("uomo").build(config).state_dict()
    save_forecaster(folder, {name: value + shift + 0.05 * torch.randn_like(value) for name, value in weights.items()}, "uomo", config, {})
    return folder


@pytest.fixture(scope="module")
def served(cluster: None, store: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The model behind HTTP on a free port of the loopback interface."""
    token = tmp_path_factory.mktemp("secret") / "token"
    token.write_text(TOKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = ServeArgs(checkpoints={"uomo": str(model)}, store=str(store), token_file=str(token), chunk_tiles=2)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deploy(args)
    yield Served(f"http://127.0.0.1:{port}", args)
    serve.shutdown()


#: What the application consists of, where no config says more of it.
DEPLOYMENTS = tuple({"name": name} for name in ("gateway", "embedder", "conditioner", "sampler", "planner"))


def deploy(args: ServeArgs, deployments: Sequence[Mapping[str, Any]] = DEPLOYMENTS) -> None:
    """As `serve deploy` does: what a config leaves as it was goes on running. Every replica is given a tenth of a CPU."""
    small = [{**deployment, "ray_actor_options": {"num_cpus": 0.1}} for deployment in deployments]
    application = {
        "name": "raytraffic",
        "import_path": "raytraffic.on_ray.serve:app",
        "args": args.model_dump(mode="json"),
        "deployments": small,
    }
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        time.sleep(0.5)
        status = serve.status().applications["raytraffic"]
        if status.status == "RUNNING":
            return
        assert status.status != "DEPLOY_FAILED", status.message
    raise TimeoutError(serve.status())


@pytest.fixture(scope="module")
def history(store: Path, model: Path) -> tuple[Windows, Any, Any, ForecastRequest]:
    """The last measurements of the city, as the fleet job sees them."""
    _, _, config = load_forecaster(model)
    windows = windows_for(open_store(store), "all", config)
    request = ForecastRequest(horizon=HORIZON, draws=DRAWS, sampler=Sampler("dpm++", 2), seed=7)
    return windows, *issue_windows(windows, request, None, STEP), request


def body_of(windows: Windows, rows: Any, starts: Any, request: ForecastRequest) -> dict[str, Any]:
    """The same history as a request of the API."""
    columns = windows.cut(rows, starts, request.history(windows.window))
    names = windows.site_names(rows)
    tile, cell = np.nonzero(names != "")
    index = windows.store.index
    minute = index.start_minute[rows[0]] + (starts[0] - index.first_step[rows[0]]) * STEP
    sites = [names[at] for at in zip(tile, cell, strict=True)]

    def matrix(values: Any) -> list[list[float | None]]:
        return [[None if np.isnan(value) else float(value) for value in values[i, :, j]] for i, j in zip(tile, cell, strict=True)]

    return {
        "city": CITY,
        "start": str(np.datetime64(int(minute), "m")),
        "step_minutes": STEP,
        "stations": {
            "id": sites,
            "row": [int(name[1:].partition("c")[0]) for name in sites],
            "column": [int(name.partition("c")[2]) for name in sites],
        },
        "traffic": matrix(columns["traffic"][:, 0]),
        "users": matrix(columns["users"]),
        "horizon": HORIZON,
        "draws": DRAWS,
        "keep_draws": True,
        "steps": 2,
        "seed": 7,
    }


def test_the_answer_is_the_fleet_job_s_to_the_last_bit(
    served: Served, history: tuple[Windows, Any, Any, ForecastRequest], model: Path
) -> None:
    windows, rows, starts, request = history
    forecaster, _, _ = load_forecaster(model)
    wanted = forecast_table(forecaster, windows, rows, starts, replace(request, keep_draws=True))
    for stream in (False, True):
        answer = requests.post(
            f"{served.url}/v1/forecast",
            json=body_of(windows, rows, starts, request) | {"stream": stream},
            headers=bearer(TOKEN) | {"Accept": "application/vnd.apache.arrow.stream"},
            timeout=120,
        )
        assert answer.status_code == 200, answer.text
        table = pa.ipc.open_stream(answer.content).read_all()
        about = json.loads(table.schema.metadata[b"raytraffic"])
        assert about["model"] == "uomo" and len(about["version"]) == 12
        assert len(table) == 64 * HORIZON
        for name in table.column_names:
            assert table.column(name).to_pylist() == wanted.column(name).to_pylist(), name


def test_decisions_are_those_on_the_served_draws(served: Served, history: tuple[Windows, Any, Any, ForecastRequest]) -> None:
    forecast = body_of(*history)
    made = requests.post(
        f"{served.url}/v1/forecast",
        json=forecast,
        headers=bearer(TOKEN) | {"Accept": "application/vnd.apache.arrow.stream"},
        timeout=120,
    )
    demand = demand_of_table("draws", pa.ipc.open_stream(made.content).read_all())
    asked = {name: value for name, value in forecast.items() if name != "keep_draws"}
    level = float(demand.draws.mean())

    types = {"macro": {"capacity": 4 * level, "price": 3.0}, "micro": {"capacity": level, "price": 1.0}}
    body = {"forecast": asked, "station_types": types, "most_stations": 40, "money": 60.0, "grid_limit": 2, "seconds": 20}
    answer = requests.post(f"{served.url}/v1/deployment", json=body, headers=bearer(TOKEN), timeout=120)
    assert answer.status_code == 200, answer.text
    kinds = (StationType(capacity=4 * level, price=3.0), StationType(capacity=level, price=1.0))
    problem = DeploymentProblem(demand=demand.draws, station_types=kinds, most_stations=40, money=60.0, grid_limit=np.full(64, 2))
    best, told = plan(problem), answer.json()
    assert told["status"] == "optimal" and told["solver_objective"] == pytest.approx(best.proof.objective, rel=1e-4)
    stations = np.array([told["plan"]["built_macro"], told["plan"]["built_micro"]]).T
    assert stations.tolist() == best.built.tolist() and told["plan"]["unique_id"] == [name for _, name in demand.sites]

    body = {"forecast": asked, "rrus": 6, "rru_capacity": level, "served_share": 0.6}
    answer = requests.post(f"{served.url}/v1/sleep", json=body, headers=bearer(TOKEN), timeout=120)
    assert answer.status_code == 200, answer.text
    cells = Installed(rrus=np.full(64, 6), rru_capacity=np.full(64, level))
    assert (
        answer.json()["schedule"]["active"] == schedule(sleep_problem(SleepSettings(served_share=0.6), demand.draws, cells)).active.tolist()
    )

    body = {"forecast": asked, "station_types": {"dot": {"capacity": level * 1e-9}}}
    answer = requests.post(f"{served.url}/v1/deployment", json=body, headers=bearer(TOKEN), timeout=120)
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", "station_types"], answer.text


def test_only_health_is_open(served: Served) -> None:
    assert requests.get(f"{served.url}/v2/health/ready", timeout=10).json() == {"ready": True}
    for headers in ({}, bearer("wrong-wrong-wrong-wrong")):
        refused = requests.get(f"{served.url}/v1/models", headers=headers, timeout=10)
        assert refused.status_code == 401 and TOKEN not in refused.text
    assert requests.get(f"{served.url}/v1/models", headers=bearer(TOKEN), timeout=10).json()[0]["name"] == "uomo"


def test_a_killed_sampler_costs_at_most_a_retry(served: Served) -> None:
    assert served.ask().status_code == 200
    answers, stop = [], threading.Event()

    def load() -> None:
        while not stop.is_set():
            answer = served.ask()
            answers.append(answer.status_code if answer.status_code in (200, 503) else served.ask().status_code)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        time.sleep(1)
        ray.kill(_replica("sampler"), no_restart=False)
        deadline = time.monotonic() + 60
        before = len(answers)
        while answers[before + 3 :].count(200) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        stop.set()
        thread.join(timeout=60)
    assert answers.count(200) >= 5 and set(answers) == {200}, answers


def _replica(deployment: str) -> Any:
    """The actor of a deployment's first replica."""
    details = serve.status().applications["raytraffic"].deployments[deployment]
    assert details.status == "HEALTHY"
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if f"#{deployment}#" in actor["name"]]
    return ray.get_actor(names[0], namespace="serve")


def test_a_new_version_is_rolled_out_under_traffic(served: Served, model: Path, tmp_path: Path) -> None:
    save(tmp_path / "next", load_forecaster(model)[2], 1e-3)
    before = served.ask()
    versions, stop = [], threading.Event()

    def load() -> None:
        while not stop.is_set():
            answer = served.ask()
            versions.append(answer.json()["version"] if answer.status_code == 200 else f"{answer.status_code}: {answer.text}")

    thread = threading.Thread(target=load)
    thread.start()
    try:
        deploy(served.args.model_copy(update={"checkpoints": {"uomo": str(tmp_path / "next")}}))
        time.sleep(1)
    finally:
        stop.set()
        thread.join(timeout=60)
        after = served.ask()
        deploy(served.args)
    old, new = before.json()["version"], after.json()["version"]
    assert old != new and set(versions) <= {old, new}, versions
    assert before.json()["columns"]["mean"] != after.json()["columns"]["mean"]
    assert served.ask().json() == before.json()


def test_the_configs_are_what_serve_and_the_application_take() -> None:
    found = sorted(CONFIGS.glob("*.yaml"))
    assert {path.stem for path in found} == {"uomo", "uomo-gpu", "lsdm", "lec_diff", "stouter"}
    for path in found:
        schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
        assert schema.http_options.host == "127.0.0.1"
        for application in schema.applications:
            assert application.import_path == "raytraffic.on_ray.serve:app"
            args = ServeArgs.model_validate(application.args)
            assert args.group_stations == (path.stem in ("lec_diff", "stouter"))
            model = path.stem.partition("-")[0]
            assert model in MODELS and all(name.startswith(model) for name in args.checkpoints)
            stages = {deployment.name: deployment for deployment in application.deployments}
            assert set(stages) == {"gateway", "embedder", "conditioner", "sampler", "planner"}
            assert stages["planner"].max_ongoing_requests == 1
            for deployment in stages.values():
                assert deployment.max_queued_requests > 0 and deployment.autoscaling_config["min_replicas"] >= 1
