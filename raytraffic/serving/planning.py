"""A request for a decision: its fields, and the problem it describes over the draws of a forecast.

The forecast stands in the body as `/v1/forecast` takes it (`forecast`), or is one that was answered before (`draws`). What the server
decides on is checked here as files are for `raytraffic optimize`; a refusal names the field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NaiveDatetime, ValidationError

from raytraffic.config.decisions import DeploymentSettings, SleepSettings
from raytraffic.decisions.deployment import StationType
from raytraffic.decisions.problems import Installed, deployment_problem, sleep_problem
from raytraffic.decisions.reading import Demand, demand_of_table
from raytraffic.decisions.solver import SolverLimits
from raytraffic.serving.body import JsonBody
from raytraffic.serving.limits import Limits
from raytraffic.serving.models import ServedModel
from raytraffic.serving.planner import Deployment, SleepControl, Wanted
from raytraffic.serving.query import Query, query_of
from raytraffic.serving.refused import Refused, brief, problems

__all__ = ["DeploymentBody", "PlanningBody", "SleepBody", "draws_of", "forecast_query", "read_planning", "refused_field", "wanted"]

#: Settings of /v1/forecast that mean nothing to a decision; `timeout_s` is the whole request's.
_FOREIGN = {"quantiles", "keep_draws", "stream", "timeout_s"}
_MOST = 1e15
#: What messages call the draws.
_DRAWS = ("draws", "demand", "load")

Body = TypeVar("Body", bound="PlanningBody")
Amount = Annotated[float, Field(ge=0, le=_MOST)]
Positive = Annotated[float, Field(gt=0, le=_MOST)]
#: RRUs of a cell: a schedule's time and memory grow with them.
Count = Annotated[int, Field(ge=0, le=100)]


class Drawn(BaseModel):
    """The `columns` of an answer of /v1/forecast with `keep_draws`, as they were answered; other columns are left alone."""

    unique_id: list[str] = Field(min_length=1)
    ds: list[NaiveDatetime]
    draws: list[list[float]] = Field(description="The draws of each station and slot, as many everywhere.")
    service: list[str] | None = None


class Kind(BaseModel):
    """A kind of base station."""

    model_config = ConfigDict(extra="forbid")

    capacity: Positive = Field(description="What it serves in a slot, in the forecast's unit.")
    price: Amount = Field(0.0, description="Money to build one.")
    operating_cost: Amount = Field(0.0, description="For each slot, in units served.")


class PlanningBody(BaseModel):
    """What both problems are asked with."""

    model_config = ConfigDict(extra="forbid")

    forecast: JsonBody | None = Field(
        None,
        description="A forecast request as /v1/forecast takes it, without quantiles, keep_draws, stream and timeout_s. In generation what "
        "was measured is taken as it is. Exactly one of forecast and draws.",
    )
    draws: Drawn | None = Field(None, description="A forecast that was answered before.")
    service: str | None = Field(None, description="The service that is decided on; needed where the forecast has several.")
    seconds: float | None = Field(
        None, gt=0, description="Time limit of the solver, the server's own if not given; the best plan so far is answered then."
    )
    timeout_s: float | None = Field(None, gt=0, description="The work is dropped when the answer takes longer.")


class _DeploymentSettings(BaseModel):
    """The fields of raytraffic.config.DeploymentSettings that are values."""

    money: Amount | None = Field(None, description="Money to build with; unlimited if not given.")
    most_stations: Annotated[int, Field(ge=0, le=100_000)] | None = Field(
        None, description="Stations built at most; unlimited if not given."
    )
    exactly: bool = Field(False, description="Build `most_stations`, no fewer.")
    grid_limit: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        None, description="Stations, existing ones included, that fit where one station of the forecast is; unlimited if not given."
    )
    shortfall_weight: Amount = Field(1.0, description="What a unit of demand that is not served costs, beside not being served.")
    cvar_weight: float = Field(0.0, ge=0, le=1, description="How much the worst draws count: 0 is the mean over all, 1 only the worst.")
    cvar_level: float = Field(0.9, ge=0, lt=1, description="The worst share 1 - level of the draws.")


class DeploymentBody(PlanningBody, _DeploymentSettings):
    """Where base stations are built (UoMo, Eq. 12)."""

    station_types: dict[str, Kind] = Field(min_length=1, max_length=8, description="What can be built, by name.")
    existing: dict[str, dict[str, Annotated[int, Field(ge=0, le=1_000_000)]]] = Field(
        default_factory=dict, description="Stations that stand already: by id of the forecast's station, the number of each type."
    )


class _SleepSettings(BaseModel):
    """The fields of raytraffic.config.SleepSettings that are values and the same for all cells."""

    energy_per_load: Amount = Field(0.0, description="For each unit of load served.")
    energy_per_loaded_rru: Amount = Field(0.0, description="For each RRU's worth of load served.")
    energy_per_active_rru: Amount = Field(0.05, description="For each RRU and slot it is active, loaded or not: what sleeping saves.")
    switch_cost: Amount = Field(0.05, description="For each RRU that is switched on or off.")
    served_share: float | None = Field(
        None, gt=0, le=1, description="Each slot is served wholly in at least this share of the draws, as far as the installed RRUs can."
    )
    least_active: Count = Field(0, description="RRUs of each cell that never sleep.")
    least_on_slots: int = Field(1, ge=1, le=200, description="Slots from switching on until the cell may switch off.")
    least_off_slots: int = Field(1, ge=1, le=200, description="Slots from switching off until the cell may switch on.")


class SleepBody(PlanningBody, _SleepSettings):
    """How many radio units (RRUs) of each cell are active when (UoMo, Eq. 13). Costs are in slots of one cell wholly without service."""

    rrus: Count | dict[str, Count] = Field(description="RRUs installed: in every cell, or by id of the forecast's station.")
    rru_capacity: Positive | dict[str, Positive] = Field(
        description="What one RRU serves in a slot, in the forecast's unit: everywhere, or by id."
    )


def read_planning(kind: type[Body], body: bytes, limits: Limits) -> Body:
    """The request of a JSON body; Refused with the path of what is wrong."""
    try:
        content = kind.model_validate_json(body)
    except ValidationError as error:
        raise Refused(problems(error, body)) from None
    if (content.forecast is None) == (content.draws is None):
        raise Refused.of(["forecast"], "both" if content.draws else "neither", "exactly one of forecast and draws")
    for name, value, most in (("seconds", content.seconds, limits.plan_seconds), ("timeout_s", content.timeout_s, limits.timeout_s)):
        if value is not None and value > most:
            raise Refused.of([name], value, f"at most {most}")
    return content


def forecast_query(forecast: JsonBody, limits: Limits, models: Mapping[str, ServedModel]) -> Query:
    """The query whose draws are decided on; Refused by paths inside `forecast`."""
    foreign = sorted(_FOREIGN & forecast.model_fields_set)
    if foreign:
        raise Refused.of(["forecast", foreign[0]], "given", f"a setting of /v1/forecast other than {', '.join(sorted(_FOREIGN))}")
    try:
        query = query_of(forecast.model_copy(update={"keep_draws": True, "quantiles": []}), limits, models)
    except Refused as refused:
        raise refused.inside("forecast") from None
    c, length, s = query.traffic.shape
    _check_amount("forecast", query.ask.draws * c * s * (query.ask.slots(query.model.window) or length), limits)
    return query


def draws_of(content: PlanningBody, limits: Limits) -> pa.Table:
    """The rows of draws that stand in the body itself, its size checked as a forecast's would be."""
    drawn = content.draws
    assert drawn is not None
    columns: dict[str, Sequence[Any]] = {"unique_id": drawn.unique_id, "ds": drawn.ds, "draws": drawn.draws}
    columns |= {} if drawn.service is None else {"service": drawn.service}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise Refused.of(["draws"], brief(lengths), "as many entries in every column")
    _check_amount("draws", sum(len(values) for values in drawn.draws), limits)
    largest = max((value for values in drawn.draws for value in values), default=0.0)
    if largest > limits.traffic:
        raise Refused.of(["draws", "draws"], largest, f"numbers in [0, {limits.traffic:g}]")
    kinds = {"unique_id": pa.string(), "ds": pa.timestamp("us"), "draws": pa.list_(pa.float32()), "service": pa.string()}
    return pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})


