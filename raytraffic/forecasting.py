"""Forecasts of sites from a prepared store as tables: one path for the fleet job and for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster
from raytraffic.rollout import rollout
from raytraffic.sources.expected_users import ExpectedUsers
from raytraffic.types import TrafficBatch, ordered_quantile
from raytraffic.windows import Columns, Windows

__all__ = [
    "Failure",
    "ForecastRequest",
    "draws_table",
    "forecast_minutes",
    "forecast_table",
    "issue_windows",
    "possible_windows",
    "station_forecasts",
    "tile_failures",
]


@dataclass(frozen=True, kw_only=True)
class ForecastRequest:
    """What is asked for: `horizon` slots, `draws` draws, their quantiles, and whether the draws come back too.

    With `hop` every window asks for so many slots and no more, and knows the draws before them: 1 for a model trained one step ahead.
    `expected_users` is the caller's forecast of the users, for models that look at one.
    """

    horizon: int
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    draws: int = 20
    keep_draws: bool = False
    seed: int = 0
    sampler: Sampler | None = None
    batch: int = 16
    hop: int | None = None
    expected_users: ExpectedUsers | None = None

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon: {self.horizon}, expected at least 1 slot")
        bad = [level for level in self.quantiles if not 0 <= level <= 1]
        if bad or list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"quantiles: {list(self.quantiles)}, expected increasing levels in [0, 1]")
        if self.draws < 1 or self.batch < 1:
            raise ValueError(f"draws, batch: {self.draws}, {self.batch}, expected at least 1")
        if self.hop is not None and self.hop < 1:
            raise ValueError(f"hop: {self.hop}, expected at least 1 slot")

    def history(self, window: int) -> int:
        """Known slots before the forecast: what the horizon leaves of one window, and never under half of it; with `hop` all but that."""
        if self.hop is None:
            return max(window - self.horizon, window // 2)
        if self.hop >= window:
            raise ValueError(f"hop: {self.hop}, expected less than the window's {window} slots")
        return window - self.hop


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A station that got no forecast (all stations of a tile that could not be read where `unique_id` is empty), and why."""

    city: str
    place: str
    unique_id: str
    reason: str


