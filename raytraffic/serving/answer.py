"""Answers in JSON and Arrow: the table of `draws_table`, with the model's name and version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raytraffic.serving.query import METADATA, Query

__all__ = ["about", "arrow_bytes", "json_object", "plain_table"]


def about(query: Query) -> dict[str, Any]:
    """What made the numbers; the same request to the same version gives the same ones."""
    model = query.model
    return {
        "model": model.name,
        "version": model.version,
        "calibrated": model.calibrated,
        "steps": query.ask.steps or model.sampler.steps,
        "draws": query.ask.draws,
        "seed": query.ask.seed,
    }


def plain_table(query: Query, table: pa.Table) -> pa.Table:
    """The table as it is sent: texts without dictionaries (each part of a stream has its own), what made it in the metadata."""
    fields = [(name, table.column(name)) for name in table.column_names if name != "city" or query.ask.city is not None]
    plain = [(name, pc.cast(column, pa.string()) if pa.types.is_dictionary(column.type) else column) for name, column in fields]
    return pa.table(dict(plain)).replace_schema_metadata({METADATA: json.dumps(about(query)).encode()})


def arrow_bytes(table: pa.Table) -> bytes:
    """A whole Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def json_object(query: Query, table: pa.Table) -> Mapping[str, Any]:
    """What made the numbers, and the columns; times are ISO texts on the city's wall clock."""
    columns = {name: table.column(name) for name in table.column_names}
    columns["ds"] = pc.strftime(columns["ds"], format="%Y-%m-%dT%H:%M")
    return {**about(query), "columns": {name: column.to_pylist() for name, column in columns.items()}}
