"""Names a source by one string, for command lines and configurations: `scheme:path?option=value&option=value`.

    uomo:DIR    series:DIR    grid:FILE.npz?cell_metres=500    cdr:PATH?aggregate_minutes=30&squares=1-25,101
    table:traffic.csv?sites=sites.csv&cell_metres=500&column_y=bytes    synthetic:NAME?days=14&grid=8x8&step=30&seed=1
    sessions:PATH?preset=shanghai_telecom&faulty=skip    sessions:trace.csv?column_station=cell&column_volume=bytes&sites=sites.csv
    stations:NAME?stations=256&coupling=0.8&environment_effect=1    stations:NAME?preset=nanjing (synthetic)
    services:NAME?users=2000&weeks=2&parameters=DIR (synthetic)    app-usage:DIR?trace_user=2&time_format=seconds&timezone=Asia/Shanghai

The first `?` ends the path. Values may be percent-encoded (`%26` for `&`); paths are taken as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date
from typing import Any, TypeVar
from urllib.parse import unquote

from raytraffic.sources.app_usage import AppLayout, AppUsage, CategoryLayout, StationLayout, TraceLayout
from raytraffic.sources.city import Source
from raytraffic.sources.delimited import Layout
from raytraffic.sources.grid import GridArrays
from raytraffic.sources.series import SeriesFiles
from raytraffic.sources.services import ServiceCity
from raytraffic.sources.sessions import PRESETS as SESSION_PRESETS
from raytraffic.sources.sessions import SessionColumns, Sessions
from raytraffic.sources.stations import PRESETS as STATION_PRESETS
from raytraffic.sources.stations import StationCities, StationCity
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity
from raytraffic.sources.table import Columns, LongTable
from raytraffic.sources.telecom_italia import TelecomItaliaRecords
from raytraffic.sources.uomo_release import UomoRelease

__all__ = ["open_source"]


_Preset = TypeVar("_Preset")


@dataclass(frozen=True)
class _Kind:
    """How the text of an option becomes its value, and how to say what was expected."""

    convert: Callable[[str], Any]
    expected: str


@dataclass(frozen=True)
class _Option:
    """One option of a scheme and the argument of the source that it sets."""

    argument: str
    kind: _Kind


@dataclass(frozen=True)
class _Scheme:
    """What follows `scheme:` (for messages), how the source is made of it and of its arguments, and its options by name."""

    what: str
    build: Callable[[str, Mapping[str, Any]], Source]
    options: Mapping[str, _Option] = field(default_factory=dict)


def _shape(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def _integers(text: str) -> tuple[int, ...]:
    out: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        found = range(int(first), int(last if dash else first) + 1)
        if not found:
            raise ValueError(part)
        out.extend(found)
    return tuple(out)


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text]


def _column(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _columns(text: str) -> tuple[int | str, ...]:
    return tuple(part for each in text.split(",") for part in (_integers(each) if each[:1].isdecimal() else (each,)))


def _delimiter(text: str) -> str:
    return {"tab": "\t", "space": " ", "comma": ",", "semicolon": ";"}[text]


_TEXT = _Kind(str, "a text")
_TEXTS = _Kind(lambda text: tuple(text.split(",")), "names, such as internet,call")
_INTEGER = _Kind(int, "an integer")
_NUMBER = _Kind(float, "a number")
_FLAG = _Kind(_flag, "true or false")
_SHAPE = _Kind(_shape, "ROWSxCOLUMNS, such as 8x8")
_INTEGERS = _Kind(_integers, "integers and ranges, such as 1,5-9")
_DATE = _Kind(date.fromisoformat, "a date, such as 2024-01-31")
_COLUMN = _Kind(_column, "a column's name or number")
_COLUMNS = _Kind(_columns, "columns' names, numbers and ranges of these, such as 2-18")
_DELIMITER = _Kind(_delimiter, "tab, space, comma or semicolon")
#: What the fields of layouts are that are no columns.
_LAYOUT_KINDS = {"file": _TEXT, "delimiter": _DELIMITER, "header": _FLAG, "poi": _COLUMNS}


def _table(path: str, arguments: Mapping[str, Any]) -> Source:
    names = {key.removeprefix("column_"): value for key, value in arguments.items() if key.startswith("column_")}
    others = {key: value for key, value in arguments.items() if not key.startswith("column_")}
    return LongTable(path, columns=Columns(**names), **others)


def _preset(presets: Mapping[str, _Preset], name: str) -> _Preset:
    if name not in presets:
        raise ValueError(f"preset: {name!r}, expected one of {sorted(presets)}")
    return presets[name]


def _sessions(path: str, arguments: Mapping[str, Any]) -> Source:
    # an empty name says that there is no such column
    names: dict[str, Any] = {key.removeprefix("column_"): value or None for key, value in arguments.items() if key.startswith("column_")}
    others = {key: value for key, value in arguments.items() if not key.startswith("column_")}
    preset = others.pop("preset", None)
    columns = SessionColumns(**names) if preset is None else replace(_preset(SESSION_PRESETS, preset), **names)
    return Sessions(path, columns=columns, **others)


def _stations(name: str, arguments: Mapping[str, Any]) -> Source:
    others = dict(arguments)
    preset = others.pop("preset", None)
    city = StationCity(name=name, **others) if preset is None else replace(_preset(STATION_PRESETS, preset), name=name, **others)
    return StationCities([city])


#: The tables of app-usage records by the argument that takes their layout, which is also the prefix of its options.
_LAYOUTS: Mapping[str, type[Layout]] = {
    "trace": TraceLayout,
    "stations": StationLayout,
    "apps": AppLayout,
    "categories": CategoryLayout,
}


def _app_usage(folder: str, arguments: Mapping[str, Any]) -> Source:
    layouts: dict[str, dict[str, Any]] = {table: {} for table in _LAYOUTS}
    others: dict[str, Any] = {}
    for key, value in arguments.items():
        table, _, name = key.partition("_")
        if table in layouts:
            layouts[table][name] = value
        else:
            others[key] = value
    for table, options in layouts.items():
        # an empty name says that there is no such file
        others[table] = None if options.get("file") == "" and table in ("stations", "categories") else _LAYOUTS[table](**options)
    return AppUsage(folder, **others)


def _same(kind: _Kind, *names: str) -> dict[str, _Option]:
    """Options called like the arguments they set."""
    return {name: _Option(name, kind) for name in names}


_SCHEMES: Mapping[str, _Scheme] = {
    "uomo": _Scheme("the folder of a UoMo release", lambda path, _: UomoRelease(path)),
    "series": _Scheme("a folder of series files", lambda path, _: SeriesFiles(path)),
    "grid": _Scheme(
        "a .npz file",
        lambda path, arguments: GridArrays(path, **arguments),
        _same(_TEXT, "name", "row_order", "start", "unit") | _same(_NUMBER, "cell_metres") | _same(_INTEGER, "aggregate_minutes"),
    ),
    "cdr": _Scheme(
        "Telecom Italia records",
        lambda path, arguments: TelecomItaliaRecords(path, **arguments),
        _same(_TEXT, "name", "timezone", "area", "cells", "stations")
        | _same(_TEXTS, "services")
        | _same(_INTEGERS, "squares")
        | _same(_INTEGER, "aggregate_minutes"),
    ),
    "table": _Scheme(
        "a CSV or Parquet file",
        _table,
        _same(_TEXT, "sites", "users", "poi", "name", "timezone", "unit", "gaps", "duplicates", "negatives", "faulty")
        | _same(_NUMBER, "cell_metres", "poi_radius_metres")
        | {"step": _Option("step_minutes", _INTEGER)}
        | _same(_TEXT, *(f"column_{column.name}" for column in fields(Columns))),
    ),
    "sessions": _Scheme(
        "a CSV or Parquet file or a folder of them",
        _sessions,
        _same(_TEXT, "preset", "sites", "name", "time_format", "timezone", "unit", "faulty")
        | {"step": _Option("step_minutes", _INTEGER)}
        | _same(_TEXT, *(f"column_{column.name}" for column in fields(SessionColumns))),
    ),
    "stations": _Scheme(
        "the name of a city of stations",
        _stations,
        _same(_TEXT, "preset")
        | _same(_DATE, "start")
        | _same(_INTEGER, "stations", "days", "seed")
        | _same(_NUMBER, "coupling", "environment_effect", "tail", "noise", "nugget", "memory_hours")
        | {"step": _Option("step_minutes", _INTEGER)},
    ),
    "synthetic": _Scheme(
        "the name of a city",
        lambda name, arguments: SyntheticCities([SyntheticCity(name=name, **arguments)]),
        _same(_INTEGER, "days", "seed")
        | _same(_SHAPE, "grid")
        | _same(_FLAG, "users")
        | _same(_NUMBER, "tail", "dead_share", "spatial_range_cells", "noise", "nugget", "memory_hours")
        | {"step": _Option("step_minutes", _INTEGER)},
    ),
    "services": _Scheme(
        "the name of a synthetic city",
        lambda name, arguments: ServiceCity(name=name, **arguments),
        _same(_INTEGER, "users", "weeks", "seed")
        | _same(_NUMBER, "environment_effect", "coupling", "sessions_per_hour")
        | _same(_SHAPE, "grid")
        | _same(_DATE, "start")
        | _same(_TEXT, "parameters"),
    ),
    "app-usage": _Scheme(
        "a folder of app-usage records",
        _app_usage,
        _same(_TEXT, "name", "unknown_app", "time_format", "timezone")
        | _same(_INTEGER, "min_active_hours", "carry_hours")
        | {
            name: _Option(name, _LAYOUT_KINDS.get(entry.name, _COLUMN))
            for table, layout in _LAYOUTS.items()
            for entry in fields(layout)
            for name in [f"{table}_{entry.name}"]
        },
    ),
}


def open_source(spec: str) -> Source:
    """The source that `spec` names (see this module's docstring).

    Raises ValueError for an unknown scheme or option (listing the valid ones), an option given twice or not understood,
    and whatever the source itself refuses.
    """
    scheme_name, colon, rest = spec.partition(":")
    if not colon or scheme_name not in _SCHEMES:
        raise ValueError(f"source {spec!r}: scheme {scheme_name!r}, expected one of {', '.join(f'{name}:' for name in _SCHEMES)}")
    scheme = _SCHEMES[scheme_name]
    path, _, query = rest.partition("?")
    if not path:
        raise ValueError(f"source {spec!r}: nothing after {scheme_name!r}, expected {scheme.what}")
    return scheme.build(path, _arguments(spec, scheme, query))


def _arguments(spec: str, scheme: _Scheme, query: str) -> dict[str, Any]:
    """The source's arguments that the options of a query set."""
    arguments: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        name, equals, text = part.partition("=")
        option = scheme.options.get(name)
        if option is None:
            expected = f"one of {sorted(scheme.options)}" if scheme.options else "none"
            raise ValueError(f"source {spec!r}: option {name!r}, expected {expected}")
        if option.argument in arguments:
            raise ValueError(f"source {spec!r}: option {name!r} is given twice, expected once")
        try:
            if not equals:
                raise ValueError(name)
            arguments[option.argument] = option.kind.convert(unquote(text))
        except (ValueError, KeyError) as error:
            raise ValueError(f"source {spec!r}: option {name!r} is {text!r}, expected {option.kind.expected}") from error
    return arguments
