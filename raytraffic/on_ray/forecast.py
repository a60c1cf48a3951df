"""Fleet forecasts through Ray Data actors: one Parquet shard a group of tiles, a manifest last, and resume by what is there.

The shards of a run are fixed beforehand and each is a function of the run's fingerprint (weights, store, request) and its own
tiles, so a shard that exists is done, whoever wrote it, and a repeated run writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

import numpy as np
import ray.data
import torch

from raytraffic.checkpoint import MARKER, load_forecaster
from raytraffic.config import ForecastConfig, PrepareConfig, to_json
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location, parquet_bytes
from raytraffic.forecasting import ForecastRequest, forecast_table, issue_windows
from raytraffic.on_ray.cluster import connect, dataset
from raytraffic.on_ray.prepare import prepare
from raytraffic.on_ray.progress import Stage
from raytraffic.store import Store, open_store
from raytraffic.windows import windows_for

__all__ = ["forecast"]


def forecast(config: ForecastConfig) -> Location:
    """Writes the forecast of every site into `out` and returns it; the same command again does only what is missing.

    Raises ValueError unless exactly one of `store` and `table` is given, and where `out` holds another run's forecast.
    """
    out = Location.of(config.out)
    _, _, model_config = load_forecaster(config.checkpoint)
    issue = None if config.issue is None else _minute(config.issue)
    store = open_store(_store(config, out))
    windows = windows_for(store, "all", model_config)
    items: list[dict[str, Any]] = []
    for step in np.unique(store.index.step_minutes).tolist():
        rows, starts = issue_windows(windows, _request(config, step), issue, step)
        for at in range(0, len(rows), config.tiles_per_shard):
            part = slice(at, at + config.tiles_per_shard)
            name = f"forecast-{len(items):05d}.parquet"
            items.append({"shard": name, "step": step, "rows": rows[part].tolist(), "starts": starts[part].tolist()})
    run = {"config": _identity(config), "fingerprint": _fingerprint(config, store)}
    _claim(out, run)
    tiles = sum(len(item["rows"]) for item in items)
    there = {file.name for file in out.child("shards").list()}
    missing = [item for item in items if item["shard"] not in there]
    connect()
    with Stage("forecast", tiles, done=tiles - sum(len(item["rows"]) for item in missing)) as stage:
        if missing:
            pool = ray.data.ActorPoolStrategy(size=min(config.workers, len(missing)))
            written = dataset(missing).map_batches(
                _Forecasts, fn_constructor_args=(config, store), batch_size=1, compute=pool, num_cpus=1, num_gpus=1 if config.gpu else 0
            )
            for row in written.iter_rows():
                stage.advance(row["tiles"], row["shard"])
    names = [item["shard"] for item in items]
    shards = {name: hashlib.sha256(out.child("shards", name).read_bytes()).hexdigest() for name in names}
    out.child("manifest.json").write_bytes(json.dumps({**run, "shards": shards}, indent=1).encode())
    return out


def _request(config: ForecastConfig, step_minutes: int) -> ForecastRequest:
    """The request for cities of one granularity."""
    slots = config.hours * 60 / step_minutes
    if slots < 1 or slots != int(slots):
        raise ValueError(f"hours: {config.hours}, expected a whole number of {step_minutes}-minute slots")
    return ForecastRequest(
        horizon=int(slots),
        quantiles=config.quantiles,
        draws=config.draws,
        keep_draws=config.keep_draws,
        seed=config.seed,
        sampler=Sampler("dpm++", config.steps),
        batch=config.batch,
    )


def _store(config: ForecastConfig, out: Location) -> Location:
    """The store given, or the table prepared into one beside the forecast."""
    if (config.store is None) == (config.table is None):
        raise ValueError(f"store, table: {config.store!r}, {config.table!r}, expected exactly one of them")
    if config.store is not None:
        return Location.of(config.store)
    return prepare(PrepareConfig(sources=(str(config.table),), out=str(out.child("store"))))


def _minute(issue: str) -> int:
    """Minutes since 1970-01-01 of a local ISO time."""
    try:
        moment = datetime.fromisoformat(issue)
    except ValueError:
        raise ValueError(f"issue: {issue!r}, expected an ISO time such as 2024-01-15T00:00") from None
    if moment.tzinfo is not None:
        raise ValueError(f"issue: {issue!r}, expected a local time without a zone")
    return int((moment - datetime(1970, 1, 1)).total_seconds() // 60)


def _identity(config: ForecastConfig) -> dict[str, Any]:
    """The settings a forecast's numbers depend on."""
    machinery = {"workers", "gpu", "out", "checkpoint", "store", "table"}
    return {name: value for name, value in to_json(config).items() if name not in machinery}


def _fingerprint(config: ForecastConfig, store: Store) -> str:
    marker = Location.of(config.checkpoint).child(MARKER).read_bytes()
    manifest = store.location.child("manifest.json").read_bytes()
    return hashlib.sha256(marker + manifest + json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()


def _claim(out: Location, run: dict[str, Any]) -> None:
    """Marks the folder as this run's; refuses one that holds another's."""
    claim = out.child("run.json")
    if claim.exists():
        before = json.loads(claim.read_bytes())
        if before != run:
            raise ValueError(f"{out}: holds the forecast of another checkpoint, store or setting ({claim}), expected an empty folder")
    claim.write_bytes(json.dumps(run, indent=1).encode())


class _Forecasts:
    """Holds the model and writes shards."""

    def __init__(self, config: ForecastConfig, store: Store) -> None:
        torch.set_num_threads(1)
        self.config = config
        forecaster, _, model_config = load_forecaster(config.checkpoint)
        self.forecaster = forecaster.to("cuda" if config.gpu else "cpu")
        self.windows = windows_for(store, "all", model_config)

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        rows, starts = (np.asarray(item[name][0], dtype=np.int64) for name in ("rows", "starts"))
        request = _request(self.config, int(item["step"][0]))
        table = forecast_table(self.forecaster, self.windows, rows, starts, request)
        shard = str(item["shard"][0])
        Location.of(self.config.out).child("shards", shard).write_bytes(parquet_bytes(table))
        return {"shard": [shard], "tiles": [len(rows)]}
