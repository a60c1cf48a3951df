"""The model card of a pre-trained checkpoint, in Markdown: facts in, text out."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytraffic.config import CalibrateConfig, EvaluateConfig, PretrainConfig, TrainConfig, to_json
from raytraffic.metrics.scoreboard import SCALED

__all__ = ["CityFacts", "ModelFacts", "model_card"]

Row = Mapping[str, Any]
_NOT_STATED = "not stated"
_FIGURES = {"RMSE": "rmse", "MAE": "mae", "CRPS": "crps"}


@dataclass(frozen=True, kw_only=True)
class CityFacts:
    """A city a model was made with: its source, steps a period, places by what they were for, and what is known besides traffic."""

    name: str
    source: str
    synthetic: bool
    step_minutes: int
    periods: Mapping[str, int]
    trained: int
    validated: int
    tested: int
    users: bool
    poi_categories: int

    @property
    def days(self) -> float:
        """Days of the longest period."""
        return max(self.periods.values()) * self.step_minutes / 1440


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """All that a card says: what was asked for and done, the model's size, `minutes` of optimisation, `Scoreboard.rows()` by place."""

    version: str
    parameters: int
    contexts: Sequence[str]
    window: int
    request: PretrainConfig
    training: TrainConfig
    calibration: CalibrateConfig
    evaluation: EvaluateConfig
    cities: Sequence[CityFacts]
    rows: Sequence[Row]
    minutes: float
    best_step: int


def model_card(facts: ModelFacts) -> str:
    """The card of these facts alone; texts from outside (names, sources, the licence) cannot change its structure."""
    sections = {
        "How to use it": _use(),
        "Intended use": _intended(),
        "Training data": _data(facts),
        "Training": _training(facts),
        "Accuracy in places it never saw": _accuracy(facts),
        "Limits": _limits(facts),
        "How to make it again": _again(facts),
    }
    blocks = [f"# raytraffic {facts.training.model}, preset {facts.training.preset}", *_identity(facts)]
    for title, section in sections.items():
        blocks += [f"## {title}", *section]
    return "\n\n".join(blocks) + "\n"


def _identity(facts: ModelFacts) -> list[str]:
    contexts = ", ".join(facts.contexts) if facts.contexts else "nothing else"
    return [
        f"A conditional diffusion model of mobile-network traffic. It is given a window of {facts.window} time slots of neighbouring cells "
        "of which some entries are known, and draws all the others: short- and long-term forecasts, and demand where nothing was measured, "
        "as distributions and not as single numbers.",
        f"- **{facts.parameters:,} parameters**, model `{facts.training.model}`, preset `{facts.training.preset}`\n"
        f"- looks at the known traffic, the clock and the city's profile, and besides these at: {contexts}\n"
        f"- made by `raytraffic pretrain`, version {facts.version}",
    ]


def _use() -> list[str]:
    return [
        "FOLDER is the folder of this file.",
        _code(
            'raytraffic forecast --checkpoint FOLDER --table "table:traffic.parquet" --out forecasts --hours 24 --quantiles 0.1 0.5 0.9\n'
            "raytraffic finetune --checkpoint FOLDER --store stores/yours --out runs/yours --trainable all --contrast 0\n"
            "raytraffic evaluate --checkpoint FOLDER --store stores/yours --out evaluation --splits time"
        ),
        "Or in Python, where `df` has the columns `unique_id, ds, y`:",
        _code(
            "from raytraffic import Forecaster\n\n"
            'forecaster = Forecaster.from_pretrained("FOLDER")\n'
            "table = forecaster.predict_df(df, horizon=24, quantile_levels=[0.1, 0.5, 0.9])"
        ),
    ]


def _intended() -> list[str]:
    return [
        "Planning and operating networks, and research: load of base stations or grid cells hours to a day ahead, energy saving, "
        "capacity, demand at a site that is not built yet, and as a start for fine-tuning on your own city. Before relying on it, score it "
        "on your own data beside the simple rules (`raytraffic evaluate`).",
        "Not for statements about individuals: it knows sums over many subscribers and is no way to learn about any one of them. Not "
        "as the only ground of decisions on which safety or emergency calls depend.",
    ]


def _data(facts: ModelFacts) -> list[str]:
    head = ["city", "granularity", "steps a series", "places trained / validated / tested", "users", "POI categories", "source"]
    lines = [
        [
            _named(city),
            f"{city.step_minutes} min",
            ", ".join(f"{steps:,} ({_plain(period)})" for period, steps in city.periods.items()),
            f"{city.trained} / {city.validated} / {city.tested}",
            "yes" if city.users else "no",
            str(city.poi_categories or "no"),
            _plain(city.source),
        ]
        for city in facts.cities
    ]
    made = [_plain(city.name) for city in facts.cities if city.synthetic]
    invented = f"Synthetic, made by `raytraffic.sources.synthetic` and measured nowhere: {', '.join(made)}."
    licence = "\n".join(f"> {_plain(line)}" for line in (facts.request.licence.strip() or _NOT_STATED).splitlines())
    return [
        _table(head, lines),
        "A place is a patch of neighbouring cells. Tested places, with all their series, and validated ones were not trained on.",
        invented if made else "No city is synthetic.",
        "Licence of the measured data, as stated by whoever made this model:",
        licence,
        "Weights derived from data inherit its terms.",
    ]


