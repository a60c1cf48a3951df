"""Forecaster: the one object that is trained, saved, loaded and served.

visible batch -> scale -> embed -> condition -> diffuse (training) or sample (forecasting) -> physical units
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from raytraffic.calibration import Calibration
from raytraffic.diffusion.noise import Noise
from raytraffic.diffusion.process import Prediction, Process, Weighting
from raytraffic.diffusion.samplers import Sampler
from raytraffic.diffusion.schedule import Schedule
from raytraffic.marginals import crps
from raytraffic.randomness import derive, uniform
from raytraffic.scaling import Scaling
from raytraffic.types import URBAN_CONTEXTS, Condition, Forecast, Scale, TrafficBatch

__all__ = ["LEVEL_STREAM", "NOISE_STREAM", "EmbeddingConditioner", "Forecaster", "ForecasterConfig", "rows_of"]

#: Streams of the random numbers of a window: its noise levels, and from the second on its noise.
LEVEL_STREAM, NOISE_STREAM = 16, 17
#: Windows are conditioned in multiples of so many.
_TOGETHER = 8


@dataclass(frozen=True, kw_only=True)
class ForecasterConfig:
    """What every model shares: scaling, noise schedule, prediction target, loss weighting and the default sampler."""

    scaling: Scaling = field(default_factory=Scaling)
    schedule: Literal["linear", "cosine"] = "cosine"
    steps: int = 1000
    prediction: Prediction = "v"
    weighting: Weighting = "uniform"
    marginal_weight: float = 3.0
    """Weight of the learned marginals' CRPS beside the diffusion's loss."""
    size_power: float = 0.5
    """An entry's CRPS is weighted by this power of the traffic it is expected to carry: 0 counts cells alike, 1 their traffic."""
    cosine_weight: float = 0.0
    """Weight of 1 - cosine similarity between the sample that a prediction stands for and the true one (LSDM IV-B)."""
    noise: Noise = field(default_factory=Noise)
    sampler: Sampler = field(default_factory=Sampler)

    def process(self) -> Process:
        """The diffusion process of this configuration."""
        return Process(Schedule(self.schedule, self.steps), self.prediction, self.weighting)


class EmbeddingConditioner(Protocol):
    """A conditioner with its first stage: `embed` turns raw static context of a site into `env` once."""

    def embed(self, batch: TrafficBatch) -> TrafficBatch: ...


