"""The runs of a scaling-law study: planned with what each costs, known by their content, carried out one at a time to a row each.

out/runs/<address>/    a training run (raytraffic.training), and row.json, written last: a run with it is never done again

The address is the SHA-256 of all that decides a row: the store's content, the settings of training and the way it is scored.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch

from raytraffic import registry
from raytraffic.checkpoint import load_forecaster
from raytraffic.config import StudyConfig, TrainConfig, to_json, with_options
from raytraffic.cost import Cost, peak_flops
from raytraffic.files import Location
from raytraffic.masks import named_tasks
from raytraffic.store import Store, open_store
from raytraffic.study import centred_grid
from raytraffic.training.heldout import Heldout
from raytraffic.training.settings import FREE, asked_share, model_config, selected_windows
from raytraffic.training_log import optimisation_seconds, read_metrics
from raytraffic.windows import windows_for

__all__ = ["PlannedRun", "carry_out", "hours", "plan", "planned_columns", "read_row", "write_row"]

_ROW = "row.json"
#: Validations of a run, and the share of its training's windows that they look at in all, within these bounds of each.
_VALIDATIONS, _VALIDATED, _FEWEST, _MOST = 10, 0.075, 32, 256


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run: its address, its training, its size in numbers, and how much data there is for it."""

    address: str
    config: TrainConfig
    heldout: Heldout
    depth: int
    hidden: int
    cost: Cost
    places: int
    windows: int
    """Distinct training windows."""
    window_tokens: int
    """Tokens of a window. Tokens of data are the store's everywhere, whatever tokens a model cuts."""
    data_tokens: int
    """Distinct tokens of the training part."""

    @property
    def tokens(self) -> int:
        """Tokens that training sees."""
        return self.config.steps * self.config.batch * self.window_tokens

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole training."""
        return self.config.steps * self.config.batch * self.cost.training_flops


def plan(config: StudyConfig) -> list[PlannedRun]:
    """Every run of a study, the most expensive first.

    Raises ValueError for unknown sizes, cities or settings, for amounts of data without a training window, and for a budget that
    pays for no step.
    """
    store = open_store(config.store)
    digest = hashlib.sha256(store.location.child("manifest.json").read_bytes()).hexdigest()
    cities = config.cities or tuple(name for name in store.index.cities if name not in config.held_out)
    counts = config.city_counts or (len(cities),)
    found: dict[str, PlannedRun] = {}
    for share, days, count, seed in product(config.shares, config.days or (None,), counts, config.seeds):
        data = _Data(config, store, digest, cities[:count], share, days, seed)
        for size, steps in _budgets(config, data):
            run = data.run(size, steps)
            found[run.address] = run
    return sorted(found.values(), key=lambda run: (-run.flops, run.address))


class _Data:
    """One amount of data with one seed, and what every size makes of it."""

    def __init__(
        self, study: StudyConfig, store: Store, digest: str, cities: tuple[str, ...], share: float, days: float | None, seed: int
    ) -> None:
        self.study, self.store, self.digest = study, store, digest
        base = TrainConfig(store=study.store, out="", split=study.split, model=study.model, workers=study.workers, gpu=study.gpu)
        base = replace(base, cities=cities, share=share, days=days, seed=seed, cpus_per_worker=study.cpus_per_run)
        self.base = with_options(base, study.training, "training")
        domains = (("in", cities), ("out", study.held_out))
        self.heldout = Heldout(
            tasks=study.tasks,
            windows=study.windows,
            draws=study.draws,
            sampler_steps=study.sampler_steps,
            cities=tuple((name, members) for name, members in domains if members),
        )
        named_tasks(study.tasks)
        windows = selected_windows(self.base, store, self.chosen(study.sizes[0]))
        train = windows.assignment.train
        self.windows = windows.training(seed).samples_per_pass
        self.places = len(np.unique(store.index.place[train[:, 0] < train[:, 1]]))
        first = store.index.table_of_series().first_row
        self.data_tokens = sum(store.layout.tokens(int(high - low)) for low, high in train[first].tolist() if high > low)

    def chosen(self, size: str) -> Any:
        """The model's configuration of a size, for this store."""
        return model_config(replace(self.base, preset=size), self.store)

    def cost(self, size: str) -> Cost:
        """What a size takes for a window of this store, of whose entries the mixture's mean share is asked for."""
        return registry.model(self.study.model).cost(self.chosen(size), self.store.layout.tile, asked_share(self.base))

    def run(self, size: str, steps: int) -> PlannedRun:
        """The run of a size for so many steps."""
        given = {option.partition("=")[0] for option in self.study.training}
        config = replace(self.base, preset=size, steps=steps)
        if "warmup" not in given:
            config = replace(config, warmup=max(1, min(config.warmup, steps // 10)))
        if "validate_every" not in given:
            config = replace(config, validate_every=max(1, steps // _VALIDATIONS))
        if "validation_windows" not in given:
            wanted = round(_VALIDATED * steps * config.batch / _VALIDATIONS)
            config = replace(config, validation_windows=min(max(wanted, _FEWEST), _MOST))
        identity = {name: value for name, value in to_json(config).items() if name not in FREE}
        text = json.dumps([self.digest, identity, to_json(self.heldout)], sort_keys=True)
        address = hashlib.sha256(text.encode()).hexdigest()[:16]
        chosen = self.chosen(size)
        return PlannedRun(
            address=address,
            config=replace(config, out=str(Location.of(self.study.out).child("runs", address))),
            heldout=self.heldout,
            depth=chosen.depth,
            hidden=chosen.hidden,
            cost=self.cost(size),
            places=self.places,
            windows=self.windows,
            window_tokens=self.store.layout.tokens(config.window),
            data_tokens=self.data_tokens,
        )


def _budgets(config: StudyConfig, data: _Data) -> Iterator[tuple[str, int]]:
    """(size, steps) of one amount of data."""
    if not config.flops:
        yield from product(config.sizes, config.steps)
        return
    costs = {size: data.cost(size) for size in config.sizes}
    for budget in config.flops:
        for size in _centred(config, budget, costs):
            steps = int(budget / (costs[size].training_flops * data.base.batch))
            if steps < 1:
                raise ValueError(
                    f"flops: {budget:g} pays for no step of {size}, expected at least {costs[size].training_flops * data.base.batch:g}"
                )
            if steps <= config.steps[0]:
                yield size, steps


def _centred(config: StudyConfig, budget: float, costs: Mapping[str, Cost]) -> list[str]:
    """The sizes of one budget: all, or those that lie evenly about the optimum expected, which grows with the root of the budget."""
    if not config.centred:
        return list(costs)
    sizes = {cost.parameters: size for size, cost in costs.items()}
    middle = math.exp(sum(map(math.log, sizes)) / len(sizes))
    centre = math.exp(sum(map(math.log, config.flops)) / len(config.flops))
    grid = centred_grid(
        budgets=[budget],
        optimum=lambda flops: middle * math.sqrt(flops / centre),
        sizes=list(sizes),
        k=1.0,
        points=config.centred,
    )
    return [sizes[min(sizes, key=lambda size: abs(size - point.parameters))] for point in grid]


def carry_out(run: PlannedRun, train: Callable[[TrainConfig], Location]) -> dict[str, Any]:
    """Trains, scores and returns the row (raytraffic.study.table) of a run; what is left of an interrupted one is gone on with."""
    began = time.monotonic()
    config, out = run.config, Location.of(run.config.out)
    best = train(config)
    model, _, chosen = load_forecaster(best)
    model.to("cuda" if config.gpu else "cpu")
    store = open_store(config.store)
    told, whole = selected_windows(config, store, chosen), windows_for(store, config.split, chosen)
    scored = run.heldout.figures(model, told, whole, config)
    log = read_metrics(out)
    seconds = optimisation_seconds(log, config.batch)
    curve = [(int(row["step"]), row["validation_loss"]) for row in log if row["validation_loss"] is not None]
    rate = config.steps * config.batch / seconds
    device = torch.cuda.get_device_name() if config.gpu else "cpu"
    peak = peak_flops(device)
    return planned_columns(run) | {
        "status": "done",
        "error": None,
        "loop_s": seconds,
        "wall_s": time.monotonic() - began,
        "device": device,
        "devices": config.workers,
        "windows_per_second": rate,
        "tokens_per_second": rate * run.window_tokens,
        "mfu": None if peak is None else rate * run.cost.training_flops / (peak * config.workers),
        "train_loss": log[-1]["loss"],
        "validation_loss": min((loss for _, loss in curve), default=math.nan),
        "best_step": min(curve, key=lambda point: point[1])[0] if curve else config.steps,
        "curve_step": [step for step, _ in curve],
        "curve_loss": [loss for _, loss in curve],
        **scored,
    }


def planned_columns(run: PlannedRun) -> dict[str, Any]:
    """What a row (raytraffic.study.table) says of a run before it has begun."""
    config = run.config
    return {
        "run": run.address,
        "model": config.model,
        "size": config.preset,
        "depth": run.depth,
        "hidden": run.hidden,
        "seed": config.seed,
        "share": config.share,
        "days": config.days,
        "cities": list(config.cities),
        "places": run.places,
        "steps": config.steps,
        "batch": config.batch,
        "tasks": list(config.tasks),
        "parameters": run.cost.parameters,
        "embedding_parameters": run.cost.embedding_parameters,
        "data_tokens": run.data_tokens,
        "tokens": run.tokens,
        "passes": config.steps * config.batch / run.windows,
        "flops": run.flops,
        "config": json.dumps(to_json(config), sort_keys=True),
    }


def write_row(run: PlannedRun, row: dict[str, Any]) -> None:
    """Commits a run's row: from now on the run is done."""
    Location.of(run.config.out).child(_ROW).write_bytes(json.dumps(row, indent=1).encode())


def read_row(run: PlannedRun) -> dict[str, Any] | None:
    """The row of a run that is done, else None."""
    file = Location.of(run.config.out).child(_ROW)
    return json.loads(file.read_bytes()) if file.exists() else None


def hours(run: PlannedRun, device: str, utilisation: float) -> float:
    """Device-hours that a run's training takes at a share of a device's peak; ValueError for a device of no known peak."""
    peak = peak_flops(device)
    if peak is None:
        try:
            peak = float(device)
        except ValueError:
            raise ValueError(f"device: {device!r}, expected a known GPU, as H100, or its peak in FLOPs a second") from None
    return run.flops / (peak * utilisation) / 3600
