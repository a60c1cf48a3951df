"""KServe's open inference protocol, version 2, over the same service: health, metadata, and inference on tensors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raytraffic import __version__
from raytraffic.forecasting import quantile_names
from raytraffic.serving.assemble import horizon_of
from raytraffic.serving.models import ServedModel
from raytraffic.serving.query import Ask, Query, Refused, problems, read_json
from raytraffic.serving.service import ForecastService

__all__ = ["kserve_routes"]


class Tensor(BaseModel):
    """One input: `traffic` or `users` (stations, slots) of FP32 or FP64, row by row, null where nothing was measured."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["traffic", "users"]
    shape: list[int] = Field(min_length=2, max_length=2)
    datatype: Literal["FP32", "FP64"]
    data: list[float | None] | list[list[float | None]]
    parameters: dict[str, Any] | None = None


class InferBody(BaseModel):
    """An inference request; `parameters` are the settings of `/v1/forecast` without `model`, `keep_draws` and `stream`."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(None, max_length=128)
    parameters: dict[str, Any]
    inputs: list[Tensor] = Field(min_length=1, max_length=2)
    outputs: list[dict[str, Any]] | None = None


def kserve_routes(service: ForecastService, ready: Callable[[], Awaitable[bool]]) -> APIRouter:
    """The routes under /v2; `ready` says whether a forecast would be answered now."""
    router = APIRouter(prefix="/v2", tags=["KServe V2"])
    missing: dict[int | str, dict[str, Any]] = {404: {"description": "No model of this name."}}

    def model_of(name: str) -> ServedModel | JSONResponse:
        model = service.models.get(name)
        return model or JSONResponse({"error": f"model {name!r}, expected one of {list(service.models)}"}, 404)

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"live": True}

    @router.get("/health/ready", responses={503: {"description": "Not ready."}})
    async def all_ready() -> JSONResponse:
        """Whether a forecast would be answered now."""
        is_ready = await ready()
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    @router.get("")
    async def server() -> dict[str, Any]:
        """The server's name and version."""
        return {"name": "raytraffic", "version": __version__, "extensions": []}

    @router.get("/models/{name}", responses=missing)
    async def metadata(name: str) -> Response:
        """A model's inputs and outputs."""
        model = model_of(name)
        return model if isinstance(model, Response) else JSONResponse(_metadata(model))

    @router.get("/models/{name}/ready", responses={**missing, 503: {"description": "Not ready."}})
    async def model_ready(name: str) -> Response:
        """Whether a model would answer now."""
        model = model_of(name)
        if isinstance(model, Response):
            return model
        is_ready = await ready()
        return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)

    body = {"required": True, "content": {"application/json": {"schema": InferBody.model_json_schema(ref_template=_REFERENCE)}}}
    body["content"]["application/json"]["schema"].pop("$defs")  # type: ignore[index]

    @router.post(
        "/models/{name}/infer",
        responses={**missing, 408: {"description": "The deadline passed."}, 422: {"description": "A field is wrong."}},
        openapi_extra={"requestBody": body},
    )
    async def infer(name: str, request: Request) -> Response:
        """Forecast by tensors: means (stations, slots) and quantiles (levels, stations, slots)."""
        service.admission.check()
        model = model_of(name)
        if isinstance(model, Response):
            return model
        content, query = await asyncio.to_thread(_read, await request.body(), model, service)
        service.check(query)
        table = await service.table(query, service.deadline(query))
        return JSONResponse(_outputs(content, query, table.to_pydict()))

    return router


_REFERENCE = "#/components/schemas/{model}"


def tensor_schema() -> dict[str, Any]:
    """The definitions that the inference body's schema refers to."""
    return dict(InferBody.model_json_schema(ref_template=_REFERENCE)["$defs"])


def _metadata(model: ServedModel) -> dict[str, Any]:
    inputs = [{"name": name, "datatype": "FP32", "shape": [-1, -1]} for name in ("traffic", "users")]
    outputs = [{"name": "mean", "datatype": "FP64", "shape": [-1, -1]}, {"name": "quantiles", "datatype": "FP64", "shape": [-1, -1, -1]}]
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": f"raytraffic_{model.model}",
        "inputs": inputs,
        "outputs": outputs,
    }


def _read(body: bytes, model: ServedModel, service: ForecastService) -> tuple[InferBody, Query]:
    try:
        content = InferBody.model_validate_json(body)
    except ValidationError as error:
        raise Refused(problems(error)) from None
    return content, _query(content, model, service)


def _query(content: InferBody, model: ServedModel, service: ForecastService) -> Query:
    """The same request as /v1/forecast has it, read by the same reader."""
    foreign = sorted(set(content.parameters) & {"model", "keep_draws", "stream"} | set(content.parameters) - set(Ask.model_fields))
    if foreign:
        raise Refused.of(["parameters"], foreign, "settings of /v1/forecast without model, keep_draws and stream")
    if content.parameters.get("task") == "generation":
        raise Refused.of(["parameters", "task"], "'generation'", "short, long or a horizon: a tensor has an answer for every slot")
    body: dict[str, Any] = {**content.parameters, "model": model.name}
    for number, tensor in enumerate(content.inputs):
        if tensor.name in body:
            raise Refused.of(["inputs", number, "name"], repr(tensor.name), "each input once")
        stations, slots = tensor.shape
        nested = bool(tensor.data) and isinstance(tensor.data[0], list)
        flat = [value for row in tensor.data for value in row] if nested else tensor.data  # type: ignore[union-attr]
        if stations < 1 or slots < 1 or len(flat) != stations * slots:
            raise Refused.of(["inputs", number, "data"], f"{len(flat)} values", f"as many as shape {tensor.shape} says")
        body[tensor.name] = [flat[i * slots : (i + 1) * slots] for i in range(stations)]
    body["stations"] = {"id": [str(i) for i in range(content.inputs[0].shape[0])]}
    return read_json(json.dumps(body).encode(), service.limits, service.models)


def _outputs(content: InferBody, query: Query, columns: dict[str, list[Any]]) -> dict[str, Any]:
    """Rows come by station and slot where every station is a tile of its own."""
    stations, slots, levels = len(query.ids), horizon_of(query), quantile_names(query.ask.quantiles)
    quantiles = np.array([columns[name] for name in levels]).reshape(-1)
    outputs = [{"name": "mean", "datatype": "FP64", "shape": [stations, slots], "data": columns["mean"]}]
    if levels:
        outputs.append({"name": "quantiles", "datatype": "FP64", "shape": [len(levels), stations, slots], "data": quantiles.tolist()})
    answer = {"model_name": query.model.name, "model_version": query.model.version, "outputs": outputs}
    return answer if content.id is None else {"id": content.id, **answer}
