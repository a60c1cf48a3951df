"""Scores of many batches as sums, so that any partition of the entries over batches or workers gives the same result."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import Tensor

from raytraffic.metrics.calibration import covered, spans
from raytraffic.metrics.distribution import JSD_BINS, divergence, energy_score, fair_crps, histogram_bin
from raytraffic.metrics.entries import gather
from raytraffic.types import Forecast, TrafficBatch

__all__ = ["LEVELS", "ScoredEntries", "ScoredForecast", "Scores", "score_entries", "score_forecast"]

#: Levels of the central intervals whose coverage is counted.
LEVELS = (0.5, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class ScoredEntries:
    """m entries, scored once in physical units: the draws are sorted one time for every population and unit they are read in.

    `window` (m,); `live` (m,) bool: the cell has traffic somewhere in the window; `mean_error`, `median_error`, `crps` (m,) float64;
    `mean_variance` (m,) what the mean over so many draws varies by, 0 for a single one;
    `energy` (m,) stands at the first scored slot of a cell for the cell's whole course, NaN at its others; `hits` (m, levels) bool,
    of which `spanned` levels have enough draws; `scale` (m,) is 1 on the [0, 1] scale, NaN where unknown; the bins are on that scale.
    """

    window: Tensor
    live: Tensor
    mean_error: Tensor
    mean_variance: Tensor
    median_error: Tensor
    crps: Tensor
    energy: Tensor
    hits: Tensor
    spanned: tuple[bool, ...]
    scale: Tensor
    truth_bin: Tensor
    draw_bins: Tensor

    def __len__(self) -> int:
        return len(self.window)

    def select(self, where: Tensor) -> ScoredEntries:
        """The entries where (m,) is True."""
        chosen = {f.name: getattr(self, f.name)[where] for f in fields(self) if f.name != "spanned"}
        return ScoredEntries(**chosen, spanned=self.spanned)


def score_entries(truth: Tensor, draws: Tensor, where: Tensor, scale: Tensor | None = None) -> ScoredEntries:
    """Scores of every entry of truth (b, ..., t, s) and draws (b, n, ..., t, s) where (b, ..., t, s) is True.

    `scale` broadcasts to truth, the same for all slots of a cell, and is what one unit of the [0, 1] scale measures; entries whose
    scale is not finite and positive have none. Raises ValueError when shapes disagree or a scored value is not finite.
    """
    y, x = gather(truth, draws, where)
    x = x.sort(dim=1).values
    n = x.shape[1]
    unit = torch.full_like(y, torch.nan) if scale is None else scale.expand_as(truth)[where].double()
    unit = torch.where(torch.isfinite(unit) & (unit > 0), unit, torch.nan)
    spanned = tuple(spans(n, level) for level in LEVELS)
    never = torch.zeros_like(y, dtype=torch.bool)
    hits = [covered(y, x, level) if enough else never for level, enough in zip(LEVELS, spanned, strict=True)]
    live = (torch.nan_to_num(truth) != 0).any(dim=-2, keepdim=True).expand_as(truth)
    energy = energy_score(truth, draws, where).unsqueeze(-2).where(where.cumsum(dim=-2) == 1, torch.nan)
    return ScoredEntries(
        window=where.nonzero()[:, 0],
        live=live[where],
        mean_error=x.mean(dim=1) - y,
        mean_variance=x.var(dim=1) / n if n > 1 else torch.zeros_like(y),
        median_error=(x[:, (n - 1) // 2] + x[:, n // 2]) / 2 - y,
        crps=fair_crps(y, x),
        energy=energy[where],
        hits=torch.stack(hits, dim=1),
        spanned=spanned,
        scale=unit,
        truth_bin=histogram_bin(torch.nan_to_num(y / unit)),
        draw_bins=histogram_bin(torch.nan_to_num(x / unit[:, None])),
    )


@dataclass(frozen=True, kw_only=True)
class ScoredForecast:
    """A batch with the `entries` where it is hidden, scored; `city` (m,) is the place of an entry's city among the `cities`."""

    batch: TrafficBatch
    entries: ScoredEntries
    cities: tuple[str, ...]
    city: Tensor


def score_forecast(batch: TrafficBatch, forecast: Forecast, cities: Sequence[str]) -> ScoredForecast:
    """Score a forecast of a batch with its hidden truth; `cities` names the city of every window (b), `context["reference"]` is the scale.

    Raises ValueError when the forecast's shape is not the batch's, or when there is not one city a window.
    """
    if len(cities) != batch.shape[0]:
        raise ValueError(f"cities: {len(cities)} names, expected one for each of the {batch.shape[0]} windows")
    reference = batch.context.get("reference")
    scale = None if reference is None else reference[:, :, None, None]
    entries = score_entries(batch.traffic, forecast.draws, batch.hidden, scale)
    names = tuple(sorted(set(cities)))
    city = torch.tensor([names.index(name) for name in cities], device=entries.window.device)[entries.window]
    return ScoredForecast(batch=batch, entries=entries, cities=names, city=city)


