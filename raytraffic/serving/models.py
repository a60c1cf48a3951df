"""What a server knows of the models it serves without loading their weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from raytraffic import registry
from raytraffic.checkpoint import CALIBRATION, CONFIG, read_committed, read_marker
from raytraffic.config import from_json
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location

__all__ = ["ServedModel", "served_model"]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A checkpoint under the name it is asked for by.

    version   the first digits of the SHA-256 of the checkpoint's marker, which names the hash of every file of it
    env_features   of the environment vectors it is given, 0 where it looks at none
    moving   whether these may differ from slot to slot, as those of users who move do
    noise_levels   of its schedule, the most steps a sampler can take
    window, services, poi_categories, contexts, sampler   what its configuration says of its inputs and of how it samples
    """

    name: str
    folder: str
    version: str
    model: str
    window: int
    services: int
    poi_categories: tuple[str, ...]
    contexts: tuple[str, ...]
    env_features: int
    moving: bool
    sampler: Sampler
    noise_levels: int
    calibrated: bool

    @property
    def key(self) -> str:
        """Names folder and version; a stage that is given it loads exactly this checkpoint."""
        return f"{self.version}@{self.folder}"


def served_model(name: str, folder: str) -> ServedModel:
    """The checkpoint in a folder (or s3:// URL); ValueError where there is no whole one."""
    location = Location.of(folder)
    marker = read_marker(location)
    content = json.loads(read_committed(location, CONFIG))
    entry = registry.model(content["model"])
    config = from_json(entry.config, content["config"], str(location.child(CONFIG)))
    return ServedModel(
        name=name,
        folder=folder,
        version=hashlib.sha256(marker).hexdigest()[:12],
        model=content["model"],
        window=config.window,
        services=config.services,
        poi_categories=config.poi_categories if "poi" in config.contexts else (),
        contexts=tuple(config.contexts),
        env_features=config.env_features if "env" in config.contexts else 0,
        moving=entry.moving and "env" in config.contexts,
        sampler=config.forecaster.sampler,
        noise_levels=config.forecaster.steps,
        calibrated=CALIBRATION in json.loads(marker),
    )
