"""STOUTER's evidence: known-law cities, Milan's Internet traffic, and throughput; from one command, without Ray.

python benchmarks/stouter.py [--only law|milan|throughput] [--minutes 10] [--model small] [--data DIR] [--pictures DIR]
    [--json figures.json] [--quick]

law         weeks of stations never seen in training, of a city whose law is known (generation_city.py): distances to fresh weeks of the
            law, beside resampling, a convolutional VAE, DiffWave and TCN-GAN, and of the law to itself ("law"); then without F_t and
            without F_s, in cities where time and place matter and in cities where they do not
milan       the Internet block of 5 x 5 squares, hourly, November 2013, by time (the last week) and by place (five squares left out; levels
            of the others are jittered in training, as `raytraffic train` does, for twenty places are soon known by heart)
throughput  station-weeks a second at 20 and at 200 sampler steps, with the quality of both, on `--device`

Every training gets `--minutes` of one thread's CPU time, the generators at most that; a figure is PART_CITY_MODEL_MEASURE.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from generation_city import WEEK, GenerationCity, aligned
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measure import write_figures
from numpy.typing import NDArray
from torch import Tensor

from raytraffic.augment import jitter_levels
from raytraffic.baselines.generators import Fitting, Generator, fit_diffwave, fit_resampling, fit_tcn_gan, fit_vae
from raytraffic.diffusion.samplers import Sampler
from raytraffic.fit import Ema, Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster
from raytraffic.masks import WHOLE, mask
from raytraffic.metrics import generation as measures
from raytraffic.metrics.distribution import crps
from raytraffic.models.stouter import StouterConfig, build, preset, pretrain_graphs
from raytraffic.nn.graph_autoencoder import Pretraining
from raytraffic.report.generation_plots import autocorrelations, generated_week, mean_weeks
from raytraffic.report.style import PLOT
from raytraffic.types import Space, TrafficBatch

Part = Literal["law", "milan", "throughput"]
_LAGS, _FORECAST_LAGS = 48, 24
#: The paper's Table 1, Milan, Internet, STOUTER; its JSD is in units of 1e-4.
PAPER = {"mae": 0.0781, "rmse": 0.1088, "course_jsd": 0.4843}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is done: minutes and most steps of a training, draws of a window, and the sizes of the models."""

    minutes: float
    steps: int
    draws: int
    model: str
    hidden: int

    def fitting(self, rows: int = 64) -> Fitting:
        """The same for the other generators."""
        return Fitting(steps=self.steps, rows=rows, hidden=self.hidden, minutes=self.minutes, learning_rate=2e-3)


@dataclass(frozen=True, eq=False)
class Stouter:
    """A trained STOUTER with the contract of a Generator."""

    model: Forecaster
    sampler: Sampler
    name: str = "STOUTER"

    def generate(self, context: TrafficBatch, draws: int, seed: int) -> Tensor:
        """(b, n, c, t, s) traffic of windows of which nothing is known."""
        hidden = replace(context, traffic=torch.nan_to_num(context.traffic), known=torch.zeros_like(context.known))
        return self.model.forecast(hidden, self.sampler, draws=draws, seed=seed).draws


def train_stouter(
    config: StouterConfig, batches: Sequence[TrafficBatch], settings: Settings, seed: int = 0, jitter: float = 0.0
) -> Stouter:
    """Pre-trains both graphs, then the network on whole-window generation, for the minutes or steps there are."""
    model = with_graphs(config, batches, settings, seed)
    return train_network(model, TrafficBatch.cat(batches), settings, seed, jitter)


def with_graphs(config: StouterConfig, batches: Sequence[TrafficBatch], settings: Settings, seed: int = 0) -> Forecaster:
    """A fresh model whose graphs are pre-trained."""
    torch.manual_seed(seed)
    model = build(config).train()
    pretrain_graphs(model, batches, Pretraining(steps=min(300, settings.steps)))
    return model


