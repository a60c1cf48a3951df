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

from raytraffic.report.evaluation import CityMap, ForecastExample, evaluation_report
from raytraffic.report.html import Column, Folded, Gallery, Group, Picture, Section, Table, Text, write_report
from raytraffic.report.plots import fan, metric_bars, picture

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
    return {**keys, "rmse": 2 * crps, "mae": crps, "crps": crps, "jsd": 0.1, "coverage80": 0.8, "entries": 1234, "windows": 5}


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
    evaluation_report(rows, [hostile], tmp_path / "r.html", model=HOSTILE, maps=[city], title=HOSTILE)
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
        evaluation_report([row("m", 0.1)], [example()], tmp_path / name, model="m", maps=[city])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert dict(mpl.rcParams) == settings


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
