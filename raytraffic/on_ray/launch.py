"""One launch of Ray Train for a run: what Train keeps of it lies below the run's folder, and lost workers start again."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raytraffic.config import to_json
from raytraffic.files import Location

__all__ = ["launch"]


class _Run(Protocol):
    """What a run's settings say of where and on what it is computed."""

    @property
    def out(self) -> str: ...

    @property
    def gpu(self) -> bool: ...

    @property
    def cpus_per_worker(self) -> float: ...

    @property
    def max_failures(self) -> int: ...


def launch(worker: Callable[[dict[str, Any]], Any], config: _Run, workers: int | tuple[int, int]) -> None:
    """Runs `worker` on so many workers (or from least to most, as the cluster has them) with the settings as JSON, to the end."""
    storage = Location.of(config.out).child("ray")
    launches = sum(child.name.startswith("launch-") for child in storage.list())
    TorchTrainer(
        partial(_in_folder, os.getcwd(), worker),
        train_loop_config=to_json(config),
        scaling_config=ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]  # the stub does not know the elastic (least, most)
            use_gpu=config.gpu,
            resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.gpu else {}),
        ),
        run_config=RunConfig(
            name=f"launch-{launches:03d}",
            storage_path=storage.path,
            storage_filesystem=storage.filesystem(),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    ).fit()


def _in_folder(folder: str, worker: Callable[[dict[str, Any]], Any], settings: dict[str, Any]) -> Any:
    """Train moves its workers into a folder of its own: relative paths in the settings are those of who launched them."""
    if os.path.isdir(folder):
        os.chdir(folder)
    return worker(settings)
