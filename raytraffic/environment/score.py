"""The two scores a sentence must pass: how much it says of the place, and how well it agrees with the image (LEC-Diff's dual scoring).

The paper names a "dual scoring mechanism" and gives no formula; these are this project's. With n things named for the first time in a
description (land, structures, relief), and m words of mood, inference or picture talk,

    informativeness = n / (n + m), 0 where n = 0; 1 for a sentence that states a fact which was checked and holds

    agreement       = a function of the image and the sentences: an image-text encoder's cosine (raytraffic.environment.agreement),
                      or, without one, `statistics_agreement`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from raytraffic.environment.describe import Scene
from raytraffic.environment.lexicon import THEMES, filler_words, named
from raytraffic.environment.statistics import ImageStatistics

__all__ = ["Agreement", "Thresholds", "informativeness", "statistics_agreement"]


class Agreement(Protocol):
    """How well sentences agree with the image of a scene; larger is better, on the scale that `Thresholds.agreement` is given on."""

    def __call__(self, scene: Scene, sentences: Sequence[str]) -> Sequence[float]:
        """One score a sentence, each independent of the other sentences."""
        ...


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """A sentence with a lower score than either is dropped; the scale of `agreement` is that of the function which scores it."""

    informativeness: float = 0.3
    agreement: float = 0.15

    def __post_init__(self) -> None:
        if not 0 <= self.informativeness <= 1:
            raise ValueError(f"informativeness: {self.informativeness}, expected a number in [0, 1]")
        if not -1 <= self.agreement <= 1:
            raise ValueError(f"agreement: {self.agreement}, expected a number in [-1, 1]")


def informativeness(sentence: str, said: frozenset[str]) -> float:
    """The share in [0, 1] by this file's formula; `said` is what earlier sentences named (raytraffic.environment.lexicon.named)."""
    new = len(named(sentence) - said)
    return new / (new + filler_words(sentence)) if new else 0.0


#: The share at which the agreement of a theme is a half: small, because a sentence may speak of a small part of the image.
_HALF = {"water": 0.005, "vegetation": 0.03, "open": 0.05, "bare": 0.02, "built": 0.03, "transport": 0.03}
_NEGATION = re.compile(r"\b(?:no|not|without|lacks?)\b", re.IGNORECASE)


def statistics_agreement(scene: Scene, sentences: Sequence[str]) -> list[float]:
    """An Agreement that needs no encoder: the least, over the themes a sentence names, of share / (share + half) of the image.

    0.5 where nothing can be said: a scene without statistics, a sentence of no theme that is measured, or one that denies something.
    """
    statistics = scene.facts.statistics
    return [0.5 if statistics is None else _agreement(statistics, sentence) for sentence in sentences]


def _agreement(statistics: ImageStatistics, sentence: str) -> float:
    shares = {
        "water": statistics.water,
        "vegetation": statistics.vegetation,
        "open": statistics.vegetation + statistics.bare,
        "bare": statistics.bare,
        "built": statistics.built,
        "transport": statistics.built,
    }
    things = named(sentence)
    themes = [theme for theme in shares if things & set(THEMES[theme])]
    if not themes or _NEGATION.search(sentence):
        return 0.5
    return min(shares[theme] / (shares[theme] + _HALF[theme]) for theme in themes)
