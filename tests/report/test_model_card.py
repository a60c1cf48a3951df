"""The model card: every fact a user needs stands in it, and no text from outside changes its structure."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest

from raytraffic.config import CalibrateConfig, EvaluateConfig, PretrainConfig, TrainConfig
from raytraffic.report.model_card import CityFacts, ModelFacts, model_card


def row(model: str, city: str = "Nanchang", **changes: Any) -> dict[str, Any]:
    keys = {"model": model, "city": city, "split": "place", "task": "short", "population": "live", "unit": "[0,1]"}
    return {**keys, "rmse": 0.0162, "mae": 0.0077, "crps": 0.0054, "coverage80": 0.7912, "windows": 1168, **changes}


def city(name: str = "Nanchang", **changes: Any) -> CityFacts:
    facts = CityFacts(
        name=name,
        source="series:data/uomo",
        synthetic=False,
        step_minutes=30,
        periods={"train": 336, "val": 300},
        trained=22,
        validated=2,
        tested=4,
        users=True,
        poi_categories=23,
    )
    return replace(facts, **changes)


INVENTED = city("toytown", source="synthetic:toytown?step=60", synthetic=True, step_minutes=60, users=False, poi_categories=0)
REQUEST = PretrainConfig(data=("series:data/uomo",), out="checkpoints/uomo 5m", minutes=30, licence="MIT, tsinghua")
FACTS = ModelFacts(
    version="9.8.7",
    parameters=3_805_377,
    contexts=("users",),
    window=64,
    request=REQUEST,
    training=TrainConfig(store="s", out="r", split="place", preset="5m", steps=4321, learning_rate=7e-4),
    calibration=CalibrateConfig(checkpoint="m", store="s", split="place"),
    evaluation=EvaluateConfig(checkpoint="m", store="s", out="e", splits=("place",), stride=16, draws=17),
    cities=(city(), INVENTED),
    rows=(row("uomo"), row("last value", rmse=0.02, mae=0.0076, crps=0.0076, coverage80=math.nan), row("profile", mae=0.01, crps=0.0061)),
    minutes=29.53,
    best_step=4250,
)


def cells(text: str) -> list[list[str]]:
    """The cells of every line of a table."""
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize(
    "fact",
    [
        "# raytraffic uomo, preset 5m",
        "3,805,377 parameters",
        "besides these at: users",
        "version 9.8.7",
        "raytraffic forecast --checkpoint FOLDER",
        'Forecaster.from_pretrained("FOLDER")',
        "Planning and operating networks",
        "> MIT, tsinghua",
        "Weights derived from data inherit its terms.",
        "Synthetic, made by `raytraffic.sources.synthetic` and measured nowhere: toytown.",
        "4,321 steps of 64 windows in 29.5 minutes of optimisation (CPU, on one core)",
        "after step 4,250",
        '"learning_rate": 0.0007',
        "80% intervals were fitted by split conformal prediction",
        "one window in 16 of every series, 17 draws of 10 sampler steps",
        "**Places and cities like those above.**",
        "spans 7 to 14 days",
        "**Without a profile it knows less.**",
        "**Generation is uncertain.**",
        "calibrated for short, long only",
        "**One calibrated level.** The 80% intervals",
        "Horizons beyond 64 slots",
        "**Not for individuals.**",
        '{"preset": "5m", "steps": 4321}',
    ],
)
def test_every_fact_stands_in_the_card(fact: str) -> None:
    assert fact in model_card(FACTS)


def test_the_cities_stand_with_what_is_known_of_them() -> None:
    found = {line[0]: line[1:] for line in cells(model_card(FACTS)) if len(line) == 7}
    assert found["Nanchang"] == ["30 min", "336 (train), 300 (val)", "22 / 2 / 4", "yes", "23", "series:data/uomo"]
    assert found["toytown (synthetic)"][:1] == ["60 min"] and found["toytown (synthetic)"][3:5] == ["no", "no"]
    assert "No city is synthetic." in model_card(replace(FACTS, cities=(city(),)))


def test_figures_stand_beside_the_best_simple_rule_of_each() -> None:
    others = [row("uomo", unit="physical", rmse=9.0), row("uomo", population="all", rmse=9.0)]
    found = cells(model_card(replace(FACTS, rows=(*FACTS.rows, *others, row("uomo", city="toytown", task="long")))))
    assert found[-2] == [
        "Nanchang",
        "short",
        "1,168",
        "0.0162",
        "0.0162 (profile)",
        "0.0077",
        "0.0076 (last value)",
        "0.0054",
        "0.0061 (profile)",
        "0.79",
    ]
    assert found[-1][:2] == ["toytown (synthetic)", "long"] and found[-1][4] == "-", "no rule is beside it"


def test_a_missing_licence_is_said_to_be_missing() -> None:
    card = model_card(replace(FACTS, request=replace(REQUEST, licence=" \n")))
    assert "> not stated\n\nWeights derived from data inherit its terms." in card


def test_texts_from_outside_cannot_change_the_structure() -> None:
    wild = city("a|b\n# title <b>*x*_`y`", source="table:a|b.csv?x=[1](2)&y=~")
    asked = replace(REQUEST, licence="# Terms\n\n---\n<script>alert(1)</script> [here](http://x)\n| a | b |")
    card = model_card(replace(FACTS, cities=(wild,), rows=(row("uomo", city=wild.name), row("r|s", city=wild.name)), request=asked))
    sections = [line for line in card.splitlines() if line.startswith("#")]
    assert sections == [line for line in model_card(FACTS).splitlines() if line.startswith("#")]
    assert {len(line) for line in cells(card)} == {7, 10}
    assert r"a\|b \# title \<b\>\*x\*\_\`y\`" in card and "(r\\|s)" in card
    licence = [line for line in card.splitlines() if line.startswith("> ")]
    assert licence[:1] == [r"> \# Terms"] and r"> \---" in licence and r"> \<script\>alert(1)\</script\> \[here\](http://x)" in licence


def test_the_command_can_be_given_again() -> None:
    again = model_card(FACTS).split("## How to make it again\n\n")[1].split("\n\n")[0]
    words = shlex.split(again.replace("\\\n", " "))
    assert words[:4] == ["raytraffic", "pretrain", "--data", "series:data/uomo"]
    options = {name: words[words.index(name) + 1] for name in ("--out", "--minutes", "--licence", "--preset", "--stride", "--seed")}
    assert options == {
        "--out": "checkpoints/uomo 5m",
        "--minutes": "30",
        "--licence": "MIT, tsinghua",
        "--preset": "5m",
        "--stride": "16",
        "--seed": "0",
    }
    start = words.index("--synthetic") + 1
    assert tuple(words[start : start + len(REQUEST.synthetic)]) == REQUEST.synthetic
    assert "--licence" not in model_card(replace(FACTS, request=replace(REQUEST, licence="")))
