"""Pre-training and fine-tuning through Ray Train: the loop of raytraffic.training on every worker, fed through Ray Data."""

from __future__ import annotations

from typing import Any

import ray.train
import torch
from ray.train.torch import get_device

from raytraffic.config import FinetuneConfig, TrainConfig, from_json
from raytraffic.files import Location
from raytraffic.on_ray.cluster import connect
from raytraffic.on_ray.data import training_batches
from raytraffic.on_ray.launch import launch
from raytraffic.on_ray.progress import follow
from raytraffic.on_ray.train_metrics import TrainMetrics
from raytraffic.training import Run, Worker, check, finished

__all__ = ["train"]


def train(config: TrainConfig | FinetuneConfig) -> Location:
    """Trains or fine-tunes to the end (from the newest checkpoint where there is one) and returns the folder of the best model.

    Raises ValueError where the run directory holds a run with other settings, and for settings that fit no model or store.
    """
    out = Location.of(config.out)
    check(config)
    if not finished(config):
        connect()
        with follow(out, config.steps):
            launch(_worker, config, _workers(config))
    return out.child("best")


def _workers(config: TrainConfig | FinetuneConfig) -> int | tuple[int, int]:
    return config.workers if config.min_workers is None else (config.min_workers, config.workers)


def _worker(raw: dict[str, Any]) -> dict[str, float]:
    """What runs on every Train worker."""
    config = from_json(FinetuneConfig, raw, "finetune") if "checkpoint" in raw else from_json(TrainConfig, raw, "train")
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(config.threads)
    worker = Worker(
        device=get_device(),
        rank=rank,
        world=context.get_world_size(),
        show=TrainMetrics(config.out).set if rank == 0 else lambda figures: None,
        report=ray.train.report,
        preempted=_notice,
    )
    run = Run.start(config, worker)
    begin = run.done
    run.loop(training_batches(run.share()))
    if rank == 0:
        run.finish()
    return {"done": float(run.done), "resumed_from": float(begin)}


def _notice() -> int | None:
    notice = ray.train.get_preemption_info()
    return None if notice is None else notice.deadline_ms or 0
