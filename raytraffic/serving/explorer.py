"""The explorer at /explore: a page that forecasts the sites of the server's cities, and what it asks the server for.

A site's forecast is that of its whole tile as the prepared store holds it, asked as /v1/forecast is.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
import pyarrow.compute as pc
from fastapi import APIRouter, HTTPException, Request
from fastapi import Query as Parameter
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raytraffic.serving.answer import json_object, plain_table
from raytraffic.serving.assemble import horizon_of
from raytraffic.serving.cities import HEAT_SLOTS, CityFacts, CityMap, Station, TileSeries
from raytraffic.serving.models import ServedModel
from raytraffic.serving.query import Query, read_json
from raytraffic.serving.refused import Refused, problems
from raytraffic.serving.service import ForecastService

__all__ = ["SiteBody", "explorer_routes"]

#: The page's files and their types.
_FILES = {
    "explore.html": "text/html; charset=utf-8",
    "explore.css": "text/css; charset=utf-8",
    "explore.js": "text/javascript; charset=utf-8",
}
#: plotly writes styles into the elements it draws, and shows heat maps as images that it has drawn itself.
_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    404: {"description": "No such city, or no such station in it."},
    422: {"description": "A field is wrong; `detail` names it by its path."},
}


class SiteBody(BaseModel):
    """Which site of a city is forecast, and when; what else it holds is as in /v1/forecast, and is checked there."""

    model_config = ConfigDict(extra="forbid", strict=True)

    station: str = Field(description="A station of the city (GET /v1/cities/{city}/stations).")
    issue: datetime = Field(description="Local time of the first slot that is forecast, without zone, on a whole step.")
    model: str | None = Field(None, description="A served model's name; the server's first if not given.")
    task: str | None = Field(
        None,
        description="short or long; or generation: one window of the model from `issue` on, in which the station's own measurements are "
        "hidden and its tile neighbours' are known. Exactly one of task and horizon.",
    )
    horizon: int | None = Field(None, description="Slots that are forecast.")
    quantiles: list[float] = Field([0.1, 0.5, 0.9], description="Increasing levels in [0, 1].")
    draws: int = Field(20, description="Draws of the forecast.")
    steps: int | None = Field(None, description="Sampler steps; the model's own number if not given.")
    seed: int = Field(0, description="The same request with the same seed has the same answer.")
    timeout_s: float | None = Field(None, description="The work is dropped when the answer takes longer.")


def explorer_routes(service: ForecastService) -> APIRouter:
    """The page at /explore and the server's cities under /v1/cities."""
    router = APIRouter()
    pages = APIRouter(prefix="/explore", include_in_schema=False)
    cities = APIRouter(prefix="/v1/cities", tags=["cities"])

    @pages.get("")
    async def page() -> Response:
        return _file("explore.html")

    @pages.get("/plotly.js")
    async def plotly(request: Request) -> Response:
        tag = f'"plotly-{version("plotly")}"'
        headers = {**_HEADERS, "ETag": tag, "Cache-Control": "private, max-age=86400", "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(await asyncio.to_thread(_plotly_gzip), media_type="text/javascript; charset=utf-8", headers=headers)
        return Response(_plotly(), media_type="text/javascript; charset=utf-8", headers=headers)

    @pages.get("/{name}")
    async def asset(name: str) -> Response:
        if name not in _FILES:
            raise HTTPException(404, f"no file {name!r}, expected one of {[*_FILES, 'plotly.js']}")
        return _file(name)

    def facts_of(city: str) -> CityFacts:
        names = service.cities.names
        if city not in names:
            raise HTTPException(404, f"city: {city!r}, expected one of {list(names)}")
        return service.cities.facts(city)

    @cities.get("")
    async def every_city() -> list[dict[str, Any]]:
        """The cities of the server's prepared store; none where it was started without one."""
        return [_described(service.cities.facts(name)) for name in service.cities.names]

    @cities.get("/{city:path}/stations", responses=_ANSWERS)
    async def stations(city: str) -> Response:
        """A city's stations: where each lies and its mean traffic of a slot in the newest week, by service."""
        facts_of(city)
        return await asyncio.to_thread(lambda: _json(_map_object(service.cities.map(city))))

    @cities.get("/{city:path}/heat", responses=_ANSWERS)
    async def heat(
        city: str,
        start: Annotated[datetime, Parameter(description="Local time of the first slot, without zone.")],
        slots: Annotated[int, Parameter(ge=1, le=HEAT_SLOTS)] = 48,
        name: Annotated[str | None, Parameter(alias="service", description="The first if not given.")] = None,
    ) -> Response:
        """Traffic of all stations, in the order of `stations`, slot by slot; null where nothing was measured."""
        facts = facts_of(city)
        minute = _minute(facts, start, ["query", "start"])
        if name is not None and name not in facts.services:
            raise _refused(["query", "service"], repr(name), f"one of {list(facts.services)}")
        chosen = name or facts.services[0]

        def read() -> Response:
            values = service.cities.heat(city, chosen, minute, slots)
            return _json({"start": _time(start), "step_minutes": facts.step_minutes, "service": chosen, "values": _nulls(values)})

        return await asyncio.to_thread(read)

    body = {"required": True, "content": {"application/json": {"schema": SiteBody.model_json_schema()}}}
    late: dict[int | str, dict[str, Any]] = {
        408: {"description": "The deadline passed."},
        503: {"description": "Busy: try again after `Retry-After`."},
    }

    @cities.post("/{city:path}/forecast", responses={**_ANSWERS, **late}, openapi_extra={"requestBody": body})
    async def forecast(city: str, request: Request) -> Response:
        """A site's measurements before `issue`, its forecast from there on, and the truth where it is known."""
        service.admission.check()
        facts = facts_of(city)
        sent = await request.body()
        try:
            content = SiteBody.model_validate_json(sent)
        except ValidationError as error:
            raise Refused(problems(error, sent)) from None
        minute = _minute(facts, content.issue, ["body", "issue"])
        known = await asyncio.to_thread(service.cities.map, city)
        station = known.station(content.station)
        if station is None:
            raise HTTPException(404, f"station: {content.station[:80]!r}, expected one of {city}'s {len(known.stations)} stations")
        query, tile = await asyncio.to_thread(_asked, service, facts, station, content, minute)
        service.check(query)
        table = await service.table(query, service.deadline(query.ask.timeout_s))
        mine = plain_table(query, table.filter(pc.equal(table.column("unique_id"), station.id)))
        answer = json_object(query, mine)
        count = horizon_of(query) or query.model.window
        truth = await asyncio.to_thread(service.cities.series, city, station.tile, minute, count)
        return _json(
            {
                **{name: value for name, value in answer.items() if name != "columns"},
                "city": city,
                "station": station.id,
                "issue": _time(content.issue),
                "history": _measured(facts, station, tile, minute - query.model.window * facts.step_minutes),
                "truth": _measured(facts, station, truth, minute),
                "forecast": answer["columns"],
            }
        )

    router.include_router(pages)
    router.include_router(cities)
    return router


def _asked(service: ForecastService, facts: CityFacts, station: Station, content: SiteBody, minute: int) -> tuple[Query, TileSeries | None]:
    """The query for the station's tile as /v1/forecast reads it, and what was measured before `minute` (None in generation)."""
    model = _model(service.models, content.model)
    generation = content.task == "generation"
    start = minute if generation else minute - model.window * facts.step_minutes
    if generation and not 0 <= (minute - facts.first_minute) // facts.step_minutes < facts.slots:
        raise Refused.of(["issue"], _time(content.issue), f"{_time(facts.first)} to {_time(facts.last)}, when neighbours were measured")
    tile = service.cities.series(facts.name, station.tile, start, model.window)
    traffic = tile.traffic.copy()
    if generation:
        traffic[:, :, station.cell] = np.nan
    elif not np.isfinite(traffic[:, :, station.cell]).any():
        raise Refused.of(
            ["issue"], _time(content.issue), f"a time with measurements of {station.id!r} in the {model.window} slots before it"
        )
    begun = np.isfinite(traffic).any(axis=(0, 1)) | (np.arange(traffic.shape[2]) == station.cell)
    cells = np.flatnonzero(begun)  # the model is told of other cells as little as of cells without a station
    body: dict[str, Any] = {
        **content.model_dump(exclude={"station", "issue"}),
        "city": facts.name,
        "start": _time(facts.first + timedelta(minutes=start - facts.first_minute)),
        "step_minutes": facts.step_minutes,
        "stations": {
            "id": [tile.sites[cell] for cell in cells],
            **({} if tile.cells is None else {"row": tile.cells[cells, 0].tolist(), "column": tile.cells[cells, 1].tolist()}),
            "poi": {name: tile.poi[name][cells].tolist() for name in model.poi_categories if name in tile.poi},
        },
        "traffic": {name: _nulls(series.T[cells]) for name, series in zip(facts.services, traffic, strict=True)},
        "users": _nulls(tile.users.T[cells]),
    }
    known = service.cities.known(facts.name)
    if model.moving and known is not None and known.env_features:
        body["places"] = tile.places.T[cells].tolist()
    return read_json(json.dumps(body).encode(), service.limits, service.models), None if generation else tile


def _model(models: Mapping[str, ServedModel], name: str | None) -> ServedModel:
    """The model that is asked for; the first for a name that the reader will refuse."""
    return models.get(name or "", next(iter(models.values())))


def _minute(facts: CityFacts, time: datetime, loc: Sequence[str]) -> int:
    """Minutes from 1970-01-01 of a slot's begin; Refused where none begins then."""
    slot = facts.slot_of(time) if time.tzinfo is None else None
    if slot is None:
        raise _refused(loc, time.isoformat(), f"a local time without zone on a whole {facts.step_minutes}-minute slot")
    return facts.first_minute + slot * facts.step_minutes


def _refused(loc: Sequence[str], value: str, expected: str) -> Refused:
    return Refused([{"loc": list(loc), "msg": f"{value}, expected {expected}", "type": "value_error"}])


def _described(facts: CityFacts) -> dict[str, Any]:
    return {
        "name": facts.name,
        "step_minutes": facts.step_minutes,
        "unit": facts.unit,
        "services": list(facts.services),
        "first": _time(facts.first),
        "last": _time(facts.last),
        "tiles": facts.tiles,
    }


def _map_object(known: CityMap) -> dict[str, Any]:
    stations = [{name: value for name, value in asdict(station).items() if name != "cell"} for station in known.stations]
    return {**_described(known.facts), "layout": known.layout, "stations": stations}


def _measured(facts: CityFacts, station: Station, tile: TileSeries | None, minute: int) -> dict[str, list[Any]]:
    """Columns service, ds and traffic of a station's slots from `minute` on; no rows where nothing was read."""
    if tile is None:
        return {"service": [], "ds": [], "traffic": []}
    slots = tile.traffic.shape[1]
    first = facts.first + timedelta(minutes=minute - facts.first_minute)
    times = [_time(first + timedelta(minutes=i * facts.step_minutes)) for i in range(slots)]
    return {
        "service": [service for service in facts.services for _ in range(slots)],
        "ds": times * len(facts.services),
        "traffic": _nulls(tile.traffic[:, :, station.cell].reshape(-1)),
    }


def _nulls(values: NDArray[np.float32]) -> list[Any]:
    """Nested lists with None for NaN."""
    return np.where(np.isfinite(values), values, None).tolist()  # type: ignore[no-any-return, call-overload]


def _time(time: datetime) -> str:
    return time.isoformat(timespec="minutes")


def _json(content: Mapping[str, Any]) -> Response:
    return Response(json.dumps(content, allow_nan=False, separators=(",", ":")), media_type="application/json")


def _file(name: str) -> Response:
    headers = {**_HEADERS, "Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return Response(_content(name), media_type=_FILES[name], headers=headers)


@cache
def _content(name: str) -> bytes:
    return files("raytraffic.serving").joinpath("static", name).read_bytes()


@cache
def _plotly() -> bytes:
    """The script that the Python package brings along, so that nothing is loaded from elsewhere."""
    return files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()


@cache
def _plotly_gzip() -> bytes:
    return gzip.compress(_plotly(), 6, mtime=0)