def wanted(content: PlanningBody, table: pa.Table, limits: Limits) -> Wanted:
    """The decision that is wanted on the draws of a table; Refused by the field that does not fit them."""
    try:
        demand = demand_of_table("draws", table, content.service)
        seconds = limits.plan_seconds if content.seconds is None else content.seconds
        if isinstance(content, DeploymentBody):
            return _deployment(content, demand, SolverLimits(seconds=seconds, segments=limits.plan_capacities))
        assert isinstance(content, SleepBody)
        return _sleep(content, demand, seconds)
    except ValueError as error:
        raise refused_field(error, content) from None


def refused_field(error: ValueError, content: PlanningBody) -> Refused:
    """What a problem refuses, by the field its message begins with, or else by the draws it does not fit."""
    name, _, told = str(error).partition(": ")
    field = re.split(r"\W", name, maxsplit=1)[0]
    source = "forecast" if content.draws is None else "draws"
    if field in type(content).model_fields and field != "draws":
        path = [field]
    else:
        path, told = [source], told if field in _DRAWS else str(error)
    value, _, expected = told.partition(", expected ")
    return Refused.of(path, brief(value), brief(expected) or "draws that can be decided on")


def _deployment(content: DeploymentBody, demand: Demand, limits: SolverLimits) -> Deployment:
    types = {
        name: StationType(capacity=kind.capacity, price=kind.price, operating_cost=kind.operating_cost)
        for name, kind in content.station_types.items()
    }
    settings = DeploymentSettings(**_shared(_DeploymentSettings, content))
    existing = _existing(content.existing, demand, list(types))
    problem = deployment_problem(settings, demand.draws, list(types.values()), existing)
    return Deployment(demand=demand, types=tuple(types), problem=problem, limits=limits)


