"""What Ray costs a training step: `raytraffic train` over the same steps in a plain torch loop on batches cut beforehand.

python benchmarks/train_overhead.py --json figures.json [--quick] [--repeats 3] [--preset small] [--steps 200]
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import tyro
from measure import alternate, in_fresh_process, spread, synthetic_store, write_figures

from raytraffic import registry
from raytraffic.augment import augment
from raytraffic.config import TrainConfig
from raytraffic.files import Location
from raytraffic.fit import Ema, Optimisation, optimiser, step
from raytraffic.masks import mixture, named_tasks
from raytraffic.randomness import derive
from raytraffic.store import open_store
from raytraffic.training import initial_model
from raytraffic.training_log import read_metrics
from raytraffic.windows import Columns, Windows, windows_for

#: `raytraffic train` logs so often; rows before these are start-up (first blocks, allocator, caches).
LOG_EVERY = 25
_WARM_UP_ROWS = 2


@dataclass(frozen=True)
class Row:
    """What a loop says of `LOG_EVERY` steps: milliseconds a step, share of them spent waiting for data, mean loss."""

    step_ms: float
    wait_share: float
    loss: float


def main(json: Path | None = None, quick: bool = False, repeats: int = 3, preset: str = "small", steps: int = 200) -> None:
    """Measure what Ray Train and Ray Data add to a training step.

    Args:
        json: Where the figures are written.
        quick: A tiny model, one repeat: shows that it runs, measures nothing.
        repeats: Pairs of a plain and a Ray run.
        preset: The model's preset; its step should take 50 ms at least.
        steps: Steps of a run, a multiple of 25.
    """
    if quick:
        repeats, preset, steps = 1, "tiny", 4 * LOG_EVERY
    if steps % LOG_EVERY or steps <= _WARM_UP_ROWS * LOG_EVERY:
        raise ValueError(f"steps: {steps}, expected a multiple of {LOG_EVERY} above {_WARM_UP_ROWS * LOG_EVERY}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic_store(folder / "store", (8, 8), days=14)
        batch = 8 if quick else 64
        config = TrainConfig(
            store=str(folder / "store"), out=str(folder), preset=preset, steps=steps, batch=batch, validate_every=steps, keep=1, threads=1
        )
        variants = {loop.__name__: partial(in_fresh_process, loop, config) for loop in (plain, with_ray)}
        write_figures(_figures(alternate(variants, repeats)), json)


def _figures(runs: dict[str, list[list[Row]]]) -> dict[str, float]:
    """Medians over the logged rows of every run, and the ratio of each pair of neighbouring runs."""
    for first, second in zip(runs["plain"], runs["with_ray"], strict=True):
        for row, (one, other) in enumerate(zip(first, second, strict=True)):
            # Rounding may differ between processes and training amplifies it; another batch or mask shows at once.
            if not math.isclose(one.loss, other.loss, rel_tol=1e-5 if row == 0 else 1e-2):
                raise ValueError(f"loss of row {row}: plain {one.loss}, Ray {other.loss}, expected equal ones; the loops differ")
    times = {name: [statistics.median(row.step_ms for row in rows[_WARM_UP_ROWS:]) for rows in of] for name, of in runs.items()}
    waits = [statistics.median(row.wait_share for row in rows[_WARM_UP_ROWS:]) for rows in runs["with_ray"]]
    ratios = [ray / alone for alone, ray in zip(times["plain"], times["with_ray"], strict=True)]
    figures = spread("plain_step_ms", times["plain"]) | spread("ray_step_ms", times["with_ray"])
    return figures | spread("step_ratio", ratios) | {"data_wait_share": statistics.median(waits)}


def plain(config: TrainConfig) -> list[Row]:
    """The steps of `raytraffic train` without Ray: one process, batches in memory."""
    torch.set_num_threads(config.threads)
    store = open_store(config.store)
    chosen = initial_model(config, store)[1]
    windows = windows_for(store, config.split, chosen)
    batches = _cut(windows, config)
    torch.manual_seed(config.seed)
    model = registry.model(config.model).build(chosen)
    settings = Optimisation(
        learning_rate=config.learning_rate, warmup=config.warmup, steps=config.steps, ema=config.ema, weight_decay=config.weight_decay
    )
    adam, ema, tasks = optimiser(model, settings), Ema(model.named_parameters(), config.ema), named_tasks(config.tasks)
    rows, losses, clock = [], [], time.perf_counter()
    for done, columns in enumerate(batches):
        batch = windows.batch(columns)
        seeds = derive(batch.key, config.seed, torch.from_numpy(columns["sample"]))
        batch = mixture(augment(batch, seeds, config), tasks, config.weights, seeds)
        losses.append(step(model, batch, seeds, adam, done, settings)["loss"])
        ema.update(model.named_parameters(), done + 1)
        if len(losses) == LOG_EVERY:
            rows.append(Row(1e3 * (time.perf_counter() - clock) / LOG_EVERY, 0.0, statistics.mean(losses)))
            losses, clock = [], time.perf_counter()
    return rows


def with_ray(config: TrainConfig) -> list[Row]:
    """The same through Ray Train and Ray Data, in a run directory of its own."""
    from raytraffic.on_ray.train import train

    with tempfile.TemporaryDirectory(dir=config.out) as out:
        train(replace(config, out=out))
        rows = read_metrics(Location.of(out))
    return [Row(1e3 * config.batch / row["windows_per_second"], row["data_wait_share"], row["loss"]) for row in rows]


def _cut(windows: Windows, config: TrainConfig) -> list[Columns]:
    """The batches of all steps."""
    batches: list[Columns] = []
    for pool in windows.training(config.seed).pools():
        rows, starts = pool.samples()
        for at in range(0, len(rows) - config.batch + 1, config.batch):
            chosen = slice(at, at + config.batch)
            sample = pool.first + at + torch.arange(config.batch).numpy()
            batches.append(windows.cut(rows[chosen], starts[chosen]) | {"sample": sample})
            if len(batches) == config.steps:
                return batches
    raise AssertionError("the training order is endless")


if __name__ == "__main__":
    tyro.cli(main)
