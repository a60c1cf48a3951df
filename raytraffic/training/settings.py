"""What a run starts from: its settings checked and kept, the model they ask for, and the windows it takes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Set
from typing import Any

from raytraffic import registry
from raytraffic.checkpoint import committed, load_forecaster
from raytraffic.config import FinetuneConfig, TrainConfig, to_json, with_options
from raytraffic.files import Location
from raytraffic.fit import Optimisation
from raytraffic.forecaster import Forecaster
from raytraffic.masks import named_tasks
from raytraffic.resume import newest
from raytraffic.store import Store, open_store
from raytraffic.types import CONTEXTS
from raytraffic.windows import Selection, Windows, environment_features, windows_for

__all__ = [
    "FREE",
    "asked_share",
    "check",
    "finished",
    "initial_model",
    "keep_settings",
    "learn_first",
    "model_config",
    "optimisation",
    "selected_windows",
]

#: Training windows that something is learnt of before training, and how many of them make a batch.
_FIRST, _TOGETHER = 512, 64
#: What may differ when a run goes on: where and on what it is computed, which changes nothing but rounding.
FREE = {
    "workers",
    "min_workers",
    "cpus_per_worker",
    "threads",
    "gpu",
    "shard",
    "micro_batch",
    "recompute",
    "keep",
    "max_failures",
    "out",
    "store",
}


def check(config: TrainConfig | FinetuneConfig) -> None:
    """Refuses wrong settings before any worker starts, and saves them with the run."""
    store = open_store(config.store)
    named_tasks(config.tasks)
    optimisation(config)
    for workers in range(config.min_workers or config.workers, config.workers + 1):
        if config.batch % workers:
            raise ValueError(f"batch: {config.batch}, expected a multiple of workers ({workers})")
        if config.micro_batch is not None and config.batch // workers % config.micro_batch:
            raise ValueError(f"micro_batch: {config.micro_batch}, expected a divisor of a worker's windows ({config.batch // workers})")
    selected_windows(config, store, initial_model(config, store)[1]).training(config.seed)
    keep_settings(Location.of(config.out), config, FREE)


def finished(config: TrainConfig | FinetuneConfig) -> bool:
    """Whether a run directory holds a whole best model and the checkpoint of the last step."""
    out = Location.of(config.out)
    found = newest(out.child("checkpoints"))
    return committed(out.child("best")) and found is not None and int(found.name.removeprefix("step-")) >= config.steps


def keep_settings(out: Location, config: Any, free: Set[str]) -> None:
    """Writes a run's settings to `out/config.json`; ValueError where a run with other ones is there, but for those that are `free`."""
    path = out.child("config.json")
    if path.exists():
        before = json.loads(path.read_bytes())
        for name, value in to_json(config).items():
            if name not in free and before.get(name) != value:
                raise ValueError(f"{path}: {name} is {before.get(name)!r}, expected {value!r}; this run directory belongs to another run")
    path.write_bytes(json.dumps(to_json(config), indent=1).encode())


def optimisation(config: TrainConfig | FinetuneConfig) -> Optimisation:
    """How the run's steps are taken."""
    return Optimisation(
        learning_rate=config.learning_rate, warmup=config.warmup, steps=config.steps, ema=config.ema, weight_decay=config.weight_decay
    )


def initial_model(config: TrainConfig | FinetuneConfig, store: Store) -> tuple[str, Any, Forecaster]:
    """The model's name, its configuration for a store (only contexts the store really has), and the model a run starts from."""
    if isinstance(config, FinetuneConfig):
        contexts = tuple(name for name in config.contexts if name in _contexts(store))
        forecaster, name, before = load_forecaster(config.checkpoint)
        forecaster, chosen = registry.model(name).add_contexts(forecaster, before, contexts, store.poi_categories)
        if config.trainable == "context":
            registry.model(name).freeze(forecaster)
        return name, chosen, forecaster.train()
    chosen = model_config(config, store)
    return config.model, chosen, registry.model(config.model).build(chosen)


def model_config(config: TrainConfig, store: Store) -> Any:
    """The configuration of the model that a run trains on a store."""
    entry = registry.model(config.model)
    unknown = sorted(set(config.contexts) - set(CONTEXTS))
    if unknown:
        raise ValueError(f"contexts: {unknown}, expected some of {sorted(entry.contexts)}")
    contexts = tuple(name for name in config.contexts if name in entry.contexts and name in _contexts(store))
    preset = with_options(entry.preset(config.preset), config.options, "options")
    poi = store.poi_categories if "poi" in contexts else ()
    env = {"env_features": environment_features(store)} if "env" in contexts else {}
    return dataclasses.replace(preset, services=len(store.services), contexts=contexts, poi_categories=poi, window=config.window, **env)


def learn_first(name: str, model: Forecaster, windows: Windows, seed: int) -> None:
    """What a model learns of training windows before its training: STOUTER's graphs. The same on every worker."""
    learn = registry.model(name).learn_first
    if learn is None:
        return
    rows, starts = next(windows.training(seed).pools()).samples()
    device = next(model.parameters()).device
    parts = [slice(at, at + _TOGETHER) for at in range(0, min(_FIRST, len(rows)), _TOGETHER)]
    learn(model, [windows.batch(windows.cut(rows[part], starts[part])).to(device) for part in parts])


def asked_share(config: TrainConfig | FinetuneConfig) -> float:
    """The share of a window's entries that the run's mixture of tasks hides on average."""
    pairs = zip(named_tasks(config.tasks), config.weights, strict=True)
    return sum(weight * (task.low + task.high) / 2 for task, weight in pairs) / sum(config.weights)


def selected_windows(config: TrainConfig | FinetuneConfig, store: Store, chosen: Any) -> Windows:
    """The windows that the run's model takes of what it is trained on."""
    return windows_for(store, config.split, chosen, Selection(config.cities, config.share, config.seed, config.days))


def _contexts(store: Store) -> set[str]:
    """The contexts that at least one city of a store has."""
    users = {"users", "expected_users"} if any(city["has_users"] for city in store.manifest["cities"].values()) else set()
    return users | ({"poi"} if store.poi_categories else set()) | ({"env"} if environment_features(store) else set())
