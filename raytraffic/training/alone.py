"""A run in this process, without Ray: what a study packs many of into one cluster, and what a machine without Ray can do."""

from __future__ import annotations

import torch

from raytraffic.config import FinetuneConfig, TrainConfig
from raytraffic.files import Location
from raytraffic.training.run import Run, Worker
from raytraffic.training.settings import check, finished
from raytraffic.windows import local_batches

__all__ = ["train_alone"]


def train_alone(config: TrainConfig | FinetuneConfig) -> Location:
    """Trains as `raytraffic train` does, with the same result, and returns the folder of the best model; goes on where it was.

    Raises ValueError where it would, and for more than one worker.
    """
    if config.workers != 1:
        raise ValueError(f"workers: {config.workers}, expected 1 for a run in one process")
    check(config)
    if not finished(config):
        torch.set_num_threads(config.threads)
        run = Run.start(config, Worker(device=torch.device("cuda" if config.gpu else "cpu")))
        run.loop(local_batches(run.share()))
        run.finish()
    return Location.of(config.out).child("best")
