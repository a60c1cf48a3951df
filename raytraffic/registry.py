"""The models, one line each: a new paper is a new folder under `models` and a new line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raytraffic.forecaster import Forecaster
from raytraffic.models import uomo

__all__ = ["MODELS", "Model", "build", "model"]


@dataclass(frozen=True)
class Model:
    """A model's configuration type, its presets and how it is built."""

    config: type[Any]
    preset: Callable[[str], Any]
    presets: tuple[str, ...]
    build: Callable[[Any], Forecaster]


MODELS: dict[str, Model] = {
    "uomo": Model(uomo.UomoConfig, uomo.preset, tuple(uomo.PRESETS), uomo.build),
}


def model(name: str) -> Model:
    """The model of a name; ValueError lists the valid names."""
    if name not in MODELS:
        raise ValueError(f"model: {name!r}, expected one of {sorted(MODELS)}")
    return MODELS[name]


def build(name: str, preset: str) -> Forecaster:
    """A freshly initialised model of a preset."""
    entry = model(name)
    return entry.build(entry.preset(preset))
