"""A forecast request: how JSON and Arrow bodies are read, and what is refused, by the path of the field.

Both bodies hold the same: settings (`Ask`), and columns with one entry a station. In JSON columns are fields of the body; in Arrow they
are columns of the table (`traffic` or `traffic.<service>`, `users`, `expected_users` and `places` lists of slots, `poi.<category>` counts)
and the settings stand as JSON in the schema's metadata under `raytraffic`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from raytraffic.forecasting import quantile_names
from raytraffic.serving import arrow
from raytraffic.serving.body import LONGEST_NAME, Ask, JsonBody, Matrix, Names, Stations
from raytraffic.serving.limits import Limits
from raytraffic.serving.models import ServedModel
from raytraffic.serving.refused import Refused, brief, check_slots, problems
from raytraffic.serving.whereabouts import Whereabouts
from raytraffic.sources.city import STEP_MINUTES

__all__ = ["ARROW", "METADATA", "Query", "query_of", "read_arrow", "read_json"]

ARROW = "application/vnd.apache.arrow.stream"
METADATA = b"raytraffic"
_EPOCH = datetime(1970, 1, 1)
_FARTHEST = 1e8

_Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """A request that was read and checked (axes: c service, t slot of history, a answered slot, s station).

    traffic (c, t, s), users (t, s) and expected_users (a, s) float32 with NaN; places of t slots, or of t + a; cell (s, 2) row and column
    of the grid, or None; xy (s, 2) metres, or None; poi by category (s,). The answered slots are those after the history, or the history's
    own in generation.
    """

    ask: Ask
    ids: tuple[str, ...]
    model: ServedModel
    services: tuple[str, ...]
    traffic: _Floats
    users: _Floats | None
    expected_users: _Floats | None
    places: Whereabouts | None
    cell: NDArray[np.int64] | None
    xy: _Floats | None
    poi: Mapping[str, _Floats]

    @property
    def start_minute(self) -> int:
        """Minutes from 1970-01-01 to the first slot, on the city's wall clock."""
        return int((self.ask.start - _EPOCH).total_seconds()) // 60


def read_json(body: bytes, limits: Limits, models: Mapping[str, ServedModel]) -> Query:
    """The query of a JSON body; Refused with the path of what is wrong."""
    try:
        content = JsonBody.model_validate_json(body)
    except ValidationError as error:
        raise Refused(problems(error, body)) from None
    return query_of(content, limits, models)


def query_of(content: JsonBody, limits: Limits, models: Mapping[str, ServedModel]) -> Query:
    """The query of a JSON body that has its form; Refused with the path of what is wrong."""
    stations = len(content.stations.id)
    _count(stations, limits)
    ask = Ask(**{name: getattr(content, name) for name in Ask.model_fields})
    given = content.traffic if isinstance(content.traffic, dict) else {} if content.traffic is None else {"traffic": content.traffic}
    named = isinstance(content.traffic, dict)
    users, expected, places = content.users, content.expected_users, content.places
    series = _Series(
        traffic={
            name: _matrix(rows, ["traffic", name] if named else ["traffic"], stations, limits.history) for name, rows in given.items()
        },
        users=None if users is None else _matrix(users, ["users"], stations, limits.history),
        expected_users=None if expected is None else _matrix(expected, ["expected_users"], stations, _longest(limits)),
        places=None if places is None else _whereabouts(places, stations, limits),
    )
    return _query(ask, content.stations, series, limits, models)