def train_network(model: Forecaster, batch: TrafficBatch, settings: Settings, seed: int = 0, jitter: float = 0.0) -> Stouter:
    """Trains the network on generating these windows whole, their levels jittered by so much, for the minutes or steps there are."""
    windows = mask(batch, WHOLE)
    optimisation = Optimisation(learning_rate=2e-3, warmup=min(50, settings.steps), steps=_affordable(model, windows, settings))
    adam, ema = optimiser(model, optimisation), Ema(model.named_parameters(), optimisation.ema)
    rng = np.random.default_rng(seed)
    for done in range(optimisation.steps):
        rows, seeds = torch.from_numpy(rng.integers(0, len(windows.key), 8)), torch.from_numpy(rng.integers(0, 2**62, 8))
        some = windows.select(rows)
        step(model, jitter_levels(some, seeds, jitter) if jitter else some, seeds, adam, done, optimisation)
        ema.update(model.named_parameters(), done)
    print(f"STOUTER: {optimisation.steps} steps", flush=True)
    with ema.applied(model):
        averaged = copy.deepcopy(model)
    return Stouter(averaged.eval(), model.config.sampler)


def _affordable(model: Forecaster, windows: TrafficBatch, settings: Settings) -> int:
    """Steps that fit into the minutes, by the time of a few that change nothing."""
    probe = copy.deepcopy(model)
    optimisation = Optimisation(learning_rate=1e-9, steps=5)
    adam = optimiser(probe, optimisation)
    started = time.process_time()
    for done in range(3):
        step(probe, windows.select(torch.arange(8) % len(windows.key)), torch.arange(8), adam, done, optimisation)
    return max(1, min(settings.steps, int(60 * settings.minutes / ((time.process_time() - started) / 3))))


def distances(real: TrafficBatch, generated: Tensor, train: Tensor, unit: Tensor, weeks_begin: bool) -> dict[str, float]:
    """All measures of draws (b, n, 1, t, s) of windows; `train` (m, t) real courses in units, `unit` (s,) or one number for all stations.

    Paired measures are of single draws; `mae_of_mean` is of the mean over draws.
    """
    truth = real.traffic[:, 0] / unit
    draws = generated[:, :, 0] / unit
    if weeks_begin:
        truth, draws = aligned(truth, real), aligned(draws, real)
    where = torch.isfinite(truth)
    stations = where.all(dim=(0, 1))
    truth, draws = truth[..., stations], draws[..., stations]
    b, n, t, s = draws.shape
    courses, made = truth.transpose(1, 2).flatten(0, 1), draws.transpose(2, 3).flatten(0, 2)
    pairs = truth[:, None].expand(b, n, t, s).transpose(2, 3).flatten(0, 2)
    return {
        "mae": measures.paired_mae(pairs, made),
        "rmse": measures.paired_rmse(pairs, made),
        "mae_of_mean": measures.paired_mae(courses, draws.mean(1).transpose(1, 2).flatten(0, 1)),
        "crps": float(crps(truth, draws, torch.isfinite(truth))),
        "value_jsd": measures.value_divergence(courses, made) / measures.JSD_UNIT,
        "course_jsd": measures.course_divergence(pairs, made) / measures.JSD_UNIT,
        "autocorrelation": measures.autocorrelation_distance(courses, made, _LAGS),
        "profile": measures.weekly_profile_distance(courses, made),
        "spatial": measures.spatial_correlation_distance(truth.transpose(1, 2), draws.flatten(0, 1).transpose(1, 2)),
        "forecast_ratio": measures.forecast_from_synthetic(train, made, courses, _FORECAST_LAGS),
    }


