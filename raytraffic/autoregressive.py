r"""AutoregressiveForecaster: a Forecaster that draws slot by slot, each from what was measured and drawn before it.

    p(x_{a..T} | x_{<a}, c) = prod_{t >= a} p(x_t | h_t, c_t),   h_t = RNN(h_{t-1}, x_{<t}, c_t)

(TimeGrad, Rasul et al. 2021, Eq. 8 and 9; LEC-Diff, Fig. 2b).

p(x_t | h_t, c_t) is the diffusion. A causal conditioner's h_t hangs on entries before t and on no other. Training reads the whole window
(teacher forcing: what was measured is heard, hidden or not) and denoises all slots that ask for something at once, each at a noise
level of its own; a slot is a row of the denoiser, which thus sees (r, c, 1, s) in training and in sampling alike. A forecast carries the
state from slot to slot and hears its own draws, as the traffic they stand for; entries that are known are taken as they are.

A slot is answered from the past alone: what is known after it tells no more than the scale does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import LEVEL_STREAM, NOISE_STREAM, Forecaster, ForecasterConfig
from raytraffic.randomness import derive, uniform
from raytraffic.types import Condition, Scale, TrafficBatch

__all__ = ["AutoregressiveForecaster", "Carried", "CausalConditioner", "asked", "first_asked", "heard"]

#: Rows of matrices, stations times windows, under which products round otherwise than in a larger batch.
_ENOUGH_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What goes from slot to slot: the recurrent `state` (r, s, d); a conditioner's own subclass adds what stays the same."""

    state: Tensor


class CausalConditioner(Protocol):
    """A conditioner of slots, given `values` (r, c, t, s) on the diffused scale, 0 where not `present` (r, c, t, s)."""

    def __call__(self, batch: TrafficBatch, scale: Scale) -> Condition:
        """What hangs on no draw, from `batch.visible()`."""
        ...

    def begin(self, batch: TrafficBatch, condition: Condition) -> Carried:
        """What slots are gone through with: the state after the history where `condition` was remembered, else the state of nothing."""
        ...

    def remember(self, carried: Carried, values: Tensor, present: Tensor, until: Tensor, condition: Condition) -> Condition:
        """The condition with the state after the first `until` (r,) slots."""
        ...

    def step(self, carried: Carried, values: Tensor, present: Tensor, slot: int) -> tuple[Condition, Tensor]:
        """What the denoiser is told at a slot, its `field` (r, d, 1, s), and the state there; reads values before the slot alone."""
        ...

    def teach(self, carried: Carried, values: Tensor, present: Tensor) -> Condition:
        """The same of all slots at once, from the values themselves: rows (r * t), the slots of a window side by side."""
        ...


