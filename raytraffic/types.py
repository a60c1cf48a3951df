"""The data every part of raytraffic speaks: a batch of traffic windows, its condition, a forecast.

Axis legend, used in every docstring of the project::

    b  window          c  channel (service)   t  time slot         s  space (cell, station or user)
    n  draw            k  POI category        d  feature           l  token

A grid is `s = h * w` in row-major order with `Space.grid == (h, w)`. Traffic is always in physical units;
scaling happens inside the Forecaster. `NaN` means "never measured": such entries are never known and never scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from raytraffic.marginals import quantile_scores, quantiles, to_residual, to_score

__all__ = [
    "CONTEXTS",
    "URBAN_CONTEXTS",
    "Condition",
    "Conditioner",
    "Denoiser",
    "Forecast",
    "Scale",
    "Space",
    "TrafficBatch",
    "order_statistics",
    "ordered_quantile",
]

#: The context names a batch may carry, with their axes. A model declares which of them it looks at.
CONTEXTS: Mapping[str, str] = MappingProxyType(
    {
        "users": "b t s",  # active users; visible only where traffic is known
        "expected_users": "b t s",  # the caller's forecast of the users; seen everywhere, NaN where the caller expects nothing
        "poi": "b k s",  # points of interest, counts
        "env": "b t|1 s d",  # environment embedding of a site (images, text)
        "profile": "b t",  # the city's mean weekly shape at these slots (mean 1), measured on training data
        "modes": "b t k",  # how whole days of the city's cells differ from the profile's (raytraffic.kriging), NaN where unknown
        "persistence": "b p",  # variances of what a cell's deviations are made of (raytraffic.kriging), NaN where unknown
        "reference": "b c",  # the city's upper reference level in traffic units, measured on training data
    }
)


#: What surrounds traffic, as against what was measured of it: fine-tuning pairs these with traffic, guidance leaves them out.
URBAN_CONTEXTS = ("users", "expected_users", "poi", "env")

#: The level of a typical cell, as a share of its city's upper reference level.
TYPICAL_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Space:
    """Where the `s` entries of a batch lie: `xy` (b, s, 2) in metres, and a grid shape or directed edges (2, e) between them."""

    xy: Tensor | None = None
    grid: tuple[int, int] | None = None
    edges: Tensor | None = None

    def to(self, device: torch.device | str) -> Space:
        """The same space on another device."""
        return Space(
            xy=None if self.xy is None else self.xy.to(device),
            grid=self.grid,
            edges=None if self.edges is None else self.edges.to(device),
        )


@dataclass(frozen=True, kw_only=True)
class TrafficBatch:
    """A batch of traffic windows of which some entries are known (DESIGN: a forecast is a mask).

    Shapes: `traffic` (b, c, t, s) in physical units with NaN where nothing was measured; `known` the same shape,
    True where the model may look; `clock` (b, t, 2) = slot of day, day of week (0 = Monday); `step_minutes` (b,);
    `key` (b,) int64, the counter-based identity of (series id, issue time) that all randomness of a window hangs on.

    Raises ValueError when shapes disagree, when a known entry is not finite or negative, or when a context is unknown.
    """

    traffic: Tensor
    known: Tensor
    clock: Tensor
    step_minutes: Tensor
    key: Tensor
    space: Space = field(default_factory=Space)
    context: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.traffic.ndim != 4:
            raise ValueError(f"traffic: shape {tuple(self.traffic.shape)}, expected (b, c, t, s)")
        b, _, t, s = self.traffic.shape
        expected = {"known": self.traffic.shape, "clock": (b, t, 2), "step_minutes": (b,), "key": (b,)}
        for name, shape in expected.items():
            got = tuple(getattr(self, name).shape)
            if got != tuple(shape):
                raise ValueError(f"{name}: shape {got}, expected {tuple(shape)}")
        if self.known.dtype != torch.bool:
            raise ValueError(f"known: dtype {self.known.dtype}, expected torch.bool")
        if self.space.grid is not None and self.space.grid[0] * self.space.grid[1] != s:
            raise ValueError(f"space.grid: {self.space.grid} has {self.space.grid[0] * self.space.grid[1]} cells, expected {s}")
        unknown = sorted(set(self.context) - set(CONTEXTS))
        if unknown:
            raise ValueError(f"context: unknown names {unknown}, expected some of {sorted(CONTEXTS)}")

    def check_values(self) -> TrafficBatch:
        """This batch, after reading every value once (ValueError if a known entry is not finite or is negative)."""
        bad = self.known & ~(torch.isfinite(self.traffic) & (self.traffic >= 0))
        if bool(bad.any()):
            where = tuple(int(i) for i in bad.nonzero()[0])
            raise ValueError(f"traffic{list(where)}: {float(self.traffic[where])}, expected a finite value >= 0 where known")
        return self

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(b, c, t, s)."""
        b, c, t, s = self.traffic.shape
        return b, c, t, s

    @property
    def measured(self) -> Tensor:
        """(b, c, t, s) bool: True where a true value exists."""
        return torch.isfinite(self.traffic)

    @property
    def hidden(self) -> Tensor:
        """(b, c, t, s) bool: True where the model must answer and the truth is there to score it."""
        return ~self.known & self.measured

    def visible(self) -> TrafficBatch:
        """The batch as a conditioner may see it: hidden traffic and hidden users are zero, so nothing can leak."""
        context = dict(self.context)
        if "users" in context:
            anywhere_known = self.known.any(dim=1)
            context["users"] = torch.where(anywhere_known, context["users"], torch.zeros_like(context["users"]))
        return replace(self, traffic=torch.where(self.known, self.traffic, torch.zeros_like(self.traffic)), context=context)

    def to(self, device: torch.device | str) -> TrafficBatch:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor | Space):
                moved[name] = value.to(device)
        moved["context"] = {name: value.to(device) for name, value in self.context.items()}
        return TrafficBatch(**moved)

    def select(self, index: Tensor | slice) -> TrafficBatch:
        """Some windows of the batch, in the order of `index`."""
        space = replace(self.space, xy=None if self.space.xy is None else self.space.xy[index])
        return TrafficBatch(
            traffic=self.traffic[index],
            known=self.known[index],
            clock=self.clock[index],
            step_minutes=self.step_minutes[index],
            key=self.key[index],
            space=space,
            context={name: value[index] for name, value in self.context.items()},
        )

    @classmethod
    def cat(cls, parts: Sequence[TrafficBatch]) -> TrafficBatch:
        """The windows of several batches of one shape and with the same contexts, one after another."""
        return cls(
            traffic=torch.cat([part.traffic for part in parts]),
            known=torch.cat([part.known for part in parts]),
            clock=torch.cat([part.clock for part in parts]),
            step_minutes=torch.cat([part.step_minutes for part in parts]),
            key=torch.cat([part.key for part in parts]),
            space=_joined_space([part.space for part in parts]),
            context={name: torch.cat([part.context[name] for part in parts]) for name in parts[0].context},
        )