def read_arrow(body: bytes, limits: Limits, models: Mapping[str, ServedModel]) -> Query:
    """The query of an Arrow IPC stream; Refused with the path of what is wrong."""
    try:
        if arrow.is_compressed(body):
            raise ValueError("compressed buffers (a small body could fill any memory)")
        reader = pa.ipc.open_stream(body)
        ask_json = (reader.schema.metadata or {}).get(METADATA)
        table = reader.read_all()
        table.validate(full=True)
        names = table.column_names
    except Exception as error:  # extension types are read by whoever registered them, and raise what they like
        raise Refused.of([], brief(str(error).partition("\n")[0]), "an Arrow IPC stream without compression") from None
    if ask_json is None:
        raise Refused.of(["metadata"], "no 'raytraffic'", "the settings as JSON under this key of the schema's metadata")
    try:
        ask = TypeAdapter(Ask).validate_json(ask_json)
    except ValidationError as error:
        raise Refused(problems(error, ask_json)) from None
    if len(set(names)) < len(names):
        raise Refused.of(["columns"], brief(names), "different names")
    plain = ("id", "row", "column", "x", "y", "users", "expected_users", "places", "traffic")
    unknown = [n for n in names if n not in plain and not n.startswith(("traffic.", "poi."))]
    if unknown or "id" not in names:
        expected = "id, row, column, x, y, traffic or traffic.<service>, users, expected_users, places, poi.<category>"
        raise Refused.of(["columns"], brief(unknown or names), expected)
    _count(len(table), limits)
    most = max(model.services for model in models.values())
    if sum(name.startswith("traffic") for name in names) > most:  # lists of nulls are large only once they are read
        raise Refused.of(["traffic"], brief(names), f"at most {most} services, as the models were trained on")
    ids = arrow.values(table, "id", pa.string())
    traffic = [name for name in names if name == "traffic" or name.startswith("traffic.")]
    if "traffic" in traffic and len(traffic) > 1:
        raise Refused.of(["columns"], brief(names), "traffic, or traffic.<service> of every service")
    series = _Series(
        traffic={name.removeprefix("traffic."): arrow.lists(table, name, limits.history) for name in traffic},
        users=arrow.lists(table, "users", limits.history) if "users" in names else None,
        expected_users=arrow.lists(table, "expected_users", _longest(limits)) if "expected_users" in names else None,
        places=Whereabouts.of(arrow.texts(table, "places", _spoken(limits)), len(table)) if "places" in names else None,
    )
    kinds = {"row": pa.int64(), "column": pa.int64(), "x": pa.float64(), "y": pa.float64()}
    given = {name: arrow.values(table, name, kind) for name, kind in kinds.items() if name in names}
    poi = {name.removeprefix("poi."): arrow.values(table, name, pa.float64()) for name in names if name.startswith("poi.")}
    return _query(ask, Stations.model_construct(None, id=ids, poi=poi, **given), series, limits, models)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Series:
    """What a body says slot by slot: (s, t) float64 each, null as NaN; traffic by service."""

    traffic: Mapping[str, NDArray]
    users: NDArray | None
    expected_users: NDArray | None
    places: Whereabouts | None


def _query(ask: Ask, stations: Stations, series: _Series, limits: Limits, models: Mapping[str, ServedModel]) -> Query:
    """The checks that both kinds of body share."""
    ids, poi = stations.id, {name: np.array(counts, dtype=np.float64) for name, counts in (stations.poi or {}).items()}
    _check_settings(ask, limits, models)
    _check_names(ids)
    model = models[ask.model or next(iter(models))]
    if (ask.steps or 1) > model.noise_levels:
        raise Refused.of(["steps"], ask.steps, f"at most {model.noise_levels}, the noise levels that the model was trained with")
    services = tuple(series.traffic) or ("traffic",)
    if len(services) != model.services:
        raise Refused.of(["traffic"], f"services {brief(services)}", f"{model.services}, as the model was trained on")
    foreign = sorted(set(poi) - set(model.poi_categories))
    if foreign:
        raise Refused.of(["stations", "poi"], brief(foreign), f"categories of the model, {list(model.poi_categories)}")
    matrices = series.traffic
    if not matrices:
        if ask.task != "generation":
            raise Refused.of(["traffic"], "missing", "the stations' history (only generation goes without)")
        matrices = {"traffic": np.full((len(ids), model.window), np.nan)}
    users, expected = series.users, series.expected_users
    shapes = {name: values.shape for name, values in matrices.items()} | ({} if users is None else {"users": users.shape})
    if len(set(shapes.values())) > 1:
        raise Refused.of(["traffic"], brief(shapes), "as many slots of every service and of users")
    traffic = np.stack([_numbers(values, "traffic", limits.traffic) for values in matrices.values()])
    _check_amount(ask, model.window, traffic, limits)
    _check_hop(ask, model.window)
    if series.places is not None:
        _check_places(series.places, traffic.shape[2], ask.slots(model.window), model)
    if expected is not None:
        _check_expected(expected, ask.slots(model.window) or traffic.shape[2], model, limits)
    for name, counts in poi.items():
        if counts.shape != (len(ids),) or not np.isfinite(counts).all() or (counts < 0).any() or (counts > 1e9).any():
            raise Refused.of(["stations", "poi", name], f"{counts.size} counts", f"{len(ids)} finite counts in [0, 1e9]")
    return Query(
        ask=ask,
        ids=tuple(ids),
        model=model,
        services=services,
        traffic=traffic.transpose(0, 2, 1).astype(np.float32),
        users=None if users is None else _numbers(users, "users", limits.traffic).T.astype(np.float32),
        expected_users=None if expected is None else expected.T.astype(np.float32),
        places=series.places,
        cell=_cells(stations.row, stations.column, len(ids)),
        xy=_metres(stations.x, stations.y, len(ids)),
        poi={name: counts.astype(np.float32) for name, counts in poi.items()},
    )