def _training(facts: ModelFacts) -> list[str]:
    settings = {name: value for name, value in to_json(facts.training).items() if name not in ("store", "out")}
    machine = "the GPU" if facts.training.gpu else "CPU, on one core"
    return [
        f"{facts.training.steps:,} steps of {facts.training.batch} windows in {facts.minutes:.1f} minutes of optimisation ({machine}). "
        f"The weights are the moving average after step {facts.best_step:,}, whose validation loss was the least. All settings:",
        _code(json.dumps(settings, indent=1)),
        f"Then calibrated: {facts.calibration.level:.0%} intervals were fitted by split conformal prediction on the validated places "
        f"(tasks {', '.join(facts.calibration.tasks)}; at most {facts.calibration.windows} windows each).",
    ]


def _accuracy(facts: ModelFacts) -> list[str]:
    scored = [row for row in facts.rows if (row["unit"], row["population"]) == (SCALED, "live")]
    head = ["city", "task", "windows", *(part for title in _FIGURES for part in (title, f"best simple rule, {title}")), "80 % covers"]
    lines = []
    for city, task in itertools.product(facts.cities, facts.evaluation.tasks):
        block = [row for row in scored if (row["city"], row["task"]) == (city.name, task)]
        if not block:
            continue
        ours = next(row for row in block if row["model"] == facts.training.model)
        rules = [row for row in block if row is not ours]
        compared = [part for figure in _FIGURES.values() for part in (_number(ours[figure]), _best(rules, figure))]
        lines.append([_named(city), task, f"{ours['windows']:,}", *compared, _number(ours["coverage80"], 2)])
    asked = facts.evaluation
    return [
        f"Tested places, one window in {asked.stride} of every series, {asked.draws} draws of {asked.steps} sampler steps; hidden entries "
        "of live cells on the [0, 1] scale (divided by the city's reference level). CRPS is the fair one of draws; of a rule without a "
        "distribution it is its MAE. 80 % covers: how often the truth lies in the central 80 % interval, 0.80 at best. The best simple "
        "rule of a figure was picked by that figure, on these windows. A city without tested places has no row.",
        _table(head, lines),
    ]


def _limits(facts: ModelFacts) -> list[str]:
    days = [city.days for city in facts.cities]
    span = f"{min(days):.0f}" if round(min(days)) == round(max(days)) else f"{min(days):.0f} to {max(days):.0f}"
    calibrated, level = ", ".join(facts.calibration.tasks), f"{facts.calibration.level:.0%}"
    points = [
        "**Places and cities like those above.** The figures hold for unseen places of these cities; another city, network or "
        "granularity has to be scored before it is trusted.",
        f"**The length of the data.** The longest series of a city spans {span} days. Longer rhythms, seasons, holidays and growth were "
        "never seen, and the week no more often than it fits in.",
        "**Without a profile it knows less.** In a city of which nothing was measured there is neither weekly profile nor reference level; "
        "forecasts rest on the known part of the window alone (`raytraffic evaluate --share 0` measures what that costs).",
        "**Generation is uncertain.** Nothing of a cell without any measurement tells its level: compare the rows above with those of the "
        f"simple rules. Intervals were calibrated for {calibrated} only.",
        f"**One calibrated level.** The {level} intervals were fitted; others follow by the same stretch without a promise. What is "
        "promised holds on average over places like the validated ones (which also chose the step), not for every cell and hour.",
        f"**One window of {facts.window} slots.** All scores are of forecasts inside one. Horizons beyond {facts.window} slots are "
        "continued window by window from the model's own draws and were not evaluated.",
        "**Not for individuals.** It describes cells, not subscribers.",
    ]
    return ["\n".join(f"- {point}" for point in points)]


def _again(facts: ModelFacts) -> list[str]:
    request = to_json(facts.request) | {"preset": facts.training.preset}
    options = [
        shlex.join([f"--{name}", *(str(part) for part in (value if isinstance(value, list) else [value]))])
        for name, value in request.items()
        if name != "licence" or value
    ]
    plan = json.dumps({"preset": facts.training.preset, "steps": facts.training.steps})
    return [
        _code(" \\\n  ".join(["raytraffic pretrain", *options])),
        f"How many steps fit the minutes depends on the machine. To take the same number, first put a file `plan.json` with `{plan}` into "
        "the folder of `--out`. The same steps on the same data give the same weights up to rounding.",
    ]


def _named(city: CityFacts) -> str:
    return _plain(city.name) + (" (synthetic)" if city.synthetic else "")


def _best(rules: Sequence[Row], figure: str) -> str:
    """The lowest figure of some rows and whose it is."""
    if not rules:
        return "-"
    best = min(rules, key=lambda row: (math.isnan(row[figure]), row[figure]))
    return f"{_number(best[figure])} ({_plain(best['model'])})"


def _number(value: float, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def _code(text: str) -> str:
    """A code block by indentation: nothing inside can end it."""
    return textwrap.indent(text, "    ")


def _plain(text: str) -> str:
    """A text from outside on one line, with every character escaped that Markdown or HTML would take for its own there."""
    return re.sub(r"([\\`*_\[\]<>|#&~$]|^[-+=])", r"\\\1", " ".join(text.split()))
