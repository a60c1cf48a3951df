"""Strict conversion of any frozen dataclass to JSON and back, and what several settings check alike."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, TypeVar

import pydantic

__all__ = ["at_least_one", "from_json", "to_json", "with_options"]


T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A frozen dataclass (nested ones too) as JSON-able dictionaries, lists and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], data: Any, name: str) -> T:
    """The dataclass `kind` of JSON data; ValueError naming `name`, the field, its value and what was expected.

    Unknown fields are refused, so that a misspelt setting is never silently dropped.
    """
    try:
        value = pydantic.TypeAdapter(kind).validate_python(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([name, *(str(part) for part in first["loc"])])
        raise ValueError(f"{where}: {first['input']!r}, expected: {first['msg']}") from None
    unknown = _unknown(data, to_json(value), name)
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown field, expected one of the fields of {kind.__name__}")
    return value


def with_options(value: T, options: tuple[str, ...], name: str) -> T:
    """The dataclass `value` with some settings changed, each a path=value (JSON, or a bare text); ValueError names what is wrong."""
    data = to_json(value)
    for option in options:
        path, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"{name}: {option!r}, expected path=value")
        *parents, last = path.split(".")
        inside = data
        for parent in parents:
            inside = inside.get(parent) if isinstance(inside, dict) else None
        if not isinstance(inside, dict) or last not in inside:
            raise ValueError(f"{name}: {path!r}, expected a setting of {type(value).__name__}, as {sorted(data)}")
        try:
            inside[last] = json.loads(text)
        except ValueError:
            inside[last] = text
    return from_json(type(value), data, name)


def _unknown(data: Any, known: Any, name: str) -> list[str]:
    if not (isinstance(data, dict) and isinstance(known, dict)):
        return []
    found = [f"{name}.{key}" for key in data if key not in known]
    return found + [inner for key in data if key in known for inner in _unknown(data[key], known[key], f"{name}.{key}")]


def at_least_one(config: Any, *names: str) -> None:
    """ValueError where one of these settings is less than 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: {getattr(config, name)}, expected at least 1")
