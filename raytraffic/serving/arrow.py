"""Columns of an Arrow request as numbers and texts, read so that a small body cannot become large: nothing is unpacked or repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raytraffic.serving.refused import Refused, brief, check_slots

__all__ = ["is_compressed", "lists", "texts", "values"]

#: Numbers of fields: a Message's header, a DictionaryBatch's data, a RecordBatch's compression.
_HEADER, _DATA, _COMPRESSION = 2, 1, 3


def is_compressed(body: bytes) -> bool:
    """Whether any message of an Arrow stream says that its buffers are compressed (fields of Arrow's Message.fbs)."""

    def field(table: int, number: int) -> int:
        """Where a field of a flatbuffer's table stands, 0 where it is not given."""
        fields = table - int.from_bytes(data[table : table + 4], "little", signed=True)
        at = fields + 4 + 2 * number
        given = at < fields + int.from_bytes(data[fields : fields + 2], "little")
        offset = int.from_bytes(data[at : at + 2], "little") if given else 0
        return table + offset if offset else 0

    def follow(at: int) -> int:
        return at + int.from_bytes(data[at : at + 4], "little")

    for message in pa.ipc.MessageReader.open_stream(body):
        data = message.metadata.to_pybytes()
        table = follow(0)
        if message.type == "schema":
            continue
        batch = follow(field(table, _HEADER))
        if message.type == "dictionary":
            batch = follow(field(batch, _DATA))
        if field(batch, _COMPRESSION):
            return True
    return False


def lists(table: pa.Table, name: str, most: int) -> NDArray:
    """(s, t) float64 of a column of lists of at most `most` slots, null as NaN."""
    column = _rectangle(table, name, most, "a list of numbers a station")
    if not (_is_number(column.type.value_type) or pa.types.is_null(column.type.value_type)):
        raise Refused.of(["columns", name], brief(column.type), "a list of numbers a station")
    try:
        flat = column.flatten().cast(pa.float64(), safe=False)
    except pa.ArrowException:
        raise Refused.of(["columns", name], brief(column.type), "a list of numbers a station") from None
    return flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(table), -1)


def texts(table: pa.Table, name: str, most: int) -> pa.Array:
    """(s * t) strings, or null, of a column of lists of at most `most` slots, those of a station side by side."""
    column = _rectangle(table, name, most, "a list of texts a station")
    kind = column.type.value_type
    if not (_is_text(kind) or pa.types.is_null(kind)):
        raise Refused.of(["columns", name], brief(column.type), "a list of texts a station")
    try:
        return column.flatten().cast(pa.string())
    except pa.ArrowException as error:
        raise Refused.of(["columns", name], brief(error), "a list of texts a station") from None


def _rectangle(table: pa.Table, name: str, most: int, expected: str) -> pa.Array:
    """A column of lists, one a station, of as many slots each and at most `most`."""
    column = table.column(name).combine_chunks()
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise Refused.of(["columns", name], brief(kind), expected)
    if column.null_count:
        raise Refused.of(["columns", name], f"{column.null_count} stations of null", "a list a station")
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) != 1:
        raise Refused.of(["columns", name], f"lists of {int(lengths[0])} to {int(lengths[-1])} slots", "as many slots of every station")
    check_slots(int(lengths[0]), ["columns", name], most)
    return column


def values(table: pa.Table, name: str, kind: pa.DataType) -> list[Any]:
    """Numbers, or texts that stand one after another: of dictionaries, views and runs a small body could name a large text often."""
    column = table.column(name)
    text = _is_text(column.type)
    if text != pa.types.is_string(kind) or not (text or _is_number(column.type)):
        raise Refused.of(["columns", name], brief(column.type), str(kind))
    if column.null_count:
        raise Refused.of(["columns", name], f"{column.null_count} nulls", "a value for every station")
    try:
        return list(column.cast(kind).to_pylist())
    except pa.ArrowException as error:
        raise Refused.of(["columns", name], brief(error), str(kind)) from None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