@dataclass(kw_only=True)
class Scores:
    """Sums over scored entries; float64, so a partition changes a result by rounding only (about 1e-12).

    RMSE takes the mean over draws, MAE the median. Debiased, RMSE is that of the forecast's own mean: the variance which the mean over n
    draws adds to every squared error is taken out, so that it does not depend on n, as the fair CRPS does not. The energy score is a
    mean over the `cells` of all windows. Errors are not clipped to [0, 1], only the histograms of the JSD are.
    """

    entries: int = 0
    cells: int = 0
    windows: int = 0
    squared_error: float = 0.0
    mean_variance: float = 0.0
    absolute_error: float = 0.0
    crps: float = 0.0
    energy: float = 0.0
    interval_entries: list[int] = field(default_factory=lambda: [0] * len(LEVELS))
    interval_hits: list[int] = field(default_factory=lambda: [0] * len(LEVELS))
    truth_histogram: list[float] = field(default_factory=lambda: [0.0] * JSD_BINS)
    draw_histogram: list[float] = field(default_factory=lambda: [0.0] * JSD_BINS)

    def update(self, truth: Tensor, draws: Tensor, where: Tensor, scale: Tensor | None = None) -> None:
        """Add the entries of truth (b, ..., t, s) and draws (b, n, ..., t, s) where True; on the [0, 1] scale if `scale` is given.

        Without it the scores are in physical units and there is no JSD; with it entries of unknown scale are left out.
        """
        entries = score_entries(truth, draws, where, scale)
        self.add(entries, scaled=scale is not None)

    def add(self, entries: ScoredEntries, *, scaled: bool) -> None:
        """Add entries that are scored already, on the [0, 1] scale (entries that have one) or in physical units."""
        if scaled:
            entries = entries.select(torch.isfinite(entries.scale))
        unit = entries.scale if scaled else torch.ones_like(entries.crps)
        part = Scores(
            entries=len(entries),
            cells=int(torch.isfinite(entries.energy).sum()),
            windows=len(entries.window.unique()),
            squared_error=float(((entries.mean_error / unit) ** 2).sum()),
            mean_variance=float((entries.mean_variance / unit**2).sum()),
            absolute_error=float((entries.median_error / unit).abs().sum()),
            crps=float((entries.crps / unit).sum()),
            energy=float((entries.energy / unit).nansum()),
            interval_entries=[len(entries) * enough for enough in entries.spanned],
            interval_hits=entries.hits.sum(dim=0).tolist(),
        )
        if scaled:
            part.truth_histogram = torch.bincount(entries.truth_bin, minlength=JSD_BINS).double().tolist()
            counts = torch.bincount(entries.draw_bins.flatten(), minlength=JSD_BINS).double()
            part.draw_histogram = (counts / entries.draw_bins.shape[1]).tolist()
        self.merge(part)

    def merge(self, other: Scores) -> None:
        """Add the sums of another part; parts must not share a window, or it counts twice in `windows`."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            total = [a + b for a, b in zip(mine, theirs, strict=True)] if isinstance(mine, list) else mine + theirs
            setattr(self, f.name, total)

    def result(self) -> dict[str, float]:
        """rmse, rmse_debiased, mae, crps, energy, jsd, coverage50, coverage80, coverage90; NaN for what nothing was counted for."""
        truth, draws = (torch.tensor(h, dtype=torch.float64) for h in (self.truth_histogram, self.draw_histogram))
        names = [f"coverage{round(100 * level)}" for level in LEVELS]
        shares = [_ratio(hits, of) for hits, of in zip(self.interval_hits, self.interval_entries, strict=True)]
        return {
            "rmse": math.sqrt(_ratio(self.squared_error, self.entries)),
            "rmse_debiased": math.sqrt(_ratio(max(self.squared_error - self.mean_variance, 0.0), self.entries)),
            "mae": _ratio(self.absolute_error, self.entries),
            "crps": _ratio(self.crps, self.entries),
            "energy": _ratio(self.energy, self.cells),
            "jsd": float(divergence(truth, draws)),
            **dict(zip(names, shares, strict=True)),
        }

    def to_json(self) -> str:
        """The sums as JSON text, bit for bit."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """Undo `to_json`; ValueError naming the field when the text does not hold such sums."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, sums: object) -> Scores:
        """The scores of these sums (`dataclasses.asdict`); ValueError naming the field that is missing or of another shape."""
        empty = asdict(cls())
        if not isinstance(sums, dict) or set(sums) != set(empty):
            raise ValueError(f"scores: {sorted(sums) if isinstance(sums, dict) else sums!r}, expected an object with {sorted(empty)}")
        for name, like in empty.items():
            values, expected = (sums[name], like) if isinstance(like, list) else ([sums[name]], [like])
            # bool is an int to Python; type() tells them apart.
            if not isinstance(values, list) or len(values) != len(expected) or not all(type(v) in (int, float) for v in values):
                raise ValueError(f"scores.{name}: {sums[name]!r}, expected {len(expected)} number(s)")
        return cls(**sums)


def _ratio(total: float, count: int) -> float:
    return total / count if count else math.nan
