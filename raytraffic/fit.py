"""One optimisation step, its learning rate, and the moving average of the weights; any loop, with or without Ray, uses these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raytraffic.types import TrafficBatch

__all__ = ["Ema", "Optimisation", "learning_rate", "optimiser", "step", "update"]


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """AdamW with linear warm-up, then cosine decay to `final` times the peak; gradients are clipped to norm `clip`."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 100
    steps: int = 3000
    final: float = 0.02
    clip: float = 1.0
    ema: float = 0.999

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup < 0:
            raise ValueError(f"optimisation: steps {self.steps}, warmup {self.warmup}, expected steps >= 1 and warmup >= 0")
        if not (self.learning_rate > 0 and 0 <= self.ema < 1):
            raise ValueError(f"optimisation: learning_rate {self.learning_rate}, ema {self.ema}, expected > 0 and 0 <= ema < 1")


def learning_rate(done: int, settings: Optimisation) -> float:
    """The learning rate of the step after `done` steps."""
    if done < settings.warmup:
        return settings.learning_rate * (done + 1) / settings.warmup
    progress = (done - settings.warmup) / max(1, settings.steps - settings.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return settings.learning_rate * (settings.final + (1 - settings.final) * cosine)


def optimiser(model: nn.Module, settings: Optimisation) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; only matrices decay.

    A module may state its `learning_rate_scale`, and a linear layer its `fan_in_ratio` (raytraffic.nn.transfer): the learning rate of its
    weight is divided by it, and the weight decay, which AdamW multiplies by the rate, stays as strong.
    """
    scales: dict[int, float] = {}
    ratios: dict[int, float] = {}
    for module in model.modules():
        if isinstance(scale := getattr(module, "learning_rate_scale", None), float):
            scales |= {id(parameter): scale for parameter in module.parameters()}
        if isinstance(module, nn.Linear) and isinstance(ratio := getattr(module, "fan_in_ratio", None), float):
            ratios[id(module.weight)] = ratio
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            group = (scales.get(id(parameter), 1.0), ratios.get(id(parameter), 1.0), parameter.ndim >= 2)
            groups.setdefault(group, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": settings.weight_decay * ratio if decays else 0.0, "learning_rate_scale": scale / ratio}
            for (scale, ratio, decays), members in sorted(groups.items(), key=lambda group: group[0])
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
    )


def step(
    model: nn.Module,
    batch: TrafficBatch,
    seeds: Tensor,
    adam: torch.optim.Optimizer,
    done: int,
    settings: Optimisation,
    micro_batch: int | None = None,
    mixed_precision: bool = False,
) -> dict[str, float]:
    """Takes step number `done` and returns its figures; `model` may be wrapped by DDP or FSDP. bf16 with `mixed_precision`.

    With `micro_batch` so many windows are computed at once and their gradients summed: less memory, the same step. All randomness is a
    function of the windows' `seeds` (b,), so that an interrupted run goes on as it would have; with dropout they are those of one rank's
    windows together. Raises FloatingPointError as `update`.
    """
    torch.manual_seed(int(seeds.sum()))  # dropout alone does not hang on the seeds of the windows by itself
    loss = 0.0
    for part in torch.arange(len(seeds), device=seeds.device).split(micro_batch or len(seeds)):
        with torch.autocast(batch.traffic.device.type, dtype=torch.bfloat16, enabled=mixed_precision):
            mean = model(batch.select(part), seeds[part])["loss"] * (len(part) / len(seeds))
        mean.backward()
        loss += float(mean.detach())
    return {"loss": loss, **update(model, adam, done, settings)}


def update(model: nn.Module, adam: torch.optim.Optimizer, done: int, settings: Optimisation) -> dict[str, float]:
    """Moves the weights along the gradients that are there, clears these, and returns the learning rate and the gradients' norm.

    Raises FloatingPointError where the norm is not finite: continuing would only destroy the weights.
    """
    rate = learning_rate(done, settings)
    for group in adam.param_groups:
        group["lr"] = rate * group["learning_rate_scale"]
    norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    if not bool(torch.isfinite(norm)):
        raise FloatingPointError(f"step {done}: gradient norm {float(norm)}, expected a finite one; lower the learning rate")
    adam.step()
    adam.zero_grad(set_to_none=True)
    return {"learning_rate": rate, "gradient_norm": float(norm)}


class Ema:
    """The exponential moving average of a model's parameters, warmed up: decay at step n is min(decay, (1 + n) / (10 + n))."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in parameters}

    @torch.no_grad()
    def update(self, parameters: Iterable[tuple[str, Tensor]], done: int) -> None:
        """Moves the average towards the parameters after `done` steps."""
        decay = min(self.decay, (1 + done) / (10 + done))
        for name, value in parameters:
            self.weights[name].lerp_(value.detach(), 1 - decay)

    @contextmanager
    @torch.no_grad()
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights inside the `with`, its own again after it."""
        own = {name: value.detach().clone() for name, value in model.named_parameters()}
        try:
            for name, value in model.named_parameters():
                value.copy_(self.weights[name])
            yield
        finally:
            for name, value in model.named_parameters():
                value.copy_(own[name])
