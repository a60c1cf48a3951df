"""Pre-training and fine-tuning through Ray Train: the loop of raytraffic.training on every worker, fed through Ray Data."""

from __future__ import annotations

from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from raytraffic.config import FinetuneConfig, TrainConfig, from_json, to_json
from raytraffic.files import Location
from raytraffic.on_ray.cluster import connect
from raytraffic.on_ray.data import training_batches
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
        launches = sum(child.name.startswith("launch-") for child in out.child("ray").list())
        storage = out.child("ray")
        trainer = TorchTrainer(
            _worker,  # type: ignore[arg-type]  # its return value, which the stub does not know, is documented
            train_loop_config=to_json(config),
            scaling_config=ScalingConfig(
                num_workers=_workers(config),  # type: ignore[arg-type]  # the stub does not know the elastic (least, most)
                use_gpu=config.gpu,
                resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.gpu else {}),
            ),
            run_config=RunConfig(
                name=f"launch-{launches:03d}",
                storage_path=storage.path,
                storage_filesystem=storage.filesystem(),
                failure_config=FailureConfig(max_failures=config.max_failures),
            ),
        )
        with follow(out, config.steps):
            trainer.fit()
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
