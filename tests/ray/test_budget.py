"""What is trained in some minutes: the largest model that gets enough steps, and as many of them as fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raytraffic.on_ray.budget import ENOUGH, MOST, TIMED, Plan, choose
from raytraffic.training_log import optimisation_seconds

SPEEDS = {"5m": 3.0, "small": 0.5, "tiny": 0.05}


@pytest.mark.parametrize(
    ("minutes", "plan"),
    [
        (3.0 * ENOUGH / 60, Plan("5m", ENOUGH)),
        (3.0 * ENOUGH / 60 - 0.1, Plan("small", 11988)),
        (20, Plan("small", 2400)),
        (16, Plan("tiny", 19200)),
        (1, Plan("tiny", 1200)),
        (1e-6, Plan("tiny", TIMED)),
        (1e6, Plan("5m", MOST)),
    ],
)
def test_the_largest_model_that_gets_enough_steps_is_chosen(minutes: float, plan: Plan) -> None:
    assert choose(SPEEDS.items(), minutes) == plan


def test_smaller_models_are_timed_only_when_they_are_needed() -> None:
    timed = []

    def times() -> Iterator[tuple[str, float]]:
        for preset, seconds in SPEEDS.items():
            timed.append(preset)
            yield preset, seconds

    choose(times(), minutes=20)
    assert timed == ["5m", "small"]
    with pytest.raises(ValueError, match="presets: none, expected at least one"):
        choose([], minutes=20)


def test_seconds_are_those_of_the_steps_whatever_lies_between_rows() -> None:
    rows = [{"step": 25, "windows_per_second": 10.0, "wall": 0.0}, {"step": 60, "windows_per_second": 20.0, "wall": 9999.0}]
    assert optimisation_seconds(rows, batch=4) == pytest.approx(25 * 4 / 10 + 35 * 4 / 20)
    assert optimisation_seconds([], batch=4) == 0