def issue_windows(
    windows: Windows, request: ForecastRequest, issue_minute: int | None, step_minutes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index rows and starts of the history before the forecast, one a place of the store (its newest period).

    Only series of `step_minutes` are looked at. `issue_minute` counts from 1970-01-01 on the city's wall clock; None is the end
    of each series. Raises ValueError, naming the place, when a series does not hold the history before the issue time.
    """
    rows, starts, refused = possible_windows(windows, request, issue_minute, step_minutes)
    for row, reason in refused.items():
        raise ValueError(f"{'/'.join(_place(windows, row))}: {reason}")
    return rows, starts


def possible_windows(
    windows: Windows, request: ForecastRequest, issue_minute: int | None, step_minutes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[int, str]]:
    """`issue_windows` of the places that have one; of the others an index row and the reason why not."""
    index = windows.store.index
    series = index.table_of_series()
    history = request.history(windows.window)
    newest: dict[int, int] = {}
    for i in np.argsort(index.start_minute[series.first_row], kind="stable").tolist():
        if int(index.step_minutes[series.first_row[i]]) == step_minutes:
            newest[int(series.place[i])] = i
    rows, starts = [], []
    refused: dict[int, str] = {}
    for i in sorted(newest.values()):
        first = int(series.first_row[i])
        steps = int(series.steps[i])
        issue = steps if issue_minute is None else -((int(index.start_minute[first]) - issue_minute) // step_minutes)
        start = issue - history
        if issue > steps:
            refused[first] = f"ends {issue - steps} steps before the issue time, expected measurements up to it"
        elif start < 0:
            refused[first] = f"{max(issue, 0)} steps before the issue time, expected at least {history} steps of history"
        else:
            rows.append(first + min(start // index.core, windows.store.layout.runs(steps) - 1))
            starts.append(start)
    return np.array(rows, dtype=np.int64), np.array(starts, dtype=np.int64), refused


def forecast_table(
    forecaster: Forecaster, windows: Windows, rows: NDArray[np.int64], starts: NDArray[np.int64], request: ForecastRequest
) -> pa.Table:
    """The forecast of the sites in some tiles, one row a (site, service, slot), in that order.

    Columns: city, unique_id, service, ds (timestamp, local), mean, one column a quantile level named by it, and `draws`
    (list) with `keep_draws`. A tile's forecast depends on its own history alone, whatever else is asked for with it.
    Raises ValueError, naming the station, where one has no finite forecast.
    """
    table, failures, _ = station_forecasts(forecaster, windows, rows, starts, request)
    for failure in failures:
        raise ValueError(f"{failure.city}/{failure.place}/{failure.unique_id}: {failure.reason}")
    return table


def station_forecasts(
    forecaster: Forecaster, windows: Windows, rows: NDArray[np.int64], starts: NDArray[np.int64], request: ForecastRequest
) -> tuple[pa.Table, list[Failure], int]:
    """`forecast_table` of the stations that can be answered, the others, and how many of the answered had no measurement in their history.

    What is wrong with a station's data is found wherever it shows (a ValueError in reading or cutting, a forecast that is not finite) and
    costs only the tile that cannot be read, or the station. Faults of the machine are raised.
    """
    tables: list[pa.Table] = []
    failures: list[Failure] = []
    unknown = 0
    for at in range(0, len(rows), request.batch):
        chosen = slice(at, at + request.batch)
        try:
            parts = [_answer(forecaster, windows, rows[chosen], starts[chosen], request)]
        except ValueError:
            parts = []  # draws of a tile are the same in any batch
            for row, start in zip(rows[chosen], starts[chosen], strict=True):
                try:
                    parts.append(_answer(forecaster, windows, np.array([row]), np.array([start]), request))
                except ValueError as error:
                    failures += tile_failures(windows, int(row), str(error).partition("\n")[0])
        for table, failed, without in parts:
            tables.append(table)
            failures += failed
            unknown += without
    # One chunk with one dictionary a column: a file's bytes must not tell which tiles were computed together.
    whole = pa.concat_tables(tables).unify_dictionaries().combine_chunks() if tables else _nothing(windows, request)
    return whole, failures, unknown


def tile_failures(windows: Windows, row: int, reason: str) -> list[Failure]:
    """All stations of the tile of an index row as failures for one reason."""
    city, place = _place(windows, row)
    try:
        names = [name for name in windows.site_names(np.array([row]))[0] if name]
    except ValueError:
        names = [""]
    return [Failure(city=city, place=place, unique_id=name, reason=reason) for name in names]


def _place(windows: Windows, row: int) -> tuple[str, str]:
    index = windows.store.index
    city, *place = index.places[int(index.place[row])]
    return city, "/".join(place)


def _answer(
    forecaster: Forecaster, windows: Windows, rows: NDArray[np.int64], starts: NDArray[np.int64], request: ForecastRequest
) -> tuple[pa.Table, list[Failure], int]:
    """Tiles together: table, stations without a finite forecast, and the number of answered ones without a measurement."""
    columns = windows.cut(rows, starts, request.history(windows.window), request.horizon)
    sites = windows.site_names(columns["row"])
    batch = _told(windows, columns, sites, request)
    answer = rollout(forecaster, batch, windows.window, request.sampler, request.draws, request.seed, request.hop)
    draws = answer.draws[..., -request.horizon :, :]
    there = sites != ""
    finite = draws.isfinite().all(dim=(1, 2, 3)).numpy()
    measured = batch.known.any(dim=(1, 2)).numpy()
    failures = [
        Failure(city=city, place=place, unique_id=sites[i, j], reason="its forecast is not finite, expected numbers")
        for i, j in np.argwhere(there & ~finite).tolist()
        for city, place in [_place(windows, int(rows[i]))]
    ]
    return _rows(windows, columns, draws, sites, there & finite, request), failures, int((there & finite & ~measured).sum())


def _told(windows: Windows, columns: Columns, sites: NDArray[np.object_], request: ForecastRequest) -> TrafficBatch:
    """The columns as a batch, with the users that the caller expects in the slots that are forecast."""
    batch = windows.batch(columns)
    if request.expected_users is None:
        return batch
    b, _, t, s = batch.shape
    expected = np.full((b, t, s), np.nan, dtype=np.float32)
    minutes = forecast_minutes(windows, columns["row"], columns["start"] + t - request.horizon, request.horizon)
    for i, city in enumerate(columns["city"].tolist()):
        expected[i, t - request.horizon :] = request.expected_users.at(windows.store.index.cities[city], sites[i], minutes[i])
    return replace(batch, context={**batch.context, "expected_users": torch.from_numpy(expected)})


def forecast_minutes(windows: Windows, rows: NDArray[np.int64], first: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """(n, horizon) minutes from 1970-01-01 on the wall clock of the slots from slot `first` (n,) of the series of index rows on."""
    index = windows.store.index
    slots = (first - index.first_step[rows])[:, None] + np.arange(horizon)
    return index.start_minute[rows][:, None] + slots * index.step_minutes[rows][:, None]


def _nothing(windows: Windows, request: ForecastRequest) -> pa.Table:
    """The table of no station."""
    _, c, s = 0, len(windows.store.services), windows.store.layout.cells
    return draws_table(
        torch.zeros(0, request.draws, c, request.horizon, s),
        answered=np.zeros((0, c, request.horizon, s), dtype=bool),
        cities=np.zeros(0, dtype=object),
        sites=np.zeros((0, s), dtype=object),
        minutes=np.zeros((0, request.horizon), dtype=np.int64),
        services=windows.store.services,
        quantiles=request.quantiles,
        keep_draws=request.keep_draws,
    )


def _rows(
    windows: Windows,
    columns: Columns,
    draws: torch.Tensor,
    sites: NDArray[np.object_],
    answered: NDArray[np.bool_],
    request: ForecastRequest,
) -> pa.Table:
    """Table rows of draws (b, n, c, t, s) of the horizon for the stations (b, s) that are `answered`."""
    first = columns["start"] + columns["traffic"].shape[2] - request.horizon
    b, _, c, t, s = draws.shape
    return draws_table(
        draws,
        answered=np.broadcast_to(answered[:, None, None], (b, c, t, s)),
        cities=np.array(windows.store.index.cities, dtype=object)[columns["city"]],
        sites=sites,
        minutes=forecast_minutes(windows, columns["row"], first, request.horizon),
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
