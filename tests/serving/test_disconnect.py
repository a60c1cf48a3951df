"""A client that goes away: its work ends within a sampler step, as past a deadline, and the server goes on with the others."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from raytraffic.serving.access import Access
from raytraffic.serving.limits import Limits
from raytraffic.serving.models import ServedModel
from raytraffic.serving.routes import build_api, guarded
from raytraffic.serving.service import ForecastService
from raytraffic.types import Forecast, TrafficBatch
from tests.serving.local_stages import LocalStages, listening, service_of, small_body, small_model, until

#: Minutes of work: 2 stations x 100,000 draws of 8 rows a call, 100 steps each.
LONG: dict[str, Any] = {"draws": 100_000, "steps": 100}
PATHS = {
    "whole": ("/v1/forecast", small_body(**LONG)),
    "streamed": ("/v1/forecast", small_body(**LONG, stream=True)),
    "KServe": (
        "/v2/models/tiny/infer",
        {
            "parameters": {"start": "2024-03-04T00:00", "step_minutes": 30, "horizon": 4, **LONG},
            "inputs": [{"name": "traffic", "shape": [1, 12], "datatype": "FP32", "data": [1.0 + i % 5 for i in range(12)]}],
        },
    ),
}


class Watched(LocalStages):
    """Stages that note each answer to whether to stop, which is asked between sampler steps; they stop when a test is `over`."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[bool] = []
        self.over = False

    def _forecast(self, model: ServedModel, batch: TrafficBatch, sampler: Any, draws: int, seed: int, stop: Any) -> Forecast:
        def noted() -> bool:
            self.answers.append(stop() or self.over)
            return self.answers[-1]

        return super()._forecast(model, batch, sampler, draws, seed, noted)


@dataclass
class Served:
    """A service on a port, and what its guard observed."""

    service: ForecastService
    stages: Watched
    host: str = ""
    port: int = 0
    observed: list[tuple[str, int]] = field(default_factory=list)

    def send(self, path: str, body: dict[str, Any], whole: bool = True) -> socket.socket:
        """A connection over which a request was sent, or all of it but its last byte."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        connection = socket.create_connection((self.host, self.port), timeout=60)
        connection.sendall(head.encode() + (content if whole else content[:-1]))
        return connection


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A small model."""
    return small_model(tmp_path_factory.mktemp("disconnect") / "model")


@pytest.fixture
def served(model: ServedModel) -> Iterator[Served]:
    """It, listening."""
    stages = Watched()
    served = Served(service_of(model, stages=stages, limits=Limits(draws=100_000)), stages)
    app = guarded(
        build_api(served.service, _ready), served.service, Access(None), lambda route, status, _: served.observed.append((route, status))
    )
    with listening(app) as url:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        served.host, served.port = parts.hostname, parts.port
        yield served
        stages.over = True


async def _ready() -> bool:
    return True


@pytest.mark.parametrize("kind", PATHS)
def test_who_goes_away_is_computed_for_no_further(served: Served, kind: str) -> None:
    path, body = PATHS[kind]
    connection = served.send(path, body)
    until(lambda: len(served.stages.answers) > 5)
    assert not any(served.stages.answers) and served.service.admission.requests == 1
    connection.close()
    until(lambda: served.stages.answers[-1])
    until(lambda: served.service.admission.requests == 0)
    until(lambda: len(served.observed) == 1)
    assert served.service.admission.waiting == 0 and served.observed[0][1] == 499
    assert served.stages.answers.count(True) == 1 and served.stages.calls == 1
    other = requests.post(f"http://{served.host}:{served.port}/v1/forecast", json=small_body(), timeout=60)
    assert other.status_code == 200
    until(lambda: served.observed[1:] == [("/v1/forecast", 200)])


def test_a_stream_whose_reader_goes_away_ends(served: Served) -> None:
    """After the first of 400 parts."""
    service = replace(served.service, chunk_tiles=1, chunks_at_once=1)
    first, second = small_body()["traffic"]
    calls = served.stages.calls
    app = guarded(build_api(service, _ready), service, Access(None), lambda route, status, _: served.observed.append((route, status)))
    stations = {"id": [str(i) for i in range(400)]}
    body = small_body(stations=stations, traffic=[first, second] * 200, draws=20, steps=100, stream=True)
    with listening(app) as url, requests.post(f"{url}/v1/forecast", json=body, stream=True, timeout=60) as answer:
        assert answer.status_code == 200 and next(answer.iter_lines())
        answer.close()
        until(lambda: service.admission.requests == 0)
        until(lambda: served.observed == [("/v1/forecast", 499)])
    assert served.stages.calls - calls < 400 and service.admission.waiting == 0


def test_who_goes_away_before_the_body_is_there_is_no_fault(served: Served) -> None:
    served.send("/v1/forecast", small_body(), whole=False).close()
    until(lambda: len(served.observed) == 1)
    assert served.observed == [("/v1/forecast", 499)] and served.stages.calls == 0 and served.service.admission.requests == 0


def test_who_has_the_answer_may_go(served: Served) -> None:
    """Connections that are kept, or closed at once, after a whole answer: nothing is cancelled, nothing is counted as lost."""
    address = f"http://{served.host}:{served.port}"
    with requests.Session() as session:
        for _ in range(3):
            assert session.post(f"{address}/v1/forecast", json=small_body(), timeout=60).status_code == 200
            assert session.get(f"{address}/v1/models", timeout=60).status_code == 200
    assert requests.get(f"{address}/v2/health/live", headers={"Connection": "close"}, timeout=60).status_code == 200
    until(lambda: len(served.observed) == 7)
    assert {status for _, status in served.observed} == {200}
