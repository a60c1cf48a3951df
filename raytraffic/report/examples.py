"""Forecasts worth looking at: one window a city and task as fans, and every city over its cells as maps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta

import numpy as np
import torch
from numpy.typing import NDArray

from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.forecaster import Forecaster
from raytraffic.masks import SHORT, Task, mask
from raytraffic.report.evaluation import CityMap, ForecastExample
from raytraffic.store.splits import Part
from raytraffic.windows import Windows

__all__ = ["city_maps", "forecast_examples", "read_examples", "write_examples"]

_LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
_DRAWS = 50
_MOST_TILES = 64


def forecast_examples(
    forecaster: Forecaster,
    windows: Windows,
    part: Part,
    tasks: Sequence[Task],
    sampler: Sampler,
    seed: int = 0,
    cities: Sequence[str] = (),
) -> list[ForecastExample]:
    """For every task and city the middle window of the part, at the hidden live cell of median traffic.

    Of the named cities only, if any is named.
    """
    examples = []
    index = windows.store.index
    for task in tasks:
        rows, starts = windows.evaluation(part, task)
        for code, city in enumerate(index.cities):
            if cities and city not in cities:
                continue
            mine = np.flatnonzero(index.city[rows] == code)
            for at in (mine[len(mine) // 2 :][:8]).tolist():
                columns = windows.cut(rows[at : at + 1], starts[at : at + 1])
                batch = mask(windows.batch(columns), task, seed)
                hidden = batch.hidden[0, 0].any(dim=0)
                traffic = batch.traffic[0, 0].nan_to_num().sum(dim=0)
                live = (hidden & (traffic > 0)).nonzero()[:, 0]
                if not len(live):
                    continue
                cell = int(live[traffic[live].argsort()[len(live) // 2]])
                forecast = forecaster.forecast(batch, sampler, _DRAWS, seed)
                examples.append(
                    ForecastExample(
                        city=city,
                        task=task.name,
                        site=str(windows.site_names(rows[at : at + 1])[0, cell]),
                        step_minutes=int(columns["step_minutes"][0]),
                        start=_moment(windows, int(rows[at]), int(starts[at])),
                        truth=batch.traffic[0, 0, :, cell].double().numpy(),
                        known=batch.known[0, 0, :, cell].numpy(),
                        quantile_levels=_LEVELS,
                        quantiles=forecast.quantile(list(_LEVELS))[0, :, 0, :, cell].double().numpy(),
                        unit=str(windows.store.manifest["cities"][city]["unit"]),
                    )
                )
                break
    return examples


def write_examples(examples: Sequence[ForecastExample], file: Location) -> None:
    """Writes examples as JSON, from which `read_examples` makes them again."""
    arrays = ("truth", "known", "quantiles")
    plain = [{**asdict(one), "start": one.start.isoformat(), **{name: getattr(one, name).tolist() for name in arrays}} for one in examples]
    file.write_bytes(json.dumps(plain).encode())


def read_examples(file: Location) -> list[ForecastExample]:
    """The examples that `write_examples` wrote."""
    return [
        ForecastExample(
            **{
                **fields,
                "start": datetime.fromisoformat(fields["start"]),
                "truth": np.array(fields["truth"]),
                "known": np.array(fields["known"], dtype=bool),
                "quantiles": np.array(fields["quantiles"]),
            }
        )
        for fields in json.loads(file.read_bytes())
    ]


def city_maps(forecaster: Forecaster, windows: Windows, part: Part, sampler: Sampler, seed: int = 0) -> list[CityMap]:
    """Every city (at most 64 tiles) two hours or more into a short-term forecast, beside the truth.

    Tiles of a grid lie where they are; tiles of unknown place stand side by side, a gap between them.
    """
    maps = []
    index = windows.store.index
    rows, starts = windows.evaluation(part, SHORT)
    for code, city in enumerate(index.cities):
        mine = np.flatnonzero(index.city[rows] == code)
        if not len(mine):
            continue
        latest = mine[starts[mine] == starts[mine].max()][:_MOST_TILES]
        columns = windows.cut(rows[latest], starts[latest])
        batch = mask(windows.batch(columns), SHORT, seed)
        median = forecaster.forecast(batch, sampler, 20, seed).median()
        slot = batch.shape[2] * 3 // 4 + max(1, 120 // int(columns["step_minutes"][0]))
        forecast = torch.where(batch.measured, median, torch.full_like(median, torch.nan))[:, 0, slot]
        places = [index.places[place][1] for place in index.place[rows[latest]]]
        arrange = _grid_of(windows, city, places)
        moment = _moment(windows, int(rows[latest[0]]), int(starts[latest[0]]) + slot)
        unit = str(windows.store.manifest["cities"][city]["unit"])
        maps.append(CityMap(city=city, time=moment, forecast=arrange(forecast), truth=arrange(batch.traffic[:, 0, slot]), unit=unit))
    return maps


class _Mosaic:
    """Puts tiles (n, s) into one picture (h, w)."""

    def __init__(self, corners: list[tuple[int, int]], tile: tuple[int, int], shape: tuple[int, int]) -> None:
        self.corners = corners
        self.tile = tile
        self.shape = shape

    def __call__(self, tiles: torch.Tensor) -> NDArray[np.float64]:
        height = max(self.shape[0], *(row + self.tile[0] for row, _ in self.corners))
        width = max(self.shape[1], *(column + self.tile[1] for _, column in self.corners))
        picture = np.full((height, width), np.nan)
        for (row, column), values in zip(self.corners, tiles, strict=True):
            picture[row : row + self.tile[0], column : column + self.tile[1]] = values.double().numpy().reshape(self.tile)
        return picture[: self.shape[0], : self.shape[1]]


def _grid_of(windows: Windows, city: str, places: list[str]) -> _Mosaic:
    """Where each tile stands in the picture of its city."""
    tile = windows.store.layout.tile
    grid = windows.store.manifest["cities"][city]["grid"]
    if grid is not None:
        corners = [(int(name[1:4]) * tile[0], int(name[5:8]) * tile[1]) for name in places]
        return _Mosaic(corners, tile, (int(grid[0]), int(grid[1])))
    across = math.ceil(math.sqrt(len(places)))
    corners = [(i // across * (tile[0] + 1), i % across * (tile[1] + 1)) for i in range(len(places))]
    shape = (max(row for row, _ in corners) + tile[0], max(column for _, column in corners) + tile[1])
    return _Mosaic(corners, tile, shape)


def _moment(windows: Windows, row: int, step: int) -> datetime:
    """The local time of a step of a run's series."""
    index = windows.store.index
    minutes = int(index.start_minute[row] + (step - index.first_step[row]) * index.step_minutes[row])
    return datetime(1970, 1, 1) + timedelta(minutes=minutes)
