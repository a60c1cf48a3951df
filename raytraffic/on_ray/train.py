"""Pre-training through Ray Train: streaming windows in, committed checkpoints, metrics and a best model out.

What a step sees is a function of (store, split, seed, step) alone, so a run may be killed at any moment, go on at its newest
committed checkpoint, and change its number of workers on the way.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Set
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raytraffic import registry
from raytraffic.augment import augment
from raytraffic.checkpoint import committed, load_forecaster, read_tensors, save_forecaster
from raytraffic.config import FinetuneConfig, TrainConfig, from_json, to_json, with_options
from raytraffic.files import Location
from raytraffic.fit import Ema, Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster
from raytraffic.masks import mixture, named_tasks
from raytraffic.nn.transformer import AdaLNBlock
from raytraffic.on_ray.cluster import connect
from raytraffic.on_ray.data import training_batches
from raytraffic.on_ray.progress import follow
from raytraffic.on_ray.train_metrics import TrainMetrics, model_flops_utilisation
from raytraffic.randomness import derive
from raytraffic.report.training import training_report
from raytraffic.resume import newest, prune, restore, save
from raytraffic.store import Store, open_store
from raytraffic.training_log import TrainingLog, read_metrics
from raytraffic.types import TrafficBatch
from raytraffic.windows import Selection, Windows, windows_for

__all__ = ["initial_model", "keep_settings", "train"]

_LOG_EVERY = 25
#: Seconds within which a notice of preemption is seen, where steps are not longer.
_NOTICE_S = 5.0
_FREE = {"workers", "min_workers", "cpus_per_worker", "threads", "gpu", "shard", "keep", "max_failures", "out", "store"}


def train(config: TrainConfig | FinetuneConfig) -> Location:
    """Trains or fine-tunes to the end (from the newest checkpoint where there is one) and returns the folder of the best model.

    Raises ValueError where the run directory holds a run with other settings, and for settings that fit no model or store.
    """
    out = Location.of(config.out)
    _check(config, out)
    if not committed(out.child("best")) or (found := newest(out.child("checkpoints"))) is None or _step_of(found) < config.steps:
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


def _check(config: TrainConfig | FinetuneConfig, out: Location) -> None:
    """Refuses wrong settings before any worker starts, and saves them with the run."""
    store = open_store(config.store)
    named_tasks(config.tasks)
    _optimisation(config)
    for workers in range(config.min_workers or config.workers, config.workers + 1):
        if config.batch % workers:
            raise ValueError(f"batch: {config.batch}, expected a multiple of workers ({workers})")
    _windows(config, store, initial_model(config, store)[1]).training(config.seed)
    keep_settings(out, config, _FREE)


def keep_settings(out: Location, config: Any, free: Set[str]) -> None:
    """Writes a run's settings to `out/config.json`; ValueError where a run with other ones is there, but for those that are `free`."""
    path = out.child("config.json")
    if path.exists():
        before = json.loads(path.read_bytes())
        for name, value in to_json(config).items():
            if name not in free and before.get(name) != value:
                raise ValueError(f"{path}: {name} is {before.get(name)!r}, expected {value!r}; this run directory belongs to another run")
    path.write_bytes(json.dumps(to_json(config), indent=1).encode())


def _optimisation(config: TrainConfig | FinetuneConfig) -> Optimisation:
    return Optimisation(
        learning_rate=config.learning_rate, warmup=config.warmup, steps=config.steps, ema=config.ema, weight_decay=config.weight_decay
    )


def initial_model(config: TrainConfig | FinetuneConfig, store: Store) -> tuple[str, Any, Forecaster]:
    """The model's name, its configuration for a store (only contexts the store really has), and the model a run starts from."""
    contexts = tuple(name for name in config.contexts if name in _contexts(store))
    if isinstance(config, FinetuneConfig):
        forecaster, name, before = load_forecaster(config.checkpoint)
        forecaster, chosen = registry.model(name).add_contexts(forecaster, before, contexts, store.poi_categories)
        if config.trainable == "context":
            registry.model(name).freeze(forecaster)
        return name, chosen, forecaster.train()
    preset = with_options(registry.model(config.model).preset(config.preset), config.options, "options")
    poi = store.poi_categories if "poi" in contexts else ()
    chosen = dataclasses.replace(preset, services=len(store.services), contexts=contexts, poi_categories=poi, window=config.window)
    return config.model, chosen, registry.model(config.model).build(chosen)


def _windows(config: TrainConfig | FinetuneConfig, store: Store, chosen: Any) -> Windows:
    return windows_for(store, config.split, chosen, Selection(config.cities, config.share, config.seed))


