"""A fleet forecast as shards that are fixed beforehand: which tiles each holds, its file, and what all of them together say.

A shard is a function of the run's fingerprint (weights, store, request) and of its own tiles, and one file that appears in one
piece: rows of the stations that were answered, and in the file's metadata what became of the others. So a shard that is there
is done, whoever wrote it, and a repeated run writes the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raytraffic.files import Location, parquet_bytes
from raytraffic.forecaster import Forecaster
from raytraffic.forecasting import Failure, ForecastRequest, forecast_minutes, possible_windows, station_forecasts, tile_failures
from raytraffic.sources.expected_users import ExpectedUsers
from raytraffic.windows import Windows

__all__ = ["Plan", "Shard", "ShardFacts", "all_failures", "plan", "read_facts", "shard_bytes", "summary", "table_of_failures"]

_KEY = b"raytraffic"
_FAILURES = pa.schema([(name, pa.string()) for name in ("city", "place", "unique_id", "reason")])


@dataclass(frozen=True)
class Shard:
    """Tiles that are forecast into one file: index rows and starts of their histories."""

    name: str
    step_minutes: int
    rows: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """All shards of a run, and the stations that have no window at the issue time."""

    shards: tuple[Shard, ...]
    failures: tuple[Failure, ...]

    @property
    def tiles(self) -> int:
        """Tiles that are forecast."""
        return sum(len(shard.rows) for shard in self.shards)


@dataclass(frozen=True)
class ShardFacts:
    """What a shard's file says of itself: the run it belongs to, stations answered, those of them without a measurement, and failures."""

    fingerprint: str
    stations: int
    unmeasured: int
    failures: tuple[Failure, ...]


def plan(windows: Windows, requests: dict[int, ForecastRequest], issue_minute: int | None, tiles_per_shard: int) -> Plan:
    """The shards of a store's newest series (or those at an issue time); `requests` by step in minutes, one for each in the store.

    Raises ValueError, naming station and time, where users are expected of stations that the store does not have or outside the forecast.
    """
    shards: list[Shard] = []
    failures: list[Failure] = []
    for step, request in sorted(requests.items()):
        rows, starts, refused = possible_windows(windows, request, issue_minute, step)
        for row, reason in refused.items():
            failures += tile_failures(windows, row, reason)
        for at in range(0, len(rows), tiles_per_shard):
            part = slice(at, at + tiles_per_shard)
            name = f"forecast-{len(shards):05d}.parquet"
            shards.append(Shard(name, step, tuple(rows[part].tolist()), tuple(starts[part].tolist())))
    for city, stations in windows.store.refused.items():
        failures += [Failure(city=city, place="", unique_id=name, reason=reason) for name, reason in stations]
    planned = Plan(tuple(shards), tuple(failures))
    for expected in {request.expected_users for request in requests.values() if request.expected_users is not None}:
        _check_users(windows, planned, requests, expected)
    return planned


def _check_users(windows: Windows, planned: Plan, requests: dict[int, ForecastRequest], expected: ExpectedUsers) -> None:
    """ValueError for users of no station of the store, or of a slot that is not forecast; stations without forecast are left alone."""
    slots, unreadable = _slots_of_stations(windows, planned, requests)
    failed = {(failure.city, failure.unique_id) for failure in planned.failures}
    unreadable |= {city for city, site in failed if not site}
    for city, site in expected.rows:
        if (city, site) in slots:
            off = next(expected.off((city, site), slots[city, site]), None)
            if off is not None:
                first, last = (str(np.datetime64(int(minute), "m")) for minute in slots[city, site][[0, -1]])
                raise ValueError(
                    f"{expected.label}: station {site!r} of {city} at {off}, expected slots of its forecast, {first} to {last}"
                )
        elif (city, site) not in failed and city not in unreadable:
            raise ValueError(f"{expected.label}: station {site!r} of {city}, expected stations of the store")


def _slots_of_stations(
    windows: Windows, planned: Plan, requests: dict[int, ForecastRequest]
) -> tuple[dict[tuple[str, str], NDArray[np.int64]], set[str]]:
    """The minutes (horizon,) that are forecast of every (city, unique_id) of a plan, and the cities not all of whose ids can be read."""
    index = windows.store.index
    found: dict[tuple[str, str], NDArray[np.int64]] = {}
    unreadable = set()
    for shard in planned.shards:
        request = requests[shard.step_minutes]
        rows, starts = (np.array(values, dtype=np.int64) for values in (shard.rows, shard.starts))
        minutes = forecast_minutes(windows, rows, starts + request.history(windows.window), request.horizon)
        cities = [index.cities[code] for code in index.city[rows].tolist()]
        try:
            names = windows.site_names(rows)
        except ValueError:
            unreadable |= set(cities)
            continue
        for city, sites, slots in zip(cities, names, minutes, strict=True):
            found |= {(city, site): slots for site in sites if site}
    return found, unreadable


def shard_bytes(
    forecaster: Forecaster, windows: Windows, shard: Shard, request: ForecastRequest, fingerprint: str
) -> tuple[bytes, ShardFacts]:
    """A shard's file and what it says of itself."""
    rows, starts = (np.array(values, dtype=np.int64) for values in (shard.rows, shard.starts))
    table, failures, unmeasured = station_forecasts(forecaster, windows, rows, starts, request)
    rows_of_one = request.horizon * len(windows.store.services)
    facts = ShardFacts(fingerprint, len(table) // rows_of_one, unmeasured, tuple(failures))
    told = json.dumps({**asdict(facts), "failures": [asdict(failure) for failure in failures]})
    return parquet_bytes(table.replace_schema_metadata({_KEY: told.encode()})), facts


def read_facts(file: Location) -> ShardFacts | None:
    """What the file of a shard says of itself; None where it is no whole shard."""
    try:
        told = (file.read_metadata().metadata or {}).get(_KEY)
    except ValueError:
        return None
    if told is None:
        return None
    facts = json.loads(told)
    return ShardFacts(
        facts["fingerprint"], facts["stations"], facts["unmeasured"], tuple(Failure(**failure) for failure in facts["failures"])
    )


def table_of_failures(failures: Sequence[Failure]) -> pa.Table:
    """One row a station without forecast: city, place, unique_id, reason."""
    return pa.Table.from_pylist([asdict(failure) for failure in failures], schema=_FAILURES)


def all_failures(planned: Plan, facts: Sequence[ShardFacts]) -> list[Failure]:
    """The stations without forecast of a whole run: those of the plan, then those of the shards."""
    return [*planned.failures, *(failure for one in facts for failure in one.failures)]


def summary(planned: Plan, facts: Sequence[ShardFacts], draws: int) -> dict[str, Any]:
    """Counts of a whole run: stations answered, without a measurement in their history, failed by reason; shards and draws."""
    failures = all_failures(planned, facts)
    answered = sum(one.stations for one in facts)
    return {
        "stations": answered,
        "stations_without_measurement": sum(one.unmeasured for one in facts),
        "failed": len(failures),
        "reasons": dict(Counter(failure.reason for failure in failures).most_common(20)),
        "shards": len(planned.shards),
        "draws": answered * draws,
    }
