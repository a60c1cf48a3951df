r"""What all generators share: the protocol, and station-windows as rows of scaled traffic with what is told of them.

    z = (asinh(x / unit) - mean) / deviation         unit: the median of training traffic above zero, for each service

A row's condition is the station's POI (log counts, standardised) and the clock (harmonics of the day, the weekday), slot by slot: the same
that STOUTER is told but for the graphs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from raytraffic.forecaster import rows_of
from raytraffic.nn.embeddings import HOUR_FEATURES, WEEKDAYS, hour_of_day
from raytraffic.randomness import normal
from raytraffic.types import TrafficBatch

__all__ = ["Fitting", "Generator", "RowScale", "Rows", "row_noise", "trained"]


class Generator(Protocol):
    """Anything that makes traffic of stations and times alone; draws of a window depend on (its key, seed) alone."""

    @property
    def name(self) -> str:
        """How the generator is called in tables."""
        ...

    def generate(self, context: TrafficBatch, draws: int, seed: int) -> Tensor:
        """(b, n, c, t, s) traffic in physical units at the clock and the POI of windows whose traffic is never looked at."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a generator is trained: Adam's `steps` of `rows` station-windows each, fewer where the CPU time of `minutes` is over; `hidden`
    channels."""

    steps: int = 1000
    rows: int = 64
    hidden: int = 48
    learning_rate: float = 1e-3
    minutes: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.rows, self.hidden) < 1 or not self.learning_rate > 0:
            raise ValueError(f"fitting: {self}, expected steps, rows and hidden >= 1 and a learning_rate > 0")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes: {self.minutes}, expected a time > 0")


@dataclass(frozen=True, eq=False)
class RowScale:
    """The scale of training traffic (unit, mean and deviation (c, 1)) and of training POI (k,)."""

    unit: Tensor
    mean: Tensor
    deviation: Tensor
    poi_mean: Tensor
    poi_deviation: Tensor

    @classmethod
    def of(cls, batches: Sequence[TrafficBatch]) -> RowScale:
        """The scale of training windows; ValueError where none of their traffic is above zero."""
        traffic = torch.cat([batch.traffic.transpose(0, 1).flatten(1) for batch in batches], dim=1)
        unit = torch.where(traffic > 0, traffic, torch.nan).nanmedian(dim=1, keepdim=True).values
        if not bool(torch.isfinite(unit).all()):
            raise ValueError("batches: a service without traffic above zero, expected some of each")
        z = torch.asinh(traffic / unit)
        mean = z.nanmean(dim=1, keepdim=True)
        poi = torch.cat([_log_poi(batch) for batch in batches])
        return cls(unit, mean, ((z - mean) ** 2).nanmean(dim=1, keepdim=True).sqrt(), poi.mean(0), poi.std(0, correction=0).clamp(min=1e-3))

    @property
    def services(self) -> int:
        """Channels of the traffic."""
        return len(self.unit)

    @property
    def features(self) -> int:
        """Channels of a condition."""
        return len(self.poi_mean) + HOUR_FEATURES + WEEKDAYS

    def condition(self, batch: TrafficBatch) -> Tensor:
        """(b * s, features, t): what is told of every station of a batch, slot by slot."""
        _, _, t, s = batch.shape
        poi = ((_log_poi(batch) - self.poi_mean) / self.poi_deviation)[..., None].expand(-1, -1, t)
        weekday = nn.functional.one_hot(batch.clock[..., 1], WEEKDAYS).float()
        clock = torch.cat((hour_of_day(batch.clock, batch.step_minutes), weekday), dim=-1).transpose(1, 2)
        return torch.cat((poi, clock[:, None].expand(-1, s, -1, -1).flatten(0, 1)), dim=1)

    def apply(self, traffic: Tensor) -> Tensor:
        """z of traffic (..., c, t)."""
        return (torch.asinh(traffic / self.unit) - self.mean) / self.deviation

    def invert(self, z: Tensor) -> Tensor:
        """Traffic (..., c, t) >= 0 of z."""
        return (torch.sinh((z * self.deviation + self.mean).clamp(0, 20)) * self.unit).clamp(min=0)


def _log_poi(batch: TrafficBatch) -> Tensor:
    """(b * s, k) log counts; of no category where a batch has none."""
    b, _, _, s = batch.shape
    poi = batch.context.get("poi", batch.traffic.new_zeros(b, 0, s))
    return torch.log1p(torch.nan_to_num(poi)).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Rows:
    """Station-windows to learn from: z (m, c, t) and conditions (m, f, t)."""

    z: Tensor
    condition: Tensor

    @classmethod
    def of(cls, batches: Sequence[TrafficBatch], scale: RowScale) -> Rows:
        """Those that were measured throughout, of windows of one length; ValueError where there is none."""
        traffic = torch.cat([batch.traffic.permute(0, 3, 1, 2).flatten(0, 1) for batch in batches])
        condition = torch.cat([scale.condition(batch) for batch in batches])
        whole = torch.isfinite(traffic).all(dim=(1, 2))
        if not bool(whole.any()):
            raise ValueError("batches: no station-window that was measured throughout, expected at least one")
        return cls(scale.apply(traffic[whole]), condition[whole])

    def batches(self, fitting: Fitting) -> Iterator[tuple[Tensor, Tensor]]:
        """Random rows (r, c, t) and their conditions, for as many steps as are wanted or there is time for."""
        generator = torch.Generator().manual_seed(fitting.seed)
        end = None if fitting.minutes is None else time.process_time() + 60 * fitting.minutes
        for _ in range(fitting.steps):
            if end is not None and time.process_time() > end:
                return
            row = torch.randint(len(self.z), (fitting.rows,), generator=generator)
            yield self.z[row], self.condition[row]


def trained(network: nn.Module, rows: Rows, loss: Callable[[Tensor, Tensor], Tensor], fitting: Fitting) -> None:
    """Trains a network's parameters by Adam on `loss` (z, condition) of random rows."""
    adam = torch.optim.Adam(network.parameters(), lr=fitting.learning_rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fitting.seed)
        for z, condition in rows.batches(fitting):
            adam.zero_grad()
            loss(z, condition).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            adam.step()
    network.eval()


def row_noise(context: TrafficBatch, draws: int, seed: int, stream: int, shape: tuple[int, ...]) -> Tensor:
    """(b * n * s, *shape) standard normal noise of every station of every draw of every window."""
    if draws < 1:
        raise ValueError(f"draws: {draws}, expected at least 1")
    _, seeds = rows_of(context, draws, seed)
    return normal(seeds, stream, (context.shape[3], *shape)).flatten(0, 1)