def law_part(settings: Settings) -> dict[str, float]:
    """Must-show 2: distances in cities with a known law, and what the loss of F_t and F_s does."""
    figures: dict[str, float] = {}
    variants: dict[str, Callable[[StouterConfig], StouterConfig]] = {
        "stouter": lambda config: config,
        "without_time": lambda config: replace(config, temporal_graph=False),
        "without_place": lambda config: replace(config, contexts=()),
    }
    for city, time_matters, place_matters, names in (
        ("both", True, True, ("stouter", "without_time", "without_place")),
        ("timeless", False, True, ("stouter", "without_time")),
        ("placeless", True, False, ("stouter", "without_place")),
    ):
        truth = GenerationCity(groups=8, time_matters=time_matters, place_matters=place_matters)
        train, test = truth.weeks(*_TRAIN), truth.weeks(*_TEST)
        config = replace(preset(settings.model), poi_categories=("a", "b", "c", "d"))
        made = {name: train_stouter(variants[name](config), [train], settings).generate(test, settings.draws, 1) for name in names}
        if city == "both":
            made |= {name: generator.generate(test, settings.draws, 1) for name, generator in _others([train], settings).items()}
            made["law"] = torch.stack([truth.weeks(*_TEST, draw=1 + i).traffic for i in range(settings.draws)], dim=1)
        figures |= _table(f"law_{city}", test, made, train, torch.tensor(truth.reference()), weeks_begin=True)
        for name in names[1:]:
            for measure in ("crps", "mae", "profile"):
                ratio = figures[f"law_{city}_{name}_{measure}"] / figures[f"law_{city}_stouter_{measure}"]
                figures[f"law_{city}_{name}_{measure}_ratio"] = ratio
    return figures


#: Weeks, seed and groups of training and of testing.
_TRAIN, _TEST = (6, 1, slice(0, 6)), (2, 2, slice(6, 8))


def _others(batches: Sequence[TrafficBatch], settings: Settings) -> dict[str, Generator]:
    return {
        "vae": fit_vae(batches, settings.fitting()),
        "diffwave": fit_diffwave(batches, settings.fitting()),
        "tcn_gan": fit_tcn_gan(batches, settings.fitting(32)),
        "resampling": fit_resampling(batches),
    }


