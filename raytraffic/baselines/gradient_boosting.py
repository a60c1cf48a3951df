"""Direct quantile regression with gradient-boosted trees (LightGBM), the strongest peer of a trained model on a single city.

One booster a granularity and quantile level learns (y - c_0) / l of every hidden entry y at once, whatever its lead, with l the
level of the cell and c_0 its profile x level (`ridge.FALLBACK`). It sees the simple rules' candidates, the latest known values,
the clock, the lead and how the cell varies, all divided by l. Draws invert the quantile function, linear between the levels and
beyond them, at uniform random levels: one an entry, so that draws are independent given the quantiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raytraffic.baselines.candidates import borrowed_mean, borrowed_median, entry_scale, first_answer, in_double, lead, recent_sum, shape
from raytraffic.baselines.ridge import BLENDED, FALLBACK
from raytraffic.randomness import derive, uniform
from raytraffic.types import Forecast, TrafficBatch

if TYPE_CHECKING:
    from lightgbm import Booster

__all__ = ["LEVELS", "GradientBoosting", "fit"]

#: The quantile levels that are learned.
LEVELS = tuple(round(0.1 * i, 1) for i in range(1, 10))
# Not how large a cell is beside its tile or city: a city has some dozens of places to train on, and trees tell them apart by it.
_CANDIDATES = tuple(candidate for candidate in BLENDED if candidate not in (borrowed_mean, borrowed_median))
_LATEST = 4  # latest known values that are features of their own
_LEVEL, _ROW = 67, 68  # streams of random numbers
_FIXED = {
    "objective": "quantile",
    "verbosity": -1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
}


@dataclass(frozen=True, eq=False)
class GradientBoosting:
    """Fitted boosters: granularity in minutes -> one a quantile level of `LEVELS`."""

    boosters: Mapping[int, tuple[Booster, ...]]
    name: str = "gradient boosting"

    def forecast(self, batch: TrafficBatch, draws: int = 1, seed: int = 0) -> Forecast:
        """`draws` draws, 0 where every known entry of a cell is zero; ValueError for no draw or an unknown granularity."""
        if draws < 1:
            raise ValueError(f"draws: {draws}, expected at least 1")
        _, c, t, s = batch.shape
        quantiles = self.quantiles(batch)
        spread = quantiles.diff(dim=1)
        knots = torch.cat((quantiles[:, :1] - spread[:, :1], quantiles, quantiles[:, -1:] + spread[:, -1:]), dim=1)
        at = uniform(derive(batch.key, seed), _LEVEL, (draws, c, t, s)).double() * (len(LEVELS) + 1)
        below = at.long()
        low, high = knots.gather(1, below), knots.gather(1, below + 1)
        drawn = (low + (at - below) * (high - low)).clamp(min=0.0).to(batch.traffic.dtype)
        return Forecast(draws=torch.where(batch.known[:, None], batch.traffic[:, None], drawn), known=batch.known)

    def quantiles(self, batch: TrafficBatch) -> Tensor:
        """(b, levels, c, t, s) float64 quantiles in traffic units, never falling along `LEVELS`; the traffic where known."""
        steps = set(batch.step_minutes.tolist())
        if not steps <= set(self.boosters):
            raise ValueError(f"step_minutes: {sorted(steps)}, expected some of {sorted(self.boosters)}, which the boosters were fitted on")
        features, base, scale, live = _entries(batch)
        answer = torch.where(batch.known, batch.traffic, 0.0).double()[..., None].repeat(1, 1, 1, 1, len(LEVELS))
        for step in sorted(steps):
            mine = ~batch.known & live & (batch.step_minutes == step)[:, None, None, None]
            if bool(mine.any()):
                rows = features[mine].numpy()
                z = torch.from_numpy(np.stack([booster.predict(rows, num_threads=1) for booster in self.boosters[step]], axis=-1))
                answer[mine] = base[mine][:, None] + scale[mine][:, None] * z.sort(dim=-1).values
        return answer.clamp(min=0.0).movedim(-1, 1)


def fit(
    batches: Iterable[TrafficBatch],
    rounds: int = 250,
    learning_rate: float = 0.05,
    leaves: int = 31,
    min_rows_in_leaf: int = 100,
    rows: int = 100_000,
    size_power: float = 0.5,
) -> GradientBoosting:
    """Boosters fitted on at most `rows` hidden entries a granularity of masked training windows, drawn evenly from all.

    Entries weigh (level / mean level) ** `size_power`: 1 is the pinball loss in traffic units, 0 the one relative to each cell's
    level. The same windows in any order of batches give the same boosters. Raises ValueError when nothing is hidden or a
    setting is out of its range, and ImportError without LightGBM.
    """
    for name, count in {"rounds": rounds, "min_rows_in_leaf": min_rows_in_leaf, "rows": rows}.items():
        if count < 1:
            raise ValueError(f"{name}: {count}, expected at least 1")
    if leaves < 2:
        raise ValueError(f"leaves: {leaves}, expected at least 2")
    if learning_rate <= 0:
        raise ValueError(f"learning_rate: {learning_rate}, expected > 0")
    if not 0.0 <= size_power <= 1.0:
        raise ValueError(f"size_power: {size_power}, expected a value in [0, 1]")
    lightgbm = _lightgbm()
    setting = {"learning_rate": learning_rate, "num_leaves": leaves, "min_data_in_leaf": min_rows_in_leaf, "seed": 1, **_FIXED}
    boosters: dict[int, tuple[Booster, ...]] = {}
    for step, (features, target, level) in _training_rows(batches, rows).items():
        weight = (level / level.mean()) ** size_power
        data = lightgbm.Dataset(features, target, weight=weight, params={"verbosity": -1}, free_raw_data=False)
        boosters[step] = tuple(lightgbm.train({**setting, "alpha": alpha}, data, rounds) for alpha in LEVELS)
    if not boosters:
        raise ValueError("batches: no hidden entry of a live cell, expected masked training windows")
    return GradientBoosting(boosters=boosters)


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError as error:
        raise ImportError("gradient boosting needs LightGBM: pip install 'raytraffic[baselines]'") from error
    return lightgbm


def _training_rows(batches: Iterable[TrafficBatch], limit: int) -> dict[int, tuple[NDArray[np.float32], ...]]:
    """Granularity -> features (n, d), targets (n,) and levels (n,) of the `limit` entries with the smallest random numbers."""
    kept: dict[int, tuple[Tensor, ...]] = {}
    for batch in batches:
        features, base, scale, live = _entries(batch)
        coarse, fine = uniform(batch.key, _ROW, (2, *batch.shape[1:])).double().unbind(dim=1)
        order = coarse + fine * 2.0**-32  # one number of 32 bits would tie, and ties would fall as the batches come
        for step in batch.step_minutes.unique().tolist():
            mine = batch.hidden & live & (batch.step_minutes == step)[:, None, None, None]
            target = (batch.traffic[mine] - base[mine]) / scale[mine]
            found = (order[mine], features[mine], target, scale[mine])
            joined = [torch.cat(pair) for pair in zip(kept[step], found, strict=True)] if step in kept else found
            first = joined[0].argsort()[:limit]
            kept[step] = tuple(column[first] for column in joined)
    return {step: tuple(column.float().numpy() for column in columns[1:]) for step, columns in sorted(kept.items()) if len(columns[0])}


def _entries(batch: TrafficBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (b, c, t, s, d) float32, what the forecast starts from, its scale, and whether the entry can be scaled, (b, c, t, s)."""
    seen = in_double(batch.visible())
    scale, dead = entry_scale(seen)
    base, _ = first_answer(seen, FALLBACK)
    return _features(seen, scale, base).float(), base, scale.expand_as(base), (~dead & (scale > 0)).expand_as(batch.known)


