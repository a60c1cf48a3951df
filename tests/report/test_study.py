"""A study's page says what the table holds: laws where the runs carry them, reasons where they do not, and every run that failed."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from raytraffic.files import Location
from raytraffic.report.study import study_report
from raytraffic.study import write_runs

SIZES = {"w16": 1.2e5, "w24": 2.5e5, "w32": 5e5, "w48": 1e6, "w64": 2e6}
AMOUNTS = (1e4, 4e4, 1.6e5)


def loss(parameters: float, data: float) -> float:
    """A law without noise: E = 0.5, alpha = 0.4, beta = 0.3."""
    return 0.5 + 40 * parameters**-0.4 + 5 * data**-0.3


def row(size: str, data: float, seed: int, **changed: Any) -> dict[str, Any]:
    """A finished run of the law, its seeds a thousandth apart."""
    value = loss(SIZES[size], data) * (1.001 if seed else 0.999)
    curve = [value * factor for factor in (2.0, 1.5, 1.1, 1.001, 1.0)]
    return {
        "run": f"{size}-{data:.0f}-{seed}",
        "status": "done",
        "attempts": 1,
        "model": "uomo",
        "size": size,
        "seed": seed,
        "config": "{}",
        "parameters": int(SIZES[size]),
        "data_tokens": int(data),
        "tokens": 1_000_000,
        "passes": 2.0,
        "steps": 100,
        "flops": 6 * SIZES[size] * 1e6,
        "loop_s": 10.0,
        "best_step": 100,
        "curve_step": [20, 40, 60, 80, 100],
        "curve_loss": curve,
        "validation_loss": value,
        "in_loss": value,
        "in_short_crps": value / 50,
        **changed,
    }


ROWS = [row(size, data, seed) for size, data, seed in product(SIZES, AMOUNTS, (0, 1))]


def page(folder: Path, rows: list[dict[str, Any]], **changed: Any) -> str:
    """The page of a table of runs."""
    out = Location.of(folder)
    write_runs(out, rows)
    given = {"metrics": ("in_loss", "out_loss"), "budgets": (), "seed": 0, "settings": {"store": "somewhere"}}
    study_report(out, **(given | changed))
    return (folder / "report.html").read_text()


def test_the_laws_of_a_table_are_told_with_their_intervals(tmp_path: Path) -> None:
    told = page(tmp_path, ROWS)
    assert "30 of 30 runs finished. 5 sizes from 120,000 to 2,000,000 parameters, 3 amounts of data, 2 seeds" in told
    assert "beta, exponent of the data" in told and "0.3000" in told and "0.4000" in told
    assert "the largest size trained, 2,000,000 parameters, still helped" in told
    assert all((tmp_path / f"figure_7{part}.png").read_bytes().startswith(b"\x89PNG") for part in "ab")
    assert told.count("data:image/png;base64,") == 2


def test_the_same_table_is_the_same_page(tmp_path: Path) -> None:
    assert page(tmp_path / "one", ROWS) == page(tmp_path / "two", ROWS)


def test_data_that_does_not_feed_larger_models_is_told(tmp_path: Path) -> None:
    flat = [{**each, "in_loss": max(each["in_loss"], loss(SIZES["w32"], AMOUNTS[0]))} for each in ROWS if each["data_tokens"] == 10_000]
    assert "beyond 500,000 parameters up to 2,000,000 the loss fell by 0.05% at most" in page(tmp_path, flat)


def test_runs_that_failed_stand_in_the_page_with_the_reason(tmp_path: Path) -> None:
    failed = {name: ROWS[0][name] for name in ("attempts", "model", "size", "seed", "config", "parameters", "data_tokens")}
    failed |= {"run": "lost", "status": "failed", "error": "gradient norm nan"}
    told = page(tmp_path, [*ROWS, failed])
    assert "30 of 31 runs finished; 1 failed" in told and "gradient norm nan" in told
    told = page(tmp_path, [failed])
    assert "0 of 1 runs finished; 1 failed" in told and "Laws" not in told


def test_too_few_runs_for_a_law_say_so(tmp_path: Path) -> None:
    told = page(tmp_path, ROWS[:4])
    assert "No joint law L(N, D): " in told and "No extrapolation check: " in told


def test_budgets_in_flops_get_parabolas_beside_the_law(tmp_path: Path) -> None:
    rows = []
    for budget, (size, parameters) in product((1e13, 1e14, 1e15), SIZES.items()):
        tokens = budget / (6 * parameters)
        value = 0.5 + 40 * parameters**-0.4 + 40 * tokens**-0.35
        rows.append(row(size, 1e4, 0, run=f"{size}-{budget:.0f}", tokens=int(tokens), flops=budget, in_loss=value, in_short_crps=None))
    told = page(tmp_path, rows, budgets=(1e13, 1e14, 1e15))
    assert "Approach 2 gives an exponent of" in told or "No iso-FLOP parabolas" in told
    assert "D is tokens seen in training" in told


def test_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metrics: 'in_mape', expected columns of"):
        page(tmp_path, ROWS, metrics=("in_mape",))
