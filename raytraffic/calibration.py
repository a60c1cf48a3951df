r"""Split conformal calibration of forecasts: draws are stretched about their median until their interval holds what it says.

Per entry, with the median m of its draws and one pair of factors a per group of entries,

    x' = (sqrt(m) + a_above (sqrt(x) - sqrt(m)))^2                x > m
    x' = max(0, sqrt(m) - a_below (sqrt(m) - sqrt(x)))^2          x < m

so the order of the draws of an entry, and with it their joint structure over time and space, stays. On the square-root scale
traffic is roughly symmetric, zero is an ordinary value and a draw grows at most a^2-fold; on real traffic the CRPS is
within 0.2 % of that of asinh(x / level), which needs a level for cells without history and can make a tail explode.

The score of an entry is, on each side, the smallest factor at which the central interval covers the truth (scaled conformalized
quantile regression: Romano, Patterson and Candes 2019), and a group's factor is the score at rank ceil(p N (W + 1) / W) of its
N entries, p = (1 + level) / 2. Entries of one window depend on each other, so windows count as exchangeable and not entries:
with W fitting windows of equally many entries, an entry of a fresh window lies above its interval with probability at most
(1 - level) / 2, and below it too (Dunn, Wasserman and Ramdas 2022, pooled). Windows that overlap in time break this promise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raytraffic.metrics.calibration import spans
from raytraffic.metrics.entries import gather
from raytraffic.types import Forecast, TrafficBatch, order_statistics, ordered_quantile

__all__ = ["HORIZON_HOURS", "LARGEST", "LOAD_SHARES", "SMALLEST", "Calibration"]

#: Upper edges, closed, of the horizon buckets; one bucket lies beyond the last, and one more holds cells without history.
HORIZON_HOURS = (1.0, 4.0, 12.0, 24.0)
#: Edges of the load clusters: a cell's mean known level as a share of its city's reference, half a decade each.
LOAD_SHARES = (0.03, 0.1, 0.3)
#: Bounds of every factor: beyond them the model is wrong, and no stretch of its draws helps.
SMALLEST, LARGEST = 0.25, 4.0
#: A group has a factor of its own from this many times the fewest windows that pin its quantile at all: the correction
#: then takes at most a fifth of the tail (level 0.8: 45 windows).
_ENOUGH = 5
_HALVINGS = 20  # of the range of factors: a score is exact to 3 parts in a million

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Factors by horizon (rows: the buckets of `horizon_hours`, beyond them, no history) and load (columns: the clusters cut at
    `load_shares`, any load), fitted for the central interval `level` on so many `windows` of each group's own.

    The horizon is the time to the nearest known entry of the cell. Groups of too few windows hold the factors of their horizon
    over all loads, or of all entries. It converts with `raytraffic.config.to_json` and `from_json`. Raises ValueError naming the
    field unless the level lies in [0.5, 1), the edges are positive and increase, and every table has its shape and range.
    """

    level: float
    below: Table
    above: Table
    windows: tuple[tuple[int, ...], ...]
    horizon_hours: tuple[float, ...] = HORIZON_HOURS
    load_shares: tuple[float, ...] = LOAD_SHARES

    def __post_init__(self) -> None:
        _check_level(self.level)
        for name, edges in (("horizon_hours", self.horizon_hours), ("load_shares", self.load_shares)):
            if not all(low < high < math.inf for low, high in zip((0.0, *edges), edges, strict=False)):
                raise ValueError(f"{name}: {list(edges)}, expected finite, positive, increasing edges")
        rows, columns = len(self.horizon_hours) + 2, len(self.load_shares) + 2
        for name, table, low, high in (
            ("below", self.below, SMALLEST, LARGEST),
            ("above", self.above, SMALLEST, LARGEST),
            ("windows", self.windows, 0, math.inf),
        ):
            if [len(row) for row in table] != [columns] * rows:
                raise ValueError(f"{name}: rows of {[len(row) for row in table]} values, expected {rows} rows of {columns}")
            for i, row in enumerate(table):
                for j, value in enumerate(row):
                    if not low <= value <= high:
                        raise ValueError(f"{name}[{i}][{j}]: {value}, expected a value in [{low}, {high}]")

    @classmethod
    def fit(cls, pairs: Iterable[tuple[TrafficBatch, Forecast]], level: float = 0.8) -> Calibration:
        """The calibration of forecasts of measured windows that the model was not trained on, read once, one pair at a time.

        Hidden entries take part, except those of cells whose known entries are all zero. Raises ValueError when a forecast's
        shape is not its batch's, a draw is negative or not finite, the draws are too few for the level, or the windows fewer than
        (1 + level) / (1 - level). Windows should be of the tasks that will be served, in their proportion: the horizon does not tell
        how much history a cell has.
        """
        _check_level(level)
        scores = _Scores(level)
        for batch, forecast in pairs:
            scores.add(batch, forecast)
        below, above, windows = scores.tables()
        return cls(level=level, below=below, above=above, windows=windows)

    def apply(self, batch: TrafficBatch, forecast: Forecast) -> Forecast:
        """The forecast with draws (b, n, c, t, s) stretched where hidden; known entries and dead cells come back bit for bit.

        It looks at `batch.visible()` only. Raises ValueError when the forecast's shape is not the batch's or a draw is negative.
        """
        _check(batch, forecast)
        horizon = _horizon(batch, self.horizon_hours)
        load = _load(batch, self.load_shares)
        draws = forecast.draws
        tables = (torch.tensor(table, dtype=draws.dtype, device=draws.device) for table in (self.below, self.above))
        below, above = (table[horizon, load][:, None] for table in tables)
        stretched = _stretch(draws, forecast.median()[:, None], below, above)
        return replace(forecast, draws=torch.where((~batch.known & ~_dead(batch))[:, None], stretched, draws))


