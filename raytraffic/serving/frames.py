"""From pandas frames to the body of a request, in Arrow or JSON: a station's rows on one grid of slots; ValueError for what cannot stand
there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from raytraffic.serving.query import METADATA
from raytraffic.sources.city import STEP_MINUTES

__all__ = ["KEYS", "drawn_object", "request_bytes", "request_object"]

#: What names a row of a history or of an answer.
KEYS = ["unique_id", "service", "ds"]


def request_bytes(history: pd.DataFrame, sites: pd.DataFrame | None, future: pd.DataFrame | None, settings: Mapping[str, Any]) -> bytes:
    """The Arrow body of a request with these settings of `/v1/forecast`; raytraffic.client says what the frames hold."""
    table = _request(history, sites, future, settings)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def request_object(
    history: pd.DataFrame, sites: pd.DataFrame | None, future: pd.DataFrame | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The same request as the object that a JSON body holds."""
    table = _request(history, sites, future, settings)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    nested: dict[str, dict[str, Any]] = {"traffic": {}, "poi": {}}
    for name, values in columns.items():
        group, dot, inner = name.partition(".")
        if dot:
            nested[group][inner] = values
    stations = {name: columns[name] for name in ("id", "row", "column", "x", "y") if name in columns}
    series = {name: columns[name] for name in ("traffic", "users", "expected_users", "places") if name in columns}
    traffic = {"traffic": nested["traffic"]} if nested["traffic"] else {}
    poi = {"poi": nested["poi"]} if nested["poi"] else {}
    return {**json.loads(table.schema.metadata[METADATA]), "stations": {**stations, **poi}, **series, **traffic}


def drawn_object(forecast: pd.DataFrame) -> dict[str, Any]:
    """The columns of a forecast's frame that a decision is made on, as a JSON body holds them."""
    rows = _named("forecast", forecast, [key for key in KEYS if key in forecast])
    columns = {name: rows[name].tolist() for name in rows if name != "ds"}
    columns["ds"] = rows["ds"].dt.strftime("%Y-%m-%dT%H:%M").tolist()
    return {**columns, "draws": [np.asarray(draws).tolist() for draws in forecast["draws"]]}


def _request(history: pd.DataFrame, sites: pd.DataFrame | None, future: pd.DataFrame | None, settings: Mapping[str, Any]) -> pa.Table:
    """The columns of a request, its settings in the schema's metadata."""
    rows = _rows(history)
    step = _step(rows)
    slot = _slots("history", rows, KEYS, step)
    ids = _ids(rows, sites)
    station = pd.Index(ids).get_indexer(rows["unique_id"])
    if (station < 0).any():
        name = rows["unique_id"].to_numpy()[station < 0][0]
        raise ValueError(f"sites: no row for station {name!r}, expected every station of the history")
    first, slots = int(slot.min()), int(np.ptp(slot)) + 1
    columns: dict[str, pa.Array] = {"id": pa.array(ids, pa.string()), **_site_columns(sites, ids)}
    for service in rows["service"].unique():
        mine = (rows["service"] == service).to_numpy()
        name = f"traffic.{service}" if "service" in history else "traffic"
        columns[name] = _lists(len(ids), slots, station[mine], slot[mine] - first, rows["traffic"].to_numpy()[mine])
    if "users" in history:
        columns["users"] = _lists(len(ids), slots, station, slot - first, _users(rows))
    generation = settings.get("task") == "generation"
    begin, count = (first, slots) if generation else (first + slots, settings.get("horizon"))
    known = _Future() if future is None else _future(future, ids, step, begin, count)
    if known.expected_users is not None:
        columns["expected_users"] = known.expected_users
    if "place" in history or known.place is not None:
        before = _names(len(ids), slots, station, slot - first, _places(rows))
        columns["places"] = pa.array(_whereabouts(before, known.place, generation).tolist(), pa.list_(pa.string()))
    ask = {"start": str(np.datetime64(first * step, "m")), "step_minutes": step, **settings}
    return pa.table(columns).replace_schema_metadata({METADATA: json.dumps(ask).encode()})


