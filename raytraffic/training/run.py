"""The loop of a training run on one of its workers: batches in, committed checkpoints, metrics and a best model out.

What a step sees is a function of (store, split, seed, step) alone, so a run may be killed at any moment, go on at its newest
committed checkpoint, and change its number of workers on the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from raytraffic import registry
from raytraffic.augment import augment
from raytraffic.checkpoint import read_tensors, save_forecaster
from raytraffic.config import FinetuneConfig, TrainConfig, to_json
from raytraffic.files import Location
from raytraffic.fit import Ema, Optimisation, optimiser, step
from raytraffic.masks import mixture, named_tasks
from raytraffic.nn.transformer import AdaLNBlock, recompute
from raytraffic.randomness import derive
from raytraffic.report.training import training_report
from raytraffic.resume import newest, prune, restore, save
from raytraffic.store import open_store
from raytraffic.training.heldout import fixed_loss
from raytraffic.training.settings import asked_share, initial_model, learn_first, optimisation, selected_windows
from raytraffic.training_log import TrainingLog, read_metrics
from raytraffic.types import TrafficBatch
from raytraffic.windows import Columns, Share, Windows

__all__ = ["Run", "Worker"]

_LOG_EVERY = 25
#: Seconds within which a notice of preemption is seen, where steps are not longer.
_NOTICE_S = 5.0


def _nothing(figures: dict[str, float]) -> None:
    """Tells nobody."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One of the `world` processes of a run, and whom it tells: `show` every logged row, `report` every validation.

    `preempted` gives a number of its own to every notice that a worker's machine will be taken away, None while there is none.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    show: Callable[[dict[str, float]], None] = _nothing
    report: Callable[[dict[str, float]], None] = _nothing
    preempted: Callable[[], int | None] = lambda: None


