"""Contrastive training through Ray: Ray Data tasks make the pairs, Ray Train runs raytraffic.training's loop on every worker.

The encoder that comes out is calibrated on the held-out pairs, so that it can judge what is said of an image.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import ray.train
import torch
from ray.train.torch import get_device

from raytraffic.config import from_json
from raytraffic.config.environment import ContrastConfig
from raytraffic.environment.places import Place
from raytraffic.files import Location
from raytraffic.on_ray.cluster import connect, dataset
from raytraffic.on_ray.launch import launch
from raytraffic.on_ray.progress import Stage
from raytraffic.training.contrast import ContrastRun, calibrate_encoder, check_contrast, contrast_finished
from raytraffic.training.pairs import make_part, missing_parts
from raytraffic.training.run import Worker

__all__ = ["contrast"]


def contrast(config: ContrastConfig) -> Location:
    """Trains to the end (from the newest checkpoint where there is one), calibrates, and returns the encoder's folder.

    Raises ValueError where the run directory holds a run with other settings, and for sources that are wrong or hold too few pairs.
    """
    out = Location.of(config.out)
    check_contrast(config)
    if not contrast_finished(config):
        connect()
        _make_pairs(config)
        launch(_worker, config, config.workers)
    calibrate_encoder(config)
    return out.child("encoder")


def _make_pairs(config: ContrastConfig) -> None:
    parts = missing_parts(config)
    if not parts:
        return
    items = [{"number": number, "places": json.dumps([asdict(place) for place in places])} for number, places in parts]
    with Stage("pairs", len(items)) as stage:
        for _ in dataset(items).map_batches(_MakePart(config), batch_size=1).iter_rows():
            stage.advance(1)


class _MakePart:
    """Makes the part of pairs that an item names."""

    def __init__(self, config: ContrastConfig) -> None:
        self.config = config

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        places = [from_json(Place, place, "place") for place in json.loads(str(item["places"][0]))]
        make_part(self.config, int(item["number"][0]), places)
        return {"number": item["number"]}


def _worker(raw: dict[str, Any]) -> None:
    """What runs on every Train worker."""
    config = from_json(ContrastConfig, raw, "contrast")
    context = ray.train.get_context()
    torch.set_num_threads(config.threads)
    rank = context.get_world_rank()
    run = ContrastRun.start(config, Worker(device=get_device(), rank=rank, world=context.get_world_size(), report=ray.train.report))
    run.loop()
    if rank == 0:
        run.finish()
