"""Split conformal calibration of a checkpoint through Ray Data: actors forecast held-back windows, the driver fits the factors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray.data
import torch

from raytraffic.calibration import Calibration
from raytraffic.checkpoint import load_forecaster, save_calibration
from raytraffic.config import CalibrateConfig
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.masks import TASKS, mask, named_tasks
from raytraffic.on_ray.cluster import connect, dataset
from raytraffic.on_ray.progress import Stage
from raytraffic.store import open_store
from raytraffic.types import Forecast, TrafficBatch
from raytraffic.windows import Windows, windows_for

__all__ = ["calibrate"]


def calibrate(config: CalibrateConfig) -> Location:
    """Fits the calibration on the validation part of a split, saves it with the checkpoint and returns its folder.

    An earlier calibration is replaced, not stretched again. Raises ValueError when the checkpoint does not fit the store or the
    validation part has no window of a task.
    """
    named_tasks(config.tasks)
    forecaster = _Forecasts(config)
    items = list(_items(config, forecaster.windows))
    connect()
    pool = ray.data.ActorPoolStrategy(size=min(config.workers, len(items)))
    with Stage("calibrate", sum(len(item["rows"]) for item in items)) as stage:
        drawn = dataset(items).map_batches(
            _Forecasts, fn_constructor_args=(config,), batch_size=1, compute=pool, num_cpus=1, num_gpus=1 if config.gpu else 0
        )

        def pairs() -> Iterator[tuple[TrafficBatch, Forecast]]:
            for row in drawn.iter_rows():
                batch = _batch(config, forecaster.windows, row)
                yield batch, Forecast(draws=torch.from_numpy(np.array(row["draws"])), known=batch.known)
                stage.advance(len(batch.key), str(row["task"]))

        calibration = Calibration.fit(pairs(), config.level)
    folder = Location.of(config.checkpoint)
    save_calibration(folder, calibration)
    return folder


def _items(config: CalibrateConfig, windows: Windows) -> Iterator[dict[str, Any]]:
    """At most `windows` evenly spaced windows a task, some at a time, in a fixed order."""
    for name in config.tasks:
        rows, starts = windows.evaluation("validation", TASKS[name], 1)
        if not len(rows):
            raise ValueError(f"split {config.split!r}, task {name!r}: no validation window, expected at least one; prepare longer series")
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(config.windows, len(rows))).round().astype(np.int64))
        for at in range(0, len(chosen), config.batch):
            some = chosen[at : at + config.batch]
            yield {"task": name, "rows": rows[some].tolist(), "starts": starts[some].tolist()}


def _batch(config: CalibrateConfig, windows: Windows, item: dict[str, Any]) -> TrafficBatch:
    rows, starts = (np.asarray(item[name], dtype=np.int64) for name in ("rows", "starts"))
    return mask(windows.batch(windows.cut(rows, starts)), TASKS[str(item["task"])], config.seed)


class _Forecasts:
    """Holds the model without its calibration and forecasts the windows of an item."""

    def __init__(self, config: CalibrateConfig) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.device = torch.device("cuda" if config.gpu else "cpu")
        self.forecaster, _, model_config = load_forecaster(config.checkpoint)
        self.forecaster.calibration = None
        self.forecaster.to(self.device)
        self.sampler = Sampler(config.method, config.steps)
        self.windows = windows_for(open_store(config.store), config.split, model_config)

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, Any]:
        one = {name: values[0] for name, values in item.items()}
        batch = _batch(self.config, self.windows, one).to(self.device)
        draws = self.forecaster.forecast(batch, self.sampler, self.config.draws, self.config.seed).draws.cpu().numpy()
        return {"task": [one["task"]], "rows": [one["rows"]], "starts": [one["starts"]], "draws": [draws]}