def _contexts(store: Store) -> set[str]:
    """The contexts that at least one city of a store has."""
    users = {"users", "expected_users"} if any(city["has_users"] for city in store.manifest["cities"].values()) else set()
    return users | ({"poi"} if store.poi_categories else set())


def _worker(raw: dict[str, Any]) -> dict[str, float]:
    """What runs on every Train worker."""
    config = from_json(FinetuneConfig, raw, "finetune") if "checkpoint" in raw else from_json(TrainConfig, raw, "train")
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.threads)
    run = _Run.start(config, rank, world)
    begin = run.done
    batches = training_batches(run.windows, config.seed, config.batch, rank, world, begin, config.steps)
    run.loop(batches)
    if rank == 0:
        run.finish()
    return {"done": float(run.done), "resumed_from": float(begin)}


def _step_of(checkpoint: Location) -> int:
    return int(checkpoint.name.removeprefix("step-"))


@dataclass
class _Run:
    """One worker's share of a run."""

    config: TrainConfig | FinetuneConfig
    rank: int
    world: int
    device: torch.device
    windows: Windows
    model_name: str
    model_config: Any
    wrapped: nn.Module
    model: nn.Module
    adam: torch.optim.Optimizer
    ema: Ema
    settings: Optimisation
    log: TrainingLog
    done: int
    best: dict[str, float]
    metrics: TrainMetrics | None
    noticed: set[int | None] = field(default_factory=set)

    @classmethod
    def start(cls, config: TrainConfig | FinetuneConfig, rank: int, world: int) -> _Run:
        """Builds everything and goes to the newest committed checkpoint."""
        device = get_device()
        store = open_store(config.store)
        settings = _optimisation(config)
        torch.manual_seed(config.seed)
        name, chosen, model = initial_model(config, store)
        model.to(device)
        objective: nn.Module = model
        if isinstance(config, FinetuneConfig) and config.contrast:
            objective = registry.model(name).align(model, config.contrast, config.negatives)
        wrapped = _shard(objective, config, world, device)
        adam = optimiser(model, settings)
        ema = Ema(model.named_parameters(), config.ema)
        out = Location.of(config.out)
        best = {"best_step": 0.0, "best_loss": float("inf")}
        found = newest(out.child("checkpoints"))
        done = 0
        if found is not None:
            state = restore(found, model, adam, ema)
            done = int(state["done"])
            best = {name: state[name] for name in best}
        log = TrainingLog(out, done) if rank == 0 else TrainingLog(None, done)
        windows = _windows(config, store, chosen)
        metrics = TrainMetrics(str(out)) if rank == 0 else None
        return cls(config, rank, world, device, windows, name, chosen, wrapped, model, adam, ema, settings, log, done, best, metrics)

    def loop(self, batches: Iterator[dict[str, NDArray[Any]]]) -> None:
        """Trains on what the batches hold, one step each."""
        config = self.config
        tasks = named_tasks(config.tasks)
        waited, since, clock = 0.0, self.done, time.monotonic()
        losses: list[float] = []
        flops = 0.0
        look_every = 1  # steps between two looks for a notice of preemption, the same on all ranks
        while self.done < config.steps:
            before = time.monotonic()
            columns = next(batches)
            waited += time.monotonic() - before
            # The sample's number salts its key: the same window has other noise in every pass.
            batch = self.windows.batch(columns).to(self.device)
            seeds = derive(batch.key, config.seed, torch.from_numpy(columns["sample"]).to(self.device))
            batch = augment(batch, seeds, config)
            batch = mixture(batch, tasks, config.weights, seeds)
            with FlopCounterMode(display=False) if config.gpu and not flops else nullcontext() as counter:
                figures = step(self.wrapped, batch, seeds, self.adam, self.done, self.settings, mixed_precision=config.gpu)
            flops = flops if counter is None else float(counter.get_total_flops())
            self.done += 1
            self.ema.update(self.model.named_parameters(), self.done)
            losses.append(figures["loss"])
            validates = self.done % config.validate_every == 0 or self.done == config.steps
            if self.done % _LOG_EVERY == 0 or validates:
                elapsed = time.monotonic() - clock
                steps = self.done - since
                row = {
                    "loss": self._mean(losses),
                    "learning_rate": figures["learning_rate"],
                    "gradient_norm": figures["gradient_norm"],
                    "windows_per_second": steps * config.batch / elapsed,
                    "data_wait_share": waited / elapsed,
                }
                self.log.add(step=self.done, **row)
                self._show(row, flops * steps / elapsed)
                look_every = min(_LOG_EVERY, max(1, int(_NOTICE_S / self._mean([elapsed / steps]))))
                losses, waited, since, clock = [], 0.0, self.done, time.monotonic()
            if validates:
                self._validate_and_save()
                clock = time.monotonic()
            elif self.done % look_every == 0:
                self._save_before_preemption()

    def _show(self, row: dict[str, float], flops_per_second: float) -> None:
        """The same figures as metrics, with what only a running cluster wants to know."""
        if self.metrics is None:
            return
        tokens = row["windows_per_second"] * self.windows.store.layout.tokens(self.config.window)
        utilisation = model_flops_utilisation(flops_per_second, 1)  # of this rank's device, and its own operations
        known = {} if utilisation is None else {"mfu": utilisation}
        self.metrics.set({**row, "step": self.done, "tokens_per_second": tokens, **known})

    def _validate_and_save(self) -> None:
        loss = self._validation_loss()
        if not loss >= self.best["best_loss"]:  # a NaN (no validation part) makes the newest the best
            self.best = {"best_step": float(self.done), "best_loss": loss if np.isfinite(loss) else float("inf")}
        self._save()
        if self.rank == 0:
            self.log.validated(self.done, loss)
        if self.metrics is not None:
            self.metrics.set({"validation_loss": loss})
        ray.train.report({"step": self.done, "validation_loss": loss})

    def _save_before_preemption(self) -> None:
        """A checkpoint beyond the regular ones, once a notice that a worker's node will be taken away; all ranks must come here."""
        notice = ray.train.get_preemption_info()
        if notice is not None and notice.deadline_ms not in self.noticed:
            self.noticed.add(notice.deadline_ms)
            self._save()

    def _save(self) -> None:
        folder = Location.of(self.config.out).child("checkpoints")
        save(folder, self.model, self.adam, self.ema, self.done, self.best, write=self.rank == 0)
        if self.rank == 0:
            prune(folder, self.config.keep, int(self.best["best_step"]))

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """The loss of the averaged weights on fixed windows, masks and noise; NaN without a validation part."""
        columns = self.windows.validation(limit=256)
        if columns is None:
            return float("nan")
        tasks = named_tasks(self.config.tasks)
        batch = mixture(self.windows.batch(columns).to(self.device), tasks, self.config.weights, seed=-1)
        total = torch.zeros(2, device=self.device, dtype=torch.float64)
        # Through the wrapper: under FSDP only its forward brings whole parameters together.
        self.wrapped.eval()
        with self.ema.applied(self.model):
            # Whole chunks of one fixed size go round the ranks: every rank runs the same number of forwards, as FSDP needs.
            chunk = 32
            starts = list(range(0, len(batch.key), chunk * self.world))
            for start in starts:
                mine = torch.arange(start + self.rank * chunk, start + (self.rank + 1) * chunk)
                part: TrafficBatch = batch.select(mine % len(batch.key))
                counted = (mine < len(batch.key)).to(self.device)
                for i in range(4):
                    each = self.wrapped(part, derive(part.key, i))["each"]
                    total += torch.stack(((each * counted).sum(), counted.sum())).double()
        self.wrapped.train()
        return float(self._sum(total)[0] / self._sum(total)[1])

    def _mean(self, values: list[float]) -> float:
        pair = self._sum(torch.tensor([sum(values), len(values)], dtype=torch.float64, device=self.device))
        return float(pair[0] / pair[1])

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def finish(self) -> None:
        """Writes the best and the last averaged model, with their cards, and the run's report."""
        out = Location.of(self.config.out)
        steps = {"best": int(self.best["best_step"]), "last": self.done}
        for name, number in steps.items():
            average = read_tensors(out.child("checkpoints", f"step-{number:08d}"), "ema.safetensors")
            facts = {"Training": to_json(self.config), "Step": str(number), "Validation loss": str(self.best["best_loss"])}
            facts |= {"Cities": dict(self.windows.store.manifest["cities"])}
            save_forecaster(out.child(name), average, self.model_name, self.model_config, facts)
        cities = self.windows.store.manifest["cities"]
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        training_report(read_metrics(out), to_json(self.config), cities, out.child("report.html"), parameters=parameters)


def _shard(model: nn.Module, config: TrainConfig | FinetuneConfig, world: int, device: torch.device) -> nn.Module:
    """The model as every rank calls it: as it is, under DDP, or its blocks under FSDP2."""
    if config.shard == "fsdp":
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if config.gpu else MixedPrecisionPolicy()
        for module in model.modules():
            if isinstance(module, AdaLNBlock):
                fully_shard(module, mp_policy=policy)
        # The root too lets go of its whole parameters after a forward, so that the average can be swapped in as shards.
        fully_shard(model, mp_policy=policy, reshard_after_forward=True)
        return model
    if world == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)