class Forecaster(nn.Module):
    """A conditioner and a denoiser around one diffusion process; all traffic in and out is in physical units."""

    conditioner: nn.Module
    denoiser: nn.Module
    scaling: Scaling
    process: Process

    def __init__(self, conditioner: nn.Module, denoiser: nn.Module, config: ForecasterConfig) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.denoiser = denoiser
        self.config = config
        self.calibration: Calibration | None = None
        self.scaling = config.scaling
        self.process = config.process()

    def forward(self, batch: TrafficBatch, seeds: Tensor) -> dict[str, Tensor]:
        """Losses of one optimisation step; all randomness of window i hangs on `seeds[i]` (b,) int64.

        `loss` is the mean of `each` (b,), the windows' `objective`; a window without scored entries counts as zero, so the mean is
        the same however a batch is sharded.
        """
        each = self.objective(batch, seeds)
        return {"loss": each.mean(), "each": each.detach()}

    def objective(self, batch: TrafficBatch, seeds: Tensor) -> Tensor:
        """(b,) the weighted squared error over a window's scored entries: hidden, measured, not of a dead cell (UoMo Eq. 7).

        Where the conditioner gives learned marginals their CRPS is added, in traffic relative to what the window knows: the diffusion
        sees the scores under marginals it does not move.
        """
        scale = self.scaling.fit(batch)
        condition: Condition = self.conditioner(self.embed(batch.visible()), scale)
        scored = batch.hidden & ~scale.dead
        count = scored.sum(dim=(1, 2, 3)).clamp(min=1)
        each = torch.zeros(len(count), device=count.device)
        if condition.marginals is not None:
            error = (
                crps(scale.residual(batch.traffic), scale.quantiles(condition.marginals))
                * scale.spread
                * scale.size(batch) ** self.config.size_power
            )
            each = self.config.marginal_weight * (error * scored).sum(dim=(1, 2, 3)) / count
            scale = replace(scale, knots=condition.marginals.detach())
        k = (uniform(seeds, LEVEL_STREAM, ()) * self.process.schedule.steps).long().clamp(max=self.process.schedule.steps - 1)
        x = torch.where(scored, scale.apply(batch.traffic), torch.zeros_like(batch.traffic))
        eps = self.config.noise.draw(batch, seeds, NOISE_STREAM)
        x_k = self.process.noised(x, eps, k)
        prediction = self.denoiser(x_k, self.process.schedule.level(k), condition).float()
        square = (prediction - self.process.target(x, eps, k)) ** 2 * scored
        each = each + self.process.weight(k) * square.sum(dim=(1, 2, 3)) / count
        if self.config.cosine_weight:
            sample = (self.process.to_sample(prediction, x_k, k) * scored).flatten(1)
            each = each + self.config.cosine_weight * (1 - nn.functional.cosine_similarity(sample, x.flatten(1))) * scored.any((1, 2, 3))
        return each

    def embed(self, batch: TrafficBatch) -> TrafficBatch:
        """Stage 1: the batch with the site embeddings its conditioner makes of raw static context (constant per site)."""
        conditioner: EmbeddingConditioner = self.conditioner  # type: ignore[assignment]
        if "env" in batch.context:
            return batch
        env = conditioner.embed(_filled(batch, self._together(batch))).context.get("env")
        return batch if env is None else replace(batch, context={**batch.context, "env": env[: len(batch.key)]})

    def condition(self, batch: TrafficBatch, guided: bool = False) -> Condition:
        """Stage 2: what the denoiser is told, from visible entries only; embeds first where stage 1 was not run.

        With `guided` it holds the condition without context too, which a sampler with guidance asks for.
        """
        windows = torch.arange(len(batch.key), device=batch.key.device)
        visible = _filled(self.embed(batch.visible()), self._together(batch))
        scale = self.scaling.fit(visible)
        condition = self._conditioned(visible, scale)
        if guided:
            context = {name: value for name, value in visible.context.items() if name not in URBAN_CONTEXTS}
            condition = replace(condition, free=self._conditioned(replace(visible, context=context), scale))
        return condition.select(windows)

    def _together(self, batch: TrafficBatch) -> int:
        """Windows are conditioned in multiples of so many."""
        return _TOGETHER

    def _conditioned(self, visible: TrafficBatch, scale: Scale) -> Condition:
        """All that the denoiser is told before anything is drawn."""
        condition: Condition = self.conditioner(visible, scale)
        return condition

    @torch.no_grad()
    def draw(
        self,
        batch: TrafficBatch,
        condition: Condition,
        sampler: Sampler,
        draws: int,
        seed: int,
        stop: Callable[[], bool] | None = None,
    ) -> Forecast:
        """Stage 3: `draws` draws (b, n, c, t, s); draw j of window i is a function of (seed, key of i, j) alone.

        `stop` is asked between sampler steps; when it answers True the draw ends with InterruptedError.
        """
        if draws < 1:
            raise ValueError(f"draws: {draws}, expected at least 1")
        window, seeds = rows_of(batch, draws, seed)
        rows = self.draw_rows(batch, condition, self.scale(batch, condition), sampler, window, seeds, stop)
        return self.finish(batch, rows.unflatten(0, (-1, draws)))

    def scale(self, batch: TrafficBatch, condition: Condition) -> Scale:
        """How the draws of a batch are scaled: from its known entries, with the learned marginals of its condition."""
        return replace(self.scaling.fit(batch), knots=condition.marginals)

    @torch.no_grad()
    def draw_rows(
        self,
        batch: TrafficBatch,
        condition: Condition,
        scale: Scale,
        sampler: Sampler,
        window: Tensor,
        seeds: Tensor,
        stop: Callable[[], bool] | None = None,
    ) -> Tensor:
        """(r, c, t, s): one draw of window `window[i]` (r,) from seed `seeds[i]` (r,) each, the same whichever rows are drawn together."""
        if sampler.guidance != 1 and condition.free is None:
            raise ValueError(f"sampler.guidance: {sampler.guidance}, expected 1 or a condition made with guided=True")
        drawn = []
        for at in range(0, len(window), sampler.rows):
            row = torch.arange(at, at + sampler.rows, device=window.device).clamp(max=len(window) - 1)
            chosen, seed = window[row], seeds[row]
            drawn.append(self._drawn(batch.select(chosen), condition.select(chosen), scale.select(chosen), sampler, seed, stop))
        return torch.cat(drawn)[: len(window)]

    def _drawn(
        self,
        batch: TrafficBatch,
        condition: Condition,
        scale: Scale,
        sampler: Sampler,
        seeds: Tensor,
        stop: Callable[[], bool] | None,
    ) -> Tensor:
        """Traffic (r, c, t, s): the draws of the rows of one call, one of each."""
        return scale.invert(self._sampled(condition, sampler, lambda i: self.config.noise.draw(batch, seeds, NOISE_STREAM + i), stop))

    def _sampled(self, condition: Condition, sampler: Sampler, noise: Callable[[int], Tensor], stop: Callable[[], bool] | None) -> Tensor:
        """z (r, c, t, s): the sampler's run from `noise(0)`, which it asks for more of."""

        def estimate(x: Tensor, k: int) -> Tensor:
            if stop is not None and stop():
                raise InterruptedError("the forecast was stopped between sampler steps")
            levels = torch.full((len(x),), k, device=x.device)
            prediction = self.denoiser(x, self.process.schedule.level(levels), condition).float()
            if sampler.guidance != 1:
                free = self.denoiser(x, self.process.schedule.level(levels), condition.free).float()
                prediction = free + sampler.guidance * (prediction - free)
            return self.process.to_sample(prediction, x, levels)

        return sampler.run(estimate, noise, self.process.schedule)

    def finish(self, batch: TrafficBatch, traffic: Tensor) -> Forecast:
        """The forecast of draws (b, n, c, t, s): known entries as measured, the others calibrated where a calibration is fitted."""
        forecast = Forecast(draws=torch.where(batch.known[:, None], batch.traffic[:, None], traffic), known=batch.known)
        return forecast if self.calibration is None else self.calibration.apply(batch, forecast)

    @torch.no_grad()
    def forecast(self, batch: TrafficBatch, sampler: Sampler | None = None, draws: int = 20, seed: int = 0) -> Forecast:
        """All three stages: the predictive distribution of a batch's hidden entries."""
        embedded = self.embed(batch)
        sampler = sampler or self.config.sampler
        return self.draw(embedded, self.condition(embedded, guided=sampler.guidance != 1), sampler, draws, seed)


def rows_of(batch: TrafficBatch, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Window and seed (b * n,) of each row of `Forecaster.draw_rows`: `draws` of every window, those of one window side by side."""
    window = torch.arange(len(batch.key), device=batch.key.device).repeat_interleave(draws)
    number = torch.arange(draws, device=batch.key.device).repeat(len(batch.key))
    return window, derive(batch.key[window], seed, number)


def _filled(batch: TrafficBatch, together: int) -> TrafficBatch:
    """The batch with windows of zeros, all known, up to a multiple of `together` windows: products of matrices of a row or two take other
    ways, and round otherwise, than those of many, so a window alone would be conditioned otherwise than in a batch."""
    b = len(batch.key)
    missing = -b % together
    if not missing:
        return batch
    filled = batch.select(torch.arange(b + missing, device=batch.key.device).clamp(max=b - 1))
    traffic, known = filled.traffic.clone(), filled.known.clone()
    traffic[b:], known[b:] = 0, True
    return replace(filled, traffic=traffic, known=known)
