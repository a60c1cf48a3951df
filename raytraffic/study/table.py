"""The table of runs that a study writes and every fit reads: `runs.parquet`, one row a run, and its columns as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raytraffic.files import Location

__all__ = ["DOMAINS", "SCHEMA", "TASKS", "TASK_METRICS", "Points", "finished", "points", "read_runs", "write_runs"]

#: Held-out figures are of the cities trained on (`in`) and of a city never seen (`out`).
DOMAINS = ("in", "out")
TASKS = ("short", "long", "generation")
TASK_METRICS = ("crps", "rmse", "mae", "jsd")

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_ALWAYS = {"run": _TEXT, "status": _TEXT, "attempts": _WHOLE, "model": _TEXT, "size": _TEXT, "seed": _WHOLE, "config": _TEXT}
_PLANNED = {
    "depth": _WHOLE,
    "hidden": _WHOLE,
    "share": _REAL,
    "days": _REAL,
    "cities": pa.list_(_TEXT),
    "places": _WHOLE,
    "steps": _WHOLE,
    "batch": _WHOLE,
    "tasks": pa.list_(_TEXT),
    "parameters": _WHOLE,
    "embedding_parameters": _WHOLE,
    "data_tokens": _WHOLE,
    "tokens": _WHOLE,
    "passes": _REAL,
    "flops": _REAL,
}
_MEASURED = {
    "error": _TEXT,
    "loop_s": _REAL,
    "wall_s": _REAL,
    "device": _TEXT,
    "devices": _WHOLE,
    "windows_per_second": _REAL,
    "tokens_per_second": _REAL,
    "mfu": _REAL,
    "train_loss": _REAL,
    "validation_loss": _REAL,
    "best_step": _WHOLE,
    "curve_step": pa.list_(_WHOLE),
    "curve_loss": pa.list_(_REAL),
}
_HELD_OUT = [f"{domain}_loss" for domain in DOMAINS] + [
    f"{domain}_{task}_{metric}" for domain in DOMAINS for task in TASKS for metric in TASK_METRICS
]

#: The columns of `runs.parquet`. Null is what was not measured; only what names a run is known of every run.
SCHEMA: pa.Schema = pa.schema(
    [pa.field(name, kind, nullable=False) for name, kind in _ALWAYS.items()]
    + [pa.field(name, kind) for name, kind in (_PLANNED | _MEASURED | dict.fromkeys(_HELD_OUT, _REAL)).items()]
)


def write_runs(out: Location, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes `runs.parquet` in the folder `out`, in one piece; columns that a row lacks are null.

    Raises ValueError naming the run and column for an unknown column, a missing or ill-typed value, an unknown status or a run twice.
    """
    seen: set[str] = set()
    for place, row in enumerate(rows):
        run = row.get("run")
        missing = [name for name in _ALWAYS if row.get(name) is None]
        if missing:
            raise ValueError(f"{missing[0]}: None in row {place} (run {run!r}), expected a value of every run")
        unknown = sorted(set(row) - set(SCHEMA.names))
        if unknown:
            raise ValueError(f"{unknown[0]}: unknown column of run {run!r}, expected one of {', '.join(SCHEMA.names)}")
        if row["status"] not in ("done", "failed"):
            raise ValueError(f"status: {row['status']!r} of run {run!r}, expected done or failed")
        if run in seen:
            raise ValueError(f"run: {run!r} twice, expected one row a run")
        seen.add(str(run))
    out.child("runs.parquet").write_table(pa.table([_column(field, rows) for field in SCHEMA], schema=SCHEMA))


def _column(field: pa.Field, rows: Sequence[Mapping[str, Any]]) -> pa.Array:
    values = [row.get(field.name) for row in rows]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(f"{field.name}: {error}, expected {field.type}") from error


def read_runs(out: Location) -> pa.Table:
    """The table in the folder `out`; ValueError naming the file where it is absent, damaged or lacks a column."""
    path = out.child("runs.parquet")
    table = path.read_table()
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}, expected a table of runs")
    return table.select(SCHEMA.names).cast(SCHEMA)


def finished(table: pa.Table, columns: Sequence[str]) -> list[dict[str, Any]]:
    """`columns` of the finished runs; ValueError naming a column that the table lacks, or a finished run that has no value in one."""
    for name in ("run", "status", *columns):
        if name not in table.column_names:
            raise ValueError(f"{name}: no such column, expected one of {', '.join(table.column_names)}")
    done = table.filter(pc.equal(table["status"], "done"))
    for name in columns:
        empty = done.filter(pc.is_null(done[name]))
        if len(empty):
            raise ValueError(f"{name}: not measured in run {empty['run'][0].as_py()!r}, expected a value in every finished run")
    rows: list[dict[str, Any]] = done.select(["run", *(name for name in columns if name != "run")]).to_pylist()
    return rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """What fits need of the runs, one place a run (n,) float64: all finite, all but `seed` positive.

    `data` is the distinct tokens that a run could see, `tokens` what it saw.
    """

    parameters: NDArray[np.float64]
    data: NDArray[np.float64]
    tokens: NDArray[np.float64]
    flops: NDArray[np.float64]
    loss: NDArray[np.float64]
    seed: NDArray[np.float64]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if values.shape != self.loss.shape or values.ndim != 1:
                raise ValueError(f"{field.name}: shape {values.shape}, expected {self.loss.shape}, one value a run")
            wrong = ~np.isfinite(values) | ((values <= 0) & (field.name != "seed"))
            if wrong.any():
                raise ValueError(f"{field.name}: {values[wrong][0]} at run {int(wrong.argmax())}, expected finite numbers > 0")

    def __len__(self) -> int:
        return len(self.loss)

    def subset(self, chosen: NDArray[np.bool_]) -> Points:
        """The runs where `chosen` (n,) is true."""
        return Points(**{field.name: getattr(self, field.name)[chosen] for field in dataclasses.fields(self)})


_COLUMNS = {"parameters": "parameters", "data": "data_tokens", "tokens": "tokens", "flops": "flops", "seed": "seed"}


def points(table: pa.Table, *, metric: str = "validation_loss", where: pc.Expression | None = None) -> Points:
    """The finished runs of a table (those for which the Arrow expression `where` holds) with column `metric` as their loss.

    Raises ValueError where a column is missing or not a number, a finished run lacks a value, a value is not positive, or none is left.
    """
    rows = finished(table if where is None else table.filter(where), [*_COLUMNS.values(), metric])
    if not rows:
        raise ValueError(f"status: no finished run among {len(table)}, expected at least one")
    if not pa.types.is_floating(table.schema.field(metric).type):
        raise ValueError(f"metric: {metric!r} holds {table.schema.field(metric).type}, expected a column of numbers")
    columns = {name: np.array([row[column] for row in rows], dtype=np.float64) for name, column in _COLUMNS.items()}
    try:
        return Points(loss=np.array([row[metric] for row in rows], dtype=np.float64), **columns)
    except ValueError as error:
        raise ValueError(f"{metric}: {error}") from None
