"""LEC-Diff's evidence: stations of known coupling and environment, and real places, beside ablations and simple rules; without Ray.

python benchmarks/lec_diff.py [--only city|real] [--steps 1500] [--data DIR] [--json figures.json] [--table FILE] [--pictures DIR] [--quick]

city   generated stations (raytraffic.sources.stations), once with and once without coupling and environment effect: LEC-Diff, without
       environment (Drop GEI) and without graph (Drop SGF), on the last 30 % of the time. With the effects on, what is dropped should be
       missed; off, the three should tie.
real   Milan's block of 5 x 5 squares (Internet, 30 minutes) as the LTE stations nearest to its squares, with what was counted in these, and
       nine regions of Shanghai (60 minutes, their published region embeddings): the same three, on the last 30 % of the time

Every training takes `--steps`. Tasks: short (the last quarter of a window hidden) and long (its last three quarters). A
figure is PLACE_TASK_MODEL_MEASURE; errors are in units of the city's upper reference level.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro
from measure import write_figures
from torch import Tensor

from raytraffic.baselines import rules_for
from raytraffic.files import Location
from raytraffic.fit import Ema, Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster
from raytraffic.graph import partition
from raytraffic.masks import LONG, SHORT, mask, mixture
from raytraffic.metrics.scores import Scores
from raytraffic.models.lec_diff import LecDiffConfig, build, preset
from raytraffic.report.station_plots import StationForecast, interval_panels
from raytraffic.sources.stations import StationCities, StationCity, environment_vectors
from raytraffic.sources.telecom_squares import Points, nearest
from raytraffic.types import Forecast, Space, TrafficBatch

Part = Literal["city", "real"]
TASKS = (SHORT, LONG)
MEASURES = ("crps", "mae", "rmse", "coverage50", "coverage90")
_TRAINED = 0.7
_GROUP = 25


@dataclass(frozen=True, kw_only=True)
class Place:
    """Stations to learn and to forecast: traffic (t, s) from `start` on, xy (s, 2) metres or None, one environment vector a station."""

    name: str
    traffic: np.ndarray
    start: datetime
    step_minutes: int
    xy: np.ndarray | None
    env: np.ndarray
    window: int = 64

    @property
    def trained(self) -> int:
        """Slots that are learnt from; the others are forecast."""
        return int(_TRAINED * len(self.traffic))

    def groups(self) -> tuple[np.ndarray, ...]:
        """Stations that make a window: neighbours where places are known."""
        s = self.traffic.shape[1]
        return partition(self.xy, _GROUP) if self.xy is not None else (np.arange(s),)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is done: steps of a training, windows a test and draws of each, and the model's preset."""

    steps: int
    windows: int
    draws: int
    model: str
    batch: int = 16


def main(
    only: Part | None = None,
    steps: int = 1500,
    data: Path | None = None,
    json: Path | None = None,
    table: Path | None = None,
    pictures: Path | None = None,
    model: str = "tiny",
    quick: bool = False,
) -> None:
    """Train LEC-Diff and its ablations, and score them beside simple rules.

    Args:
        only: One part instead of both.
        steps: Of each training: the same for every model, whatever a step of it takes.
        data: Folder of the real data; without it the real part is left out.
        json: Where the figures are written.
        table: Where the Markdown table is written.
        pictures: Folder for the prediction intervals (Fig. 4c).
        model: Preset that the three models are made of; `small` wants some 30 minutes on a core.
        quick: Tiny sizes, figures without meaning.
    """
    if only == "real" and data is None:
        raise ValueError("data: None, expected the folder of the real data with --only real")
    torch.set_num_threads(1)
    how = Settings(steps=steps, windows=48, draws=50, model=model)
    if quick:
        how = Settings(steps=3, windows=2, draws=19, model="tiny", batch=4)
    places: list[Place] = []
    if only != "real":
        places += [generated(on, quick) for on in (True, False)]
    if only != "city" and data is not None:
        places += [milan(data), shanghai(data)]
    results: dict[tuple[str, str, str], dict[str, float]] = {}
    for place in places:
        answers = trained(place, how)
        results |= scored(place, answers, how)
        if pictures is not None:
            Location.of(pictures).child(f"{place.name}.png").write_bytes(picture(place, answers["lec_diff"], how))
    text = markdown(results)
    print(text)
    if table is not None:
        Location.of(table).write_bytes(text.encode())
    figures = {f"{'_'.join(key)}_{measure}".replace(" ", "_"): value for key, row in results.items() for measure, value in row.items()}
    write_figures(figures, json)


def generated(on: bool, quick: bool) -> Place:
    """Stations that hang on their neighbours and on the land around them, or stations that do neither."""
    city = StationCity(
        name="effects-on" if on else "effects-off",
        stations=25 if quick else 200,
        days=10 if quick else 42,
        coupling=0.8 if on else 0.0,
        environment_effect=1.0 if on else 0.0,
        noise=0.5,
        memory_hours=6.0,
    )
    (found,) = StationCities([city]).read(city.name)
    vectors = environment_vectors(city)
    env = np.stack([vectors[site] for site in found.sites])
    return Place(name=city.name, traffic=found.traffic[0], start=found.start, step_minutes=30, xy=found.xy, env=env)


