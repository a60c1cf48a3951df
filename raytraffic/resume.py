"""Stopping and going on at an exact step: model, optimiser and moving average as safetensors, committed atomically.

Random numbers need no saving: data order, masks and noise are functions of (seed, sample number). Full state dictionaries
are gathered, so a run may go on with another number of workers or another way of sharding.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from raytraffic.checkpoint import commit, committed, read_committed, read_tensors
from raytraffic.files import Location
from raytraffic.fit import Ema

__all__ = ["full_weights", "newest", "prune", "restore", "save"]

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SEPARATOR = "|"


def full_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Unsharded CPU copies of (possibly sharded) tensors; every rank must call it."""
    return {name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu() for name, value in weights.items()}


def save(
    folder: Location, model: nn.Module, adam: torch.optim.Optimizer, ema: Ema, done: int, facts: dict[str, float], write: bool
) -> None:
    """Saves the run after `done` steps into a folder named by the step; all ranks gather, the rank with `write` writes."""
    weights = get_model_state_dict(model, options=_FULL)
    optimiser = get_optimizer_state_dict(model, adam, options=_FULL)
    average = full_weights(ema.weights)
    if not write:
        return
    moments = optimiser["state"]  # only the first rank is handed whole dictionaries
    flat = {f"{name}{_SEPARATOR}{key}": value for name, entry in moments.items() for key, value in entry.items()}  # type: ignore[union-attr]
    files = {"model.safetensors": weights, "optimiser.safetensors": flat, "ema.safetensors": average, "state.json": {"done": done, **facts}}
    commit(folder.child(f"step-{done:08d}"), files)  # type: ignore[arg-type]


def newest(folder: Location) -> Location | None:
    """The newest whole checkpoint of a folder; interrupted ones do not count."""
    whole = [child for child in folder.list() if child.name.startswith("step-") and committed(child)]
    return whole[-1] if whole else None


def restore(checkpoint: Location, model: nn.Module, adam: torch.optim.Optimizer, ema: Ema) -> dict[str, float]:
    """Loads a checkpoint into a model, its optimiser and its average; returns what was saved beside them (`done`, facts)."""
    set_model_state_dict(model, dict(read_tensors(checkpoint, "model.safetensors")), options=_FULL)
    template = get_optimizer_state_dict(model, adam)
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in read_tensors(checkpoint, "optimiser.safetensors").items():
        parameter, key = name.split(_SEPARATOR)
        state.setdefault(parameter, {})[key] = value
    template["state"] = state  # type: ignore[assignment]
    set_optimizer_state_dict(model, adam, template, options=_FULL)
    for name, value in read_tensors(checkpoint, "ema.safetensors").items():
        target = ema.weights[name]
        if isinstance(target, DTensor):
            from torch.distributed.tensor import distribute_tensor

            ema.weights[name] = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
        else:
            target.copy_(value)
    return dict(json.loads(read_committed(checkpoint, "state.json")))


def prune(folder: Location, keep: int, best: int) -> None:
    """Deletes all but the newest `keep` whole checkpoints and the one of step `best`."""
    whole = [child for child in folder.list() if child.name.startswith("step-") and committed(child)]
    for child in whole[: max(0, len(whole) - keep)]:
        if child.name != f"step-{best:08d}":
            child.delete()