class _Scores:
    """The scores of all entries read so far (10 bytes an entry), and in how many windows each group was met."""

    def __init__(self, level: float) -> None:
        self.level = level
        self.horizons, self.loads = len(HORIZON_HOURS) + 2, len(LOAD_SHARES) + 1
        # The last row is any horizon, the last column any load.
        self.windows = torch.zeros(self.horizons + 1, self.loads + 1, dtype=torch.int64)
        self.groups: list[Tensor] = []
        self.scores: list[Tensor] = []

    def add(self, batch: TrafficBatch, forecast: Forecast) -> None:
        """Score the hidden entries of live cells of one batch."""
        _check(batch, forecast)
        draws = forecast.draws.shape[1]
        if not spans(draws, self.level):
            fewest = math.ceil(round(2 / (1 - self.level) - 1, 9))
            raise ValueError(f"draws: {draws}, expected at least {fewest} to span the central interval of level {self.level}")
        where = batch.hidden & ~_dead(batch)
        truth, x = gather(batch.traffic, forecast.draws, where)
        ordered = x.sort(dim=1).values
        horizon = _horizon(batch, HORIZON_HOURS)[where]
        load = _load(batch, LOAD_SHARES)[where]
        met = torch.zeros(batch.shape[0], self.horizons + 1, self.loads + 1, dtype=torch.bool, device=where.device)
        met[where.nonzero()[:, 0], horizon, load] = True
        met[:, :, -1] = met.any(dim=2)
        met[:, -1] = met.any(dim=1)
        self.windows += met.sum(dim=0).cpu()
        self.groups.append(torch.stack((horizon, load)).to("cpu", torch.uint8))
        self.scores.append(torch.stack(_needed(truth, ordered, self.level)).to("cpu", torch.float32))

    def tables(self) -> tuple[Table, Table, tuple[tuple[int, ...], ...]]:
        """`below`, `above` and `windows` of the Calibration."""
        fewest = math.ceil(round((1 + self.level) / (1 - self.level), 9))
        total = int(self.windows[-1, -1])
        if total < fewest:
            raise ValueError(f"pairs: {total} windows with hidden entries of live cells, expected at least {fewest} for level {self.level}")
        (horizon, load), scores = torch.cat(self.groups, dim=1), torch.cat(self.scores, dim=1)
        anything = torch.ones_like(horizon, dtype=torch.bool)
        everywhere = self._factors(scores, total)
        factors = torch.empty(2, self.horizons, self.loads + 1, dtype=torch.float64)
        for i in range(self.horizons):
            of_horizon = everywhere
            for j in reversed(range(self.loads + 1)):  # any load comes first, the others fall back on it
                own, windows = (horizon == i) & (anything if j == self.loads else load == j), int(self.windows[i, j])
                factors[:, i, j] = self._factors(scores[:, own], windows) if windows >= _ENOUGH * fewest else of_horizon
                of_horizon = factors[:, i, self.loads]
        below, above = (tuple(tuple(row) for row in table.tolist()) for table in factors)
        return below, above, tuple(tuple(row) for row in self.windows[:-1].tolist())

    def _factors(self, scores: Tensor, windows: int) -> Tensor:
        """(2,): the corrected quantiles of scores (2, m)."""
        p, m = (1 + self.level) / 2, scores.shape[1]
        rank = min(math.ceil(round(p * m * (windows + 1) / windows, 6)), m)
        return scores.kthvalue(rank, dim=1).values.double().clamp(max=LARGEST)


