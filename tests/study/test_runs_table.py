"""The table of runs: a round trip at full precision, mistakes named, and columns as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raytraffic.files import Location
from raytraffic.study import SCHEMA, Points, points, read_runs, write_runs


def row(run: str = "a", **change: Any) -> dict[str, Any]:
    known = {"status": "done", "attempts": 1, "model": "uomo", "size": "tiny", "seed": 0, "config": '{"learning_rate": 0.1}'}
    counts = {"parameters": 1000, "data_tokens": 50_000, "tokens": 100_000, "flops": 6e8 + 1 / 3, "steps": 40}
    figures = {"validation_loss": 0.1 + 0.2, "in_short_crps": 1.5, "curve_step": [10, 40], "curve_loss": [1 / 3, 0.3]}
    return {"run": run, **known, **counts, **figures, "cities": ["a", "b"], **change}


def test_rows_come_back_digit_by_digit_and_what_was_not_measured_is_null(tmp_path: Path) -> None:
    rows = [row(), row("b", status="failed", error="out of memory", validation_loss=None)]
    write_runs(Location.of(tmp_path), rows)
    table = read_runs(Location.of(tmp_path))
    assert table.schema == SCHEMA
    assert table.to_pylist() == [dict.fromkeys(SCHEMA.names) | each for each in rows]
    assert [path.name for path in tmp_path.iterdir()] == ["runs.parquet"]


def test_the_contract_names_every_held_out_figure() -> None:
    held_out = [name for name in SCHEMA.names if name.startswith(("in_", "out_"))]
    assert len(held_out) == 2 + 2 * 3 * 4
    assert {"in_loss", "out_loss", "out_generation_jsd", "in_long_mae"} <= set(held_out)
    assert {SCHEMA.field(name).type for name in held_out} == {pa.float64()}


def test_an_empty_table_can_be_written_and_has_no_points(tmp_path: Path) -> None:
    write_runs(Location.of(tmp_path), [])
    with pytest.raises(ValueError, match=r"^status: no finished run among 0"):
        points(read_runs(Location.of(tmp_path)))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(status="running")], "status: 'running' of run 'a', expected done or failed"),
        ([row(), row()], "run: 'a' twice"),
        ([row(loss=1.0)], "loss: unknown column of run 'a'"),
        ([row(seed=None)], r"seed: None in row 0 \(run 'a'\)"),
        ([row(parameters="many")], "parameters: .*expected int64"),
        ([row(parameters=2**70)], "parameters: .*expected int64"),
    ],
)
def test_a_bad_row_is_refused_by_name_and_nothing_is_written(tmp_path: Path, rows: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        write_runs(Location.of(tmp_path), rows)
    assert not list(tmp_path.iterdir())


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    Location.of(tmp_path).child("runs.parquet").write_table(pa.table({"run": ["a"]}))
    with pytest.raises(ValueError, match=r"runs\.parquet: no column status, .*expected a table of runs"):
        read_runs(Location.of(tmp_path))
    with pytest.raises(ValueError, match=r"no such file"):
        read_runs(Location.of(tmp_path / "elsewhere"))


def tables(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def test_points_are_the_finished_runs_that_were_asked_for() -> None:
    table = tables(row(), row("b", status="failed", validation_loss=None), row("c", seed=3, parameters=7), row("d", model="other"))
    found = points(table, metric="in_short_crps", where=pc.field("model") == "uomo")
    assert len(found) == 2
    for name, values in {"parameters": [1000, 7], "data": [50_000] * 2, "tokens": [100_000] * 2, "loss": [1.5] * 2, "seed": [0, 3]}.items():
        np.testing.assert_array_equal(getattr(found, name), values)
        assert getattr(found, name).dtype == np.float64
    assert points(table, where=pc.field("seed") == 3).loss.tolist() == [0.1 + 0.2]
    assert found.subset(found.seed > 0).parameters.tolist() == [7.0]


@pytest.mark.parametrize(
    ("table", "metric", "told"),
    [
        (tables(row()), "crps", "crps: no such column"),
        (tables(row()), "cities", r"metric: 'cities' holds list"),
        (tables(row(), row("b", in_short_crps=None)), "in_short_crps", "in_short_crps: not measured in run 'b'"),
        (tables(row(validation_loss=-1.0)), "validation_loss", "validation_loss: loss: -1.0 at run 0, expected finite numbers > 0"),
        (tables(row(parameters=0)), "validation_loss", "validation_loss: parameters: 0.0 at run 0"),
        (tables(row(validation_loss=float("nan"))), "validation_loss", "validation_loss: loss: nan"),
        (tables(row(status="failed")), "validation_loss", "status: no finished run among 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_name(table: pa.Table, metric: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        points(table, metric=metric)


def test_points_of_unequal_lengths_are_refused() -> None:
    ones = np.ones(3)
    with pytest.raises(ValueError, match=r"^flops: shape \(2,\), expected \(3,\)"):
        Points(parameters=ones, data=ones, tokens=ones, flops=ones[:2], loss=ones, seed=ones)
