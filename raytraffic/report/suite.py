"""The page of the suite `uomo-tables`: the UoMo paper's Tables 1-5 and Figures 4-7 from scores and forecasts.

Table 5 states what a row lost against the full model in two ways: Delta = (row - full) / full, and the paper's own Delta, of which
its numbers show that it is the share of what fine-tuning gained, (row - full) / (pre-train - full), printed there with a minus.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raytraffic.files import Location
from raytraffic.report.evaluation import ForecastExample
from raytraffic.report.figures import Bars, Point, error_curves, forecast_grid, shot_bars
from raytraffic.report.html import Cell, Column, Gallery, Group, Part, Picture, Section, Table, Text, write_report
from raytraffic.report.tables import WARNINGS, Row, error_column, markdown_table, mean, paper_rows, task_tables, tasks_of

__all__ = ["FULL", "PRETRAINED", "WITHOUT_POI", "WITHOUT_USERS", "Shot", "SuiteResults", "suite_report"]

#: The rows of Table 5.
FULL, WITHOUT_POI, WITHOUT_USERS, PRETRAINED = "UoMo", "UoMo w/o POI", "UoMo w/o users", "pre-train only"
_SHOT_FIGURES = {"MAE": "mae", "RMSE": "rmse", "CRPS": "crps"}
_SIZE_FIGURES = {"RMSE": "rmse", "CRPS": "crps"}
_LOSSES = (("prediction RMSE", "short", "rmse"), ("generation JSD", "generation", "jsd"))
_CRPS = (("prediction CRPS", "short", "crps"), ("generation CRPS", "generation", "crps"))
_RIVALS = 3  # simple rules beside ours in Figure 5
_FIGURE_FOLDER = "figures"


@dataclass(frozen=True, kw_only=True)
class Shot:
    """Scores and one forecast a city of unseen cities, after fine-tuning on some of their places or none."""

    rows: Sequence[Row]
    forecasts: Sequence[ForecastExample]


@dataclass(frozen=True, kw_only=True)
class SuiteResults:
    """What was measured, as rows of `Scoreboard.rows()`; what is empty is left out of the page, which says how to get it.

    `model` names our rows; `shots` go from zero-shot to the largest share; `ablation` has the rows of our model under the names FULL
    to PRETRAINED; `sizes` those of our model at every size.
    """

    model: str
    about: Sequence[str]
    rows: Sequence[Row]
    forecasts: Sequence[ForecastExample]
    shots: Mapping[str, Shot]
    ablation: Mapping[str, Sequence[Row]]
    sizes: Sequence[tuple[Point, Sequence[Row]]]


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """A PNG with its number in the paper."""

    number: int
    png: bytes
    alt: str
    caption: str

    @property
    def path(self) -> str:
        return f"{_FIGURE_FOLDER}/figure-{self.number}.png"


@dataclass(frozen=True)
class _Chapter:
    """A heading of the page with what stands below it."""

    title: str
    parts: Sequence[str | Table | _Drawing]


def suite_report(results: SuiteResults, out: Location) -> Location:
    """Writes suite.md, suite.html (which needs no other file) and figures/figure-N.png into a folder; returns where the page is."""
    title = "Tables 1-5 and Figures 4-7 of UoMo"
    chapters = [
        _Chapter("Summary", [_verdict(results), *results.about]),
        *_main_tables(results),
        _forecasts(results),
        _few_shot(results),
        _ablation(results),
        _scaling(results),
    ]
    for drawing in (part for chapter in chapters for part in chapter.parts if isinstance(part, _Drawing)):
        out.child(drawing.path).write_bytes(drawing.png)
    out.child("suite.md").write_bytes(_markdown(title, chapters).encode())
    return write_report(out.child("suite.html"), title, [Section(chapter.title, _page_parts(chapter.parts)) for chapter in chapters])


def _verdict(results: SuiteResults) -> str:
    """In how many blocks of Tables 1-3 the model is the best."""
    blocks: dict[tuple[str, str, str], list[Row]] = {}
    for row in paper_rows(results.rows):
        blocks.setdefault((row["split"], row["task"], row["city"]), []).append(row)
    wins = {
        title: sum(min(rows, key=lambda row: row[figure])["model"] == results.model for rows in blocks.values())
        for title, figure in _SIZE_FIGURES.items()
    }
    told = " and ".join(f"the lowest {title} in {count}" for title, count in wins.items())
    return f"Of {len(blocks)} blocks of Tables 1-3 (a city, task and split each) {results.model} has {told}."


def _main_tables(results: SuiteResults) -> list[_Chapter]:
    note = "Hidden entries of all cells on the [0, 1] scale; the best of a column is emphasised. CRPS of a rule without draws is its MAE."
    return [
        _Chapter(f"Tables 1-3, split: {split}", [note, *([WARNINGS[split]] if split in WARNINGS else []), *tables])
        for split, tables in task_tables(results.rows, results.model).items()
    ]


def _forecasts(results: SuiteResults) -> _Chapter:
    title = "Figure 4: forecasts beside the truth"
    of = {(example.city, example.task): example for example in results.forecasts}
    if not of:
        return _Chapter(title, ["Left out: no window of these cities carries traffic."])
    tasks = list(dict.fromkeys(task for _, task in of))
    cities = list(dict.fromkeys(city for city, _ in of))
    drawing = _Drawing(
        number=4,
        png=forecast_grid([[(f"{city}, {task}", of.get((city, task))) for task in tasks] for city in cities]),
        alt=f"Forecasts of {', '.join(tasks)} in {' and '.join(cities)}, with the truth.",
        caption="Figure 4. Median and 80 % band beside the truth: the middle test window, at the hidden live cell of median traffic.",
    )
    return _Chapter(title, [drawing])


def _few_shot(results: SuiteResults) -> _Chapter:
    title = "Table 4, Figures 5 and 6: cities never seen"
    rows = {shot: paper_rows(found.rows) for shot, found in results.shots.items()}
    tasks = tasks_of([row for found in rows.values() for row in found])
    if not tasks:
        how = "--uomo-tables.unseen STORE, a store of cities that the checkpoint never saw, with short or long among --tasks, makes them."
        return _Chapter(title, [f"Left out: Table 4, Figures 5 and 6. {how}"])
    note = (
        "Zero-shot is the checkpoint as it is, told nothing of the city; the others are fine-tuned on a share of each city's training "
        "places. The simple rules are told as much of the city as the model is."
    )
    tables = [_shot_table(rows, task, results.model) for task in tasks]
    return _Chapter(title, [note, *tables, _shot_bars(rows, tasks, results.model), _shot_forecasts(results.shots)])


def _shot_table(rows: Mapping[str, Sequence[Row]], task: str, ours: str) -> Table:
    """Table 4 for one task: a group a city, models by their mean MAE down, shots across."""
    of = {(row["city"], row["model"], shot): row for shot, found in rows.items() for row in found if row["task"] == task}
    columns = [(shot, title, figure) for shot in rows for title, figure in _SHOT_FIGURES.items()]
    groups = []
    for city in sorted({city for city, _, _ in of}):
        means = {name: mean([of[key]["mae"] for key in of if key[:2] == (city, name)]) for where, name, _ in of if where == city}
        lines = [
            (name, *(of[city, name, shot][figure] if (city, name, shot) in of else math.nan for shot, _, figure in columns))
            for name in sorted(means, key=lambda name: means[name])
        ]
        groups.append(Group(label=city, rows=lines))
    return Table(
        caption=f"Table 4, {task}: zero- and few-shot errors in cities never seen",
        columns=[Column(name="model"), *(error_column(f"{shot} {title}") for shot, title, _ in columns)],
        groups=groups,
        ours=ours,
    )


def _shot_bars(rows: Mapping[str, Sequence[Row]], tasks: Sequence[str], ours: str) -> _Drawing:
    of = {(row["city"], row["task"], row["model"], shot): row for shot, found in rows.items() for row in found}
    rivals = _best_rules(of, ours)

    def bars(city: str, task: str, title: str, figure: str) -> Bars:
        values = {
            name: [of[city, task, name, shot][figure] if (city, task, name, shot) in of else math.nan for shot in rows]
            for name in (ours, *rivals)
        }
        return Bars(title=f"{city}, {task}: {title}", values=values)

    figures = {"MAE": "mae", "CRPS": "crps"}
    cities = sorted({city for city, *_ in of})
    panels = [[bars(city, task, title, figure) for task in tasks for title, figure in figures.items()] for city in cities]
    return _Drawing(
        number=5,
        png=shot_bars(panels, list(rows), ours=ours),
        alt=f"Bars of MAE and CRPS of {', '.join((ours, *rivals))} at {', '.join(rows)} in {', '.join(cities)}.",
        caption=f"Figure 5. {ours} beside the simple rules of the lowest mean CRPS; lower is better, [0, 1] scale.",
    )


def _best_rules(of: Mapping[tuple[str, str, str, str], Row], ours: str) -> list[str]:
    """The rules of the lowest mean CRPS over all (city, task, model, shot); of rules that never differ only one."""
    scores: dict[str, list[float]] = {}
    for (_, _, name, _), row in of.items():
        scores.setdefault(name, []).append(row["crps"])
    different = {tuple(values): name for name, values in sorted(scores.items()) if name != ours}
    return [name for values, name in sorted(different.items(), key=lambda rule: mean(rule[0]))[:_RIVALS]]


def _shot_forecasts(shots: Mapping[str, Shot]) -> str | _Drawing:
    of = {(example.city, shot): example for shot, found in shots.items() for example in found.forecasts}
    if not of:
        return "Left out: Figure 6. It shows the long task: name long among --tasks."
    cities = list(dict.fromkeys(city for city, _ in of))
    return _Drawing(
        number=6,
        png=forecast_grid([[(f"{city}, {shot}", of.get((city, shot))) for shot in shots] for city in cities], same_scale=True),
        alt=f"Long forecasts of one cell in {', '.join(cities)}, {', '.join(shots)} side by side, with the truth.",
        caption="Figure 6. The same window and cell, from zero-shot to the largest share: median and 80 % band beside the truth.",
    )


def _ablation(results: SuiteResults) -> _Chapter:
    title = "Table 5: what contexts bring"
    if not results.ablation:
        how = "--uomo-tables.plain FOLDER, a checkpoint pre-trained without contexts (train --contexts), makes it on a store with users "
        return _Chapter(title, [f"Left out: Table 5. {how}and POI, with short or generation among --tasks."])
    note = (
        "The checkpoint pre-trained without contexts, fine-tuned with users and POI, with users, with POI, and as it is. Prediction is the "
        "short task. Δ is (row - full) / full, so + is worse. Gain lost is (row - full) / (pre-train - full), the paper's own Δ without "
        "its minus; there is none where fine-tuning gained nothing."
    )
    return _Chapter(title, [note, _ablation_table(results.ablation)])


def _ablation_table(ablation: Mapping[str, Sequence[Row]]) -> Table:
    """Table 5: a group a city; figures of a task that was not scored are NaN."""
    of = {(row["city"], name, row["task"]): row for name, rows in ablation.items() for row in paper_rows(rows)}

    def value(city: str, name: str, task: str, figure: str) -> float:
        return float(of[city, name, task][figure]) if (city, name, task) in of else math.nan

    def line(city: str, name: str) -> list[Cell]:
        cells: list[Cell] = [name]
        for _, task, figure in _LOSSES:
            here, full, before = (value(city, which, task, figure) for which in (name, FULL, PRETRAINED))
            gain_lost = _percent(here - full, before - full) if name != PRETRAINED else ""
            cells += [here, *((_percent(here - full, full), gain_lost) if name != FULL else ("", ""))]
        return cells + [value(city, name, task, figure) for _, task, figure in _CRPS]

    columns = [
        Column(name="model"),
        *(column for title, _, _ in _LOSSES for column in (error_column(title), Column(name="Δ"), Column(name="gain lost"))),
        *(error_column(title) for title, _, _ in _CRPS),
    ]
    groups = [Group(label=city, rows=[line(city, name) for name in ablation]) for city in sorted({city for city, _, _ in of})]
    return Table(caption="Table 5: ablation of the contexts", columns=columns, groups=groups, ours=FULL)


def _percent(part: float, whole: float) -> str:
    return f"{round(100 * part / whole, 1) + 0.0:+.1f} %" if whole > 0 and math.isfinite(part) else "-"  # + 0.0: no minus before a zero


def _scaling(results: SuiteResults) -> _Chapter:
    title = "Figure 7: error over the number of parameters"
    if not results.sizes:
        how = "--uomo-tables.sizes NAME=FOLDER ..., checkpoints of other sizes (NAME@DATA=FOLDER: of other amounts of data), makes it."
        return _Chapter(title, [f"Left out: Figure 7. {how}"])
    points = sorted(results.sizes, key=lambda size: (size[0].data, size[0].parameters, size[0].name))
    rows = [paper_rows(found) for _, found in points]
    tasks = tasks_of([row for found in rows for row in found])

    def errors(task: str, figure: str) -> list[float]:
        return [mean([row[figure] for row in found if row["task"] == task]) for found in rows]

    panels = [[(f"{task}: {name}", errors(task, figure)) for task in tasks] for name, figure in _SIZE_FIGURES.items()]
    across = [(f"{task} {name}", errors(task, figure)) for task in tasks for name, figure in _SIZE_FIGURES.items()]
    lines: list[tuple[Cell, ...]] = [
        (f"{point.name}@{point.data}" if point.data else point.name, point.parameters, *(values[i] for _, values in across))
        for i, (point, _) in enumerate(points)
    ]
    table = Table(
        caption="Figure 7 in numbers: means over cities",
        columns=[Column(name="checkpoint"), Column(name="parameters"), *(error_column(name) for name, _ in across)],
        groups=[Group(label="", rows=lines)],
        ours=results.model,
    )
    drawing = _Drawing(
        number=7,
        png=error_curves([point for point, _ in points], panels),
        alt=f"RMSE and CRPS over the number of parameters in {', '.join(tasks)}; the table below has the numbers.",
        caption="Figure 7. Means over cities, [0, 1] scale; parameters on a logarithmic axis.",
    )
    return _Chapter(title, [drawing, table])


def _page_parts(parts: Sequence[str | Table | _Drawing]) -> list[Part]:
    return [_page_part(part) for part in parts]


def _page_part(part: str | Table | _Drawing) -> Part:
    if isinstance(part, str):
        return Text([part])
    if isinstance(part, Table):
        return part
    source = f"data:image/png;base64,{base64.b64encode(part.png).decode()}"
    return Gallery([Picture(source=source, alt=part.alt, caption=part.caption)], wide=True)


def _markdown(title: str, chapters: Sequence[_Chapter]) -> str:
    parts = [f"# {title}"]
    for chapter in chapters:
        parts.append(f"## {chapter.title}")
        for part in chapter.parts:
            if isinstance(part, Table):
                parts += [f"### {part.caption}", markdown_table(part)]
            else:
                parts.append(part if isinstance(part, str) else f"![{part.alt}]({part.path})\n\n{part.caption}")
    return "\n\n".join(parts) + "\n"
