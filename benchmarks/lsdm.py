"""LSDM on synthetic users (issue 7): Tables III and IV in form, what environment and 2-D attention gain, and 30 steps one by one.

python benchmarks/lsdm.py [--json figures.json] [--only accuracy|environment|services|rollout] [--minutes 2] [--pictures FOLDER]

Users of `ServiceCity` move and use ten services; its switches turn the effect of places and the coupling of services on and off. All
learn from the first days and are scored on the hours of the last ones, one step ahead. Traffic is of many decades, so all scores are of its
logarithm: log(1 + bytes) over that of the service's 99.9 % quantile in the first days. A gain is that of the coefficient of determination
relative to the better model's, as in the paper's tables, of the mean that infinitely many draws would have. Figures:

    <row>_r2, _mse, _mae, _cs, _crps        the rows of Tables III and IV, environment on and services coupled
    r2_gain_env_on, r2_gain_env_off         with environment over without, where places matter and where they do not
    r2_gain_env_history                     the same where the place of the hour that is forecast is not known (places on)
    r2_gain_2d_coupled, _uncoupled          with 2-D attention over without, where services depend on each other and where not
    mse_step_<n>, rule_mse_step_<n>         over the recursive rollout of 30 steps: ours, and the same hour yesterday
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from matplotlib import rc_context
from matplotlib.figure import Figure
from measure import write_figures
from numpy.typing import NDArray
from torch import Tensor

from raytraffic.baselines.candidates import same_slot_yesterday
from raytraffic.baselines.ridge import fit as fit_ridge
from raytraffic.diffusion.samplers import Sampler
from raytraffic.fit import Ema, Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster
from raytraffic.masks import NEXT, mask
from raytraffic.metrics.service import ALL, ServiceScores
from raytraffic.models import lsdm
from raytraffic.report.service_plots import error_by_horizon, error_by_step, service_radar, usage_maps
from raytraffic.report.style import PLOT
from raytraffic.rollout import rollout
from raytraffic.sources.services import ServiceCity
from raytraffic.types import Forecast, TrafficBatch

Array = NDArray[np.float32]
Part = Literal["accuracy", "environment", "services", "rollout"]
Predict = Callable[[TrafficBatch], Forecast]
#: A day of history, and the hour that is forecast; features of a place's environment vector.
WINDOW, FEATURES = 25, 21
STEPS_AHEAD = 30
#: Share of the hours that are hidden too in every second training window.
GAPS = 0.2
SAMPLER = Sampler("dpm++", 6, rows=256)
YESTERDAY, HABIT, RIDGE = "same hour yesterday", "same hour, mean of history", "ridge blend"
FULL, PLAIN, TIME, ADDED = "LSDM", "LSDM, no condition", "LSDM, no 2-D attention", "LSDM, condition added directly"
HISTORY = "LSDM, place of the hour unknown"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is generated, trained and scored."""

    users: int
    weeks: int
    seconds: float
    scored: int
    draws: int
    batch: int = 64
    trajectories: int = 4


