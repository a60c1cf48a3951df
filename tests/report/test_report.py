"""The HTML report: nothing is injected or loaded, the best values are marked, the summary says who wins, pictures are repeatable."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from raytraffic.metrics.breakdown import AXES
from raytraffic.report.evaluation import CityMap, ForecastExample, evaluation_report
from raytraffic.report.html import Column, Folded, Gallery, Group, Picture, Section, Table, Text, write_report
from raytraffic.report.plots import coverage_lines, fan, metric_bars, picture

HOSTILE = "$\\no$<script>alert('x')</script><img src=\"http://evil/\" onerror=x>&\"'"


class Page(HTMLParser):
    """What a browser would see: every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def row(model: str, crps: float, *, city: str = "a", task: str = "short", population: str = "live", unit: str = "[0,1]") -> dict[str, Any]:
    keys = {"model": model, "city": city, "split": "time", "task": task, "population": population, "unit": unit}
    figures = {"rmse": 2 * crps, "mae": crps, "crps": crps, "energy": 4 * crps, "jsd": 0.1, "coverage80": 0.8}
    return {**keys, **figures, "entries": 1234, "cells": 40, "windows": 5}


def broken_down(model: str, coverage: float, *, city: str = "a", task: str = "short", crps: float = 0.1, entries: int = 200) -> list[Any]:
    """Rows of every bin of every axis."""
    keys = {"model": model, "city": city, "split": "time", "task": task}
    figures = {"entries": entries, "coverage80": coverage, "crps": crps, "mae": crps}
    return [{**keys, "axis": axis, "bin": name, **figures} for axis, bins in AXES.items() for name in bins]


def example(**changes: Any) -> ForecastExample:
    truth = np.arange(8.0)
    made = ForecastExample(
        city="nanchang", task="short", site="cell 3", step_minutes=30, start=datetime(2026, 3, 2, 21), truth=truth, known=np.arange(8) < 5,
        quantile_levels=[0.1, 0.5, 0.9], quantiles=np.stack([truth - 1, truth, truth + 1]), unit="MB",
    )  # fmt: skip
    return replace(made, **changes)


def read(path: Path) -> Page:
    return Page(path.read_text())