def _existing(existing: Mapping[str, Mapping[str, int]], demand: Demand, types: Sequence[str]) -> NDArray[np.int64]:
    """(sites, types)"""
    row = {name: i for i, (_, name) in enumerate(demand.sites)}
    counts = np.zeros((len(row), len(types)), dtype=np.int64)
    for name, standing in existing.items():
        if name not in row:
            raise Refused.of(["existing", brief(name)], "given", "a station of the forecast")
        for kind, count in standing.items():
            if kind not in types:
                raise Refused.of(["existing", brief(name), brief(kind)], "given", f"one of {list(types)}")
            counts[row[name], types.index(kind)] = count
    return counts


def _sleep(content: SleepBody, demand: Demand, seconds: float) -> SleepControl:
    names = [name for _, name in demand.sites]
    rrus, capacity = _per_station("rrus", content.rrus, names), _per_station("rru_capacity", content.rru_capacity, names)
    cells = Installed(rrus=rrus.astype(np.int64), rru_capacity=capacity)
    problem = sleep_problem(SleepSettings(**_shared(_SleepSettings, content)), demand.draws, cells)
    return SleepControl(demand=demand, cells=cells, problem=problem, seconds=seconds)


def _per_station(field: str, value: float | Mapping[str, float], names: Sequence[str]) -> NDArray[np.float64]:
    """(sites,) one number for all, or each station's own."""
    if not isinstance(value, Mapping):
        return np.full(len(names), value, dtype=np.float64)
    unknown, missing = sorted(set(value) - set(names)), [name for name in names if name not in value]
    if unknown:
        raise Refused.of([field, brief(unknown[0])], "given", "a station of the forecast")
    if missing:
        raise Refused.of([field], f"nothing of station {brief(missing[0])!r}", "a number for every station of the forecast")
    return np.array([value[name] for name in names], dtype=np.float64)


def _shared(settings: type[BaseModel], content: BaseModel) -> dict[str, Any]:
    """The settings' fields of a body."""
    return {name: getattr(content, name) for name in settings.model_fields}


def _check_amount(field: str, values: int, limits: Limits) -> None:
    if values > limits.plan_values:
        raise Refused.of(
            [field], f"{values:,} values of demand", f"at most {limits.plan_values:,}; decide on fewer stations at a time", 413
        )
