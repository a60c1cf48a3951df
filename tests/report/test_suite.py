"""The suite's tables and page from made-up scores: every figure in its cell, what was lost, what is best, what is missing and why."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytraffic.files import Location
from raytraffic.report.evaluation import ForecastExample
from raytraffic.report.examples import read_examples, write_examples
from raytraffic.report.figures import Point
from raytraffic.report.suite import FULL, PRETRAINED, WITHOUT_POI, WITHOUT_USERS, Shot, SuiteResults, suite_report

PNG = b"\x89PNG\r\n\x1a\n"
CITIES, TASKS = ("x", "y"), ("short", "long", "generation")


def row(model: str, city: str, task: str, error: float, **changes: Any) -> dict[str, Any]:
    keys = {"model": model, "city": city, "split": "time", "task": task, "population": "all", "unit": "[0,1]"}
    return {**keys, "rmse": error, "mae": error / 2, "crps": error / 4, "jsd": error * 2, "coverage80": 0.8, **changes}


def example(city: str, task: str) -> ForecastExample:
    truth = np.where(np.arange(12) == 5, np.nan, np.arange(12.0))
    known = np.arange(12) < {"short": 9, "long": 3, "generation": 0}[task]
    levels = (0.05, 0.1, 0.5, 0.9, 0.95)
    quantiles = np.stack([np.arange(12.0) * factor for factor in (0.7, 0.8, 1.0, 1.2, 1.3)])
    start = datetime(2026, 3, 2, 21)
    return ForecastExample(
        city=city, task=task, site="cell 3", step_minutes=60, start=start, truth=truth, known=known,
        quantile_levels=levels, quantiles=quantiles, unit="MB",
    )  # fmt: skip


@pytest.fixture(scope="module")
def results() -> SuiteResults:
    """Everything there is: two cities, two shares, an ablation, three other checkpoints."""
    ruled = {"uomo": 0.02, "persistence": 0.03, "zero": 0.05, "mean of the known": 0.04, "profile x level": 0.06}
    shots = {
        shot: Shot(
            rows=[row(model, city, task, error * factor) for model, error in ruled.items() for city in CITIES for task in TASKS[:2]],
            forecasts=[example(city, "long") for city in CITIES],
        )
        for shot, factor in {"zero-shot": 2.0, "5 %": 1.5, "10 %": 1.0}.items()
    }
    errors = {FULL: 0.100, WITHOUT_POI: 0.110, WITHOUT_USERS: 0.095, PRETRAINED: 0.120}
    parameters = {("uomo", ""): 1000, ("big", ""): 20_000, ("uomo", "10 %"): 1001, ("big", "10 %"): 20_000}
    return SuiteResults(
        model="uomo",
        about=["Of a checkpoint."],
        rows=[row(model, city, task, error) for model, error in ruled.items() for city in CITIES for task in TASKS],
        forecasts=[example(city, task) for city in CITIES for task in TASKS],
        shots=shots,
        ablation={name: [row("uomo", "x", task, error) for task in ("short", "generation")] for name, error in errors.items()},
        sizes=[
            (
                Point(name=name, data=data, parameters=count),
                [row("uomo", city, "short", 0.1 / count**0.1) for city in CITIES] + [row("uomo", "x", "short", 9.0, population="live")],
            )
            for (name, data), count in parameters.items()
        ],
    )


def written(results: SuiteResults, out: Path) -> tuple[str, str]:
    """suite.md and suite.html."""
    page = suite_report(results, Location.of(out))
    assert page == Location.of(out / "suite.html")
    return (out / "suite.md").read_text(), (out / "suite.html").read_text()


def cells(text: str, caption: str) -> list[list[str]]:
    """The lines of the first table under a caption, without the rule below the head."""
    below = dropwhile(lambda line: not line.startswith("|"), text[text.index(f"### {caption}") :].splitlines())
    head, _, *lines = takewhile(lambda line: line.startswith("|"), below)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]


def test_everything_is_on_the_page_and_nothing_is_loaded(results: SuiteResults, tmp_path: Path) -> None:
    text, page = written(results, tmp_path)
    assert "Left out" not in text + page
    assert all(f"Table {number}" in text and f"Table {number}" in page for number in range(1, 6))
    assert page.count("data:image/png;base64,") == 4 and not re.search(r"(src|href)=\"(?!data:image/|#)", page)
    for number in range(4, 8):
        assert (tmp_path / "figures" / f"figure-{number}.png").read_bytes().startswith(PNG)
        assert f"](figures/figure-{number}.png)" in text and f"Figure {number}. " in page
    assert "Of 6 blocks of Tables 1-3 (a city, task and split each) uomo has the lowest RMSE in 6 and the lowest CRPS in 6." in text


def test_the_same_results_are_the_same_bytes(results: SuiteResults, tmp_path: Path) -> None:
    assert written(results, tmp_path / "a") == written(results, tmp_path / "b")


def test_table_4_has_every_shot_of_every_model(results: SuiteResults, tmp_path: Path) -> None:
    found = cells(written(results, tmp_path)[0], "Table 4, short")
    assert found[0] == ["model", *(f"{shot} {figure}" for shot in ("zero-shot", "5 %", "10 %") for figure in ("MAE", "RMSE", "CRPS"))]
    assert [line[0] for line in found[1:]] == ["uomo", "persistence", "mean of the known", "zero", "profile x level"]
    assert found[1][1:] == [f"**{value:.4f}**" for value in (0.02, 0.04, 0.01, 0.015, 0.03, 0.0075, 0.01, 0.02, 0.005)]
    assert found[2][1:4] == ["*0.0300*", "*0.0600*", "*0.0150*"] and found[3][1:4] == ["0.0400", "0.0800", "0.0200"]


def test_table_5_says_what_was_lost_in_two_ways(results: SuiteResults, tmp_path: Path) -> None:
    text, page = written(results, tmp_path)
    found = cells(text, "Table 5")
    losses = ["prediction RMSE", "Δ", "gain lost", "generation JSD", "Δ", "gain lost"]
    assert found[0] == ["model", *losses, "prediction CRPS", "generation CRPS"]
    assert found[1] == [FULL, "*0.1000*", "", "", "*0.2000*", "", "", "*0.0250*", "*0.0250*"]
    assert found[2] == [WITHOUT_POI, "0.1100", "+10.0 %", "+50.0 %", "0.2200", "+10.0 %", "+50.0 %", "0.0275", "0.0275"]
    assert found[3][:4] == [WITHOUT_USERS, "**0.0950**", "-5.0 %", "-25.0 %"]
    assert found[4][:4] == [PRETRAINED, "0.1200", "+20.0 %", ""]
    assert f'<tr class="ours"><th scope="row">{FULL}</th><td>0.1000</td>' in page and '<td class="best">0.0950</td><td>-5.0 %</td>' in page


def test_no_gain_is_no_share_of_a_gain_and_a_task_not_scored_is_a_dash(results: SuiteResults, tmp_path: Path) -> None:
    errors = {FULL: 0.2, WITHOUT_POI: 0.3, WITHOUT_USERS: 0.25, PRETRAINED: 0.1}
    worse = {name: [row("uomo", "x", "short", error)] for name, error in errors.items()}
    found = cells(written(replace(results, ablation=worse), tmp_path)[0], "Table 5")
    assert found[2] == [WITHOUT_POI, "0.3000", "+50.0 %", "-", "-", "-", "-", "0.0750", "-"]


def test_figure_7_in_numbers_are_means_over_cities(results: SuiteResults, tmp_path: Path) -> None:
    found = cells(written(results, tmp_path)[0], "Figure 7 in numbers")
    assert found[0] == ["checkpoint", "parameters", "short RMSE", "short CRPS"]
    assert [line[:2] for line in found[1:]] == [["uomo", "1,000"], ["big", "20,000"], ["uomo@10 %", "1,001"], ["big@10 %", "20,000"]]
    assert found[1][2] == f"*{0.1 / 1000**0.1:.4f}*" and found[2][2] == f"**{0.1 / 20_000**0.1:.4f}**"


def test_what_is_missing_is_named_with_the_option_that_makes_it(results: SuiteResults, tmp_path: Path) -> None:
    rows = [row("uomo", "x", "short", 0.02), row("uomo", "x", "short", 0.02, split="published"), row("zero", "x", "short", 0.01)]
    text, page = written(replace(results, rows=rows, forecasts=[], shots={}, ablation={}, sizes=[]), tmp_path)
    for part, option in {"Table 4, Figures 5 and 6": "unseen", "Table 5": "plain", "Figure 7": "sizes"}.items():
        assert f"Left out: {part}. --uomo-tables.{option} " in text and f"Left out: {part}. --uomo-tables.{option} " in page
    assert "Left out: no window of these cities carries traffic." in text
    assert not (tmp_path / "figures").exists() and "data:image" not in page
    assert "Of 2 blocks of Tables 1-3 (a city, task and split each) uomo has the lowest RMSE in 1" in text
    assert text.count("Read with care") == page.count("Read with care") == 1


def test_without_the_long_task_only_figure_6_is_missing(results: SuiteResults, tmp_path: Path) -> None:
    short = {
        name: Shot(rows=[found for found in shot.rows if found["task"] == "short"], forecasts=[]) for name, shot in results.shots.items()
    }
    text = written(replace(results, shots=short), tmp_path)[0]
    assert "Left out: Figure 6. It shows the long task: name long among --tasks." in text
    assert "Table 4, short" in text and "Table 4, long" not in text and "figure-5.png" in text and "figure-6.png" not in text


def test_a_city_without_a_window_of_a_task_leaves_its_panel_blank(results: SuiteResults, tmp_path: Path) -> None:
    written(replace(results, forecasts=results.forecasts[:-1]), tmp_path)
    assert (tmp_path / "figures" / "figure-4.png").exists()


def test_examples_are_read_as_they_were_written(tmp_path: Path) -> None:
    examples = [example("x", "short"), example("y", "generation")]
    file = Location.of(tmp_path / "examples.json")
    write_examples(examples, file)
    for before, after in zip(examples, read_examples(file), strict=True):
        for name, value in vars(before).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(after, name), value)
                assert getattr(after, name).dtype == value.dtype
            else:
                assert getattr(after, name) == (list(value) if isinstance(value, tuple) else value)
