"""The papers' tables: every model and city in its place, the best marked, a warning with the published split."""

from __future__ import annotations

from typing import Any

from raytraffic.report.tables import paper_tables


def row(model: str, city: str, rmse: float, **changes: Any) -> dict[str, Any]:
    keys = {"model": model, "city": city, "split": "place", "task": "short", "population": "all", "unit": "[0,1]"}
    return {**keys, "rmse": rmse, "mae": rmse / 2, "crps": rmse / 4, "jsd": 0.1, "coverage80": 0.8, **changes}


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_best_is_bold_second_is_italic_and_models_stand_by_their_mean_rmse() -> None:
    rows = [row("a", "x", 0.3), row("b", "x", 0.1), row("c", "x", 0.2), row("a", "y", 0.1), row("b", "y", 0.2), row("c", "y", 0.9)]
    found = cells(paper_tables(rows))
    assert found[0] == ["model", *(f"{city} {figure}" for city in "xy" for figure in ("RMSE", "MAE", "JSD", "CRPS"))]
    assert [line[0] for line in found[2:]] == ["b", "a", "c"]
    assert [line[1] for line in found[2:]] == ["**0.1000**", "0.3000", "*0.2000*"]
    assert [line[5] for line in found[2:]] == ["*0.2000*", "**0.1000**", "0.9000"]
    assert {line[3] for line in found[2:]} == {"**0.1000**"}, "equals are equally good"


def test_tasks_and_splits_stand_apart_and_what_is_missing_is_a_dash() -> None:
    rows = [
        row("a", "x", 0.3),
        row("a", "y", 0.3),
        row("b", "x", 0.2),
        row("a", "x", 0.5, task="generation"),
        row("a", "x", 0.7, split="published"),
        row("a", "x", 9.0, population="live"),
        row("a", "x", 9.0, unit="physical"),
    ]
    text = paper_tables(rows)
    assert text.index("# Split: place") < text.index("Table 1") < text.index("Table 3") < text.index("# Split: published")
    assert text.count("Read with care") == 1 and text.index("Read with care") > text.index("# Split: published")
    assert "9.0000" not in text
    assert [line[5:] for line in cells(text) if line[0] == "b"] == [["-"] * 4]
