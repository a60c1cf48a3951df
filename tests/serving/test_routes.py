"""The HTTP interface: every status, every format, streams that are whole or visibly broken, and a document that describes it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pytest

from raytraffic.serving.access import Access
from raytraffic.serving.admission import Admission, Busy
from raytraffic.serving.cities import Cities
from raytraffic.serving.limits import Limits
from raytraffic.serving.query import ARROW, METADATA, read_json
from raytraffic.serving.routes import build_api, guarded
from raytraffic.serving.service import Expired, ForecastService
from tests.serving.local_stages import LocalStages, arrow_bytes, body_of, json_bytes, service_of, small_body, small_model, station_city

SECRET = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {SECRET}"}
JSON = {"Content-Type": "application/json"}
COLUMNS = ["unique_id", "service", "ds", "mean", "0.1", "0.5", "0.9"]
#: Five tiles, two a chunk.
MANY = body_of(station_city(steps=14), horizon=3, draws=3, steps=2, seed=4)
#: Its settings as an inference has them.
PARAMETERS = {name: MANY[name] for name in ("start", "step_minutes", "horizon", "draws", "steps", "seed")}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ForecastService:
    """Two models; the second has other weights."""
    folder = tmp_path_factory.mktemp("routes")
    models = small_model(folder / "one"), small_model(folder / "two", name="other", seed=4)
    return service_of(*models, chunk_tiles=2, limits=Limits(body_mib=0.1, timeout_s=60))


async def _always() -> bool:
    return True


async def _never() -> bool:
    return False


def ask(
    service: ForecastService, method: str, path: str, ready: Callable[[], Awaitable[bool]] = _always, faults: bool = False, **request: Any
) -> httpx2.Response:
    """The answer to one request, with the token where no other headers are given; where `faults` are expected they are not raised here."""

    async def asked() -> httpx2.Response:
        app = guarded(build_api(service, ready), service, Access(SECRET), lambda *_: None)
        transport = httpx2.ASGITransport(app, raise_app_exceptions=not faults, client=("203.0.113.9", 1))  # type: ignore[arg-type]
        async with httpx2.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            return await client.request(method, path, **{"headers": BEARER, **request})

    return asyncio.run(asked())


def post(service: ForecastService, body: dict[str, Any], arrow: bool = False, accept: str | None = None) -> httpx2.Response:
    """A forecast."""
    headers = {**BEARER, "Content-Type": ARROW if arrow else "application/json"} | ({} if accept is None else {"Accept": accept})
    return ask(service, "POST", "/v1/forecast", headers=headers, content=arrow_bytes(body) if arrow else json_bytes(body))


def rows(answer: httpx2.Response) -> dict[str, list[Any]]:
    """The columns of an answer of any kind, times as texts."""
    kind = answer.headers["content-type"]
    assert answer.status_code == 200, answer.text
    if kind == ARROW:
        table = pa.ipc.open_stream(answer.content).read_all()
        columns = table.to_pydict()
        columns["ds"] = [moment.strftime("%Y-%m-%dT%H:%M") for moment in columns["ds"]]
        return columns
    if kind == "application/json":
        return dict(answer.json()["columns"])
    assert kind.startswith("application/x-ndjson")
    parts = [json.loads(line)["columns"] for line in answer.text.splitlines()]
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


class Failing(LocalStages):
    """Stages that answer some calls and then fail."""

    def __init__(self, after: int, fault: Exception) -> None:
        super().__init__()
        self.after, self.fault = after, fault

    async def forecast(self, *arguments: Any) -> Any:
        """The forecast, or the fault."""
        if self.calls >= self.after:
            raise self.fault
        return await super().forecast(*arguments)


@pytest.fixture(scope="module")
def expected(service: ForecastService) -> dict[str, list[Any]]:
    """What `MANY` is answered."""
    return rows(post(service, MANY))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("arrow", [False, True], ids=["json", "arrow"])
@pytest.mark.parametrize("accept", [None, "application/json", ARROW, f"{ARROW}, */*", "*/*"])
def test_every_format_says_the_same(
    service: ForecastService, expected: dict[str, list[Any]], arrow: bool, stream: bool, accept: str | None
) -> None:
    answer = post(service, {**MANY, "stream": stream}, arrow, accept)
    wants_arrow = ARROW in (accept or "") or (arrow and "json" not in (accept or ""))
    assert (answer.headers["content-type"] == ARROW) == wants_arrow
    assert rows(answer) == expected
    assert list(rows(answer)) == COLUMNS and len(rows(answer)["ds"]) == 5 * 3
    assert rows(answer)["ds"][:3] == ["2024-05-07T13:00", "2024-05-07T13:30", "2024-05-07T14:00"]


def test_an_answer_says_what_made_it(service: ForecastService) -> None:
    model = service.models["tiny"]
    expected = {"model": "tiny", "version": model.version, "calibrated": False, "steps": 2, "draws": 3, "seed": 4}
    answer = post(service, MANY).json()
    assert {name: value for name, value in answer.items() if name != "columns"} == expected
    table = pa.ipc.open_stream(post(service, MANY, arrow=True).content).read_all()
    assert json.loads(table.schema.metadata[METADATA]) == expected
    lines = post(service, {**MANY, "stream": True}).text.splitlines()
    assert len(lines) == 3 and all({**json.loads(line), "columns": None} == {**expected, "columns": None} for line in lines)
    assert post(service, {**MANY, "steps": None}).json()["steps"] == model.sampler.steps == 3


def test_models_are_told_apart(service: ForecastService) -> None:
    ours, theirs = (rows(post(service, {**MANY, "model": name})) for name in ("tiny", "other"))
    assert ours == rows(post(service, MANY)) != theirs
    assert [model["name"] for model in ask(service, "GET", "/v1/models").json()] == ["tiny", "other"]


def test_draws_come_where_they_are_asked_for(service: ForecastService) -> None:
    answer = rows(post(service, {**MANY, "keep_draws": True, "quantiles": []}))
    assert list(answer) == ["unique_id", "service", "ds", "mean", "draws"] and all(len(draws) == 3 for draws in answer["draws"])
    assert [sum(draws) / 3 for draws in answer["draws"]] == pytest.approx(answer["mean"], rel=1e-6)


STATUSES: dict[str, tuple[dict[str, Any], int]] = {
    "no token": ({"headers": JSON, "content": json_bytes(small_body())}, 401),
    "another token": ({"headers": {**JSON, "Authorization": "Bearer " + SECRET[::-1]}, "content": json_bytes(small_body())}, 401),
    "too large a body": ({"headers": {**BEARER, **JSON}, "content": b" " * 200_000}, 413),
    "no content type": ({"headers": BEARER, "content": json_bytes(small_body())}, 415),
    "another content type": ({"headers": {**BEARER, "Content-Type": "text/csv"}, "content": b"a,b"}, 415),
    "no JSON": ({"headers": {**BEARER, **JSON}, "content": b"{"}, 422),
    "no Arrow": ({"headers": {**BEARER, "Content-Type": ARROW}, "content": b"ARROW1"}, 422),
    "a wrong field": ({"headers": {**BEARER, **JSON}, "content": json_bytes(small_body(horizon=0))}, 422),
    "an unknown city": ({"headers": {**BEARER, **JSON}, "content": json_bytes(small_body(city="atlantis"))}, 422),
    "too many stations": ({"headers": {**BEARER, **JSON}, "content": json_bytes(small_body(draws=201))}, 422),
    "a deadline that passes": ({"headers": {**BEARER, **JSON}, "content": json_bytes(small_body(timeout_s=1e-6))}, 408),
    "a stream whose deadline passes": (
        {"headers": {**BEARER, **JSON}, "content": json_bytes(small_body(timeout_s=1e-6, stream=True))},
        408,
    ),
    "a charset": ({"headers": {**BEARER, "Content-Type": "Application/JSON; charset=utf-8"}, "content": json_bytes(small_body())}, 200),
}


@pytest.mark.parametrize("name", STATUSES)
def test_statuses(service: ForecastService, name: str) -> None:
    request, status = STATUSES[name]
    answer = ask(service, "POST", "/v1/forecast", **request)
    assert answer.status_code == status, answer.text
    assert status == 200 or "detail" in answer.json()
    assert service.admission.requests == 0 and service.admission.waiting == 0


def test_a_server_without_token_answers_this_machine_alone(service: ForecastService) -> None:
    async def asked(client: str) -> int:
        app = guarded(build_api(service, _always), service, Access(None), lambda *_: None)
        transport = httpx2.ASGITransport(app, client=(client, 1))  # type: ignore[arg-type]
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as asking:
            return (await asking.get("/v1/models")).status_code

    assert (asyncio.run(asked("127.0.0.1")), asyncio.run(asked("203.0.113.9"))) == (200, 403)


@pytest.mark.parametrize("stream", [False, True])
def test_busy_says_when_to_come_back(service: ForecastService, stream: bool) -> None:
    admission = Admission(most_wait_s=1, most_requests=0)
    answer = post(replace(service, admission=admission), {**MANY, "stream": stream})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    stages = Failing(0, Busy(2.3))
    answer = post(replace(service, stages=stages), {**MANY, "stream": stream})
    assert answer.status_code == 503 and answer.headers["retry-after"] == str(math.ceil(2.3))


def test_busy_is_told_before_the_body_is_read(service: ForecastService) -> None:
    busy = replace(service, admission=Admission(most_wait_s=1, most_requests=0))
    assert ask(busy, "POST", "/v1/forecast", headers={**BEARER, **JSON}, content=b"{").status_code == 503
    assert ask(busy, "POST", "/v2/models/tiny/infer", headers={**BEARER, **JSON}, content=b"{").status_code == 503


@pytest.mark.parametrize("fault", [Busy(1.0), Expired()], ids=["busy", "expired"])
def test_a_stream_that_breaks_off_is_visible(service: ForecastService, fault: Exception) -> None:
    def broken() -> ForecastService:
        return replace(service, stages=Failing(1, fault), chunks_at_once=1)

    lines = [json.loads(line) for line in post(broken(), {**MANY, "stream": True}).text.splitlines()]
    assert "columns" in lines[0] and lines[-1]["error"] and len(lines) == 2
    answer = post(broken(), {**MANY, "stream": True}, arrow=True)
    reader = pa.ipc.open_stream(answer.content)
    assert reader.read_next_batch().num_rows == 6
    with pytest.raises(pa.ArrowInvalid):
        reader.read_next_batch()
    assert service.admission.requests == 0 and service.admission.waiting == 0


@pytest.mark.parametrize("path", ["/v1/forecast", "/v2/models/tiny/infer"])
@pytest.mark.parametrize("given", ["job-7", None])
def test_a_fault_has_an_id_and_costs_its_own_request_alone(
    service: ForecastService, path: str, given: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    failing = replace(service, stages=Failing(0, RuntimeError("a secret of the stages")))
    headers = {**BEARER, **JSON} | ({} if given is None else {"X-Request-ID": given})
    body = {"/v1/forecast": MANY, "/v2/models/tiny/infer": {"parameters": PARAMETERS, "inputs": [tensor("traffic", MANY["traffic"], True)]}}
    with caplog.at_level(logging.INFO, "raytraffic.serving"):
        answer = ask(failing, "POST", path, headers=headers, content=json_bytes(body[path]), faults=True)
    assert answer.status_code == 500 and set(answer.json()) == {"detail", "request_id"} and "secret" not in answer.text
    assert f'"id": "{answer.json()["request_id"]}"' in caplog.text and given in (None, answer.json()["request_id"])
    assert service.admission.requests == 0 and service.admission.waiting == 0


def test_a_stream_that_a_fault_breaks_off_is_visible(service: ForecastService) -> None:
    def answer(arrow: bool, after: int) -> httpx2.Response:
        failing = replace(service, stages=Failing(after, RuntimeError("a secret")), chunks_at_once=1)
        headers = {**BEARER, "Content-Type": ARROW if arrow else "application/json"}
        body = (arrow_bytes if arrow else json_bytes)({**MANY, "stream": True})
        return ask(failing, "POST", "/v1/forecast", headers=headers, content=body, faults=True)

    assert answer(False, 0).status_code == answer(True, 0).status_code == 500
    lines = [json.loads(line) for line in answer(False, 1).text.splitlines()]
    assert "columns" in lines[0] and lines[-1]["error"] == "a fault of the server, not of the request" and len(lines) == 2
    reader = pa.ipc.open_stream(answer(True, 1).content)
    assert reader.read_next_batch().num_rows == 6
    with pytest.raises(pa.ArrowInvalid):
        reader.read_next_batch()
    assert service.admission.requests == 0 and service.admission.waiting == 0


def test_what_is_left_of_a_stream_no_one_reads_is_dropped(service: ForecastService) -> None:
    stages = LocalStages()
    watched = replace(service, stages=stages, chunk_tiles=1, chunks_at_once=1)

    async def leave() -> None:
        parts = watched.tables(read_json(json_bytes(MANY), watched.limits, watched.models), 1e12)
        await anext(parts)
        await parts.aclose()

    asyncio.run(leave())
    assert stages.calls <= 2 and watched.admission.requests == 0 and watched.admission.waiting == 0


@pytest.mark.parametrize(("ready", "status"), [(_always, 200), (_never, 503)])
def test_health_needs_no_token(service: ForecastService, ready: Callable[[], Awaitable[bool]], status: int) -> None:
    assert ask(service, "GET", "/v2/health/live", ready, headers={}).json() == {"live": True}
    answer = ask(service, "GET", "/v2/health/ready", ready, headers={})
    assert (answer.status_code, answer.json()) == (status, {"ready": status == 200})
    assert ask(service, "GET", "/v2/models/tiny/ready", ready, headers={}).status_code == 401
    assert ask(service, "GET", "/v2/models/tiny/ready", ready).status_code == status


def test_kserve_metadata(service: ForecastService) -> None:
    assert ask(service, "GET", "/v2").json()["name"] == "raytraffic"
    told = ask(service, "GET", "/v2/models/tiny").json()
    assert told["name"] == "tiny" and told["versions"] == [service.models["tiny"].version] and told["platform"] == "raytraffic_uomo"
    assert {tensor["name"]: len(tensor["shape"]) for tensor in told["inputs"] + told["outputs"]} == {
        **{"traffic": 2, "users": 2},
        **{"mean": 2, "quantiles": 3},
    }
    for path in ("/v2/models/none", "/v2/models/none/ready"):
        assert ask(service, "GET", path).status_code == 404
    assert ask(service, "POST", "/v2/models/none/infer", headers={**BEARER, **JSON}, content=b"{}").status_code == 404


def tensor(name: str, values: list[list[float | None]], flat: bool) -> dict[str, Any]:
    """A KServe input."""
    data: Any = [value for row in values for value in row] if flat else values
    return {"name": name, "shape": [len(values), len(values[0])], "datatype": "FP32", "data": data}


def infer(service: ForecastService, **changes: Any) -> httpx2.Response:
    """An inference request of the stations of `MANY`, without their counts."""
    body = {"parameters": PARAMETERS, "inputs": [tensor("traffic", MANY["traffic"], True), tensor("users", MANY["users"], True)], **changes}
    return ask(service, "POST", "/v2/models/tiny/infer", headers={**BEARER, **JSON}, content=json_bytes(body))


@pytest.mark.parametrize("flat", [True, False])
def test_kserve_infers_the_forecast(service: ForecastService, flat: bool) -> None:
    answer = infer(service, id="7", inputs=[tensor("users", MANY["users"], flat), tensor("traffic", MANY["traffic"], flat)]).json()
    expected = rows(post(service, {**MANY, "stations": {"id": [str(i) for i in range(5)]}}))
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "tiny", service.models["tiny"].version)
    mean, quantiles = answer["outputs"]
    assert (mean["name"], mean["shape"], mean["data"]) == ("mean", [5, 3], expected["mean"])
    assert (quantiles["name"], quantiles["shape"]) == ("quantiles", [3, 5, 3])
    assert quantiles["data"] == [value for level in ("0.1", "0.5", "0.9") for value in expected[level]]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"inputs": []}, "body.inputs"),
        ({"inputs": [tensor("traffic", [[1.0]], True)] * 2}, "body.inputs.1.name"),
        ({"inputs": [{**tensor("traffic", [[1.0, 2.0]], True), "shape": [2, 2]}]}, "body.inputs.0.data"),
        ({"inputs": [{**tensor("traffic", [[1.0]], True), "shape": [2**62, 2**62]}]}, "body.inputs.0.data"),
        ({"inputs": [{**tensor("traffic", [[1.0]], True), "shape": [-1, -1]}]}, "body.inputs.0.data"),
        ({"inputs": [{**tensor("traffic", [[1.0, 2.0, 3.0], [4.0]], False), "shape": [2, 2]}]}, "body.inputs.0.data"),
        ({"inputs": [{**tensor("traffic", [[1.0]], False), "data": [["x"]]}]}, "body.inputs.0.data.0"),
        ({"inputs": [{**tensor("traffic", [[1.0]], False), "data": ["x"]}]}, "body.inputs.0.data.0"),
        ({"inputs": [tensor("users", [[1.0]], True)]}, "body.inputs"),
        (
            {"inputs": [tensor("users", [[1.0] * 2] * 3, True), tensor("traffic", [[1.0, 2.0], [3.0, -4.0], [5.0, 6.0]], True)]},
            "body.inputs.1.data.3",
        ),
        ({"inputs": [tensor("traffic", [[1.0, 2.0], [3.0, -4.0]], True)]}, "body.inputs.0.data.3"),
        ({"inputs": [tensor("traffic", [[1.0, 2.0], [3.0, -4.0]], False)]}, "body.inputs.0.data.1.1"),
        ({"inputs": [tensor("traffic", [[1.0, 2.0], [None, None]], True)]}, "body.inputs.0.data"),
        ({"inputs": [tensor("traffic", [[1.0, 2.0], [None, None]], False)]}, "body.inputs.0.data.1"),
        ({"inputs": [tensor("traffic", [[1.0, 2.0]], True), tensor("users", [[1.0]], True)]}, "body.inputs.0.data"),
        ({"inputs": [tensor("traffic", [[1.0]], True), tensor("users", [[-1.0]], True)]}, "body.inputs.1.data.0"),
        ({"inputs": [tensor("traffic", [[1.0]], True), tensor("users", [[1.0], [1.0]], True)]}, "body.inputs.1.data"),
        ({"inputs": [tensor("traffic", [[1.0]], True), tensor("expected_users", [[1.0] * 3], True)]}, "body.inputs.1.data"),
        ({"parameters": {**PARAMETERS, "horizon": None, "task": "generation"}}, "body.parameters.task"),
        ({"parameters": {"keep_draws": True}}, "body.parameters.keep_draws"),
        ({"parameters": {"stations": {}}}, "body.parameters.stations"),
        ({"parameters": {"start": MANY["start"]}}, "body.parameters.step_minutes"),
        ({"parameters": {**PARAMETERS, "horizon": None}}, "body.parameters.horizon"),
        ({"parameters": {**PARAMETERS, "horizon": 9999}}, "body.parameters.horizon"),
        ({"parameters": {**PARAMETERS, "horizon": "x"}}, "body.parameters.horizon"),
        ({"parameters": {**PARAMETERS, "hop": 9}}, "body.parameters.hop"),
        ({"parameters": {**PARAMETERS, "places": [["a"]]}}, "body.parameters.places"),
        ({"parameters": {**PARAMETERS, "quantiles": [0.5, "x"]}}, "body.parameters.quantiles.1"),
        ({"parameters": {**PARAMETERS, "city": "atlantis"}}, "body.parameters.city"),
        ({"outputs": 1}, "body.outputs"),
    ],
)
def test_kserve_refuses_by_path(service: ForecastService, changes: dict[str, Any], path: str) -> None:
    answer = infer(service, **changes)
    assert answer.status_code == 422 and ".".join(str(part) for part in answer.json()["detail"][0]["loc"]) == path


def test_kserve_refuses_what_is_too_much_by_path(service: ForecastService) -> None:
    few = replace(service, limits=Limits(stations=1, history=13))
    assert [infer(few).status_code, *infer(few).json()["detail"][0]["loc"]] == [413, "body", "inputs", 0, "shape"]
    one = infer(few, inputs=[tensor("traffic", MANY["traffic"][:1], True)])
    assert [one.status_code, *one.json()["detail"][0]["loc"]] == [413, "body", "inputs", 0, "data"]


def test_kserve_refuses_by_path_what_only_the_city_tells(service: ForecastService, explorer_store: Path) -> None:
    measured = replace(service, cities=Cities(str(explorer_store)))
    answer = infer(measured, parameters={**PARAMETERS, "city": "gridton", "step_minutes": 60, "start": "2024-05-07T06:00"})
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", "parameters", "step_minutes"]


def test_kserve_takes_expected_users_where_the_model_does(tmp_path: Path) -> None:
    service = service_of(small_model(tmp_path / "model", contexts=("users", "expected_users", "poi")))
    assert [one["name"] for one in ask(service, "GET", "/v2/models/tiny").json()["inputs"]] == ["traffic", "users", "expected_users"]
    users = [[5.0 * i, None, 40.0] for i in range(5)]
    inputs = [tensor(name, values, True) for name, values in (("traffic", MANY["traffic"]), ("expected_users", users))]
    expected = rows(post(service, {**MANY, "stations": {"id": list("01234")}, "users": None, "expected_users": users}))
    assert infer(service, inputs=inputs).json()["outputs"][0]["data"] == expected["mean"]
    assert infer(service, inputs=inputs[:1]).json()["outputs"][0]["data"] != expected["mean"]


def test_the_document_describes_what_there_is(service: ForecastService) -> None:
    assert ask(service, "GET", "/openapi.json", headers={}).status_code == 401
    document = ask(service, "GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/v1/forecast", "/v1/models", "/v2", "/v2/models/{name}/infer", "/v2/health/ready"} <= set(document["paths"])
    found = 0
    pending: list[Any] = [document]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            if "$ref" in part:
                found += 1
                at: Any = document
                for name in part["$ref"].removeprefix("#/").split("/"):
                    at = at[name]
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    assert found > 4
    body = document["paths"]["/v1/forecast"]["post"]["requestBody"]["content"]
    fields = body["application/json"]["schema"]["properties"]
    assert set(body) == {"application/json", ARROW} and {"start", "traffic", "stations", "users", "expected_users", "places", "hop"} <= set(
        fields
    )
    assert {"401", "408", "413", "415", "422", "500", "503"} <= set(document["paths"]["/v1/forecast"]["post"]["responses"])


def test_any_answer_can_be_written(service: ForecastService) -> None:
    """Quiet stations and tiny and huge numbers: nothing in the answer is NaN or infinite."""
    for value in (0.0, 1e-30, 1e15):
        answer = post(service, small_body(traffic=[[value] * 12, [None] * 11 + [value]], task="long", horizon=None))
        assert all(math.isfinite(number) for number in rows(answer)["mean"])