def _needed(truth: Tensor, ordered: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """(m,), (m,): the smallest factors below and above at which the interval of draws (m, n) covers truth (m,); inf if none does."""
    median = ordered_quantile(ordered, 0.5)[:, None]
    return (
        _search(truth, ordered, median, (1 - level) / 2, above=False),
        _search(truth, ordered, median, (1 + level) / 2, above=True),
    )


def _search(truth: Tensor, ordered: Tensor, median: Tensor, quantile: float, *, above: bool) -> Tensor:
    """(m,): by bisection, which asks nothing of the scale that draws are stretched on but that coverage grows with the factor."""
    i, j, weight = order_statistics(ordered.shape[1], quantile)

    def covers(factor: Tensor) -> Tensor:
        ends = _stretch(ordered[:, [i, j]], median, factor[:, None], factor[:, None])
        end = torch.lerp(ends[:, 0], ends[:, 1], weight)
        return truth <= end if above else truth >= end

    low, high = torch.full_like(truth, SMALLEST), torch.full_like(truth, LARGEST)
    always, never = covers(low), ~covers(high)
    for _ in range(_HALVINGS):
        middle = (low * high).sqrt()
        inside = covers(middle)
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    return torch.where(always, SMALLEST, torch.where(never, torch.inf, high))


def _stretch(draws: Tensor, median: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """The draws stretched about the median on the square-root scale; all broadcast. Exactly the draws where the factor is 1."""
    upper = draws > median
    factor = torch.where(upper, above, below)
    root = median.sqrt()
    stretched = (root + factor * (draws.sqrt() - root)).clamp(min=0.0) ** 2
    # Rounding must not carry a draw over the median, nor a draw near the largest float to infinity.
    stretched = torch.where(upper, torch.maximum(stretched, median), torch.minimum(stretched, median))
    return torch.where((factor == 1) | (draws == median), draws, stretched.clamp(max=torch.finfo(draws.dtype).max))


def _horizon(batch: TrafficBatch, edges: tuple[float, ...]) -> Tensor:
    """(b, c, t, s) the bucket of the hours to the nearest known entry of the cell, before or after; the last where there is none."""
    slot = torch.arange(batch.shape[2], dtype=torch.float32, device=batch.known.device)[:, None]
    before = torch.where(batch.known, slot, -torch.inf).cummax(dim=2).values
    after = torch.where(batch.known, slot, torch.inf).flip(2).cummin(dim=2).values.flip(2)
    hours = torch.minimum(slot - before, after - slot) * batch.step_minutes[:, None, None, None] / 60
    bucket = torch.bucketize(hours, torch.tensor(edges, device=hours.device))
    return torch.where(torch.isinf(hours), len(edges) + 1, bucket)


def _load(batch: TrafficBatch, edges: tuple[float, ...]) -> Tensor:
    """(b, c, t, s) the load cluster of the cell; the last column of the tables where nothing tells it.

    The level is the mean of the cell's known entries, without history the mean over the tile's live cells; it is measured by
    the city's reference or, where that is unknown, by the largest known entry of the tile.
    """
    traffic = batch.visible().traffic
    count = batch.known.sum(dim=2, keepdim=True)
    own = traffic.sum(dim=2, keepdim=True) / count.clamp(min=1)
    tile = own.sum(dim=3, keepdim=True) / (own > 0).sum(dim=3, keepdim=True).clamp(min=1)
    level = torch.where(count > 0, own, tile)
    unit = traffic.amax(dim=(2, 3), keepdim=True)
    if "reference" in batch.context:
        reference = batch.context["reference"][:, :, None, None].to(unit.dtype)
        unit = torch.where(torch.isfinite(reference) & (reference > 0), reference, unit)
    share = level / unit
    cluster = torch.bucketize(share, torch.tensor(edges, dtype=share.dtype, device=share.device))
    told = (unit > 0) & (count.sum(dim=3, keepdim=True) > 0)
    return torch.where(told, cluster, len(edges) + 1).expand_as(traffic)


def _dead(batch: TrafficBatch) -> Tensor:
    """(b, c, 1, s) bool: something of the cell is known, and all of it is zero."""
    silent = (batch.visible().traffic == 0).all(dim=2, keepdim=True)
    return batch.known.any(dim=2, keepdim=True) & silent


def _check_level(level: float) -> None:
    # Under 0.5 the draws around an end of the interval may lie on both sides of the median.
    if not 0.5 <= level < 1:
        raise ValueError(f"level: {level}, expected a central interval in [0.5, 1)")


def _check(batch: TrafficBatch, forecast: Forecast) -> None:
    got, (b, *rest) = tuple(forecast.draws.shape), batch.shape
    if len(got) != 5 or got[1] == 0 or (got[0], *got[2:]) != (b, *rest):
        raise ValueError(f"draws: shape {got}, expected ({b}, n, {', '.join(map(str, rest))}) with n >= 1 as the batch's traffic")
    if bool((forecast.draws < 0).any()):
        raise ValueError(f"draws: {float(forecast.draws.min())}, expected traffic >= 0")
