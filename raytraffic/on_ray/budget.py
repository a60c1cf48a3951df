"""How much training fits some minutes: a short run is timed, and the cosine schedule is told its number of steps in advance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from raytraffic.config import TrainConfig
from raytraffic.files import Location
from raytraffic.on_ray.train import train
from raytraffic.training_log import optimisation_seconds, read_metrics

__all__ = ["ENOUGH", "MOST", "TIMED", "Plan", "choose", "seconds_per_step", "steps_within"]

#: Steps of a timed run; no run is planned shorter.
TIMED = 60
#: Steps from which a larger model is worth more than a longer training.
ENOUGH = 2000
#: No run is planned longer: on three cities the validation loss was least after 2,000 of 3,000 steps (docs/results.md).
MOST = 20_000


@dataclass(frozen=True)
class Plan:
    """What is trained, and how long."""

    preset: str
    steps: int


def choose(timed: Iterable[tuple[str, float]], minutes: float) -> Plan:
    """The first preset of which ENOUGH steps fit into the minutes, else the last, with the steps that fit, within TIMED and MOST.

    `timed` are presets with their seconds a step, the wanted first; those after the chosen one are not asked for.
    Raises ValueError when there is none.
    """
    plan = None
    for preset, seconds in timed:
        plan = Plan(preset, min(MOST, _fitting(seconds, minutes)))
        if plan.steps >= ENOUGH:
            break
    if plan is None:
        raise ValueError("presets: none, expected at least one")
    return plan


def steps_within(config: TrainConfig, minutes: float) -> int:
    """How many steps of a run, whatever its own number, fit into some minutes of optimisation; at least TIMED."""
    return _fitting(seconds_per_step(config), minutes)


def seconds_per_step(config: TrainConfig) -> float:
    """Seconds a step of a run takes, timed after the first rows of a short one in its folder `timing`, which is deleted at the end."""
    timing = Location.of(config.out).child("timing")
    folder = timing.child(config.preset)
    train(replace(config, out=str(folder), steps=TIMED))
    rows = read_metrics(folder)
    # The first row holds what happens once: the pool of windows fills, the allocator and the caches warm up.
    seconds = optimisation_seconds(rows, config.batch) - optimisation_seconds(rows[:1], config.batch)
    timing.delete()
    return seconds / (TIMED - rows[0]["step"])


def _fitting(seconds: float, minutes: float) -> int:
    return max(TIMED, int(minutes * 60 / seconds))
