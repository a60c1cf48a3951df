"""Settings of a preset changed on the command line: typed, strict, and named where they are wrong."""

from __future__ import annotations

from typing import Any

import pytest

from raytraffic import registry
from raytraffic.config import EvaluateConfig, PretrainConfig, UomoTables, from_json, to_json, with_options
from raytraffic.sources.open import open_source


def test_options_change_nested_settings_and_nothing_else() -> None:
    preset = registry.model("uomo").preset("small")
    changed = with_options(preset, ("entries=0", "forecaster.prediction=epsilon", "token=[4,2,2]", "forecaster.noise.hours=0.5"), "options")
    assert (changed.entries, changed.token, changed.forecaster.prediction, changed.forecaster.noise.hours) == (0, (4, 2, 2), "epsilon", 0.5)
    hours = preset.forecaster.noise.hours
    undo = ("entries=192", "forecaster.prediction=v", "token=[4,4,4]", f"forecaster.noise.hours={hours}")
    back = with_options(changed, undo, "options")
    assert back == preset
    assert with_options(preset, (), "options") == preset


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("entries", r"options: 'entries', expected path=value"),
        ("width=3", r"options: 'width', expected a setting of UomoConfig, as \['base_hidden', 'clock_features', "),
        ("forecaster.noise.colour=1", r"options: 'forecaster.noise.colour', expected a setting"),
        ("depth.x=1", r"options: 'depth.x', expected a setting"),
        ("forecaster.prediction=noise", r"options.forecaster.prediction: 'noise', expected: "),
        ("depth=deep", r"options.depth: 'deep', expected: "),
        ("dropout=2", r"dropout: .*expected .*\[0, 1\)"),
    ],
)
def test_a_wrong_option_is_named(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_options(registry.model("uomo").preset("tiny"), (option,), "options")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "data: no source, expected at least one"),
        ({"minutes": 0.0}, "minutes: 0.0, expected a number > 0"),
        ({"minutes": float("nan")}, "minutes: nan, expected a number > 0"),
        ({"stride": 0}, "stride: 0, expected at least 1"),
        ({"synthetic": ("series:data",)}, r"synthetic: 'series:data', expected synthetic:NAME\?options; measured cities belong to data"),
    ],
)
def test_a_pretraining_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**{"data": ("series:data",), "out": "out", **changes})


def test_the_synthetic_cities_of_a_pretraining_exist_and_differ() -> None:
    cities = [open_source(source).names() for source in PretrainConfig(data=("series:data",), out="out").synthetic]
    names = [name for found in cities for name in found]
    assert len(set(names)) == len(names) >= 3 and all(name.startswith("synthetic-") for name in names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": (0.0,)}, r"uomo_tables.shares: \(0.0,\), expected different shares of the training places in \(0, 1\]"),
        ({"shares": (0.1, 0.1)}, r"uomo_tables.shares: \(0.1, 0.1\), expected different shares"),
        ({"shares": ()}, r"uomo_tables.shares: \(\), expected different shares"),
        ({"sizes": ("5m",)}, r"uomo_tables.sizes: \('5m',\), expected name=folder of a checkpoint each, of different names"),
        ({"sizes": ("5m=a", "5m=b")}, r"uomo_tables.sizes: .*, expected name=folder of a checkpoint each, of different names"),
        ({"few_shot_steps": 0}, "few_shot_steps: 0, expected at least 1"),
        ({"finetune_steps": 0}, "finetune_steps: 0, expected at least 1"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UomoTables(**changes)


def test_options_of_a_suite_need_the_suite() -> None:
    asked = {"checkpoint": "run/best", "store": "store", "out": "out", "uomo_tables": UomoTables(unseen="other")}
    with pytest.raises(ValueError, match="suite: 'none', expected 'uomo-tables' where options of uomo_tables are given"):
        EvaluateConfig(**asked)
    config = EvaluateConfig(**asked, suite="uomo-tables")
    assert from_json(EvaluateConfig, to_json(config), "evaluate") == config
