"""Columns of an Arrow request as numbers and texts, read so that a small body cannot become large: nothing is unpacked or repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raytraffic.serving.refused import Refused, brief, check_slots

__all__ = ["is_compressed", "lists", "values"]

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
    column = table.column(name).combine_chunks()
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise Refused.of(["columns", name], brief(kind), "a list of numbers a station")
    if column.null_count:
        raise Refused.of(["columns", name], f"{column.null_count} stations of null", "a list a station")
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) != 1:
        raise Refused.of(["columns", name], f"lists of {int(lengths[0])} to {int(lengths[-1])} slots", "as many slots of every station")
    check_slots(int(lengths[0]), ["columns", name], most)
    if not (_is_number(kind.value_type) or pa.types.is_null(kind.value_type)):
        raise Refused.of(["columns", name], brief(kind), "a list of numbers a station")
    try:
        flat = column.flatten().cast(pa.float64(), safe=False)
    except pa.ArrowException:
        raise Refused.of(["columns", name], brief(kind), "a list of numbers a station") from None
    return flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(table), -1)


def values(table: pa.Table, name: str, kind: pa.DataType) -> list[Any]:
    """Numbers, or texts that stand one after another: of dictionaries, views and runs a small body could name a large text often."""
    column = table.column(name)
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if text != pa.types.is_string(kind) or not (text or _is_number(column.type)):
        raise Refused.of(["columns", name], brief(column.type), str(kind))
    if column.null_count:
        raise Refused.of(["columns", name], f"{column.null_count} nulls", "a value for every station")
    try:
        return list(column.cast(kind).to_pylist())
    except pa.ArrowException as error:
        raise Refused.of(["columns", name], brief(error), str(kind)) from None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
