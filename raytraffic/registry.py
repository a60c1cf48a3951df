"""The models: a new paper is a new folder under `models`, and a function with its line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from raytraffic.cost import Cost
from raytraffic.forecaster import Forecaster
from raytraffic.types import TrafficBatch

__all__ = ["MODELS", "Model", "build", "model"]


@dataclass(frozen=True)
class Model:
    """A model's configuration type, its presets, the contexts it can look at, how it is built, and how it is fine-tuned.

    `add_contexts` gives a trained model the contexts it lacks without changing what it answers, `freeze` leaves only what
    fine-tuning teaches trainable, `align` wraps it with its contrastive objective (weight, negatives), where it has one, and
    `learn_first` is what it learns of training windows before it is trained. `cost` says what a configuration takes for a window on a grid
    (rows, columns), of whose entries a share is asked for, without building anything. `on_grid` models take tiles of a grid or lone
    stations, no groups of stations; `moving` ones look at where users are slot by slot.
    """

    config: type[Any]
    preset: Callable[[str], Any]
    presets: tuple[str, ...]
    contexts: tuple[str, ...]
    build: Callable[[Any], Forecaster]
    add_contexts: Callable[[Forecaster, Any, tuple[str, ...], tuple[str, ...]], tuple[Forecaster, Any]]
    freeze: Callable[[Forecaster], None]
    cost: Callable[[Any, tuple[int, int], float], Cost]
    align: Callable[[Forecaster, float, int], nn.Module] | None = None
    learn_first: Callable[[Forecaster, Sequence[TrafficBatch]], object] | None = None
    on_grid: bool = False
    moving: bool = False


def _uomo() -> Model:
    from raytraffic.models import uomo

    return Model(
        config=uomo.UomoConfig,
        preset=uomo.preset,
        presets=tuple(uomo.PRESETS),
        contexts=uomo.CONTEXTS,
        build=uomo.build,
        add_contexts=uomo.add_contexts,
        freeze=uomo.freeze,
        cost=uomo.cost,
        align=uomo.align,
        on_grid=True,
    )


def _lsdm() -> Model:
    from raytraffic.models import lsdm

    return Model(
        config=lsdm.LsdmConfig,
        preset=lsdm.preset,
        presets=tuple(lsdm.PRESETS),
        contexts=lsdm.CONTEXTS,
        build=lsdm.build,
        add_contexts=lsdm.add_contexts,
        freeze=lsdm.freeze,
        cost=lsdm.cost,
        moving=True,
    )


def _stouter() -> Model:
    from raytraffic.models import stouter

    return Model(
        config=stouter.StouterConfig,
        preset=stouter.preset,
        presets=tuple(stouter.PRESETS),
        contexts=stouter.CONTEXTS,
        build=stouter.build,
        add_contexts=stouter.add_contexts,
        freeze=stouter.freeze,
        cost=stouter.cost,
        learn_first=stouter.pretrain_graphs,
    )


def _lec_diff() -> Model:
    from raytraffic.models import lec_diff

    return Model(
        config=lec_diff.LecDiffConfig,
        preset=lec_diff.preset,
        presets=tuple(lec_diff.PRESETS),
        contexts=lec_diff.CONTEXTS,
        build=lec_diff.build,
        add_contexts=lec_diff.add_contexts,
        freeze=lec_diff.freeze,
        cost=lec_diff.cost,
    )


#: Every model by name. Its folder is imported when it is asked for: a graph library takes seconds, which no other model should cost.
MODELS: dict[str, Callable[[], Model]] = {"uomo": _uomo, "lsdm": _lsdm, "stouter": _stouter, "lec_diff": _lec_diff}


@cache
def model(name: str) -> Model:
    """The model of a name; ValueError lists the valid names."""
    if name not in MODELS:
        raise ValueError(f"model: {name!r}, expected one of {sorted(MODELS)}")
    return MODELS[name]()


def build(name: str, preset: str) -> Forecaster:
    """A freshly initialised model of a preset."""
    entry = model(name)
    return entry.build(entry.preset(preset))
