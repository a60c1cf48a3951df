"""A scaling study on one page: what was run, UoMo's Figure 7 on these runs, the laws with their intervals, and where not to trust them.

report.html   the page        figure_7a.png   figures over model size        figure_7b.png   figures over the amount of data
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raytraffic.files import Location
from raytraffic.report.html import Cell, Column, Folded, Gallery, Group, Part, Picture, Section, Table, Text, write_report
from raytraffic.report.scaling_plots import Panel, scaling_curves
from raytraffic.study import (
    DOMAINS,
    EXPONENTS,
    TASKS,
    Bootstrap,
    Interval,
    ParametricLaw,
    Points,
    bootstrap_parametric_law,
    bootstrap_power_law,
    data_limited,
    difference,
    extrapolate,
    fit_isoflop,
    fit_power_law,
    flops_per_parameter_token,
    not_converged,
    over_fitted,
    points,
    read_runs,
)

__all__ = ["study_report"]

_DOMAIN = {"in": "cities trained on", "out": "held-out cities"}


@dataclass(frozen=True, kw_only=True)
class _Study:
    """The table of a study, the figure its laws are fitted to, its budgets in FLOPs, the data axis, and the bootstrap's seed."""

    table: pa.Table
    done: pa.Table
    metric: str
    budgets: tuple[float, ...]
    seed: int

    @property
    def axis(self) -> str:
        """What D is: distinct tokens where the study varies them, else tokens seen."""
        return "data_tokens" if len(pc.unique(self.done["data_tokens"])) >= 3 else "tokens"

    @property
    def axis_name(self) -> str:
        """The same in words."""
        return "distinct training tokens" if self.axis == "data_tokens" else "tokens seen in training"

    def points(self, where: pc.Expression | None = None) -> Points:
        """The finished runs as the laws take them."""
        return points(self.table, metric=self.metric, where=where)

    def amounts(self, found: Points) -> np.ndarray:
        """D of every run."""
        return found.data if self.axis == "data_tokens" else found.tokens


def study_report(out: Location, *, metrics: Sequence[str], budgets: Sequence[float], seed: int, settings: Mapping[str, Any]) -> Location:
    """Reads `runs.parquet` of a study's folder and writes its pictures and page there; a law that the runs cannot carry says why.

    Raises ValueError for a metric that the table does not have.
    """
    table = read_runs(out)
    for metric in metrics:
        if metric not in table.column_names:
            raise ValueError(f"metrics: {metric!r}, expected columns of {out}/runs.parquet, as in_loss or out_short_crps")
    done = table.filter(pc.equal(table["status"], "done"))
    measured = [metric for metric in metrics if len(done) and not done[metric].null_count]
    studies = [_Study(table=table, done=done, metric=metric, budgets=tuple(budgets), seed=seed) for metric in measured]
    sections = [Section("Summary", [Text(_summary(table, done, studies), lead=True)])]
    if studies:
        sections.append(Section("Size and data", [Gallery(_pictures(studies[0], out), wide=True)]))
        sections += [Section(f"Laws of {study.metric}", _laws(study)) for study in studies]
        sections.append(Section("Where the laws do not hold", _limits(studies)))
    sections += [Section("Runs", [_runs(table)]), Section("Settings", [Folded("All settings", [_settings(settings)])])]
    return write_report(out.child("report.html"), "Scaling study", sections)


def _summary(table: pa.Table, done: pa.Table, studies: Sequence[_Study]) -> list[str]:
    failed = len(table) - len(done)
    told = [
        f"{len(done)} of {len(table)} runs finished" + (f"; {failed} failed and stand in the table with the reason." if failed else ".")
    ]
    if len(done):
        sizes, hours = sorted(set(done["parameters"].to_pylist())), pc.sum(done["loop_s"]).as_py() / 3600
        told[0] += (
            f" {len(sizes)} sizes from {sizes[0]:,} to {sizes[-1]:,} parameters, {len(pc.unique(done['data_tokens']))} amounts of data, "
            f"{len(pc.unique(done['seed']))} seeds; {pc.sum(done['flops']).as_py():.3g} FLOPs in {hours:.2f} hours of training loops."
        )
    for study in studies:
        helped = [f"{amount.largest_helpful:,} on {amount.data_tokens:,} tokens" for amount in data_limited(done, metric=study.metric)]
        told.append(f"{study.metric}: the largest number of parameters that still helped was {', '.join(helped)}.")
    return told


def _pictures(study: _Study, out: Location) -> list[Picture]:
    """Figure 7 (a) and (b), each also as a file."""
    rows = study.done.to_pylist()
    figures = [
        [name for name in (f"{domain}_loss", *(f"{domain}_{task}_crps" for task in TASKS)) if any(row[name] is not None for row in rows)]
        for domain in DOMAINS
    ]

    def panels(x: str, line: str, label: Callable[[Any], str], law: bool) -> list[list[Panel]]:
        return [[_panel(rows, name, x, line, label, law) for name in names] for names in figures if names]

    views = {
        "figure_7a": (panels("parameters", study.axis, lambda value: f"{value:,} tokens", True), "parameters"),
        "figure_7b": (panels(study.axis, "size", str, False), study.axis_name),
    }
    found = []
    for name, (content, x_label) in views.items():
        image = scaling_curves(content, x_label=x_label, y_label="loss or CRPS")
        out.child(f"{name}.png").write_bytes(image)
        caption = f"Figure 7 ({name[-1]}): held-out loss and CRPS over {x_label}. A point is a run, a line joins the means over seeds"
        caption += ", dashed: L(N) fitted to a line." if name == "figure_7a" else "."
        source = "data:image/png;base64," + base64.b64encode(image).decode()
        found.append(Picture(source=source, alt=f"Held-out figures over {x_label}", caption=caption))
    return found