@dataclass
class Run:
    """One worker's share of a run."""

    config: TrainConfig | FinetuneConfig
    worker: Worker
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
    noticed: set[int] = field(default_factory=set)

    @classmethod
    def start(cls, config: TrainConfig | FinetuneConfig, worker: Worker) -> Run:
        """Builds everything and goes to the newest committed checkpoint."""
        store = open_store(config.store)
        settings = optimisation(config)
        torch.manual_seed(config.seed)
        name, chosen, model = initial_model(config, store)
        model.to(worker.device)
        windows = selected_windows(config, store, chosen)
        out = Location.of(config.out)
        found = newest(out.child("checkpoints"))
        if found is None and isinstance(config, TrainConfig):
            learn_first(name, model, windows, config.seed)
        recompute(model, config.recompute)
        objective: nn.Module = model
        align = registry.model(name).align
        if isinstance(config, FinetuneConfig) and config.contrast and align is not None:
            objective = align(model, config.contrast, config.negatives)
        wrapped = _shard(objective, config, worker)
        adam = optimiser(model, settings)
        ema = Ema(model.named_parameters(), config.ema)
        best = {"best_step": 0.0, "best_loss": float("inf")}
        done = 0
        if found is not None:
            state = restore(found, model, adam, ema)
            done = int(state["done"])
            best = {name: state[name] for name in best}
        log = TrainingLog(out if worker.rank == 0 else None, done)
        return cls(config, worker, windows, name, chosen, wrapped, model, adam, ema, settings, log, done, best)

    def share(self) -> Share:
        """What is left for this worker."""
        config, worker = self.config, self.worker
        return Share(self.windows, self.windows.training(config.seed), config.batch, worker.rank, worker.world, self.done, config.steps)

    def loop(self, batches: Iterator[Columns]) -> None:
        """Trains on what the batches hold, one step each."""
        config = self.config
        tasks = named_tasks(config.tasks)
        waited, since, clock = 0.0, self.done, time.monotonic()
        losses: list[float] = []
        look_every = 1  # steps between two looks for a notice of preemption, the same on all ranks
        while self.done < config.steps:
            before = time.monotonic()
            columns = next(batches)
            waited += time.monotonic() - before
            # The sample's number salts its key: the same window has other noise in every pass.
            batch = self.windows.batch(columns).to(self.worker.device)
            seeds = derive(batch.key, config.seed, torch.from_numpy(columns["sample"]).to(self.worker.device))
            batch = augment(batch, seeds, config)
            batch = mixture(batch, tasks, config.weights, seeds)
            figures = step(self.wrapped, batch, seeds, self.adam, self.done, self.settings, config.micro_batch, mixed_precision=config.gpu)
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
                self._show(row)
                look_every = min(_LOG_EVERY, max(1, int(_NOTICE_S / self._mean([elapsed / steps]))))
                losses, waited, since, clock = [], 0.0, self.done, time.monotonic()
            if validates:
                self._validate_and_save()
                clock = time.monotonic()
            elif self.done % look_every == 0:
                self._save_before_preemption()

    def _show(self, row: dict[str, float]) -> None:
        """Tells the logged row with what only a running cluster wants to know; operations are those of one worker."""
        rate, config = row["windows_per_second"], self.config
        tokens = rate * self.windows.store.layout.tokens(config.window)
        cost = registry.model(self.model_name).cost(self.model_config, self.windows.store.layout.tile, asked_share(config))
        flops = rate / self.worker.world * cost.training_flops
        self.worker.show({**row, "step": self.done, "tokens_per_second": tokens, "flops_per_second": flops})

    def _validate_and_save(self) -> None:
        loss = self._validation_loss()
        if not loss >= self.best["best_loss"]:  # a NaN (no validation part) makes the newest the best
            self.best = {"best_step": float(self.done), "best_loss": loss if np.isfinite(loss) else float("inf")}
        self._save()
        if self.worker.rank == 0:
            self.log.validated(self.done, loss)
        self.worker.show({"validation_loss": loss})
        self.worker.report({"step": self.done, "validation_loss": loss})

    def _save_before_preemption(self) -> None:
        """A checkpoint beyond the regular ones, once a notice that a worker's node will be taken away; all ranks must come here."""
        notice = self.worker.preempted()
        if notice is not None and notice not in self.noticed:
            self.noticed.add(notice)
            self._save()

    def _save(self) -> None:
        folder = Location.of(self.config.out).child("checkpoints")
        save(folder, self.model, self.adam, self.ema, self.done, self.best, write=self.worker.rank == 0)
        if self.worker.rank == 0:
            prune(folder, self.config.keep, int(self.best["best_step"]))

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """The loss of the averaged weights on fixed windows, masks and noise; NaN without a validation part."""
        columns = self.windows.validation(self.config.validation_windows)
        if columns is None:
            return float("nan")
        tasks = named_tasks(self.config.tasks)
        batch = mixture(self.windows.batch(columns).to(self.worker.device), tasks, self.config.weights, seed=-1)
        total = torch.zeros(2, device=self.worker.device, dtype=torch.float64)
        # Through the wrapper: under FSDP only its forward brings whole parameters together.
        self.wrapped.eval()
        with self.ema.applied(self.model):
            # Whole chunks of one fixed size go round the ranks: every rank runs the same number of forwards, as FSDP needs.
            chunk = 32
            starts = list(range(0, len(batch.key), chunk * self.worker.world))
            for start in starts:
                mine = torch.arange(start + self.worker.rank * chunk, start + (self.worker.rank + 1) * chunk)
                part: TrafficBatch = batch.select(mine % len(batch.key))
                counted = (mine < len(batch.key)).to(self.worker.device)
                total += torch.stack(((fixed_loss(self.wrapped, part) * counted).sum(), counted.sum())).double()
        self.wrapped.train()
        return float(self._sum(total)[0] / self._sum(total)[1])

    def _mean(self, values: list[float]) -> float:
        pair = self._sum(torch.tensor([sum(values), len(values)], dtype=torch.float64, device=self.worker.device))
        return float(pair[0] / pair[1])

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        if self.worker.world > 1:
            dist.all_reduce(value)
        return value

    def finish(self) -> None:
        """Writes the best and the last averaged model, with their cards, and the run's report."""
        out = Location.of(self.config.out)
        steps = {"best": int(self.best["best_step"]), "last": self.done}
        for name, number in steps.items():
            checkpoint = out.child("checkpoints", f"step-{number:08d}")
            # Buffers are not averaged.
            average = read_tensors(checkpoint, "model.safetensors") | read_tensors(checkpoint, "ema.safetensors")
            facts = {"Training": to_json(self.config), "Step": str(number), "Validation loss": str(self.best["best_loss"])}
            facts |= {"Cities": dict(self.windows.store.manifest["cities"])}
            save_forecaster(out.child(name), average, self.model_name, self.model_config, facts)
        cities = self.windows.store.manifest["cities"]
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        training_report(read_metrics(out), to_json(self.config), cities, out.child("report.html"), parameters=parameters)


def _shard(model: nn.Module, config: TrainConfig | FinetuneConfig, worker: Worker) -> nn.Module:
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
    if worker.world == 1:
        return model
    ids = [worker.device.index] if worker.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)