def _check_settings(ask: Ask, limits: Limits, models: Mapping[str, ServedModel]) -> None:
    if ask.model is not None and ask.model not in models:
        raise Refused.of(["model"], repr(ask.model), f"one of {list(models)}")
    if ask.step_minutes not in STEP_MINUTES:
        raise Refused.of(["step_minutes"], ask.step_minutes, f"one of {STEP_MINUTES}")
    start = ask.start
    if start.tzinfo is not None or not 1970 <= start.year <= 2200:
        raise Refused.of(["start"], start.isoformat(), "a local time of the years 1970 to 2200, without zone")
    if start.second or start.microsecond or (start.hour * 60 + start.minute) % ask.step_minutes:
        raise Refused.of(["start"], start.isoformat(), f"a time on a whole {ask.step_minutes}-minute slot")
    if (ask.task is None) == (ask.horizon is None):
        raise Refused.of(["horizon"], f"task {ask.task}, horizon {ask.horizon}", "exactly one of task and horizon")
    for name, value, most in (
        ("horizon", ask.horizon or 1, limits.horizon),
        ("draws", ask.draws, limits.draws),
        ("steps", ask.steps or 1, limits.steps),
        ("timeout_s", ask.timeout_s or 0, limits.timeout_s),
    ):
        if value > most:
            raise Refused.of([name], value, f"at most {most}")
    levels = ask.quantiles
    if len(levels) > limits.quantiles or any(not 0 <= level <= 1 for level in levels) or levels != sorted(set(levels)):
        raise Refused.of(["quantiles"], str(levels)[:80], f"at most {limits.quantiles} increasing levels in [0, 1]")
    if len(set(quantile_names(levels))) < len(levels):
        raise Refused.of(["quantiles"], str(levels)[:80], "levels that differ in their first six digits, which name the columns")


