"""Forecasts of sites from a prepared store as tables: one path for the fleet job and for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster
from raytraffic.rollout import rollout
from raytraffic.types import ordered_quantile
from raytraffic.windows import Columns, Windows

__all__ = ["ForecastRequest", "draws_table", "forecast_table", "issue_windows"]


@dataclass(frozen=True, kw_only=True)
class ForecastRequest:
    """What is asked for: `horizon` slots, `draws` draws, their quantiles, and whether the draws come back too."""

    horizon: int
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    draws: int = 20
    keep_draws: bool = False
    seed: int = 0
    sampler: Sampler | None = None
    batch: int = 16

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon: {self.horizon}, expected at least 1 slot")
        bad = [level for level in self.quantiles if not 0 <= level <= 1]
        if bad or list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles: {list(self.quantiles)}, expected increasing levels in [0, 1]")
        if self.draws < 1 or self.batch < 1:
            raise ValueError(f"draws, batch: {self.draws}, {self.batch}, expected at least 1")

    def history(self, window: int) -> int:
        """Known slots before the forecast: what the horizon leaves of one window, and never under half of it."""
        return max(window - self.horizon, window // 2)


def issue_windows(
    windows: Windows, request: ForecastRequest, issue_minute: int | None, step_minutes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index rows and starts of the history before the forecast, one a place of the store (its newest period).

    Only series of `step_minutes` are looked at. `issue_minute` counts from 1970-01-01 on the city's wall clock; None is the end
    of each series. Raises ValueError, naming the place, when a series does not hold the history before the issue time.
    """
    index = windows.store.index
    series = index.table_of_series()
    history = request.history(windows.window)
    newest: dict[int, int] = {}
    for i in np.argsort(index.start_minute[series.first_row], kind="stable").tolist():
        if int(index.step_minutes[series.first_row[i]]) == step_minutes:
            newest[int(series.place[i])] = i
    rows, starts = [], []
    for i in sorted(newest.values()):
        first = int(series.first_row[i])
        steps = int(series.steps[i])
        issue = steps if issue_minute is None else -((int(index.start_minute[first]) - issue_minute) // step_minutes)
        start = issue - history
        place = "/".join(index.places[int(series.place[i])])
        if issue > steps:
            raise ValueError(f"{place}: ends {issue - steps} steps before the issue time, expected measurements up to it")
        if start < 0:
            raise ValueError(f"{place}: {max(issue, 0)} steps before the issue time, expected at least {history} steps of history")
        rows.append(first + min(start // index.core, windows.store.layout.runs(steps) - 1))
        starts.append(start)
    return np.array(rows, dtype=np.int64), np.array(starts, dtype=np.int64)


def forecast_table(
    forecaster: Forecaster, windows: Windows, rows: NDArray[np.int64], starts: NDArray[np.int64], request: ForecastRequest
) -> pa.Table:
    """The forecast of the sites in some tiles, one row a (site, service, slot), in that order.

    Columns: city, unique_id, service, ds (timestamp, local), mean, one column a quantile level named by it, and `draws`
    (list) with `keep_draws`. A tile's forecast depends on its own history alone, whatever else is asked for with it.
    """
    tables = []
    for at in range(0, len(rows), request.batch):
        chosen = slice(at, at + request.batch)
        columns = windows.cut(rows[chosen], starts[chosen], request.history(windows.window), request.horizon)
        batch = windows.batch(columns)
        draws = rollout(forecaster, batch, windows.window, request.sampler, request.draws, request.seed).draws[..., -request.horizon :, :]
        tables.append(_rows(windows, columns, draws, request))
    return pa.concat_tables(tables)


def _rows(windows: Windows, columns: Columns, draws: torch.Tensor, request: ForecastRequest) -> pa.Table:
    """Table rows of draws (b, n, c, t, s) of the horizon."""
    index = windows.store.index
    sites = windows.site_names(columns["row"])
    first = index.start_minute[columns["row"]] + (columns["start"] - index.first_step[columns["row"]]) * columns["step_minutes"]
    slots = columns["traffic"].shape[2] - request.horizon + np.arange(request.horizon)
    b, _, c, t, s = draws.shape
    return draws_table(
        draws,
        answered=np.broadcast_to((sites != "")[:, None, None], (b, c, t, s)),
        cities=np.array(index.cities, dtype=object)[columns["city"]],
        sites=sites,
        minutes=first[:, None] + slots * columns["step_minutes"][:, None],
        services=windows.store.services,
        quantiles=request.quantiles,
        keep_draws=request.keep_draws,
    )


def draws_table(
    draws: torch.Tensor,
    *,
    answered: NDArray[np.bool_],
    cities: NDArray[np.object_],
    sites: NDArray[np.object_],
    minutes: NDArray[np.int64],
    services: Sequence[str],
    quantiles: Sequence[float],
    keep_draws: bool,
) -> pa.Table:
    """What draws (b, n, c, t, s) say where `answered` (b, c, t, s), one row a (site, service, slot), in that order.

    `cities` (b,) and `sites` (b, s) are names, `minutes` (b, t) the slots' times from 1970-01-01 on the wall clock. See `forecast_table`.
    """
    window, site, service, slot = np.nonzero(answered.transpose(0, 3, 1, 2))
    values = draws[window, :, service, slot, site].double()  # rows of n draws
    ordered = values.sort(dim=1).values
    table = {
        "city": pa.array(cities[window], pa.string()).dictionary_encode(),
        "unique_id": pa.array(sites[window, site], pa.string()).dictionary_encode(),
        "service": pa.array(np.array(services, dtype=object)[service], pa.string()).dictionary_encode(),
        "ds": pa.array(minutes[window, slot] * 60, pa.timestamp("s")),
        "mean": values.mean(dim=1).numpy(),
    }
    table |= {name: ordered_quantile(ordered, level).numpy() for name, level in zip(quantile_names(quantiles), quantiles, strict=True)}
    if keep_draws:
        table["draws"] = pa.FixedSizeListArray.from_arrays(pa.array(values.float().flatten().numpy()), draws.shape[1])
    return pa.table(table)


def quantile_names(levels: Sequence[float]) -> list[str]:
    """Column names of quantile levels, as "0.1"."""
    return [f"{level:g}" for level in levels]