def test_no_text_can_inject_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    hostile = example(city=HOSTILE, site=HOSTILE, task=HOSTILE, unit="<MB>")
    city = CityMap(city=HOSTILE, time=datetime(2026, 1, 1), forecast=np.ones((2, 3)), truth=None, unit="<MB>")
    rows = [row(HOSTILE, 0.1, city=HOSTILE, task=HOSTILE), row("rule" + HOSTILE, 0.2, city=HOSTILE, task=HOSTILE)]
    parts = broken_down(HOSTILE, 0.8, city=HOSTILE, task=HOSTILE)
    evaluation_report(rows, [hostile], tmp_path / "r.html", model=HOSTILE, breakdown=parts, maps=[city], title=HOSTILE)
    page = read(tmp_path / "r.html")
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "link", "base", "form"})
    assert all((image["src"] or "").startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert all((link["href"] or "").startswith("#s") for link in page.all("a"))
    assert page.text.count("alert('x')") > 5  # it is shown as the text it is


def test_every_picture_has_an_alternative_text_and_the_page_its_head(tmp_path: Path) -> None:
    evaluation_report([row("m", 0.1), row("zero", 0.2)], [example()], tmp_path / "r.html", model="m", title="Évaluation")
    page = read(tmp_path / "r.html")
    assert len(page.all("img")) == 2 and all(len(image["alt"] or "") > 20 for image in page.all("img"))
    assert page.all("html")[0]["lang"] == "en" and len(page.all("title")) == 1 and "Évaluation" in page.text
    assert "default-src 'none'" in str(page.all("meta"))
    assert "prefers-color-scheme: dark" in page.text and "position: sticky" in page.text
    targets = {attrs["id"] for attrs in page.all("section")}
    assert {(link["href"] or "")[1:] for link in page.all("a")} == targets


def best_of(tmp_path: Path, table: Table) -> list[str]:
    write_report(tmp_path / "t.html", "t", [Section("s", [Folded("more", [table])])])
    return re.findall(r'<td class="best">([^<]*)</td>', (tmp_path / "t.html").read_text())


def test_the_best_value_of_each_column_and_group_is_emphasised(tmp_path: Path) -> None:
    columns = [Column(name="model"), Column(name="mae", target=0.0), Column(name="cov80", target=0.8), Column(name="n")]
    nan = float("nan")
    groups = [
        Group(label="a", rows=[("x", 0.5, 0.70, 1), ("y", 0.25, 0.85, 2), ("z", 0.25, nan, 3)]),
        Group(label="b", rows=[("x", 0.125, nan, 1), ("y", nan, nan, 1000)]),
    ]
    # ties are both best; a value with nothing to compare to is not; columns without a target never are
    assert best_of(tmp_path, Table(caption="c", columns=columns, groups=groups)) == ["0.250", "0.850", "0.250"]
    text = (tmp_path / "t.html").read_text()
    assert text.count("<td>–</td>") == 4 and "<td>1,000</td>" in text and "<caption>c</caption>" in text


def test_floats_of_a_column_share_their_decimals(tmp_path: Path) -> None:
    rows = [("x", 0.01887), ("y", 0.0004), ("z", 12.0)]
    table = Table(caption="", columns=[Column(name="m"), Column(name="v")], groups=[Group(label="", rows=rows)])
    write_report(tmp_path / "t.html", "t", [Section("s", [table])])
    assert re.findall(r"<td>([^<]*)</td>", (tmp_path / "t.html").read_text()) == ["0.0189", "0.0004", "12.0000"]
    with pytest.raises(ValueError, match="a row of 1 cells, expected 2"):
        Table(caption="c", columns=[Column(name="a"), Column(name="b")], groups=[Group(label="", rows=[("x",)])])


def test_the_summary_says_who_is_beaten_and_by_how_much(tmp_path: Path) -> None:
    rows = [row("m", 0.08), row("m", 0.02, city="b"), row("m", 9.0, population="all")]
    rows += [row("good", 0.1), row("good", 0.025, city="b"), row("zero", 0.4), row("zero", 0.1, city="b")]
    evaluation_report(rows, [], tmp_path / "r.html", model="m")
    text = read(tmp_path / "r.html").text
    assert "m has a lower CRPS than all 2 other models in every city, split and task (live cells, [0,1] scale)." in text
    assert "hardest rival is good: beaten in 2 of 2, and m's CRPS is on average 20% lower." in text
    assert "+80.0%" in text and "It does not win" not in text


def test_the_summary_admits_defeat(tmp_path: Path) -> None:
    rows = [row("m", 0.2), row("m", 0.1, city="b"), row("good", 0.1), row("good", 0.2, city="b"), row("zero", 0.9)]
    evaluation_report(rows, [], tmp_path / "r.html", model="m")
    text = read(tmp_path / "r.html").text
    assert "lower CRPS than 1 of 2 other models in every city" in text
    assert "It does not win: a, short, time split (good)." in text
    evaluation_report(rows[:1], [], tmp_path / "r.html", model="m")
    assert "m stands alone" in read(tmp_path / "r.html").text
    with pytest.raises(ValueError, match=r"model: 'typo' has no row, expected one of \['good', 'm', 'zero'\]"):
        evaluation_report(rows, [], tmp_path / "r.html", model="typo")


def test_other_populations_and_units_are_folded_below(tmp_path: Path) -> None:
    rows = [row("m", 0.1, population=p, unit=u) for p in ("all", "live") for u in ("[0,1]", "physical")]
    evaluation_report(rows, [], tmp_path / "r.html", model="m")
    assert re.findall(r"<caption>(.*?);", (tmp_path / "r.html").read_text()) == [
        "live cells, [0,1] scale",
        "all cells, [0,1] scale",
        "live cells, physical units",
        "all cells, physical units",
    ]


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    evaluation_report([row("m", 0.1)], [], out, model="m")
    before = out.read_text()
    with pytest.raises(ValueError, match="quantiles of shape"):
        evaluation_report([row("m", 0.1)], [example(quantiles=np.ones((2, 8)))], out, model="m")
    assert out.read_text() == before and [f.name for f in tmp_path.iterdir()] == ["r.html"]


def test_the_same_input_is_the_same_file_and_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    settings = dict(mpl.rcParams)
    city = CityMap(city="c", time=datetime(2026, 1, 1), forecast=np.eye(3), truth=np.full((3, 3), np.nan), unit="MB")
    for name in ("a.html", "b.html"):
        parts = broken_down("m", 0.7)
        evaluation_report([row("m", 0.1)], [example()], tmp_path / name, model="m", breakdown=parts, maps=[city])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert dict(mpl.rcParams) == settings


def coverage_of(tmp_path: Path, breakdown: list[Any]) -> list[str]:
    """What the pictures of the section say over all live cells, one a task."""
    evaluation_report([row("m", 0.1), row("m", 0.1, task="long")], [], tmp_path / "r.html", model="m", breakdown=breakdown)
    alts = [image["alt"] or "" for image in read(tmp_path / "r.html").all("img")]
    return [alt.partition("all live cells: ")[2] for alt in alts if "all live cells" in alt]


def test_intervals_are_shown_beside_the_best_two_rivals_that_have_any(tmp_path: Path) -> None:
    nan = float("nan")
    rivals = [*broken_down("worst", 0.6, crps=0.4), *broken_down("good", 0.7, crps=0.2), *broken_down("fair", 0.9, crps=0.3)]
    assert coverage_of(tmp_path, [*rivals, *broken_down("m", 0.75), *broken_down("rule", nan, crps=0.01)]) == [
        "m 0.75; good 0.70; fair 0.90."
    ]
    assert "Where the intervals hold" in read(tmp_path / "r.html").text
    assert coverage_of(tmp_path, [*broken_down("m", 0.85, task="long"), *broken_down("m", 0.75)]) == ["m 0.75.", "m 0.85."]


def test_cities_are_pooled_by_their_entries_and_too_few_are_not_shown(tmp_path: Path) -> None:
    both = [*broken_down("m", 0.9, entries=300), *broken_down("m", 0.5, city="b", entries=100)]
    assert coverage_of(tmp_path, both) == ["m 0.80."]
    assert coverage_of(tmp_path, broken_down("m", 0.9, entries=14)) == []


def test_a_model_without_intervals_has_no_section_on_them(tmp_path: Path) -> None:
    assert coverage_of(tmp_path, [*broken_down("m", float("nan")), *broken_down("other", 0.8)]) == []
    assert "Where the intervals hold" not in read(tmp_path / "r.html").text


def test_coverage_is_drawn_with_the_nominal_level_and_gaps_where_there_is_none() -> None:
    ax = Figure().subplots()
    lines = {"m": [0.9, float("nan"), 0.7], "x" * 40: [0.5, 0.6, 0.7]}
    coverage_lines(ax, ["up to 1", "1-3", "0.01-0.03"], lines, level=0.8, bottom=0.5, label="hours")
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.lines}
    assert np.isnan(drawn["m"][1]) and drawn["m"][[0, 2]].tolist() == [0.9, 0.7] and set(drawn["80%, as it should be"]) == {0.8}
    assert max(len(name) for name in drawn) <= 28 and ax.get_ylim()[0] == 0.5
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["up to\n1", "1-3", "0.01-\n0.03"]
    hours = Figure().subplots()
    coverage_lines(hours, AXES["hour"], {"m": [0.8] * 24}, level=0.8, bottom=0.6, label="hour")
    assert [tick.get_text() for tick in hours.get_xticklabels()] == ["00", "03", "06", "09", "12", "15", "18", "21"]