@dataclass(frozen=True, eq=False)
class Users:
    """Users of one setting of the generator; the first `learnt` hours are learnt from, windows of the others are scored."""

    source: ServiceCity

    @cached_property
    def city(self) -> Any:
        """The one record of the source."""
        return next(iter(self.source.read(self.source.name)))

    @cached_property
    def environment(self) -> Array:
        """(places, FEATURES)"""
        return self.source.place_vectors(FEATURES)

    @property
    def learnt(self) -> int:
        """Hours of the training part: all but the last two days and the longest horizon."""
        return self.city.traffic.shape[1] - 48 - STEPS_AHEAD

    @cached_property
    def reference(self) -> Tensor:
        """(c,) the upper level of each service in the training part."""
        return torch.from_numpy(np.quantile(self.city.traffic[:, : self.learnt], 0.999, axis=(1, 2)).astype(np.float32))

    def windows(self, user: NDArray[np.int64], start: NDArray[np.int64], t: int = WINDOW) -> TrafficBatch:
        """Windows of t hours of one user each, everything known."""
        hours = start[:, None] + np.arange(t)
        traffic = torch.from_numpy(self.city.traffic[:, hours, user[:, None]]).movedim(0, 1)[..., None]
        env = torch.from_numpy(self.environment[self.city.place[hours, user[:, None]]])[:, :, None]
        first = self.city.start.weekday()
        clock = torch.from_numpy(np.stack((hours % 24, (first + hours // 24) % 7), axis=-1))
        return TrafficBatch(
            traffic=traffic,
            known=torch.ones_like(traffic, dtype=torch.bool),
            clock=clock,
            step_minutes=torch.full((len(user),), 60),
            key=torch.from_numpy(user * 100_003 + start),
            context={"env": env, "reference": self.reference.expand(len(user), -1)},
        )

    def training(self, seed: int, count: int) -> TrafficBatch:
        """`count` random windows of the training part with their last hour hidden, and in every second one some hours before it: a step
        then learns from more hours."""
        random = np.random.default_rng(seed)
        user, start = random.integers(0, self.source.users, count), random.integers(0, self.learnt - WINDOW + 1, count)
        batch = mask(self.windows(user, start), NEXT)
        gaps = (random.random((count, 1, WINDOW, 1)) < GAPS) & (np.arange(count) % 2 == 1)[:, None, None, None]
        return replace(batch, known=batch.known & ~torch.from_numpy(gaps))

    def scored(self, count: int, t: int = WINDOW) -> TrafficBatch:
        """`count` windows, of users one after another, whose hours after a day of history lie in the part that is scored."""
        user = np.arange(count) * self.source.users // count
        last = self.city.traffic.shape[1] - t + WINDOW - 1
        hour = np.random.default_rng(7).integers(self.learnt, last + 1, count)
        batch = self.windows(user, hour - WINDOW + 1, t)
        known = batch.known.clone()
        known[:, :, WINDOW - 1 :] = False
        return replace(batch, known=known)

    def habits(self) -> Tensor:
        """(c, 24, users): every user's mean of the logarithm at each hour of day over the training part."""
        value = _log(torch.from_numpy(self.city.traffic[:, : self.learnt // 24 * 24]), self.reference[:, None, None])
        return value.unflatten(1, (-1, 24)).mean(1)


def _log(traffic: Tensor, reference: Tensor) -> Tensor:
    return torch.log1p(traffic) / torch.log1p(reference)


def in_logarithms(batch: TrafficBatch) -> TrafficBatch:
    """The batch on the scale that is scored."""
    reference = batch.context["reference"]
    context = {**batch.context, "reference": torch.ones_like(reference)}
    return replace(batch, traffic=_log(batch.traffic, reference[:, :, None, None]), context=context)


def trained(users: Users, config: lsdm.LsdmConfig, sizes: Sizes, rate: float) -> Forecaster:
    """An LSDM trained for `sizes.seconds`; its learning rate falls with the time that is left, so that all have the same."""
    torch.manual_seed(0)
    model = lsdm.build(config).train()
    probe = Optimisation(learning_rate=rate, warmup=30, steps=10**9, ema=0.99)
    adam, ema = optimiser(model, probe), Ema(model.named_parameters(), probe.ema)
    began, done = time.process_time(), 0
    while (gone := time.process_time() - began) < sizes.seconds:
        # So many steps as there will be at this pace: the schedule ends when the time does.
        steps = max(int(done / max(gone, 1e-9) * sizes.seconds), done + 1) if done > 10 else 10**9
        settings = replace(probe, steps=steps)
        batch = users.training(done, sizes.batch)
        step(model, batch, batch.key * 31 + done, adam, done, settings)
        done += 1
        ema.update(model.named_parameters(), done)
    print(f"  {done} steps in {time.process_time() - began:.0f} s of CPU", file=sys.stderr, flush=True)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(ema.weights[name])
    return model.eval()


def score(users: Users, batch: TrafficBatch, predict: Predict, chunk: int = 128) -> ServiceScores:
    """Scores on the logarithmic scale of a rule that answers on it."""
    scores = ServiceScores(users.city.services)
    for part in torch.arange(len(batch.key)).split(chunk):
        piece = batch.select(part)
        scores.update(in_logarithms(piece), predict(piece))
    return scores


def drawn(model: Forecaster, sizes: Sizes) -> Predict:
    """A model's draws, on the logarithmic scale."""

    def predict(batch: TrafficBatch) -> Forecast:
        answer = rollout(model, batch, WINDOW, SAMPLER, draws=sizes.draws, hop=1)
        return Forecast(draws=_log(answer.draws, batch.context["reference"][:, None, :, None, None]), known=batch.known)

    return predict


def yesterday(batch: TrafficBatch) -> Forecast:
    """The same hour of the day before, again and again."""
    known = in_logarithms(batch).visible()
    return Forecast(draws=same_slot_yesterday(known)[0][:, None], known=batch.known)


def habit(users: Users) -> Predict:
    """The mean of the user's own training part at that hour of day."""
    habits = users.habits()

    def predict(batch: TrafficBatch) -> Forecast:
        user = torch.div(batch.key, 100_003, rounding_mode="floor")
        value = habits[:, batch.clock[..., 0], user[:, None]].movedim(0, 1)[..., None]
        return Forecast(draws=value[:, None], known=batch.known)

    return predict


def ridge(users: Users, sizes: Sizes) -> Predict:
    """The project's ridge blend, fitted on the logarithmic scale."""
    fitted = fit_ridge(in_logarithms(users.training(10**6 + i, 512)) for i in range(max(sizes.scored // 64, 2)))
    return lambda batch: fitted.forecast(in_logarithms(batch))


@dataclass(frozen=True)
class Row:
    """A row of the tables: how its model differs from the full one."""

    name: str
    changes: Mapping[str, Any]


ROWS = {
    row.name: row
    for row in (
        Row(FULL, {}),
        Row(PLAIN, {"contexts": ()}),
        Row(TIME, {"attention": "time"}),
        Row(ADDED, {"conditioning": "added"}),
        Row(HISTORY, {"next_place": False}),
    )
}


@dataclass(frozen=True, eq=False)
class Study:
    """Trainings and their scores, each made once."""

    sizes: Sizes
    config: lsdm.LsdmConfig
    rate: float
    users: dict[tuple[float, float], Users]
    models: dict[tuple[str, float, float], Forecaster]
    scores: dict[tuple[str, float, float], ServiceScores]

    def of(self, environment: float, coupling: float) -> Users:
        """The users of a setting of the generator."""
        key = (environment, coupling)
        if key not in self.users:
            source = ServiceCity(
                name="users", users=self.sizes.users, weeks=self.sizes.weeks, environment_effect=environment, coupling=coupling
            )
            self.users[key] = Users(source)
        return self.users[key]

    def model(self, row: str, environment: float = 1.0, coupling: float = 1.0) -> Forecaster:
        """The trained model of a row."""
        key = (row, environment, coupling)
        if key not in self.models:
            print(f"{row}: environment {environment:g}, coupling {coupling:g}", file=sys.stderr, flush=True)
            config = replace(self.config, **ROWS[row].changes)
            self.models[key] = trained(self.of(environment, coupling), config, self.sizes, self.rate)
        return self.models[key]

    def score(self, row: str, environment: float = 1.0, coupling: float = 1.0) -> ServiceScores:
        """The scores of a row's model, one step ahead."""
        key = (row, environment, coupling)
        if key not in self.scores:
            users = self.of(environment, coupling)
            predict = drawn(self.model(row, environment, coupling), self.sizes)
            self.scores[key] = score(users, users.scored(self.sizes.scored), predict)
        return self.scores[key]

    def gain(self, better: str, than: str, environment: float = 1.0, coupling: float = 1.0) -> float:
        """(R^2 of one - that of the other) / R^2 of the one, debiased."""
        one, other = (self.score(row, environment, coupling).by_service()[ALL]["r2_debiased"] for row in (better, than))
        return (one - other) / one


def table(rows: Mapping[str, ServiceScores]) -> dict[str, float]:
    """Prints Table III's form and returns its figures."""
    metrics = ("mse", "rmse", "mae", "cs", "r2", "r2_debiased", "crps")
    print("| model | " + " | ".join(metrics) + " |\n|---|" + "---:|" * len(metrics))
    figures = {}
    for name, scores in rows.items():
        found = scores.by_service()[ALL]
        print(f"| {name} | " + " | ".join(f"{found[metric]:.4f}" for metric in metrics) + " |")
        short = name.lower().replace(",", "").replace(" ", "_").replace("-", "_")
        figures |= {f"{short}_{metric}": found[metric] for metric in metrics}
    print()
    return figures


def accuracy(study: Study, pictures: Path | None) -> dict[str, float]:
    """Tables III and IV where places matter and services are coupled."""
    users = study.of(1.0, 1.0)
    batch = users.scored(study.sizes.scored)
    rules = {YESTERDAY: yesterday, HABIT: habit(users), RIDGE: ridge(users, study.sizes)}
    print("Table III's form: one hour ahead, logarithmic scale\n")
    rows = {name: score(users, batch, predict) for name, predict in rules.items()}
    figures = table(rows | {name: study.score(name) for name in (PLAIN, FULL)})
    print("Table IV's form\n")
    figures |= table({name: study.score(name) for name in (TIME, ADDED, HISTORY, PLAIN, FULL)})
    if pictures is not None:
        r2 = {name: [scores.by_service()[s]["r2"] for s in users.city.services] for name, scores in rows.items() if name != YESTERDAY}
        r2 |= {name: [study.score(name).by_service()[s]["r2"] for s in users.city.services] for name in (PLAIN, FULL)}
        figure(pictures / "radar.png", (4.6, 4.0), lambda ax: service_radar(ax, users.city.services, r2, label="R²"), polar=True)
    return figures


def environment(study: Study) -> dict[str, float]:
    """What the environment gains, where the generator's places matter and where they do not."""
    return {
        "r2_gain_env_on": study.gain(FULL, PLAIN),
        "r2_gain_env_history": study.gain(HISTORY, PLAIN),
        "r2_gain_env_off": study.gain(FULL, PLAIN, environment=0.0),
    }


def services(study: Study) -> dict[str, float]:
    """What attention between services gains, where they depend on each other and where they do not."""
    return {"r2_gain_2d_coupled": study.gain(FULL, TIME), "r2_gain_2d_uncoupled": study.gain(FULL, TIME, coupling=0.0)}


def thirty_steps(study: Study, pictures: Path | None) -> dict[str, float]:
    """The recursive rollout: every draw is fed back hour by hour."""
    users, model = study.of(1.0, 1.0), study.model(FULL)
    batch = users.scored(max(study.sizes.scored // 32, 8), WINDOW - 1 + STEPS_AHEAD)
    ours = drawn(model, replace(study.sizes, draws=study.sizes.trajectories))
    forecasts = [ours(batch.select(part)) for part in torch.arange(len(batch.key)).split(32)]
    scores, rule = ServiceScores(users.city.services), score(users, batch, yesterday)
    for part, forecast in zip(torch.arange(len(batch.key)).split(32), forecasts, strict=True):
        scores.update(in_logarithms(batch.select(part)), forecast)
    steps, rule_steps = scores.by_step(), rule.by_step()
    if pictures is not None:
        lines = {name: [row["mse"] for row in found.values()] for name, found in ((YESTERDAY, rule_steps), (FULL, steps))}
        figure(pictures / "steps.png", (4.4, 2.6), lambda ax: error_by_step(ax, lines, label="MSE"))
        bars = {s: [scores.up_to(n).by_service()[s]["mse"] for n in (10, 20, STEPS_AHEAD)] for s in users.city.services}
        figure(pictures / "horizons.png", (5.2, 2.8), lambda ax: error_by_horizon(ax, (10, 20, STEPS_AHEAD), bars, label="MSE"))
        truth = in_logarithms(batch.select(slice(0, 1))).traffic[0, :, WINDOW - 1 :, 0].numpy()
        draw = forecasts[0].draws[0, 0, :, WINDOW - 1 :, 0].numpy()
        figure(
            pictures / "usage.png",
            (6.4, 2.8),
            lambda *axes: usage_maps(axes, truth, draw, users.city.services, unit="log scale"),
            columns=2,
        )
    figures = {f"mse_step_{n}": steps[n]["mse"] for n in (1, 10, 20, STEPS_AHEAD)}
    return figures | {f"rule_mse_step_{n}": rule_steps[n]["mse"] for n in (1, 10, 20, STEPS_AHEAD)}


def figure(path: Path, size: tuple[float, float], draw: Callable[..., None], columns: int = 1, polar: bool = False) -> None:
    """A picture of `size` inches as a PNG file."""
    with rc_context(PLOT):
        drawing = Figure(figsize=size, layout="compressed")
        draw(*drawing.subplots(1, columns, squeeze=False, subplot_kw={"projection": "polar"} if polar else {})[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, dpi=160)


def main(
    json: Path | None = None,
    only: Part | None = None,
    minutes: float = 2.0,
    users: int = 2000,
    weeks: int = 2,
    scored: int = 4000,
    draws: int = 16,
    rate: float = 3e-3,
    pictures: Path | None = None,
    quick: bool = False,
) -> None:
    """Train on generated users and print what the paper's tables print.

    Args:
        json: Where the figures are written.
        only: One part alone.
        minutes: CPU minutes of each training; all parts together take seven.
        users: Users of the generator.
        weeks: Weeks of each; the last days are scored.
        scored: Windows that are scored.
        draws: Draws of a window.
        rate: Peak learning rate.
        pictures: Folder for the pictures of Figs. 6 to 9.
        quick: Tiny sizes, whose figures mean nothing.
    """
    sizes = Sizes(users=users, weeks=weeks, seconds=60 * minutes, scored=scored, draws=draws)
    config = replace(lsdm.preset("small"), depth=1, hidden=32, window=WINDOW, env_features=FEATURES, next_place=True)
    if quick:
        sizes = Sizes(users=40, weeks=1, seconds=2.0, scored=40, draws=4, batch=16, trajectories=2)
        config = replace(config, hidden=16, heads=2)
    study = Study(sizes, config, rate, {}, {}, {})
    parts: dict[Part, Callable[[], dict[str, float]]] = {
        "accuracy": lambda: accuracy(study, pictures),
        "environment": lambda: environment(study),
        "services": lambda: services(study),
        "rollout": lambda: thirty_steps(study, pictures),
    }
    figures: dict[str, float] = {}
    for name, run in parts.items():
        if only in (None, name):
            figures |= run()
    write_figures(figures, json)


if __name__ == "__main__":
    tyro.cli(main)
