"""Where a table of runs must not be read as a law: runs that had not converged, that over-fitted, and sizes that the data does not feed.

UoMo 4.5: "simply increasing model parameters does not guarantee better performance"; on a fixed amount of data the loss stops
improving with size. Every judgement has a stated threshold and gives its reason in words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import t

from raytraffic.study.table import finished

__all__ = ["DataAmount", "Flag", "beyond_data", "data_limited", "not_converged", "over_fitted"]

#: A run still falls when its last quarter brought this share of the fall of the half before, and this share of the loss.
#: (A loss that falls as steps^-0.5 brings 18 %, one that halves its excess every eighth of the run 1 %.)
_LATE_SHARE, _LATE_FALL = 0.1, 0.005
#: A run over-fitted when its loss rose by this share from a minimum in its first nine tenths, after this many passes over its data
#: (up to four passes are nearly as good as fresh data: Muennighoff et al. 2023, arXiv 2305.16264).
_RISE, _EARLY, _MANY_PASSES = 0.01, 0.9, 4.0
#: A larger model helps when it gains this share of the loss, and more than the seeds' spread explains with this confidence.
_GAIN, _CONFIDENCE = 0.002, 0.95


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A judgement on one run; `flagged` is None where the run cannot tell, and `reason` says why in every case."""

    run: str
    flagged: bool | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class DataAmount:
    """What model size did on one amount of data: `parameters` rising, each with its mean `loss`, and the largest size that still helped.

    `limited` says that larger sizes were tried and did not help.
    """

    data_tokens: int
    parameters: tuple[int, ...]
    loss: tuple[float, ...]
    largest_helpful: int
    limited: bool
    reason: str


def not_converged(table: pa.Table) -> list[Flag]:
    """Of every finished run, whether its validation loss was still falling clearly when it ended."""
    return [_not_converged(row) for row in finished(table, ["steps", "best_step", "curve_step", "curve_loss"])]


def _not_converged(row: dict[str, Any]) -> Flag:
    step, loss = _curve(row)
    end = step[-1] if len(step) else 0.0
    if len(step) < 4 or step[0] > end / 4:
        return Flag(run=row["run"], flagged=None, reason=f"{len(step)} evaluations, at least 4 from a quarter of the run on would tell")
    if row["best_step"] < end:
        return Flag(run=row["run"], flagged=False, reason=f"best at step {row['best_step']} of {end:.0f}")
    quarter, three = np.interp([end / 4, 3 * end / 4], step, loss)
    late = three - loss[-1]
    before = quarter - three
    falling = bool(late > _LATE_FALL * loss[-1] and late > _LATE_SHARE * before)
    compared = f"{late / before:.0%} of what the half before brought" if before > 0 else "where the half before brought none"
    told = f"best at its last step; the last quarter brought {late / loss[-1]:.1%} of the loss, {compared}"
    return Flag(run=row["run"], flagged=falling, reason=told)


def over_fitted(table: pa.Table) -> list[Flag]:
    """Of every finished run, whether its validation loss rose again after many passes over its data."""
    return [_over_fitted(row) for row in finished(table, ["passes", "curve_step", "curve_loss"])]


def _over_fitted(row: dict[str, Any]) -> Flag:
    step, loss = _curve(row)
    if len(step) < 4:
        return Flag(run=row["run"], flagged=None, reason=f"{len(step)} evaluations, at least 4 would tell")
    best = int(loss.argmin())
    rise = loss[-1] / loss[best] - 1
    flagged = bool(rise > _RISE and step[best] <= _EARLY * step[-1] and row["passes"] > _MANY_PASSES)
    told = (
        f"lowest at step {step[best]:.0f} of {step[-1]:.0f}, {rise:.1%} higher at the end, after {row['passes']:.1f} passes over its data"
    )
    return Flag(run=row["run"], flagged=flagged, reason=told)


