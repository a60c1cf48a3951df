"""Whatever the OpenAPI document lets one send, the service answers without a fault of its own."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from raytraffic.diffusion.samplers import Sampler
from raytraffic.serving.access import Access
from raytraffic.serving.limits import Limits
from raytraffic.serving.routes import build_api, guarded
from raytraffic.serving.service import ForecastService
from raytraffic.types import Forecast, TrafficBatch
from tests.serving.local_stages import service_of, small_model

SECRET = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {SECRET}"}


class _Instant:
    """Stages that answer at once; what is fuzzed is what stands before them."""

    async def forecast(self, model: Any, batch: TrafficBatch, sampler: Sampler, draws: int, seed: int, deadline: float) -> Forecast:
        """Ones."""
        return Forecast(draws=batch.traffic[:, None].nan_to_num(1.0).expand(-1, draws, -1, -1, -1), known=batch.known)


async def _ready() -> bool:
    return True


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ForecastService:
    """A small model and small limits."""
    limits = Limits(stations=20, history=64, horizon=64, draws=5, steps=5)
    return service_of(small_model(tmp_path_factory.mktemp("fuzz") / "model"), stages=_Instant(), limits=limits)


def statuses_of(operation: Any) -> list[int]:
    """What an operation answers to requests its description allows, and to some that it does not."""
    statuses: list[int] = []

    @settings(max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(GenerationMode.POSITIVE) | operation.as_strategy(GenerationMode.NEGATIVE))
    def ask(case: schemathesis.Case) -> None:
        answer = case.call(headers=BEARER)
        statuses.append(answer.status_code)
        if answer.status_code != 503:
            case.validate_response(answer, checks=[not_a_server_error])

    ask()
    return statuses


def test_nothing_the_document_allows_is_a_fault(service: ForecastService) -> None:
    """Driven without Schemathesis's own pytest plugin, which does not know this pytest."""
    app = guarded(build_api(service, _ready), service, Access(SECRET), lambda *_: None)
    document = schemathesis.openapi.from_asgi("/openapi.json", app, headers=BEARER)
    asked = {found.ok().label: statuses_of(found.ok()) for found in document.get_all_operations()}
    assert {"POST /v1/forecast", "GET /v1/models", "POST /v2/models/{name}/infer", "GET /v2/health/ready"} <= set(asked)
    assert all(set(statuses) - {401} for statuses in asked.values())  # some requests are made to lack the token
    assert 200 in asked["GET /v1/models"] and 422 in asked["POST /v1/forecast"]
    assert not service.admission.requests and not service.admission.waiting
