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

from raytraffic.files import Location, parquet_bytes
from raytraffic.forecaster import Forecaster
from raytraffic.forecasting import Failure, ForecastRequest, possible_windows, station_forecasts, tile_failures
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
    """The shards of a store's newest series (or those at an issue time); `requests` by step in minutes, one for each in the store."""
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
    return Plan(tuple(shards), tuple(failures))


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
