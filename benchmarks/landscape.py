"""Synthetic land: how fast it is drawn, what a tile tells of the traffic and POI of a city never seen, and how fast POI are counted.

python benchmarks/landscape.py [--cities 16] [--held-out 4] [--cells 12] [--json figures.json] [--quick]

`r2_*` is the share of the variance over the live cells of the held-out cities that a ridge regression from hand-made features of a cell's
64 x 64 tile explains, the variance being taken around the mean of the cities that it was fitted on; `pixel_r2_*` is that of the tile's
centre pixel alone. Asked are the logarithm of the share of a cell's traffic that weekday evenings (19 to 23 h) and rush hours (7 to 9,
17 to 19 h) have, its four activities, and the logarithms of its number of POI (plus one) and of its mean traffic. One process, one thread;
tiles are counted by CPU time, the rest by the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from measure import spread, write_figures
from numpy.typing import NDArray

from raytraffic.environment.landscape import Landscape, landscape
from raytraffic.environment.poi import LSDM_CATEGORIES, Points, count_around
from raytraffic.environment.render import render
from raytraffic.environment.statistics import image_statistics
from raytraffic.environment.tiles import RgbImage
from raytraffic.sources.synthetic import CELL_METRES, LAND_USES, SyntheticCities, SyntheticCity, places_of

Array = NDArray[np.float64]

PIXELS = 64
_DAYS, _REPEATS = 14, 5
_PENALTY = 30.0
_CENTRE = (116.4, 39.9)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """A live cell: features of its tile, the colour of the tile's centre pixel, and what is asked of it by name."""

    features: Array
    pixel: Array
    asked: Mapping[str, float]


def main(cities: int = 16, held_out: int = 4, cells: int = 12, json: Path | None = None, quick: bool = False) -> None:
    """Measure the renderer, what its tiles tell, and counting.

    Args:
        cities: Synthetic cities in all.
        held_out: Cities of them that the regression is not fitted on.
        cells: Cells of a city along a side.
        json: Where the figures are written.
        quick: Few cells, points and repeats: shows that it runs, measures nothing.
    """
    cities, held_out, cells = (4, 1, 4) if quick else (cities, held_out, cells)
    seen = [list(cells_of(SyntheticCity(name=f"city-{number:02d}", grid=(cells, cells), days=_DAYS))) for number in range(cities)]
    fitted, unseen = ([cell for city in part for cell in city] for part in (seen[:-held_out], seen[-held_out:]))
    figures = {"cells_fitted": float(len(fitted)), "cells_unseen": float(len(unseen))}
    for name in fitted[0].asked:
        asked, truth = (np.array([cell.asked[name] for cell in part]) for part in (fitted, unseen))
        figures[f"r2_{name}"] = explained(_stack(fitted, "features"), asked, _stack(unseen, "features"), truth)
        figures[f"pixel_r2_{name}"] = explained(_stack(fitted, "pixel"), asked, _stack(unseen, "pixel"), truth)
    figures |= spread("tiles_per_cpu_s", [tiles_per_cpu_second(8 if quick else 200) for _ in range(_REPEATS)])
    sites, points = (100, 1000) if quick else (10_000, 100_000)
    figures |= {"sites": float(sites), "points": float(points)}
    figures |= spread("counting_s", [counting_seconds(sites, points) for _ in range(_REPEATS)])
    write_figures(figures, json)


def cells_of(city: SyntheticCity) -> Iterator[Cell]:
    """The live cells of a city."""
    (record,) = SyntheticCities([city]).read(city.name)
    assert record.xy is not None and record.poi is not None
    land, mix = landscape(city), places_of(city).mix
    hour = (np.arange(city.slots) + 0.5) * city.step_minutes / 60
    clock, weekday = hour % 24, hour // 24 % 7 < 5
    evening = weekday & (clock > 19) & (clock < 23)
    rush = weekday & (((clock > 7) & (clock < 9)) | ((clock > 17) & (clock < 19)))
    for site in np.flatnonzero(land.live.ravel()):
        image = _tile(land, record.xy[site])
        traffic = record.traffic[0, :, site].astype(np.float64)
        asked = {
            "evening": float(np.log(traffic[evening].sum() / traffic.sum())),
            "rush_hour": float(np.log(traffic[rush].sum() / traffic.sum())),
            **{f"mix_{use}": float(share) for use, share in zip(LAND_USES, mix[:, site], strict=True)},
            "poi": float(np.log1p(record.poi[:, site].sum())),
            "level": float(np.log(traffic.mean())),
        }
        yield Cell(features=image_features(image), pixel=image[PIXELS // 2, PIXELS // 2].astype(np.float64), asked=asked)


def image_features(image: RgbImage) -> Array:
    """(f,) what a simple encoder might see: statistics, texture at several distances, and a histogram of colours."""
    found = image_statistics(image)
    grey = image.mean(axis=2) / 255
    texture = [np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1)] + [np.abs(grey[k:] - grey[:-k]).mean() for k in (2, 3, 4, 6)]
    colours = np.histogramdd((image // 52).reshape(-1, 3), bins=(5, 5, 5), range=((0, 5),) * 3)[0].ravel() / image[..., 0].size
    shares = (found.vegetation, found.water, found.bare, found.built, found.paved, found.edges, found.brightness, found.contrast)
    return np.array([*shares, *found.mean_colour, *texture, *np.sqrt(colours)])


def explained(fitted: Array, asked: Array, unseen: Array, truth: Array) -> float:
    """R2 on `unseen` (m, f) with `truth` (m,) of a ridge regression on `fitted` (n, f) with `asked` (n,), around the mean of `asked`."""
    centre, scale = fitted.mean(axis=0), fitted.std(axis=0) + 1e-6
    design, tried = ((part - centre) / scale for part in (fitted, unseen))
    gram = design.T @ design + _PENALTY * np.eye(design.shape[1])
    told = asked.mean() + tried @ np.linalg.solve(gram, design.T @ (asked - asked.mean()))
    return float(1 - ((truth - told) ** 2).mean() / ((truth - asked.mean()) ** 2).mean())


def tiles_per_cpu_second(tiles: int) -> float:
    """Tiles of different places of one city that are drawn in a second of CPU time."""
    land = landscape(SyntheticCity(name="town", grid=(20, 20)))
    places = np.random.default_rng(0).uniform(0, land.extent, (tiles, 2))
    _tile(land, places[0])  # the noise of all pictures is made once
    began = time.process_time()
    for place in places:
        _tile(land, place)
    return tiles / (time.process_time() - began)


def counting_seconds(sites: int, points: int) -> float:
    """Seconds to count points of 17 categories within 500 m of sites, all of them spread over a degree."""
    generator = np.random.default_rng(0)
    longitude, latitude = (centre + generator.uniform(-0.5, 0.5, points) for centre in _CENTRE)
    category = generator.integers(0, len(LSDM_CATEGORIES), points)
    table = Points(longitude=longitude, latitude=latitude, category=category, categories=LSDM_CATEGORIES)
    at = [centre + generator.uniform(-0.5, 0.5, sites) for centre in _CENTRE]
    began = time.perf_counter()
    count_around(table, *at, radius_metres=500.0)
    return time.perf_counter() - began


def _stack(cells: Sequence[Cell], name: Literal["features", "pixel"]) -> Array:
    return np.array([getattr(cell, name) for cell in cells])


def _tile(land: Landscape, place: Array) -> RgbImage:
    return render(land, float(place[0]), float(place[1]), metres=CELL_METRES, pixels=PIXELS)


if __name__ == "__main__":
    tyro.cli(main)
