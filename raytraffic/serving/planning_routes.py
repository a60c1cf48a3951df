"""The routes that answer with a decision: the forecast is drawn by the usual stages, the problem is solved by the planner."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from raytraffic.serving.answer import about
from raytraffic.serving.planning import (
    DeploymentBody,
    PlanningBody,
    SleepBody,
    draws_of,
    forecast_query,
    read_planning,
    refused_field,
    wanted,
)
from raytraffic.serving.query import Query
from raytraffic.serving.refused import ANSWERS, Refused
from raytraffic.serving.service import ForecastService

__all__ = ["planning_routes", "planning_schema"]

_REFERENCE = "#/components/schemas/{model}"
_BODIES: tuple[type[PlanningBody], ...] = (DeploymentBody, SleepBody)
_DECISION = {
    "description": "The decision by station; the solver's status (`optimal` or `time limit`), bound, gap and seconds; what is promised: "
    "the mean of each measure over the draws and the central interval of `interval_level` of them, beside deciding nothing. `forecast` "
    "says what made the draws, where the server did.",
    "content": {"application/json": {"schema": {"type": "object"}}},
}


def planning_routes(service: ForecastService) -> APIRouter:
    """POST /v1/deployment and /v1/sleep."""
    router = APIRouter(prefix="/v1", tags=["decisions"], responses={200: _DECISION, **ANSWERS})

    @router.post("/deployment", openapi_extra=_request_body(DeploymentBody))
    async def deployment(request: Request) -> Response:
        """Where base stations are built so that the forecast's demand is served best, within what may be built and spent."""
        return await _decide(service, request, DeploymentBody)

    @router.post("/sleep", openapi_extra=_request_body(SleepBody))
    async def sleep(request: Request) -> Response:
        """How many radio units of each cell are active in each slot, so that the forecast's load is served at the least cost."""
        return await _decide(service, request, SleepBody)

    return router


def planning_schema() -> dict[str, Any]:
    """The definitions that the bodies' schemas refer to."""
    return {name: one for body in _BODIES for name, one in body.model_json_schema(ref_template=_REFERENCE)["$defs"].items()}


def _request_body(body: type[PlanningBody]) -> dict[str, Any]:
    schema = body.model_json_schema(ref_template=_REFERENCE)
    schema.pop("$defs")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def _decide(service: ForecastService, request: Request, kind: type[PlanningBody]) -> Response:
    """The answer to one request; nothing that takes time is done in the event loop."""
    service.admission.check()
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != "application/json":
        return JSONResponse({"detail": f"content-type: {sent!r}, expected application/json"}, 415)
    content = await asyncio.to_thread(read_planning, kind, await request.body(), service.limits)
    deadline = service.deadline(content.timeout_s)
    made: dict[str, Any] | None = None
    if content.forecast is None:
        table = await asyncio.to_thread(draws_of, content, service.limits)
    else:
        query = await asyncio.to_thread(forecast_query, content.forecast, service.limits, service.models)
        table, made = await _drawn(service, query, deadline), about(query)
    problem = await asyncio.to_thread(wanted, content, table, service.limits)
    try:
        answer = await service.decide(problem, deadline)
    except ValueError as error:
        raise refused_field(error, content) from None
    return Response(await asyncio.to_thread(_json_bytes, {"forecast": made, **answer}), media_type="application/json")


async def _drawn(service: ForecastService, query: Query, deadline: float) -> pa.Table:
    """Rows of draws of every station and slot: in generation what was measured stands beside what was drawn."""
    try:
        service.check(query)
        table = await service.table(query, deadline)
    except Refused as refused:
        raise refused.inside("forecast") from None
    return await asyncio.to_thread(_with_measured, query, table)


def _with_measured(query: Query, table: pa.Table) -> pa.Table:
    kinds = {"unique_id": pa.string(), "service": pa.string(), "ds": pa.timestamp("s"), "draws": table.schema.field("draws").type}
    drawn = pa.table({name: table.column(name).cast(kind) for name, kind in kinds.items()})
    if query.ask.task != "generation":
        return drawn
    service, slot, station = np.nonzero(np.isfinite(query.traffic))
    values = np.repeat(query.traffic[service, slot, station], query.ask.draws)
    minutes = query.start_minute + slot * query.ask.step_minutes
    measured = {
        "unique_id": pa.array(np.array(query.ids, dtype=object)[station], pa.string()),
        "service": pa.array(np.array(query.services, dtype=object)[service], pa.string()),
        "ds": pa.array(minutes.astype("datetime64[m]").astype("datetime64[s]")),
        "draws": pa.FixedSizeListArray.from_arrays(pa.array(values), query.ask.draws).cast(kinds["draws"]),
    }
    return pa.concat_tables([drawn, pa.table(measured)])


def _json_bytes(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, allow_nan=False).encode()