def _curve(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The steps and losses of the validation curve; ValueError where they are not equally many or not rising."""
    step, loss = (np.array(row[name], dtype=np.float64) for name in ("curve_step", "curve_loss"))
    if len(step) != len(loss) or (np.diff(step) <= 0).any():
        raise ValueError(f"curve_step: {len(step)} steps for {len(loss)} losses in run {row['run']!r}, expected rising steps, one a loss")
    return step, loss


def data_limited(table: pa.Table, *, metric: str = "validation_loss") -> list[DataAmount]:
    """For every amount of data, rising, up to which model size more parameters helped, over finished runs.

    Of one size on one amount of data the budget with the lowest mean over seeds counts, so that a run too long or too short is not
    held against its size. Give a table of one recipe: what else differs between runs is not looked at.
    """
    rows = finished(table, ["data_tokens", "parameters", "tokens", metric])
    for row in rows:
        if not row[metric] > 0:
            raise ValueError(f"{metric}: {row[metric]} in run {row['run']!r}, expected a number > 0")
    cells: dict[tuple[int, int, int], list[float]] = {}
    for row in rows:
        cells.setdefault((row["data_tokens"], row["parameters"], row["tokens"]), []).append(math.log(row[metric]))
    spread, freedom = _spread(list(cells.values()))
    amounts = sorted({data for data, _, _ in cells})
    return [_judged(amount, _best_of_sizes(cells, amount), spread, freedom) for amount in amounts]


def _spread(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The pooled standard deviation of log loss between the seeds of a configuration, and its degrees of freedom."""
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((np.array(group) - np.mean(group)) ** 2).sum()) for group in groups)
    return (math.sqrt(squares / freedom), freedom) if freedom else (0.0, 0)


def _best_of_sizes(cells: dict[tuple[int, int, int], list[float]], amount: int) -> list[tuple[int, float, int]]:
    """(parameters, mean log loss, seeds) of the best budget of every size, rising."""
    best: dict[int, tuple[int, float, int]] = {}
    for (data, size, _), losses in cells.items():
        found = (size, float(np.mean(losses)), len(losses))
        if data == amount and (size not in best or found[1] < best[size][1]):
            best[size] = found
    return [best[size] for size in sorted(best)]


def _judged(amount: int, sizes: Sequence[tuple[int, float, int]], spread: float, freedom: int) -> DataAmount:
    """A size helps when it is clearly better than the best of all smaller ones."""
    best = helpful = sizes[0]
    for size in sizes[1:]:
        noise = spread * math.sqrt(1 / best[2] + 1 / size[2]) * float(t.ppf(_CONFIDENCE, freedom)) if freedom else 0.0
        if best[1] - size[1] > max(noise, _GAIN):
            helpful = size
        best = min(best, size, key=lambda each: each[1])
    larger = [size for size in sizes if size[0] > helpful[0]]
    if len(sizes) == 1:
        reason = "one size was trained"
    elif not larger:
        reason = f"the largest size trained, {helpful[0]:,} parameters, still helped"
    else:
        gain = 1 - math.exp(min(size[1] for size in larger) - helpful[1])
        judged = f"seeds spread by {spread:.2%}" if freedom else "no configuration has two seeds, so a gain of 0.2 % counts"
        reason = f"beyond {helpful[0]:,} parameters up to {larger[-1][0]:,} the loss fell by {max(gain, 0.0):.2%} at most; {judged}"
    return DataAmount(
        data_tokens=amount,
        parameters=tuple(size for size, _, _ in sizes),
        loss=tuple(math.exp(mean) for _, mean, _ in sizes),
        largest_helpful=helpful[0],
        limited=bool(larger),
        reason=reason,
    )


def beyond_data(table: pa.Table, *, metric: str = "validation_loss") -> list[Flag]:
    """Of every finished run, whether its model is larger than the largest that still helped on its amount of data."""
    found = {each.data_tokens: each for each in data_limited(table, metric=metric)}
    flags = []
    for row in finished(table, ["data_tokens", "parameters"]):
        amount = found[row["data_tokens"]]
        flags.append(Flag(run=row["run"], flagged=row["parameters"] > amount.largest_helpful, reason=amount.reason))
    return flags