class AutoregressiveForecaster(Forecaster):
    """A Forecaster around a CausalConditioner; training, stages, seeds and bits are as any Forecaster's.

    Raises ValueError for a configuration whose noise is not white or that weighs the cosine loss: slots are drawn and scored one by one.
    """

    def __init__(self, conditioner: nn.Module, denoiser: nn.Module, config: ForecasterConfig) -> None:
        if config.noise.hours or config.noise.share:
            raise ValueError(f"noise: {config.noise}, expected white noise: what slots have in common is carried from one to the next")
        if config.cosine_weight:
            raise ValueError(f"cosine_weight: {config.cosine_weight}, expected 0: a slot of a window is no vector to compare")
        super().__init__(conditioner, denoiser, config)

    @property
    def _causal(self) -> CausalConditioner:
        conditioner: CausalConditioner = self.conditioner  # type: ignore[assignment]
        return conditioner

    def objective(self, batch: TrafficBatch, seeds: Tensor) -> Tensor:
        """(b,) the weighted squared error over a window's scored entries, at a noise level (b, t) of each slot's own."""
        scale = self.scaling.fit(batch)
        visible = self.embed(batch.visible())
        carried = self._causal.begin(visible, self._causal(visible, scale))
        told = self._causal.teach(carried, *heard(batch, batch.measured, scale))
        scored = batch.hidden & ~scale.dead
        at = scored.any(dim=(1, 3))  # (b, t): slots that ask for nothing are not denoised
        window = at.nonzero()[:, 0]

        def rows(entries: Tensor) -> Tensor:
            return entries.movedim(2, 1)[at][:, :, None]

        steps = self.process.schedule.steps
        k = (uniform(seeds, LEVEL_STREAM, at.shape[1:]) * steps).long().clamp(max=steps - 1)[at]
        where = rows(scored)
        x = rows(scale.apply(batch.traffic)) * where
        eps = rows(self.config.noise.draw(batch, seeds, NOISE_STREAM))
        x_k = self.process.noised(x, eps, k)
        prediction = self.denoiser(x_k, self.process.schedule.level(k), told.select(at.flatten().nonzero()[:, 0])).float()
        square = ((prediction - self.process.target(x, eps, k)) ** 2 * where).sum(dim=(1, 2, 3))
        total = torch.zeros(len(seeds), device=square.device).index_add(0, window, self.process.weight(k) * square)
        return total / scored.sum(dim=(1, 2, 3)).clamp(min=1)

    def _together(self, batch: TrafficBatch) -> int:
        """So many windows that their stations make enough rows, at most as many as of any model."""
        return min(super()._together(batch), -(-_ENOUGH_ROWS // batch.shape[3]))

    def _conditioned(self, visible: TrafficBatch, scale: Scale) -> Condition:
        """The condition with the state after the history that all draws share."""
        condition = self._causal(visible, scale)
        carried = self._causal.begin(visible, condition)
        return self._causal.remember(carried, *heard(visible, visible.known, scale), first_asked(visible, scale), condition)

    def _drawn(
        self,
        batch: TrafficBatch,
        condition: Condition,
        scale: Scale,
        sampler: Sampler,
        seeds: Tensor,
        stop: Callable[[], bool] | None,
    ) -> Tensor:
        conditions = [condition]
        if sampler.guidance != 1:
            assert condition.free is not None
            conditions.append(condition.free)
        carried = [self._causal.begin(batch, one) for one in conditions]
        wanted, first = asked(batch, scale), first_asked(batch, scale)
        values, present = heard(batch, batch.known, scale)
        traffic = torch.where(batch.known, batch.traffic, torch.zeros_like(batch.traffic))
        for slot in range(int(first.min()), batch.shape[2]):
            steps = [self._causal.step(one, values, present, slot) for one in carried]
            # A row's state after its history is what the condition says, whatever other rows have to go through.
            on = (slot >= first)[:, None, None]
            carried = [replace(one, state=torch.where(on, state, one.state)) for one, (_, state) in zip(carried, steps, strict=True)]
            at = slice(slot, slot + 1)
            if not bool(wanted[:, :, at].any()):
                continue
            told = replace(steps[0][0], free=steps[-1][0])
            z = self._sampled(told, sampler, self._noise_of(batch, seeds, slot), stop)
            here = replace(scale, prior=scale.prior[:, :, at])
            drawn = here.invert(z)
            traffic[:, :, at] = torch.where(wanted[:, :, at], drawn, traffic[:, :, at])
            values[:, :, at] = torch.where(wanted[:, :, at], here.apply(drawn), values[:, :, at])
            present[:, :, at] |= wanted[:, :, at]
        return traffic

    def _noise_of(self, batch: TrafficBatch, seeds: Tensor, slot: int) -> Callable[[int], Tensor]:
        """The noise (r, c, 1, s) of every sampler step at a slot."""
        at = slice(slot, slot + 1)
        alone = replace(batch, traffic=batch.traffic[:, :, at], known=batch.known[:, :, at], clock=batch.clock[:, at], context={})
        of_slot = derive(seeds, slot)
        return lambda i: self.config.noise.draw(alone, of_slot, NOISE_STREAM + i)


def heard(batch: TrafficBatch, present: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
    """What a causal conditioner may hear: values (b, c, t, s) on the diffused scale, and where there are some; dead cells say nothing."""
    present = present & ~scale.dead
    return torch.where(present, scale.apply(batch.traffic), torch.zeros_like(batch.traffic)), present


def asked(batch: TrafficBatch, scale: Scale) -> Tensor:
    """(b, c, t, s) bool: entries that are drawn. A station without a place beside others with one fills up its group: it is none."""
    unknown = ~batch.known & ~scale.dead
    if batch.space.xy is None:
        return unknown
    placed = torch.isfinite(batch.space.xy).all(dim=2)
    return unknown & (placed | ~placed.any(dim=1, keepdim=True))[:, None, None]


def first_asked(batch: TrafficBatch, scale: Scale) -> Tensor:
    """(b,) the first slot that is drawn; t where there is none. All draws of a window share what lies before it."""
    return (~asked(batch, scale).any(dim=(1, 3))).long().cumprod(dim=1).sum(dim=1)