def _slots(name: str, rows: pd.DataFrame, keys: Sequence[str], step: int) -> NDArray[np.int64]:
    """Slots since 1970-01-01 of rows that are each on one and have different keys."""
    minute = rows["ds"].to_numpy().astype("datetime64[m]").astype(np.int64)
    off = minute % step != 0
    if off.any():
        raise ValueError(f"{name}: {_row(rows, off)} is not on a whole {step}-minute slot, as most rows of the history are")
    twice = rows.duplicated(list(keys)).to_numpy()
    if twice.any():
        raise ValueError(
            f"{name}: {_row(rows, twice)} is there twice, expected one row a station{', service' * ('service' in keys)} and time"
        )
    slot: NDArray[np.int64] = minute // step
    return slot


@dataclass(frozen=True, kw_only=True, eq=False)
class _Future:
    """What is known of slots that are forecast: the users expected, a list a station, and where users will be, (s, slots) names or None."""

    expected_users: pa.Array | None = None
    place: NDArray[np.object_] | None = None


def _future(future: pd.DataFrame, ids: Sequence[str], step: int, begin: int, count: int | None) -> _Future:
    """What is known of `count` slots from `begin` on, or of as many as there are rows for."""
    told = set(map(str, future.columns)) - {"unique_id", "ds"}
    if future.empty or not told or told - {"expected_users", "place"} or len(told) + 2 != len(future.columns):
        expected = "some of unique_id, ds, and expected_users, place or both"
        raise ValueError(f"future: {len(future)} rows of {list(future.columns)}, expected {expected}")
    rows = _named("future", future, ["unique_id", "ds"])
    slot = _slots("future", rows, ["unique_id", "ds"], step) - begin
    station = pd.Index(ids).get_indexer(rows["unique_id"])
    if (station < 0).any():
        raise ValueError(f"future: {_row(rows, station < 0)} has neither history nor a row of sites")
    count = int(slot.max()) + 1 if count is None else count
    outside = (slot < 0) | (slot >= count)
    if outside.any():
        raise ValueError(f"future: {_row(rows, outside)} is none of the {max(count, 0)} slots that are forecast")
    users = place = None
    if "expected_users" in future:
        users = _lists(len(ids), count, station, slot, future["expected_users"].to_numpy(dtype=np.float64, na_value=np.nan))
    if "place" in future:
        place = _names(len(ids), count, station, slot, _texts(future["place"]))
    return _Future(expected_users=users, place=place)


def _texts(names: pd.Series) -> NDArray[np.object_]:
    """The names as texts, None where there is none."""
    return np.array([None if missing else str(name) for name, missing in zip(names, names.isna(), strict=True)], dtype=object)