def _joined_space(parts: Sequence[Space]) -> Space:
    if len(parts) == 1:
        return parts[0]
    assert all(part.grid == parts[0].grid and part.edges is None for part in parts), "windows of one shape, without edges between them"
    return Space(xy=_joined([part.xy for part in parts]), grid=parts[0].grid)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The parts one after another; None where the first is."""
    return None if parts[0] is None else torch.cat([part for part in parts if part is not None])


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How the traffic of a batch is scaled, made from known entries only; what is diffused is z of shape (b, c, t, s):

        z = S^-1(Q^-1(r)),   r = (f(x / level) - prior) / spread,   f = asinh or the identity

    `level` and `spread` (b, c, 1, s) are positive, `prior` (b, c, t, s); `ceiling` (b, c, 1, 1) bounds what comes back.
    Q is the learned marginal of a live entry, given by `knots` (b, c, t, s, k), or the identity where they are None. S takes account
    of a cell being dead with probability `silent` (b, c, 1, s), which is 0 for cells with history: standard normal scores z with
    Phi(z) < silent stand for traffic 0, and the others for the score Phi^-1((Phi(z) - silent) / (1 - silent)) of a live entry.
    Where `dead` (b, c, 1, s) every known entry is zero: the answer is exactly 0 and nothing is learned.
    """

    level: Tensor
    prior: Tensor
    spread: Tensor
    ceiling: Tensor
    dead: Tensor
    silent: Tensor
    asinh: bool
    knots: Tensor | None = None

    def residual(self, traffic: Tensor) -> Tensor:
        """r of traffic in physical units, clipped at the ceiling on the papers' linear scale; 0 where the traffic is NaN."""
        ratio = (traffic if self.asinh else torch.minimum(traffic, self.ceiling)) / self.level
        return torch.nan_to_num(((torch.asinh(ratio) if self.asinh else ratio) - self.prior) / self.spread, nan=0.0)

    def apply(self, traffic: Tensor) -> Tensor:
        """z of traffic in physical units; 0 where the traffic is NaN. Under learned marginals no score lies beyond +-4: where a
        marginal is all but flat, one entry would outweigh all others."""
        residual = self.residual(traffic)
        score = residual if self.knots is None else to_score(residual, self.knots).clamp(-_FURTHEST, _FURTHEST)
        if not self.silent.any():
            return score
        # By the upper tail and in float64: far up, Phi is 1 to a float32.
        silent = self.silent.double()
        live = -torch.special.ndtri(((1 - silent) * torch.special.ndtr(-score.double())).clamp(min=_LEAST))
        return torch.where(silent > 0, torch.where(traffic <= 0, torch.special.ndtri(silent / 2), live), score).float()

    def invert(self, z: Tensor) -> Tensor:
        """Traffic in physical units, in [0, ceiling], 0 where dead; exactly undoes `apply` within that range."""
        silenced = torch.zeros_like(z, dtype=torch.bool)
        if self.silent.any():
            score, silenced = _live_score(z, self.silent)
            z = torch.where(self.silent > 0, score, z)
        residual = z if self.knots is None else to_residual(z, self.knots)
        ratio = residual * self.spread + self.prior
        traffic = (torch.sinh(ratio.clamp(max=60.0)) if self.asinh else ratio) * self.level
        traffic = torch.minimum(traffic.clamp(min=0.0), self.ceiling)
        return torch.where(self.dead | silenced, torch.zeros_like(traffic), traffic)

    def quantiles(self, knots: Tensor) -> Tensor:
        """(b, c, t, s, n): r at the levels of `marginals.crps`, of marginals with these knots and of cells that may be dead.

        No quantile stands for negative traffic, which `invert` answers with 0.
        """
        found = quantiles(knots)
        nothing = (-self.prior / self.spread)[..., None]
        if self.silent.any():
            alone = (self.silent > 0).expand(knots.shape[:-1])
            score, silenced = _live_score(quantile_scores().to(knots), self.silent.expand(alone.shape)[alone][:, None])
            own = to_residual(score, knots[alone][:, None].expand(*score.shape, -1))
            found = found.masked_scatter(alone[..., None], torch.where(silenced, -torch.inf, own))
        return torch.maximum(found, nothing)

    def size(self, batch: TrafficBatch) -> Tensor:
        """(b, c, t, s) positive: how much traffic one unit of f stands for at the prior, relative to the city's upper reference level,
        so that busy cells of busy places count as scores on the papers' scale count them; to the window's mean known entry where a city
        has none."""
        total = batch.visible().traffic.sum((2, 3), keepdim=True)
        mean = total / batch.known.sum((2, 3), keepdim=True).clamp(min=1)
        reference = batch.context.get("reference", torch.full_like(mean[:, :, 0, 0], torch.nan))[:, :, None, None]
        unit = torch.where(torch.isfinite(reference), TYPICAL_LEVEL * reference, mean)
        slope = self.level * torch.cosh(self.prior.clamp(max=5.0)) if self.asinh else self.level.expand_as(self.prior)
        return (slope / unit.clamp(min=torch.finfo(unit.dtype).tiny)).clamp(1e-4, 100.0)

    def select(self, index: Tensor) -> Scale:
        """The scale of some windows, in the order of `index`; a window may come again and again, once a draw."""
        return Scale(
            level=self.level[index],
            prior=self.prior[index],
            spread=self.spread[index],
            ceiling=self.ceiling[index],
            dead=self.dead[index],
            silent=self.silent[index],
            asinh=self.asinh,
            knots=None if self.knots is None else self.knots[index],
        )

    @classmethod
    def cat(cls, parts: Sequence[Scale]) -> Scale:
        """The scales of several batches, one after another."""
        return cls(
            level=torch.cat([part.level for part in parts]),
            prior=torch.cat([part.prior for part in parts]),
            spread=torch.cat([part.spread for part in parts]),
            ceiling=torch.cat([part.ceiling for part in parts]),
            dead=torch.cat([part.dead for part in parts]),
            silent=torch.cat([part.silent for part in parts]),
            asinh=parts[0].asinh,
            knots=_joined([part.knots for part in parts]),
        )


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a denoiser is told, routed by how it enters the network and not by where it came from.

    `vector` (b, d) enters through adaLN or FiLM, or (b, l|1, s, d) where it differs from token to token; `tokens` (b, l, d) are added to
    the denoiser's own tokens where they are aligned with them, or attended to; `field` (b, d, t, s) are input channels. `known`
    (b, c, t, s) is the mask. `marginals` (b, c, t, s, k) are the knots of the learned marginals that what is diffused is scaled by.
    `free` is the condition of the same window without context (users, POI), for guidance.
    """

    known: Tensor
    space: Space
    vector: Tensor | None = None
    tokens: Tensor | None = None
    field: Tensor | None = None
    marginals: Tensor | None = None
    free: Condition | None = None

    def select(self, index: Tensor) -> Condition:
        """The condition of some windows, in the order of `index`; a window may come again and again, once a draw."""

        def chosen(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        return Condition(
            known=self.known[index],
            space=replace(self.space, xy=chosen(self.space.xy)),
            vector=chosen(self.vector),
            tokens=chosen(self.tokens),
            field=chosen(self.field),
            marginals=chosen(self.marginals),
            free=None if self.free is None else self.free.select(index),
        )

    @classmethod
    def cat(cls, parts: Sequence[Condition]) -> Condition:
        """The conditions of several batches of one shape, one after another."""
        free = [part.free for part in parts if part.free is not None]
        return cls(
            known=torch.cat([part.known for part in parts]),
            space=_joined_space([part.space for part in parts]),
            vector=_joined([part.vector for part in parts]),
            tokens=_joined([part.tokens for part in parts]),
            field=_joined([part.field for part in parts]),
            marginals=_joined([part.marginals for part in parts]),
            free=cls.cat(free) if free else None,
        )

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""

        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return Condition(
            known=self.known.to(device),
            space=self.space.to(device),
            vector=moved(self.vector),
            tokens=moved(self.tokens),
            field=moved(self.field),
            marginals=moved(self.marginals),
            free=None if self.free is None else self.free.to(device),
        )


class Conditioner(Protocol):
    """Turns what may be seen of a batch (`batch.visible()`, with its scale) into a Condition; once per forecast, not per step."""

    def __call__(self, batch: TrafficBatch, scale: Scale) -> Condition: ...


class Denoiser(Protocol):
    """Predicts the process's target from noisy `x` (b, c, t, s) at noise level (b,) in (0, 1]; returns (b, c, t, s)."""

    def __call__(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor: ...


#: A score that one entry in 16,000 exceeds.
_FURTHEST = 4.0
#: The smallest probability whose normal score is asked for.
_LEAST = 1e-12


def _live_score(z: Tensor, silent: Tensor) -> tuple[Tensor, Tensor]:
    """The score of a live entry that z stands for, and where z stands for a dead one."""
    above, rest = torch.special.ndtr(-z.double()), 1 - silent.double()
    return -torch.special.ndtri((above / rest).clamp(_LEAST, 1 - _LEAST)).float(), above >= rest


def order_statistics(draws: int, level: float) -> tuple[int, int, float]:
    """(i, j, weight): the quantile `level` of n draws X in ascending order is X[i] + weight (X[j] - X[i]), counted from 0.

    It lies at position level (n + 1), no further out than the extreme draws (Hyndman and Fan 1996, type 6), so that the truth of a
    calibrated forecast falls below it with probability `level` whatever n is: a further draw is equally likely in every gap.
    """
    # 0.9 * 10 and the like miss whole positions by a rounding error.
    position = min(max(round(level * (draws + 1), 9), 1.0), float(draws)) - 1
    i = int(position)
    return i, min(i + 1, draws - 1), position - i


def ordered_quantile(ordered: Tensor, level: float) -> Tensor:
    """(...): the quantile `level` in [0, 1] of draws (..., n) in ascending order, see `order_statistics`; NaN if one is NaN."""
    i, j, weight = order_statistics(ordered.shape[-1], level)
    quantile = torch.lerp(ordered[..., i], ordered[..., j], weight)
    return torch.where(ordered[..., -1].isnan(), torch.nan, quantile)  # sorting puts NaN last


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Draws from the predictive distribution: `draws` (b, n, c, t, s) in traffic units, equal to the traffic where `known`."""

    draws: Tensor
    known: Tensor

    def mean(self) -> Tensor:
        """(b, c, t, s): the mean over draws, the forecast that minimises RMSE."""
        return self.draws.mean(dim=1)

    def median(self) -> Tensor:
        """(b, c, t, s): the median over draws, the forecast that minimises MAE."""
        return self.quantile([0.5])[:, 0]

    def quantile(self, levels: list[float]) -> Tensor:
        """(b, q, c, t, s): quantiles over draws (`ordered_quantile`); ValueError unless there is a level and all lie in [0, 1]."""
        bad = [level for level in levels if not 0.0 <= level <= 1.0]
        if bad or not levels:
            raise ValueError(f"levels: {bad}, expected one or more values in [0, 1]")
        ordered = self.draws.sort(dim=1).values.movedim(1, -1)
        return torch.stack([ordered_quantile(ordered, level) for level in levels], dim=1)