def milan(data: Path) -> Place:
    """The published block, summed to 30 minutes and to the station that is nearest to each square (OpenCellID, LTE).

    Where a station stands is where it was crowd-sourced to stand, up to five years later. Its environment is the logarithm of what was
    counted in its squares together.
    """
    block = np.load(data / "milan" / "internet_10min_5x5_nov2013.npz")
    square = block["square_id"].ravel()
    centres = np.load(data / "milan" / "milan_cell_centres_estimated.npz")
    at = np.searchsorted(centres["square_id"], square)
    masts = pd.read_parquet(data / "milan" / "milan_lte_base_stations_opencellid.parquet")
    places = Points(masts["lat"].to_numpy(), masts["lng"].to_numpy())
    found = nearest(Points(centres["lat"][at], centres["lon"][at]), masts["bs_id"].tolist(), places)
    counted = np.load(data / "milan" / "milan_grid_features_100x100.npz")["features"].reshape(10_000, -1)[square - 1]
    env = np.log1p(found.summed(counted.T[:, None].astype(np.float32))[:, 0].T)
    traffic = found.summed(block["traffic"].reshape(1, -1, 3, 25).sum(2))[0]
    print(f"milan: {len(found.ids)} stations of {len(square)} squares", flush=True)
    return Place(name="milan", traffic=traffic, start=datetime(2013, 11, 1), step_minutes=30, xy=found.xy, env=env)


def shanghai(data: Path) -> Place:
    """The nine regions, a week; where they lie follows from their images' tile numbers (zoom 15, cut in three), the weekday is not told."""
    found = np.load(data / "opendiff_shanghai" / "shanghai_9regions.npz")
    tiles = np.array([[int(part) for part in str(name).split("_")] for name in found["image_name"]])
    metres = 40_075_017 * math.cos(math.radians(31.2)) / 2**15
    xy = np.stack((tiles[:, 1] + tiles[:, 3] / 3, -(tiles[:, 0] + tiles[:, 2] / 3)), axis=1) * metres
    return Place(
        name="shanghai",
        traffic=found["traffic"].T,
        start=datetime(2014, 8, 4),
        step_minutes=60,
        xy=xy,
        env=found["region_embedding"],
        window=36,
    )