def _named(name: str, frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The keys of a frame's rows: texts, and whole minutes of local time."""
    for key in keys:
        if frame[key].isna().any():
            raise ValueError(f"{name}: {key} is missing in row {int(np.flatnonzero(frame[key].isna())[0])}, expected one in every row")
    times = pd.to_datetime(frame["ds"])
    if times.dt.tz is not None:
        raise ValueError(f"{name}: ds in zone {times.dt.tz}, expected local times without zone")
    rows = pd.DataFrame({key: frame[key].astype(str).to_numpy(dtype=object) for key in keys if key != "ds"})
    rows["ds"] = times.dt.floor("min").to_numpy()
    within = (rows["ds"] != times.to_numpy()).to_numpy()
    if within.any():
        raise ValueError(f"{name}: {_row(rows, within)} has seconds, expected whole minutes")
    return rows


def _rows(history: pd.DataFrame) -> pd.DataFrame:
    """The history as texts, whole minutes and float64 numbers, with a service in every row."""
    missing = sorted({"unique_id", "ds", "y"} - set(history.columns))
    unknown = sorted(set(map(str, history.columns)) - {"unique_id", "ds", "y", "service", "users", "place"})
    if missing or unknown:
        raise ValueError(f"history: columns {list(history.columns)}, expected unique_id, ds, y and perhaps service, users, place")
    if history.empty:
        raise ValueError("history: no rows, expected at least two of a station")
    rows = _named("history", history, [key for key in KEYS if key in history])
    if "service" not in rows:
        rows["service"] = "traffic"
    rows["traffic"] = history["y"].to_numpy(dtype=np.float64, na_value=np.nan)
    rows["users"] = history["users"].to_numpy(dtype=np.float64, na_value=np.nan) if "users" in history else np.nan
    rows["place"] = _texts(history["place"]) if "place" in history else None
    return rows


def _step(rows: pd.DataFrame) -> int:
    """Minutes of a slot."""
    ordered = rows.sort_values(KEYS)
    apart = ordered.groupby(["unique_id", "service"], sort=False)["ds"].diff().dropna()
    minutes = (apart[apart > pd.Timedelta(0)] // pd.Timedelta(minutes=1)).mode()
    if minutes.empty:
        raise ValueError("history: one time a station, expected at least two, whose distance is the step")
    step = int(minutes.min())
    if step not in STEP_MINUTES:
        raise ValueError(f"history: rows are {step} minutes apart, expected one of {STEP_MINUTES}")
    return step


def _row(rows: pd.DataFrame, which: NDArray[np.bool_]) -> str:
    """The first such row in words."""
    row = rows.iloc[int(np.flatnonzero(which)[0])]
    return f"station {row['unique_id']!r} at {row['ds']}"


def _users(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Users of each row; they are a station's, so all its services must say the same or nothing."""
    groups = rows.groupby(["unique_id", "ds"], sort=False)["users"]
    apart = (groups.transform("max") != groups.transform("min")) & groups.transform("max").notna()
    if apart.any():
        raise ValueError(f"history: {_row(rows, apart.to_numpy())} has several numbers of users, expected one for all services")
    users: NDArray[np.float64] = groups.transform("max").to_numpy()
    return users


def _places(rows: pd.DataFrame) -> NDArray[np.object_]:
    """The place of each row, None where none is said; a user is at one at a time, so all services must say the same or nothing."""
    apart = (rows.groupby(["unique_id", "ds"], sort=False)["place"].transform("nunique") > 1).to_numpy()
    if apart.any():
        raise ValueError(f"history: {_row(rows, apart)} is at several places, expected one for all services")
    return _texts(rows["place"])


def _whereabouts(before: NDArray[np.object_], told: NDArray[np.object_] | None, generation: bool) -> NDArray[np.object_]:
    """(s, t) where users were, with (s, a) where they will be after it, or in generation in the same slots."""
    if told is None:
        return before
    return np.where(told.astype(bool), told, before) if generation else np.hstack((before, told))


def _ids(rows: pd.DataFrame, sites: pd.DataFrame | None) -> list[str]:
    """The stations' names, sorted."""
    if sites is None:
        return sorted(rows["unique_id"].unique())
    if "unique_id" not in sites or sites["unique_id"].isna().any():
        raise ValueError(f"sites: columns {list(sites.columns)}, expected unique_id in every row")
    names = sites["unique_id"].astype(str)
    if names.duplicated().any():
        raise ValueError(f"sites: station {names[names.duplicated()].iloc[0]!r} is there twice, expected one row a station")
    return sorted(names)


def _site_columns(sites: pd.DataFrame | None, ids: Sequence[str]) -> dict[str, pa.Array]:
    """Cells, places and points of interest of the stations, in their order."""
    if sites is None:
        return {}
    ordered = sites.set_index(sites["unique_id"].astype(str)).loc[list(ids)]
    columns = {}
    for name in sites.columns.drop("unique_id"):
        if name not in ("row", "column", "x", "y") and not str(name).startswith("poi:"):
            raise ValueError(f"sites: column {name!r}, expected unique_id, row, column, x, y and poi:<category>")
        try:
            kind = pa.int64() if name in ("row", "column") else pa.float64()
            columns[str(name).replace("poi:", "poi.", 1)] = pa.array(ordered[name].to_numpy(), kind)
        except (pa.ArrowException, TypeError, ValueError):
            raise ValueError(f"sites: column {name!r} holds something else than numbers (whole ones for row and column)") from None
    return columns


def _names(
    stations: int, slots: int, station: NDArray[np.int64], slot: NDArray[np.int64], names: NDArray[np.object_]
) -> NDArray[np.object_]:
    """(stations, slots) the names that rows say, None where no row is or says none."""
    grid = np.full((stations, slots), None, dtype=object)
    said = names.astype(bool)
    grid[station[said], slot[said]] = names[said]
    return grid


def _lists(
    stations: int, slots: int, station: NDArray[np.int64], slot: NDArray[np.int64], values: NDArray[np.float64]
) -> pa.FixedSizeListArray:
    """A list of slots a station, null where no row is or says nothing."""
    grid = np.full((stations, slots), np.nan)
    grid[station, slot] = values
    return pa.FixedSizeListArray.from_arrays(pa.array(grid.reshape(-1), mask=np.isnan(grid).reshape(-1)), slots)