def _panel(rows: Sequence[Mapping[str, Any]], metric: str, x: str, line: str, label: Callable[[Any], str], law: bool) -> Panel:
    domain, _, figure = metric.partition("_")
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(rows, key=lambda row: (row[line] if line != "size" else row["parameters"], row[x])):
        if row[metric] is not None:
            lines.setdefault(label(row[line]), []).append((float(row[x]), row[metric]))
    laws: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for name, runs in lines.items() if law else ():
        places, values = zip(*runs, strict=True)
        if len(set(places)) >= 4:
            laws[name] = fit_power_law(places, values).predict
    return Panel(title=f"{figure.replace('_crps', ' CRPS')}, {_DOMAIN[domain]}", lines=lines, laws=laws)


def _laws(study: _Study) -> list[Part]:
    """Joint law, laws of one variable, and iso-FLOP parabolas, each where the runs allow it."""
    parts: list[Part] = []
    everything = study.points()
    told = [
        f"Fitted to {study.metric} of {len(everything)} runs, seeds averaged; D is {study.axis_name}.",
        "Intervals are 90 %, by bootstrap over configurations.",
    ]
    try:
        joint = bootstrap_parametric_law(everything.parameters, study.amounts(everything), everything.loss, seed=study.seed)
        parts.append(_joint_table(joint, optimal=study.axis == "tokens"))
        told += _undetermined(joint.law)
    except ValueError as error:
        joint = None
        told.append(f"No joint law L(N, D): {error}.")
    parts.append(_power_laws(study))
    if study.budgets and joint is not None:
        parts += _isoflop(study, everything, joint.law)
    return [Text(told), *parts, *_extrapolation(study)]


def _undetermined(law: ParametricLaw) -> list[str]:
    """Which constants the runs leave at an end of what a fit may try."""
    low, high = EXPONENTS
    at_end = ["E at 0"] if law.E == 0 else []
    for name, value in (("alpha", law.alpha), ("beta", law.beta)):
        at_end += [f"{name} at {value:g}" for end in (low, high) if math.isclose(value, end, rel_tol=1e-3)]
    return [f"Do not read these as constants of nature: {', '.join(at_end)}, an end of the range that was tried."] if at_end else []


def _joint_table(boot: Bootstrap[ParametricLaw], *, optimal: bool) -> Table:
    quantities: dict[str, Callable[[ParametricLaw], float]] = {
        "E, the loss that no size and no data removes": lambda law: law.E,
        "log A": lambda law: math.log(law.A),
        "alpha, exponent of the parameters": lambda law: law.alpha,
        "log B": lambda law: math.log(law.B),
        "beta, exponent of the data": lambda law: law.beta,
    }
    if optimal:
        quantities["a, exponent of the optimal size in the budget"] = lambda law: law.a
    rows = [_interval_row(name, boot.interval(quantity)) for name, quantity in quantities.items()]
    spread = float(np.std(boot.residuals))
    caption = f"L(N, D) = E + A N^-alpha + B D^-beta (Chinchilla's approach 3); log losses deviate from it by {spread:.3f}"
    return Table(caption=caption, columns=_INTERVAL, groups=[Group(label="", rows=rows)])


_INTERVAL = [Column(name="Constant"), Column(name="estimate", decimals=4), Column(name="low", decimals=4), Column(name="high", decimals=4)]


def _interval_row(name: str, found: Interval) -> list[Cell]:
    return [name, found.estimate, found.low, found.high]


def _power_laws(study: _Study) -> Table:
    """L(N) on each amount of data and L(D) of each size."""
    groups = []
    for title, line, over, label in (
        ("L(N) = E + A N^-alpha on an amount of data", study.axis, "parameters", lambda value: f"{value:,} tokens"),
        ("L(D) = E + A D^-alpha of a size", "size", study.axis, str),
    ):
        rows: list[list[Cell]] = []
        for value in sorted(pc.unique(study.done[line]).to_pylist(), key=lambda value: (len(str(value)), value)):
            found = study.points(pc.field(line) == value)
            x = found.parameters if over == "parameters" else study.amounts(found)
            try:
                boot = bootstrap_power_law(x, found.loss, seed=study.seed)
            except ValueError as error:
                rows.append([f"{label(value)}: {error}", *[""] * 5])
                continue
            floor, exponent = boot.interval(lambda law: law.E), boot.interval(lambda law: law.alpha)
            rows.append([label(value), floor.estimate, exponent.estimate, exponent.low, exponent.high, len(found)])
        groups.append(Group(label=title, rows=rows))
    names = ("", "E", "alpha", "low", "high", "runs")
    return Table(
        caption="Laws of one variable", columns=[Column(name=name, decimals=None if name == "runs" else 4) for name in names], groups=groups
    )


