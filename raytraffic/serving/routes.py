"""The HTTP interface: forecasts and decisions under /v1, KServe's V2 protocol under /v2, the explorer page, all described by OpenAPI."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pyarrow as pa
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from raytraffic import __version__
from raytraffic.serving.access import Access
from raytraffic.serving.admission import Busy
from raytraffic.serving.answer import about, arrow_bytes, json_object, plain_table
from raytraffic.serving.body import JsonBody
from raytraffic.serving.explorer import explorer_routes
from raytraffic.serving.guard import Guard
from raytraffic.serving.kserve import kserve_routes, tensor_schema
from raytraffic.serving.planning_routes import planning_routes, planning_schema
from raytraffic.serving.query import ARROW, Query, read_arrow, read_json
from raytraffic.serving.refused import ANSWERS, Refused
from raytraffic.serving.service import Expired, ForecastService

__all__ = ["build_api", "guarded"]

_FAULT = "a fault of the server, not of the request"
_TABLE = {
    "description": "One row a station, service and slot: unique_id, service, ds, mean, a column each quantile level, draws if asked for.",
    "content": {
        "application/json": {"schema": {"type": "object"}},
        ARROW: {"schema": {"type": "string", "format": "binary"}},
        "application/x-ndjson": {"schema": {"type": "string"}},
    },
}


def build_api(service: ForecastService, ready: Callable[[], Awaitable[bool]]) -> FastAPI:
    """The application; `ready` says whether a forecast would be answered now."""
    api = FastAPI(
        title="raytraffic",
        version=__version__,
        description="Probabilistic forecasts of mobile-network traffic, and decisions on them.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )

    @api.exception_handler(Refused)
    async def _(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"detail": error.problems}, error.status)

    @api.exception_handler(Busy)
    async def _(_: Request, error: Busy) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(math.ceil(error.retry_after_s))})

    @api.exception_handler(Expired)
    async def _(_: Request, __: Expired) -> JSONResponse:
        return JSONResponse({"detail": "the deadline passed before the answer was ready; its work was dropped"}, 408)

    @api.exception_handler(Exception)
    async def _(request: Request, _: Exception) -> JSONResponse:
        """What the fault was stands in the server's log, under the id."""
        return JSONResponse({"detail": _FAULT, "request_id": getattr(request.state, "request_id", None)}, 500)

    body = {"schema": JsonBody.model_json_schema(ref_template="#/components/schemas/{model}", mode="validation")}
    definitions = {**body["schema"].pop("$defs"), **tensor_schema(), **planning_schema()}
    request_body = {
        "required": True,
        "content": {"application/json": body, ARROW: {"schema": {"type": "string", "format": "binary"}}},
    }

    @api.post("/v1/forecast", responses={200: _TABLE, **ANSWERS}, openapi_extra={"requestBody": request_body}, tags=["forecasts"])
    async def forecast(request: Request) -> Response:
        """Forecast one or thousands of stations from their history; the answer is JSON, or Arrow where `Accept` or the body is."""
        service.admission.check()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/json", ARROW):
            return JSONResponse({"detail": f"content-type: {kind!r}, expected application/json or {ARROW}"}, 415)
        read = read_json if kind == "application/json" else read_arrow
        query = await asyncio.to_thread(read, await request.body(), service.limits, service.models)
        service.check(query)
        accept = request.headers.get("accept", "")
        arrow = ARROW in accept or (kind == ARROW and "json" not in accept)
        deadline = service.deadline(query.ask.timeout_s)
        if query.ask.stream:
            parts = service.tables(query, deadline)
            first = await anext(parts)  # what is refused or busy is told before the answer begins
            stream = _arrow_stream if arrow else _json_lines
            return StreamingResponse(stream(query, first, parts), media_type=ARROW if arrow else "application/x-ndjson")
        table = plain_table(query, await service.table(query, deadline))
        if arrow:
            return Response(await asyncio.to_thread(arrow_bytes, table), media_type=ARROW)
        return Response(await asyncio.to_thread(_json_bytes, query, table), media_type="application/json")

    @api.get("/v1/models", tags=["models"], responses={401: ANSWERS[401]})
    async def models() -> list[dict[str, Any]]:
        """The served models, the default one first."""
        return [
            {
                "name": model.name,
                "version": model.version,
                "model": model.model,
                "window": model.window,
                "services": model.services,
                "contexts": list(model.contexts),
                "places": model.moving,
                "poi_categories": list(model.poi_categories),
                "steps": model.sampler.steps,
                "calibrated": model.calibrated,
            }
            for model in service.models.values()
        ]

    api.include_router(planning_routes(service))
    api.include_router(kserve_routes(service, ready))
    api.include_router(explorer_routes(service))

    described = api.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        document.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        return document

    api.openapi = openapi  # type: ignore[method-assign]
    return api


def guarded(api: FastAPI, service: ForecastService, access: Access, observe: Callable[[str, int, float], None]) -> Guard:
    """The application behind its guard."""
    return Guard(api, access, int(service.limits.body_mib * 2**20), observe)


def _json_bytes(query: Query, table: pa.Table) -> bytes:
    return json.dumps(json_object(query, table), allow_nan=False).encode()


async def _json_lines(query: Query, first: pa.Table, rest: AsyncGenerator[pa.Table]) -> AsyncIterator[bytes]:
    """One object a part; a last one with `error` where the answer broke off, also by a fault, which the server then logs."""
    async with aclosing(rest):
        try:
            yield _json_bytes(query, plain_table(query, first)) + b"\n"
            async for part in rest:
                yield await asyncio.to_thread(_json_bytes, query, plain_table(query, part)) + b"\n"
        except (Busy, Expired) as error:
            yield json.dumps({**about(query), "error": str(error) or "the deadline passed"}).encode() + b"\n"
        except Exception:
            yield json.dumps({**about(query), "error": _FAULT}).encode() + b"\n"
            raise


async def _arrow_stream(query: Query, first: pa.Table, rest: AsyncGenerator[pa.Table]) -> AsyncIterator[bytes]:
    """The batches of one IPC stream as they are made; where it broke off a message begins and does not end, which readers refuse."""
    table = plain_table(query, first)
    sink = _Sink()
    async with aclosing(rest):
        writer = pa.ipc.new_stream(sink, table.schema)
        try:
            writer.write_table(table)
            yield sink.take()
            async for part in rest:
                writer.write_table(plain_table(query, part))
                yield sink.take()
        except (Busy, Expired):
            yield _BROKEN_OFF
            return
        except Exception:
            yield _BROKEN_OFF
            raise
        writer.close()
        yield sink.take()


#: The begin of a message of 8 bytes that does not follow; a stream that only lacks its end marker is whole to most readers.
_BROKEN_OFF = b"\xff\xff\xff\xff\x08\x00\x00\x00"


class _Sink:
    """A file to which the writer writes and from which the bytes are taken."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None: ...

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)
