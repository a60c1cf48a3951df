"""Where a forecast's intervals hold: coverage, CRPS and MAE over the horizon, the hour of day and the load of the cell."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from raytraffic.metrics.scores import LEVELS, ScoredForecast
from raytraffic.types import TrafficBatch

__all__ = ["AXES", "BREAKDOWN_COLUMNS", "Breakdown"]

_HORIZON_HOURS = (1, 3, 6, 12, 24)
_LOADS = (0.01, 0.03, 0.1, 0.3)

#: The bins of every axis, in order. Horizon: hours since the cell's latest known slot, upper ends included. Hour: of the local day.
#: Load: the cell's mean true traffic over the window on the [0, 1] scale, lower ends included; "dead" cells have none at all.
AXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "horizon": ("up to 1", "1-3", "3-6", "6-12", "12-24", "over 24", "no history"),
        "hour": tuple(f"{hour:02d}" for hour in range(24)),
        "load": ("dead", "below 0.01", "0.01-0.03", "0.03-0.1", "0.1-0.3", "over 0.3"),
    }
)
BREAKDOWN_COLUMNS = ("model", "city", "split", "task", "axis", "bin", "entries", "coverage80", "crps", "mae")
_LEVEL = LEVELS.index(0.8)
#: What is summed in every bin: entries, those that have an interval, hits of it, those of known scale, and their CRPS and errors.
_SUMS = 6

Key = tuple[str, str, str, str, str]


class Breakdown:
    """Sums keyed by (model, city, split, task, axis) over the hidden entries in each bin of the axis, float64.

    Horizon and hour count live cells only. CRPS and the median's absolute error are on the [0, 1] scale, over entries whose scale is
    known; the load axis has no others. Load is the truth's: where it cannot be foreseen, even a calibrated forecast covers the highest
    cells less often.
    """

    def __init__(self) -> None:
        self._sums: dict[Key, Tensor] = {}

    def add(self, scored: ScoredForecast, *, model: str, split: str, task: str) -> None:
        """Add a forecast that is scored already."""
        entries, hidden = scored.entries, scored.batch.hidden
        scaled = torch.isfinite(entries.scale)
        places = {
            "horizon": (_horizon(scored.batch)[hidden], entries.live),
            "hour": (_hour(scored.batch)[hidden], entries.live),
            "load": (torch.where(entries.live, _load(scored.batch)[hidden], 0), scaled),
        }
        ones = torch.ones_like(entries.crps)
        counts = (ones, ones * entries.spanned[_LEVEL], entries.hits[:, _LEVEL].double(), scaled.double())
        errors = (torch.where(scaled, error / entries.scale, 0.0) for error in (entries.crps, entries.median_error.abs()))
        values = torch.stack([*counts, *errors], dim=1)
        for axis, (place, chosen) in places.items():
            bins = len(AXES[axis])
            sums = values.new_zeros(len(scored.cities) * bins, _SUMS)
            sums.index_add_(0, (scored.city * bins + place)[chosen], values[chosen])
            for city, part in zip(scored.cities, sums.unflatten(0, (-1, bins)).cpu(), strict=True):
                self._add((model, city, split, task, axis), part)

    def merge(self, other: Breakdown) -> None:
        """Add another part's sums; parts must not share a window."""
        for key, sums in other._sums.items():
            self._add(key, sums)

    def _add(self, key: Key, sums: Tensor) -> None:
        self._sums[key] = self._sums[key] + sums if key in self._sums else sums

    def rows(self) -> list[dict[str, Any]]:
        """One flat row (BREAKDOWN_COLUMNS) a key and bin that has an entry, sorted; NaN for what nothing was counted for."""
        return [
            dict(zip(BREAKDOWN_COLUMNS, (*key, name, *_figures(sums)), strict=True))
            for key, table in sorted(self._sums.items())
            for name, sums in zip(AXES[key[-1]], table.tolist(), strict=True)
            if sums[0]
        ]

    def to_json(self) -> str:
        """All sums as JSON text, bit for bit, from which `from_json` goes on counting."""
        return json.dumps([{"key": list(key), "sums": sums.tolist()} for key, sums in sorted(self._sums.items())])

    @classmethod
    def from_json(cls, text: str) -> Breakdown:
        """Undo `to_json`; ValueError when the text holds no breakdown."""
        breakdown, items = cls(), json.loads(text)
        if not isinstance(items, list):
            raise ValueError(f"breakdown: a JSON {type(items).__name__}, expected a list of keys with their sums")
        for item in items:
            key, sums = (item.get("key"), item.get("sums")) if isinstance(item, dict) else (None, None)
            if not isinstance(key, list) or len(key) != 5 or not all(isinstance(part, str) for part in key) or key[-1] not in AXES:
                raise ValueError(f"breakdown: key {key!r}, expected model, city, split, task and one of {list(AXES)}")
            model, city, split, task, axis = key
            breakdown._sums[(model, city, split, task, axis)] = _table(sums, len(AXES[axis]))
        return breakdown


def _horizon(batch: TrafficBatch) -> Tensor:
    """(b, c, t, s): the bin of the time since the latest known slot of the cell before this one."""
    slot = torch.arange(batch.shape[2], device=batch.known.device)[:, None]
    latest = torch.where(batch.known, slot, -1).cummax(dim=2).values
    minutes = (slot - latest) * batch.step_minutes[:, None, None, None]
    edges = torch.tensor([60 * hours for hours in _HORIZON_HOURS], device=minutes.device)
    return torch.where(latest < 0, AXES["horizon"].index("no history"), torch.bucketize(minutes, edges))


def _hour(batch: TrafficBatch) -> Tensor:
    """(b, c, t, s): the hour of the local day in which a slot begins."""
    hour = batch.clock[..., 0] * batch.step_minutes[:, None] // 60
    return hour[:, None, :, None].expand(batch.shape)


def _load(batch: TrafficBatch) -> Tensor:
    """(b, c, t, s): the bin of a live cell's mean true traffic over its city's reference; meaningless where that is not known."""
    reference = batch.context.get("reference")
    unit = torch.full((), torch.nan) if reference is None else reference[:, :, None]
    load = batch.traffic.nanmean(dim=2) / unit
    edges = torch.tensor(_LOADS, dtype=load.dtype, device=load.device)
    return (torch.bucketize(load, edges, right=True) + 1)[:, :, None].expand(batch.shape)


def _figures(sums: Sequence[float]) -> tuple[int, float, float, float]:
    """Entries, coverage of the 80 % interval, CRPS and MAE of one bin."""
    entries, intervals, hits, scaled, crps, error = sums
    coverage, mean_crps, mae = (total / of if of else math.nan for total, of in ((hits, intervals), (crps, scaled), (error, scaled)))
    return int(entries), coverage, mean_crps, mae


def _table(sums: object, bins: int) -> Tensor:
    """(bins, _SUMS) from JSON; ValueError for anything else."""
    try:
        table = torch.tensor(sums, dtype=torch.float64)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"breakdown: sums {sums!r}, expected {bins} x {_SUMS} numbers") from error
    if table.shape != (bins, _SUMS):
        raise ValueError(f"breakdown: sums of shape {tuple(table.shape)}, expected {(bins, _SUMS)}")
    return table