def _isoflop(study: _Study, found: Points, law: ParametricLaw) -> list[Part]:
    k = flops_per_parameter_token(found.flops, found.parameters, found.tokens)
    try:
        fitted = fit_isoflop(found.flops, found.parameters, found.loss, budgets=study.budgets, k=k)
    except ValueError as error:
        return [Text([f"No iso-FLOP parabolas (approach 2): {error}."])]
    rows: list[list[Cell]] = [
        [f"{each.budget:.3g}", each.parameters, each.tokens, each.loss, each.reason or "used"] for each in fitted.parabolas
    ]
    between = difference(fitted, law, max(study.budgets))
    told = (
        f"Approach 2 gives an exponent of {fitted.a:.3f} and approach 3 {law.a:.3f}. At {max(study.budgets):.3g} FLOPs approach 2 would "
        f"take {between.parameters_ratio:.2f} times the size, at a loss {between.loss_percent:.2f} % higher if approach 3 is right."
    )
    columns = [Column(name=name) for name in ("FLOPs", "best parameters", "its tokens", "its loss", "")]
    return [Table(caption="Parabolas of equal FLOPs (approach 2)", columns=columns, groups=[Group(label="", rows=rows)]), Text([told])]


def _limits(studies: Sequence[_Study]) -> list[Part]:
    """Amounts of data that do not feed larger models, and runs that had not converged or over-fitted."""
    done = studies[0].done
    named = {row["run"]: f"{row['size']}, {row['data_tokens']:,} tokens, seed {row['seed']}" for row in done.to_pylist()}
    columns = [Column(name=name) for name in ("distinct tokens", "largest size that helped", "data-limited", "why")]
    parts: list[Part] = []
    for study in studies:
        amounts: list[list[Cell]] = [
            [f"{amount.data_tokens:,}", amount.largest_helpful, "yes" if amount.limited else "no", amount.reason]
            for amount in data_limited(done, metric=study.metric)
        ]
        caption = f"Do more parameters help {study.metric}?"
        parts.append(Table(caption=caption, columns=columns, groups=[Group(label="", rows=amounts)]))
    for title, flags in (("Runs that had not converged", not_converged(done)), ("Runs that over-fitted", over_fitted(done))):
        rows: list[list[Cell]] = [[named[flag.run], flag.reason] for flag in flags if flag.flagged]
        head = f"{title}: {len(rows)} of {len(flags)}"
        table = Table(caption=head, columns=[Column(name="run"), Column(name="why")], groups=[Group(label="", rows=rows)])
        parts.append(Folded(head, [table]) if rows else Text([head + "."]))
    return parts


def _extrapolation(study: _Study) -> list[Part]:
    """The largest size foretold from the smaller ones."""
    found = study.points()
    limit = float(np.sort(np.unique(found.parameters))[-2]) if len(np.unique(found.parameters)) > 1 else math.inf
    by_axis = Points(
        parameters=found.parameters, data=found.data, tokens=study.amounts(found), flops=found.flops, loss=found.loss, seed=found.seed
    )
    try:
        checked = extrapolate(by_axis, most_parameters=limit, seed=study.seed)
    except ValueError as error:
        return [Text([f"No extrapolation check: {error}."])]
    rows: list[list[Cell]] = [
        [
            f"{each.parameters:,.0f}",
            f"{each.tokens:,.0f}",
            each.measured,
            each.foretold.estimate,
            each.foretold.low,
            each.foretold.high,
            each.error_percent.estimate,
        ]
        for each in checked.held_out
    ]
    names = ("parameters", "D", "measured", "foretold", "low", "high", "error %")
    caption = (
        f"The largest size, foretold from {checked.fitted_runs} runs of the smaller ones; "
        f"mean absolute error {checked.mean_error_percent:.2f} %"
    )
    columns = [Column(name=name, decimals=2 if name == "error %" else None) for name in names]
    return [Table(caption=caption, columns=columns, groups=[Group(label="", rows=rows)])]


def _runs(table: pa.Table) -> Table:
    names = ("size", "parameters", "data_tokens", "tokens", "passes", "flops", "seed", "in_loss", "out_loss", "loop_s", "status")
    rows: list[list[Cell]] = []
    for row in sorted(table.to_pylist(), key=lambda row: (row["parameters"], row["data_tokens"], row["seed"])):
        rows.append([_shown(row[name]) if name != "status" else row["error"] or "done" for name in names])
    return Table(caption="Every run", columns=[Column(name=name) for name in names], groups=[Group(label="", rows=rows)])


def _shown(value: Any) -> Cell:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else f"{value:.4g}"


def _settings(settings: Mapping[str, Any]) -> Table:
    rows = [(name, str(value)) for name, value in settings.items()]
    return Table(caption="", columns=[Column(name="Setting"), Column(name="Value")], groups=[Group(label="", rows=rows)])
