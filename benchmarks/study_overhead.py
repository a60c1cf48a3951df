"""What a study costs beside its training loops: 20 tiny runs, and one run as a task and through Ray Train.

python benchmarks/study_overhead.py [--steps 150] [--cpus 1 2] [--json figures.json] [--quick]

`overhead_<n>_cpus`: time of `raytraffic study` on a Ray of n CPUs (its start included), times n, over the sum of the runs' loops.
`task_s`, `ray_train_s`: what one run takes beyond its loop, inside a task and through Ray Train.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ray
import tyro
from measure import in_fresh_process, synthetic_store, write_figures

from raytraffic.config import StudyConfig, TrainConfig
from raytraffic.files import Location
from raytraffic.on_ray.study import study
from raytraffic.on_ray.train import train
from raytraffic.study import read_runs
from raytraffic.training import train_alone
from raytraffic.training_log import optimisation_seconds, read_metrics


def main(steps: int = 150, cpus: tuple[int, ...] = (1, 2), json: Path | None = None, quick: bool = False) -> None:
    """Measure the overhead of studies.

    Args:
        steps: Steps of a run.
        cpus: Sizes of the Ray that studies run on.
        json: Where the figures are written.
        quick: Two runs of a few steps: shows that it runs, measures nothing.
    """
    steps, seeds = (4, 1) if quick else (steps, 10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic_store(folder / "store", (8, 8), days=14)
        config = StudyConfig(
            store=str(folder / "store"),
            out="",
            sizes=("w16", "w24"),
            seeds=tuple(range(seeds)),
            steps=(steps,),
            training=("batch=32", 'options=["entries=0"]'),
            windows=4,
            draws=2,
            sampler_steps=2,
        )
        figures = {}
        for count in cpus:
            seconds, loops = in_fresh_process(_study, replace(config, out=str(folder / f"study-{count}")), count)
            figures[f"overhead_{count}_cpus"] = seconds * count / loops
            figures[f"loops_{count}_cpus_s"] = loops
        one = TrainConfig(store=config.store, out="", preset="w16", options=("entries=0",), steps=steps, batch=32, validate_every=steps)
        for label, run in (("task", train_alone), ("ray_train", train)):
            figures[f"{label}_s"] = in_fresh_process(_beyond_loop, run, replace(one, out=str(folder / label)))
    write_figures(figures, json)


def _study(config: StudyConfig, cpus: int) -> tuple[float, float]:
    """Seconds of a study, Ray's start among them, and of its loops."""
    began = time.monotonic()
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    study(config)
    seconds = time.monotonic() - began
    ray.shutdown()
    return seconds, sum(read_runs(Location.of(config.out))["loop_s"].to_pylist())


def _beyond_loop(run: Callable[[TrainConfig], Location], config: TrainConfig) -> float:
    """Seconds that a second run takes beyond its loop, in a process whose first one paid for imports and for Ray's start."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    run(replace(config, out=f"{config.out}-first"))
    began = time.monotonic()
    run(config)
    seconds = time.monotonic() - began
    ray.shutdown()
    return seconds - optimisation_seconds(read_metrics(Location.of(config.out)), config.batch)


if __name__ == "__main__":
    tyro.cli(main)
