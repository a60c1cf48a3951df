"""Settings of a preset changed on the command line: typed, strict, and named where they are wrong."""

from __future__ import annotations

import pytest

from raytraffic import registry
from raytraffic.config import with_options


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
        ("width=3", r"options: 'width', expected a setting of UomoConfig, as \['clock_features', "),
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
