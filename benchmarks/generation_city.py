r"""A city whose law is known, for benchmarks of generation: stations at random places, POI that say what a place is like.

    log x(i, t) = log level(i) + log(shape(t; mix(i))) + w(i) + z(i, t),   w ~ N(0, 0.15^2) a week, z AR(1) of deviation 0.25, phi 0.8

mix(i) is the share of each of three land uses, smooth in space, and decides level and shape. With `time_matters` False the shape is flat,
with `place_matters` False all stations have the mean mix, whatever their POI say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raytraffic.types import Space, TrafficBatch

__all__ = ["GROUP", "WEEK", "GenerationCity", "aligned"]

GROUP, WEEK = 16, 168  # stations of a window, hours of a week
_LEVELS = np.array([20.0, 80.0, 200.0])
_POI = np.array([[8.0, 1.0, 2.0], [1.0, 9.0, 1.0], [1.0, 2.0, 8.0], [3.0, 3.0, 3.0]])  # categories by land use
_WEEKLY, _HOURLY, _PHI = 0.15, 0.25, 0.8


@dataclass(frozen=True, kw_only=True)
class GenerationCity:
    """`groups` groups of GROUP stations in a square of about a station per 0.25 square kilometres."""

    groups: int
    seed: int = 0
    time_matters: bool = True
    place_matters: bool = True

    def weeks(self, weeks: int, seed: int, groups: slice, draw: int = 0) -> TrafficBatch:
        """One window for every group and week, with everything measured, that begins at a random hour of the week.

        Other draws are other traffic of the same windows.
        """
        places, mix, poi = self._places()
        chosen = np.arange(self.groups)[groups]
        begin = np.random.default_rng((self.seed, seed)).integers(0, WEEK, (len(chosen), weeks))
        rng = np.random.default_rng((self.seed, seed, draw))
        traffic = np.stack([[self._week(mix[g], int(begin[i, w]), rng) for w in range(weeks)] for i, g in enumerate(chosen)])
        slot = (begin[..., None] + np.arange(WEEK)) % WEEK
        windows = len(chosen) * weeks
        x = torch.from_numpy(traffic.reshape(windows, 1, WEEK, GROUP)).float()
        return TrafficBatch(
            traffic=x,
            known=torch.isfinite(x),
            clock=torch.from_numpy(np.stack((slot % 24, slot // 24), axis=-1).reshape(windows, WEEK, 2)),
            step_minutes=torch.full((windows,), 60),
            key=torch.arange(windows) + 100_003 * seed,
            space=Space(xy=torch.from_numpy(places[chosen].repeat(weeks, axis=0)).float()),
            context={
                "poi": torch.from_numpy(poi[chosen].transpose(0, 2, 1).repeat(weeks, axis=0)).float(),
                "reference": torch.full((windows, 1), self.reference()),
            },
        )

    def reference(self) -> float:
        """The upper reference level: what one unit of the [0, 1] scale is."""
        return float(_LEVELS.max() * 2.5)

    def _places(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Places (g, s, 2) in metres, mix (g, s, 3) and POI counts (g, s, 4); the stations of a group are neighbours."""
        rng = np.random.default_rng((self.seed, 2**20))
        side = math.sqrt(GROUP * 0.25) * 1000
        places = rng.random((self.groups, GROUP, 2)) * side
        places += (np.stack(np.divmod(np.arange(self.groups), 4), axis=-1) * side)[:, None]
        waves = rng.standard_normal((3, 2)) / 1500
        phases = rng.random(3) * 2 * np.pi
        weight = np.exp(2.5 * np.sin(places @ waves.T + phases) + 0.7 * rng.standard_normal((self.groups, GROUP, 3)))
        mix = weight / weight.sum(axis=-1, keepdims=True)
        poi = rng.poisson(3 * mix @ _POI.T).astype(np.float64)
        return places, mix if self.place_matters else np.broadcast_to(mix.mean(axis=(0, 1)), mix.shape), poi

    def _week(self, mix: NDArray[np.float64], begin: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """(t, s) traffic of a week of stations with this mix (s, 3)."""
        slot = (begin + np.arange(WEEK)) % WEEK
        shape = _shapes()[slot] @ mix.T if self.time_matters else np.ones((WEEK, len(mix)))
        white = rng.standard_normal((WEEK, len(mix)))
        noise = np.empty_like(white)
        noise[0] = white[0]
        for t in range(1, WEEK):
            noise[t] = _PHI * noise[t - 1] + math.sqrt(1 - _PHI**2) * white[t]
        week: NDArray[np.float64] = (mix @ _LEVELS) * shape * np.exp(_WEEKLY * rng.standard_normal(len(mix)) + _HOURLY * noise)
        return week


def _shapes() -> NDArray[np.float64]:
    """(168, 3) activity of each land use, Monday first: homes in the evening, offices on workdays, leisure at weekends."""
    hour, weekend = np.arange(WEEK) % 24, np.arange(WEEK) >= 120

    def peak(at: float, width: float) -> NDArray[np.float64]:
        return np.exp(-0.5 * (((hour - at + 12) % 24 - 12) / width) ** 2)

    homes = 0.3 + peak(20, 3) + 0.4 * peak(8, 1.5)
    offices = 0.15 + np.where(weekend, 0.15, 1.3) * peak(13, 3.5)
    leisure = 0.2 + np.where(weekend, 1.4, 0.5) * peak(16, 4)
    return np.stack([shape / shape.mean() for shape in (homes, offices, leisure)], axis=1)


def aligned(courses: Tensor, batch: TrafficBatch) -> Tensor:
    """Courses (b, ..., t, s) turned so that each begins on Monday at midnight."""
    begin = batch.clock[:, 0, 1] * 24 + batch.clock[:, 0, 0]
    return torch.stack([course.roll(int(first), dims=-2) for course, first in zip(courses, begin, strict=True)])