def windows_of(place: Place, groups: Sequence[int], starts: Sequence[int]) -> TrafficBatch:
    """Windows of groups of stations, everything known; groups are filled up to one size with stations that are not there."""
    members = place.groups()
    size = max(map(len, members))
    slots = np.array(starts)[:, None] + np.arange(place.window)
    traffic = np.full((len(groups), place.window, size), np.nan, dtype=np.float32)
    xy = np.full((len(groups), size, 2), np.nan, dtype=np.float32)
    env = np.full((len(groups), 1, size, place.env.shape[1]), np.nan, dtype=np.float32)
    for i, group in enumerate(groups):
        mine = members[group]
        traffic[i, :, : len(mine)] = place.traffic[slots[i]][:, mine]
        env[i, 0, : len(mine)] = place.env[mine]
        if place.xy is not None:
            xy[i, : len(mine)] = place.xy[mine]
    profile, reference = learnt(place)
    slot = slots + (place.start.hour * 60) // place.step_minutes
    per_day = 1440 // place.step_minutes
    clock = np.stack((slot % per_day, (slot // per_day + place.start.weekday()) % 7), axis=-1)
    values = torch.from_numpy(traffic)[:, None]
    return TrafficBatch(
        traffic=values,
        known=torch.isfinite(values),
        clock=torch.from_numpy(clock),
        step_minutes=torch.full((len(groups),), place.step_minutes),
        key=torch.tensor([group * 1_000_003 + start for group, start in zip(groups, starts, strict=True)]),
        space=Space(xy=torch.from_numpy(xy)),
        context={
            "env": torch.from_numpy(env),
            "profile": torch.from_numpy(profile[clock[..., 0]]),
            "reference": torch.full((len(groups), 1), reference),
        },
    )


def learnt(place: Place) -> tuple[np.ndarray, float]:
    """The place's mean day (slots of a day,), mean 1, and its upper reference level, from the slots that are learnt from."""
    per_day = 1440 // place.step_minutes
    seen = place.traffic[: place.trained]
    total = np.nansum(seen, axis=1)
    of_day = (np.arange(len(total)) + (place.start.hour * 60) // place.step_minutes) % per_day
    shape = np.bincount(of_day, total, per_day) / np.bincount(of_day, minlength=per_day)
    return (shape / shape.mean()).astype(np.float32), float(np.nanquantile(seen, 0.99))


def batches(place: Place, size: int) -> Iterator[TrafficBatch]:
    """Training windows at random, half of them short-term and half long-term."""
    random, count = np.random.default_rng(0), len(place.groups())
    for number in range(10**9):
        groups = random.integers(0, count, size).tolist()
        starts = random.integers(0, place.trained - place.window, size).tolist()
        yield mixture(windows_of(place, groups, starts), TASKS, [1.0, 1.0], seed=number)


def models_for(place: Place, name: str) -> dict[str, LecDiffConfig]:
    """LEC-Diff and its ablations."""
    whole = replace(preset(name), contexts=("env",), env_features=place.env.shape[1], window=place.window)
    return {"lec_diff": whole, "drop_gei": replace(whole, environment=False), "drop_sgf": replace(whole, graph=False)}


def trained(place: Place, how: Settings) -> dict[str, Forecaster]:
    """Every model after `how.steps`, with the moving average of its weights."""
    return {name: train(name, config, place, how) for name, config in models_for(place, how.model).items()}


def train(name: str, config: LecDiffConfig, place: Place, how: Settings) -> Forecaster:
    """The model after `how.steps`; every tenth of them is told."""
    torch.manual_seed(0)
    model = build(config).train()
    steps = how.steps
    settings = Optimisation(steps=steps, warmup=min(100, steps // 3))
    adam, average = optimiser(model, settings), Ema(model.named_parameters(), settings.ema)
    begin = time.perf_counter()
    for done, batch in zip(range(steps), batches(place, how.batch), strict=False):
        figures = step(model, batch, batch.key * 31 + done, adam, done, settings)
        average.update(model.named_parameters(), done + 1)
        if (done + 1) % max(steps // 10, 1) == 0:
            spent = time.perf_counter() - begin
            print(f"{place.name}, {name}: step {done + 1} of {steps}, loss {figures['loss']:.3f}, {spent:.0f} s", flush=True)
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            value.copy_(average.weights[parameter])
    return model.eval()


def tested(place: Place, how: Settings) -> TrafficBatch:
    """Windows spread over the time that was not learnt from and over all groups."""
    count = len(place.groups())
    return windows_of(place, [i % count for i in range(how.windows)], test_starts(place, how.windows))


def test_starts(place: Place, windows: int) -> list[int]:
    """Their first slots."""
    return np.linspace(place.trained, len(place.traffic) - place.window, windows).round().astype(int).tolist()


def scored(place: Place, models: Mapping[str, Forecaster], how: Settings) -> dict[tuple[str, str, str], dict[str, float]]:
    """MEASURES by place, task and model; coverage only where there are enough draws for it."""
    results: dict[tuple[str, str, str], dict[str, float]] = {}
    for task in TASKS:
        batch = mask(tested(place, how), task)
        answers = {name: model.forecast(batch, draws=how.draws) for name, model in models.items()}
        answers |= {rule.name: rule.forecast(batch, how.draws) for rule in rules_for(task)}
        for name, forecast in answers.items():
            found = _scores(batch, forecast)
            results[place.name, task.name, name] = {measure: found[measure] for measure in MEASURES if math.isfinite(found[measure])}
    return results


def _scores(batch: TrafficBatch, forecast: Forecast) -> dict[str, float]:
    scores = Scores()
    scale: Tensor = batch.context["reference"][:, :, None, None]
    scores.update(batch.traffic, forecast.draws, batch.hidden, scale)
    return scores.result()


def picture(place: Place, model: Forecaster, how: Settings) -> bytes:
    """Prediction intervals of two stations beside what came, with the largest departures from yesterday marked (Fig. 4c)."""
    batch = mask(tested(place, replace(how, windows=2)), SHORT)
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    quantiles = model.forecast(batch, draws=max(how.draws, 39)).quantile(levels)
    per_day, starts = 1440 // place.step_minutes, test_starts(place, 2)
    examples = []
    for i in range(2):
        station = int(torch.nan_to_num(batch.traffic[i, 0]).mean(0).argmax())
        truth = batch.traffic[i, 0, :, station].numpy()
        usual = np.concatenate((np.full(per_day, np.nan), truth[:-per_day])) if len(truth) > per_day else np.full(len(truth), np.nan)
        examples.append(
            StationForecast(
                title=f"{place.name}, station {station + 1} of group {i % len(place.groups()) + 1}",
                start=place.start + timedelta(minutes=int(starts[i]) * place.step_minutes),
                step_minutes=place.step_minutes,
                truth=truth,
                known=batch.known[i, 0, :, station].numpy(),
                usual=usual,
                levels=levels,
                quantiles=quantiles[i, :, 0, :, station].numpy(),
            )
        )
    return interval_panels(examples, unit="traffic")


def markdown(results: Mapping[tuple[str, str, str], Mapping[str, float]]) -> str:
    """The table: a row a model, place and task."""
    lines = ["| place | task | model | " + " | ".join(MEASURES) + " |", "|---|---|---|" + "---:|" * len(MEASURES)]
    for (place, task, model), row in results.items():
        cells = [f"{row[measure]:.4f}" if measure in row else "" for measure in MEASURES]
        lines.append(f"| {place} | {task} | {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(main)