def _features(seen: TrafficBatch, scale: Tensor, base: Tensor) -> Tensor:
    """(b, c, t, s, d) float64 features of every entry, traffic divided by the cell's level; NaN where there is nothing to say."""
    unit = torch.where(scale > 0, scale, torch.nan)
    columns = [base / unit]
    for candidate in _CANDIDATES:
        value, found = candidate(seen)
        columns.append(torch.where(found, value / unit, torch.nan))
    columns += _latest(seen.traffic / unit, seen.known)
    columns += _variation(seen.traffic / unit, seen.known, shape(seen))
    columns += [shape(seen), lead(seen), seen.known.sum(dim=2, keepdim=True)]
    columns += list(seen.clock[:, None, :, None, :].unbind(dim=-1))
    return torch.stack([column.double().expand(seen.shape) for column in columns], dim=-1)


def _latest(value: Tensor, known: Tensor) -> list[Tensor]:
    """The cell's latest known values before a slot one by one, and the means of the latest four and eight."""
    sums = [recent_sum(value, known, slots)[0] for slots in (*range(_LATEST + 1), 8)]
    count = torch.where(known, 0, known.cumsum(dim=2))  # what is known needs no features
    single = [torch.where(count >= i, sums[i] - sums[i - 1], torch.nan) for i in range(1, _LATEST + 1)]
    return [*single, sums[_LATEST] / count.clamp(max=_LATEST), sums[-1] / count.clamp(max=8)]


def _variation(value: Tensor, known: Tensor, profile: Tensor) -> list[Tensor]:
    """Smallest, largest and standard deviation of the cell's known values, and the deviation of what the profile leaves."""
    count = known.sum(dim=2, keepdim=True)
    low = value.masked_fill(~known, torch.inf).amin(dim=2, keepdim=True)
    high = value.masked_fill(~known, -torch.inf).amax(dim=2, keepdim=True)
    columns = [torch.where(count > 0, low, torch.nan), torch.where(count > 0, high, torch.nan)]
    for series in (value, value - profile):
        inside = torch.where(known, series, 0.0)
        mean = inside.sum(dim=2, keepdim=True) / count
        columns.append(torch.sqrt((torch.where(known, inside - mean, 0.0) ** 2).sum(dim=2, keepdim=True) / count))
    return columns