def _table(
    part: str, test: TrafficBatch, made: dict[str, Tensor], train: TrafficBatch, unit: Tensor, weeks_begin: bool
) -> dict[str, float]:
    """Figures of every model, and the Markdown table of them."""
    seen = (train.traffic[:, 0] / unit).transpose(1, 2).flatten(0, 1)
    seen = seen[torch.isfinite(seen).all(dim=1)]
    found = {name: distances(test, draws, seen, unit, weeks_begin) for name, draws in made.items()}
    columns = list(next(iter(found.values())))
    print(f"\n| {part} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, row in found.items():
        print(f"| {name} | {' | '.join(f'{row[column]:.4g}' for column in columns)} |", flush=True)
    return {f"{part}_{name}_{measure}": value for name, row in found.items() for measure, value in row.items()}


def milan_part(settings: Settings, data: Path, pictures: Path | None) -> dict[str, float]:
    """Must-show 3: a part of Milan, each square in units of its largest hour of the month, beside the paper's row for the whole city."""
    whole = milan_block(data)
    top = whole.traffic[0, 0].amax(dim=0)
    apart = torch.tensor([0, 7, 12, 18, 21])
    held_out = torch.zeros(25, dtype=torch.bool).index_fill(0, apart, True)
    splits = {
        "time": (weeks_of(whole, range(0, 336 + 1, 24)), weeks_of(whole, [552]), ~torch.zeros(25, dtype=torch.bool)),
        "place": (_only(weeks_of(whole, range(0, 552 + 1, 24)), ~held_out), weeks_of(whole, [0, 168, 336, 552]), held_out),
    }
    figures: dict[str, float] = {}
    for split, (train, test, scored) in splits.items():
        reference = _upper_reference(train)
        train, test = with_reference(train, reference), with_reference(test, reference)
        config = replace(preset(settings.model), poi_categories=("social", "stations", "transportation", "other"))
        jitter = 0.8 if split == "place" else 0.0
        generators: dict[str, Generator] = {
            "stouter": train_stouter(config, [train], settings, jitter=jitter),
            **_others([train], settings),
        }
        made = {name: generator.generate(test, settings.draws, 1) for name, generator in generators.items()}
        figures |= _table(f"milan_{split}", _only(test, scored), made, train, top, weeks_begin=True)
        if pictures is not None:
            _draw_pictures(pictures, split, _only(test, scored), made, top)
    print("| the paper, all of Milan, unit not stated | " + " | ".join(f"{name} {value}" for name, value in PAPER.items()) + " |")
    return figures | {f"paper_milan_internet_{name}": value for name, value in PAPER.items()}


def milan_block(data: Path) -> TrafficBatch:
    """The block's hours of November 2013 as one window, with the counts of each square's surroundings as POI."""
    arrays = np.load(data / "internet_10min_5x5_nov2013.npz")
    grid = np.load(data / "milan_grid_features_100x100.npz")["features"]
    hourly = arrays["traffic"].reshape(720, 6, 25).sum(axis=1)
    row, column = np.divmod(arrays["square_id"].ravel() - 1, 100)
    return hourly_window(hourly, datetime(2013, 11, 1), np.stack((column, row), axis=-1) * 235.0, grid[row, column].T)


def hourly_window(traffic: NDArray[np.floating], start: datetime, xy: NDArray[np.floating], poi: NDArray[np.floating]) -> TrafficBatch:
    """One long window of hourly traffic (t, s) from a whole hour on, of stations at xy (s, 2) metres with POI counts (k, s)."""
    values = torch.from_numpy(traffic).float()[None, None]
    hour = torch.arange(len(traffic)) + start.weekday() * 24 + start.hour
    return TrafficBatch(
        traffic=values,
        known=torch.isfinite(values),
        clock=torch.stack((hour % 24, hour // 24 % 7), dim=-1)[None],
        step_minutes=torch.tensor([60]),
        key=torch.tensor([0]),
        space=Space(xy=torch.from_numpy(xy).float()[None]),
        context={"poi": torch.from_numpy(poi).float()[None]},
    )


def weeks_of(whole: TrafficBatch, starts: Sequence[int]) -> TrafficBatch:
    """Windows of a week of one long window, by the hours they begin at."""
    parts = [
        replace(
            whole,
            traffic=whole.traffic[:, :, start : start + WEEK],
            known=whole.known[:, :, start : start + WEEK],
            clock=whole.clock[:, start : start + WEEK],
            key=whole.key + start,
        )
        for start in starts
    ]
    return TrafficBatch.cat(parts)


def _only(batch: TrafficBatch, stations: Tensor) -> TrafficBatch:
    """The batch in which only some stations (s,) were ever measured."""
    traffic = torch.where(stations, batch.traffic, torch.nan)
    return replace(batch, traffic=traffic, known=torch.isfinite(traffic))


def _upper_reference(train: TrafficBatch) -> float:
    return float(train.traffic[torch.isfinite(train.traffic)].quantile(0.999))


def with_reference(batch: TrafficBatch, reference: float) -> TrafficBatch:
    """The batch of a city with this upper reference level."""
    return replace(batch, context={**batch.context, "reference": torch.full((len(batch.key), 1), reference)})


def throughput_part(settings: Settings, device: str) -> dict[str, float]:
    """Must-show 4: station-weeks a second, and the quality, of 20 and of 200 sampler steps."""
    truth = GenerationCity(groups=8)
    train, test = truth.weeks(*_TRAIN), truth.weeks(*_TEST)
    stouter = train_stouter(replace(preset(settings.model), poi_categories=("a", "b", "c", "d")), [train], settings)
    stouter.model.to(device)
    rows = 8 if device == "cpu" else 256
    figures: dict[str, float] = {}
    for steps in (20, 200):
        generator = Stouter(stouter.model, Sampler(steps=steps, rows=rows))
        Stouter(stouter.model, Sampler(steps=2, rows=rows)).generate(test.to(device), 1, 0)  # the first call is the slowest
        started = time.perf_counter()
        made = generator.generate(test.to(device), settings.draws, 1).cpu()
        seconds = time.perf_counter() - started
        # Calls hold `rows` rows always, so the last of them may compute rows that nobody asked for.
        station_weeks = made.shape[0] * made.shape[1] * made.shape[4]
        figures[f"throughput_{steps}_steps_station_weeks_per_s"] = station_weeks / seconds
        table = _table(f"throughput_{steps}_steps", test, {"stouter": made}, train, torch.tensor(truth.reference()), weeks_begin=True)
        figures |= {name: table[name] for name in table if name.endswith(("crps", "jsd", "autocorrelation"))}
    return figures


def _draw_pictures(folder: Path, split: str, test: TrafficBatch, made: dict[str, Tensor], top: Tensor) -> None:
    """Generated weeks of three stations, mean weeks and autocorrelations, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    scored = torch.isfinite(test.traffic[0, 0]).all(dim=0).nonzero().flatten()
    for number, station in enumerate(scored[:: max(1, len(scored) // 3)][:3].tolist()):
        real, draws = test.traffic[-1, 0, :, station].numpy(), made["stouter"][-1, :, 0, :, station].numpy()
        weekday = int(test.clock[-1, 0, 1])

        def week(ax: Axes, real: np.ndarray = real, draws: np.ndarray = draws, weekday: int = weekday, number: int = number) -> None:
            title = f"by {split}, station {number + 1}"
            generated_week(ax, real=real, draws=draws, weekday=weekday, step_minutes=60, title=title, unit="activity")

        _png(folder / f"milan_{split}_week_{number + 1}.png", week)
    courses = aligned(test.traffic[:, 0] / top, test)[..., scored].transpose(1, 2).flatten(0, 1)
    generated = {
        name: aligned(draws[:, :, 0] / top, test)[..., scored].transpose(2, 3).flatten(0, 2)
        for name, draws in made.items()
        if name != "resampling"
    }

    def rhythm(ax: Axes) -> None:
        means = {name: values.mean(0).numpy() for name, values in generated.items()}
        mean_weeks(ax, real=courses.mean(0).numpy(), generated=means, weekday=0, step_minutes=60)

    def memory(ax: Axes) -> None:
        found = {name: measures.autocorrelation(values, _LAGS).numpy() for name, values in generated.items()}
        autocorrelations(ax, real=measures.autocorrelation(courses, _LAGS).numpy(), generated=found, step_minutes=60)

    _png(folder / f"milan_{split}_mean_week.png", rhythm)
    _png(folder / f"milan_{split}_autocorrelation.png", memory)


def _png(path: Path, draw: Callable[[Axes], None]) -> None:
    with rc_context(PLOT):
        figure = Figure(figsize=(7.2, 2.6), layout="compressed", dpi=130)
        draw(figure.subplots())
        figure.savefig(path)


def main(
    *,
    only: Part | None = None,
    minutes: float = 10.0,
    model: str = "small",
    data: Path | None = None,
    pictures: Path | None = None,
    device: str = "cpu",
    json: Path | None = None,
    quick: bool = False,
) -> None:
    """Runs one part or all of them; Milan needs `--data`, the folder of its arrays, and is left out without it."""
    torch.set_num_threads(1)
    settings = Settings(minutes=minutes, steps=20_000, draws=20, model=model, hidden=48)
    if quick:
        settings = Settings(minutes=0.03, steps=30, draws=2, model="tiny", hidden=8)
    figures: dict[str, float] = {}
    if only in (None, "law"):
        figures |= law_part(settings)
    if only == "milan" and data is None:
        raise ValueError("data: none, expected the folder of Milan's arrays")
    if only in (None, "milan") and data is not None:
        figures |= milan_part(settings, data, pictures)
    if only in (None, "throughput"):
        figures |= throughput_part(settings, device)
    write_figures(figures, json)


if __name__ == "__main__":
    tyro.cli(main)