def drawn_fan(**changes: Any) -> Any:
    made = example(**changes)
    ax = Figure().subplots()
    levels, quantiles = made.quantile_levels, made.quantiles
    fan(ax, start=made.start, step_minutes=30, truth=made.truth, known=made.known, levels=levels, quantiles=quantiles, unit="MB")
    return ax


def test_a_fan_draws_the_bands_it_has_only_where_entries_are_hidden() -> None:
    ax = drawn_fan()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["80%", "median", "known", "truth"]
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert np.isnan(lines["median"][:4]).all() and not np.isnan(lines["median"][4:]).any()  # opens from the last known entry
    assert np.isnan(lines["known"][5:]).all()
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [2.0]  # the divider
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["21:00\nMon", "22:00", "23:00", "00:00\nTue"]


@pytest.mark.parametrize("known", [np.zeros(8, dtype=bool), np.array([1, 0, 1, 0, 1, 1, 0, 1], dtype=bool)])
def test_a_fan_without_one_boundary_has_no_divider(known: np.ndarray) -> None:
    ax = drawn_fan(known=known)
    assert not [line for line in ax.lines if line.get_linestyle() == ":"]
    assert ("known" in [text.get_text() for text in ax.get_legend().get_texts()]) == known.any()


def test_bars_stand_lowest_on_top_with_ours_set_apart() -> None:
    ax = Figure().subplots()
    metric_bars(ax, ["zero", "ours", "mean"], [3.0, 1.0, 2.0], ours="ours", label="CRPS")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["zero", "mean", "ours"]
    colours = [bar.get_facecolor() for bar in ax.patches]
    assert colours[0] == colours[1] != colours[2]


def test_a_picture_is_an_embedded_svg_and_other_sources_are_refused(tmp_path: Path) -> None:
    made = picture(lambda ax: ax.plot([1, 2]), alt="a line", caption="line")
    assert b"<svg" in base64.b64decode(made.source.split(",")[1])
    write_report(tmp_path / "p.html", "p", [Section("s", [Text(["x"]), Gallery([made])])])
    with pytest.raises(ValueError, match=r"picture\.source: 'http://x/y.png', expected a data:image/ URI"):
        Picture(source="http://x/y.png", alt="", caption="")


def test_maps_must_agree() -> None:
    with pytest.raises(ValueError, match=r"map of 'c': forecast \(2, 2\), truth \(3, 2\)"):
        CityMap(city="c", time=datetime(2026, 1, 1), forecast=np.ones((2, 2)), truth=np.ones((3, 2)), unit="MB")