def _check_names(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for i, name in enumerate(ids):
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise Refused.of(["stations", "id", i], repr(name[:40]), f"1 to {LONGEST_NAME} printable characters")
        if name in seen:
            raise Refused.of(["stations", "id", i], repr(name), "a name that no other station has")
        seen.add(name)


def _check_amount(ask: Ask, window: int, traffic: NDArray, limits: Limits) -> None:
    """`traffic` (c, s, t)."""
    c, s, t = traffic.shape
    answered = ask.slots(window) or t
    values = c * s * answered * (ask.draws if ask.keep_draws else 1)
    if values > limits.answer_values:
        raise Refused.of(["stations"], f"an answer of {values:,} values", f"at most {limits.answer_values:,}; ask for fewer at a time", 413)
    missing = np.isnan(traffic)
    begun = ~missing.all(axis=(0, 2))
    if ask.task != "generation":
        if not begun.all():
            i = int(np.flatnonzero(~begun)[0])
            raise Refused.of(["traffic", i], "only nulls", "measurements of every station (task generation answers stations without any)")
        if missing.mean() > limits.missing:
            raise Refused.of(["traffic"], f"{missing.mean():.1%} null", f"at most {limits.missing:.1%}")
    elif not missing.any():
        raise Refused.of(["traffic"], "no null", "at least one, for generation answers nulls")


def _check_hop(ask: Ask, window: int) -> None:
    if ask.hop is None:
        return
    horizon = ask.slots(window)
    if horizon == 0:
        raise Refused.of(["hop"], ask.hop, "none in generation, which forecasts no slot after the history")
    if ask.hop > min(horizon, window - 1):
        expected = f"1 to {min(horizon, window - 1)}: at most the horizon, and less than the model's window of {window} slots"
        raise Refused.of(["hop"], ask.hop, expected)


def _check_places(places: Whereabouts, slots: int, answered: int, model: ServedModel) -> None:
    if not model.moving:
        raise Refused.of(["places"], "given", f"none, for model {model.name!r} does not look at where users are slot by slot")
    if places.slots not in (slots, slots + answered):
        beyond = f", or {slots + answered} with those that are forecast" if answered else ""
        raise Refused.of(["places"], f"{places.slots} slots", f"{slots}, the slots of traffic{beyond}")


def _check_expected(expected: NDArray, answered: int, model: ServedModel, limits: Limits) -> None:
    """`expected` (s, a)."""
    if "expected_users" not in model.contexts:
        raise Refused.of(["expected_users"], "given", f"none, for model {model.name!r} was not trained with a forecast of the users")
    if expected.shape[1] != answered:
        raise Refused.of(["expected_users"], f"{expected.shape[1]} slots", f"{answered}, the slots that are answered")
    _numbers(expected, "expected_users", limits.traffic)


def _count(stations: int, limits: Limits) -> None:
    if not 1 <= stations <= limits.stations:
        raise Refused.of(["stations"], stations, f"1 to {limits.stations} stations", 422 if stations == 0 else 413)


def _longest(limits: Limits) -> int:
    """The most slots that can be answered: a horizon, or in generation a history."""
    return max(limits.history, limits.horizon)


def _spoken(limits: Limits) -> int:
    """The most slots that a series of history and horizon has."""
    return limits.history + limits.horizon


def _whereabouts(rows: Names, stations: int, limits: Limits) -> Whereabouts:
    _check_rectangle(rows, ["places"], stations, _spoken(limits))
    return Whereabouts.of(pa.array([name for row in rows for name in row], pa.string()), stations)


def _matrix(rows: Matrix, loc: list[str], stations: int, most: int) -> NDArray:
    """(s, t) float64 of at most `most` slots, null as NaN."""
    _check_rectangle(rows, loc, stations, most)
    return np.array(rows, dtype=np.float64).reshape(stations, -1)


def _check_rectangle(rows: Sequence[Sequence[object]], loc: list[str], stations: int, most: int) -> None:
    """One list a station, of as many slots each and at most `most`."""
    if len(rows) != stations:
        raise Refused.of(loc, f"{len(rows)} lists", f"{stations}, one a station")
    slots = len(rows[0])
    for i, row in enumerate(rows):
        if len(row) != slots:
            raise Refused.of([*loc, i], f"{len(row)} slots", f"{slots}, as of the first station")
    check_slots(slots, loc, most)


def _numbers(values: NDArray, name: str, largest: float) -> NDArray:
    """The values (s, t), all of them NaN or in [0, largest]."""
    bad = ~(np.isnan(values) | ((values >= 0) & (values <= largest)))
    if bad.any():
        station, slot = (int(i) for i in np.argwhere(bad)[0])
        raise Refused.of([name, station, slot], values[station, slot], f"null or a number in [0, {largest:g}]")
    return values


def _cells(row: Sequence[int] | None, column: Sequence[int] | None, stations: int) -> NDArray[np.int64] | None:
    """(s, 2), or None where no station has a cell."""
    if row is None and column is None:
        return None
    if row is None or column is None or len(row) != stations or len(column) != stations:
        raise Refused.of(["stations", "row" if row is None else "column"], "missing or of another length", "a row and a column a station")
    if min(*row, *column) < 0 or max(*row, *column) >= 2**20:
        raise Refused.of(["stations", "row"], f"{min(*row, *column)}..{max(*row, *column)}", "cells counted from 0, fewer than 2^20 a side")
    cells = np.array([row, column], dtype=np.int64).T
    if len(np.unique(cells, axis=0)) < stations:
        raise Refused.of(["stations", "row"], "two stations in one cell", "a cell of its own for every station")
    return cells


def _metres(x: Sequence[float] | None, y: Sequence[float] | None, stations: int) -> _Floats | None:
    """(s, 2), or None where no station has a place."""
    if x is None and y is None:
        return None
    if x is None or y is None or len(x) != stations or len(y) != stations:
        field = "x" if x is None or len(x) != stations else "y"
        raise Refused.of(["stations", field], "missing or of another length", "an x and a y a station")
    for name, values in (("x", x), ("y", y)):
        for i, value in enumerate(values):
            if not abs(value) <= _FARTHEST:
                raise Refused.of(["stations", name, i], value, f"metres in [-{_FARTHEST:g}, {_FARTHEST:g}]")
    return np.array([x, y], dtype=np.float32).T
