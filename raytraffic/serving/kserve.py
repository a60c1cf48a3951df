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
from raytraffic.serving.body import Ask
from raytraffic.serving.models import ServedModel
from raytraffic.serving.query import Query, read_json
from raytraffic.serving.refused import Refused, brief, problems
from raytraffic.serving.service import ForecastService

__all__ = ["kserve_routes"]


class Tensor(BaseModel):
    """One input: `traffic` or `users` (stations, slots) of FP32 or FP64, row by row, null where nothing was measured; `expected_users`
    (stations, slots of the forecast), null where nothing is expected."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["traffic", "users", "expected_users"]
    shape: list[int] = Field(min_length=2, max_length=2)
    datatype: Literal["FP32", "FP64"]
    data: list[float | None] | list[list[float | None]]
    parameters: dict[str, Any] | None = None


class InferBody(BaseModel):
    """An inference request; `parameters` are the settings of `/v1/forecast` without `model`, `keep_draws` and `stream`."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = Field(None, max_length=128)
    parameters: dict[str, Any]
    inputs: list[Tensor] = Field(min_length=1, max_length=3)
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
        content = await asyncio.to_thread(_content, await request.body())
        try:
            query = await asyncio.to_thread(_query, content, model, service)
            service.check(query)
            table = await service.table(query, service.deadline(query.ask.timeout_s))
        except Refused as refused:
            raise _as_sent(refused, content) from None
        return JSONResponse(_outputs(content, query, table.to_pydict()))

    return router


_REFERENCE = "#/components/schemas/{model}"


def tensor_schema() -> dict[str, Any]:
    """The definitions that the inference body's schema refers to."""
    return dict(InferBody.model_json_schema(ref_template=_REFERENCE)["$defs"])


def _metadata(model: ServedModel) -> dict[str, Any]:
    names = ["traffic", "users", *(["expected_users"] if "expected_users" in model.contexts else [])]
    inputs = [{"name": name, "datatype": "FP32", "shape": [-1, -1]} for name in names]
    outputs = [{"name": "mean", "datatype": "FP64", "shape": [-1, -1]}, {"name": "quantiles", "datatype": "FP64", "shape": [-1, -1, -1]}]
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": f"raytraffic_{model.model}",
        "inputs": inputs,
        "outputs": outputs,
    }


def _content(body: bytes) -> InferBody:
    try:
        return InferBody.model_validate_json(body)
    except ValidationError as error:
        raise Refused(problems(error, body)) from None


#: Settings of /v1/forecast that a tensor has no place for, or whose place is the path.
_FOREIGN = {"model", "keep_draws", "stream"}


def _query(content: InferBody, model: ServedModel, service: ForecastService) -> Query:
    """The same request as /v1/forecast has it, read by the same reader; Refused by its paths."""
    body: dict[str, Any] = {**content.parameters, "model": model.name}
    foreign = sorted(set(content.parameters) - (set(Ask.model_fields) - _FOREIGN))
    if foreign:
        raise Refused.of(["parameters", brief(foreign[0])], "given", f"a setting of /v1/forecast other than {', '.join(sorted(_FOREIGN))}")
    if content.parameters.get("task") == "generation":
        raise Refused.of(["task"], "'generation'", "short, long or a horizon: a tensor has an answer for every slot")
    for number, tensor in enumerate(content.inputs):
        if tensor.name in body:
            raise Refused.of(["inputs", number, "name"], repr(tensor.name), "each input once")
        stations, slots = tensor.shape
        if not _has_shape(tensor):
            raise Refused.of(["inputs", number, "data"], f"{len(tensor.data)} values", f"as many as shape {tensor.shape} says")
        body[tensor.name] = tensor.data if _is_nested(tensor) else [tensor.data[i * slots : (i + 1) * slots] for i in range(stations)]
    body["stations"] = {"id": [str(i) for i in range(content.inputs[0].shape[0])]}
    return read_json(json.dumps(body).encode(), service.limits, service.models)


def _is_nested(tensor: Tensor) -> bool:
    """Whether the data are lists of rows."""
    return bool(tensor.data) and isinstance(tensor.data[0], list)


def _has_shape(tensor: Tensor) -> bool:
    """Whether the data have the shape that the tensor says, row by row or one after another."""
    stations, slots = tensor.shape
    if stations < 1 or slots < 1:
        return False
    if _is_nested(tensor):
        return len(tensor.data) == stations and all(len(row) == slots for row in tensor.data)  # type: ignore[arg-type]
    return len(tensor.data) == stations * slots


def _as_sent(refused: Refused, content: InferBody) -> Refused:
    """The same with the paths of the tensors' body."""
    return Refused([{**problem, "loc": ["body", *_sent_path(problem["loc"][1:], content)]} for problem in refused.problems], refused.status)


def _sent_path(path: list[str | int], content: InferBody) -> list[str | int]:
    """Where the body of an inference holds what /v1/forecast has at `path`."""
    place = {tensor.name: number for number, tensor in enumerate(content.inputs)}
    match path:
        case ["inputs" | "parameters", *_]:
            return path
        case ["stations", *_]:  # they are made of the first input's shape
            return ["inputs", 0, "shape"]
        case ["traffic" | "users" | "expected_users" as name, *inside]:
            if name not in place:
                return ["inputs"]
            tensor = content.inputs[place[name]]
            if len(inside) == 2 and not _is_nested(tensor):
                inside = [int(inside[0]) * tensor.shape[1] + int(inside[1])]
            elif not _is_nested(tensor):
                inside = []  # a station's slots have no path of their own
            return ["inputs", place[name], "data", *inside]
    return ["parameters", *path]


def _outputs(content: InferBody, query: Query, columns: dict[str, list[Any]]) -> dict[str, Any]:
    """Rows come by station and slot where every station is a tile of its own."""
    stations, slots, levels = len(query.ids), horizon_of(query), quantile_names(query.ask.quantiles)
    quantiles = np.array([columns[name] for name in levels]).reshape(-1)
    outputs = [{"name": "mean", "datatype": "FP64", "shape": [stations, slots], "data": columns["mean"]}]
    if levels:
        outputs.append({"name": "quantiles", "datatype": "FP64", "shape": [len(levels), stations, slots], "data": quantiles.tolist()})
    answer = {"model_name": query.model.name, "model_version": query.model.version, "outputs": outputs}
    return answer if content.id is None else {"id": content.id, **answer}
