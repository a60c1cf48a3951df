"""Fleet forecasts through Ray Data actors: one Parquet shard a group of tiles, a manifest last, and resume by what is there."""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import ray.data
import torch
from ray.util.metrics import Counter

from raytraffic.checkpoint import MARKER, load_forecaster
from raytraffic.config import ForecastConfig, PrepareConfig, to_json
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.fleet import Plan, Shard, all_failures, plan, read_facts, shard_bytes, summary, table_of_failures
from raytraffic.forecasting import ForecastRequest
from raytraffic.lease import held
from raytraffic.on_ray.cluster import connect, dataset
from raytraffic.on_ray.prepare import prepare
from raytraffic.on_ray.progress import Stage
from raytraffic.sources.expected_users import ExpectedUsers, read_expected_users
from raytraffic.store import Store, open_store
from raytraffic.windows import windows_for

__all__ = ["forecast"]

#: What a forecast's numbers do not depend on.
_MACHINERY = {"workers", "gpu", "out", "checkpoint", "store", "table", "expected_users", "batch", "retry_failed"}
_READERS = 16
#: What is asked for, by granularity in minutes.
_Requests: TypeAlias = dict[int, ForecastRequest]


def forecast(config: ForecastConfig) -> Location:
    """Writes the forecast of every site into `out` and returns it; the same command again does only what is missing.

    Raises ValueError unless exactly one of `store` and `table` is given, for users expected of a model that was not trained with any, where
    `out` holds another run's forecast or another process writes there, and where not one station could be answered.
    """
    if (config.store is None) == (config.table is None):
        raise ValueError(f"store, table: {config.store!r}, {config.table!r}, expected exactly one of them")
    out = Location.of(config.out)
    # What is wrong with a checkpoint, a store or a request is told before anything is written.
    model_config = load_forecaster(config.checkpoint)[2]
    if config.expected_users is not None and "expected_users" not in model_config.contexts:
        expected = f"none, for the model was not trained with a forecast of the users (contexts: {', '.join(model_config.contexts)})"
        raise ValueError(f"expected_users: {config.expected_users!r}, expected {expected}")
    ready = None if config.store is None else _plan(config, open_store(config.store), model_config)
    with held(out):
        began = time.monotonic()
        store, requests, planned = ready or _plan(config, open_store(_prepared(config, out)), model_config)
        identity = {name: value for name, value in to_json(config).items() if name not in _MACHINERY}
        fingerprint = _fingerprint(config, store, identity)
        run = {"config": identity, "fingerprint": fingerprint}
        _claim(out, run)
        done = _done(out, planned, fingerprint, config.retry_failed)
        missing = [shard for shard in planned.shards if shard.name not in done]
        _make(config, store, requests, missing, fingerprint, planned.tiles)
        _conclude(out, planned, run, config.draws, {"shards_made": len(missing), "seconds": time.monotonic() - began})
    return out


def _plan(config: ForecastConfig, store: Store, model_config: Any) -> tuple[Store, _Requests, Plan]:
    """A store, what is asked for and the shards of its forecast; ValueError, naming a place, where there is none to make."""
    issue = None if config.issue is None else _minute(config.issue)
    windows = windows_for(store, "all", model_config)
    users = None if config.expected_users is None else read_expected_users(config.expected_users, store.index.cities)
    requests = {step: _request(config, step, users) for step in np.unique(store.index.step_minutes).tolist()}
    planned = plan(windows, requests, issue, config.tiles_per_shard)
    if not planned.shards:
        first = planned.failures[0]
        raise ValueError(f"{first.city}/{first.place}: {first.reason} (and no other place can be forecast)")
    return store, requests, planned


def _done(out: Location, planned: Plan, fingerprint: str, retry_failed: bool) -> set[str]:
    """Names of the shards that are there, whole and of this run."""
    there = {file.name for file in out.child("shards").list()}
    names = [shard.name for shard in planned.shards if shard.name in there]
    with ThreadPoolExecutor(_READERS) as pool:
        found = dict(zip(names, pool.map(lambda name: read_facts(out.child("shards", name)), names), strict=True))
    return {name for name, facts in found.items() if facts and facts.fingerprint == fingerprint and not (retry_failed and facts.failures)}


def _make(config: ForecastConfig, store: Store, requests: _Requests, missing: list[Shard], fingerprint: str, tiles: int) -> None:
    """Computes shards on the cluster; returns when the last one stands in `out`."""
    if not missing:
        return
    connect()
    with Stage("forecast", tiles, done=tiles - sum(len(shard.rows) for shard in missing)) as stage:
        most = min(config.workers, len(missing))
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most)  # as many as the cluster has room for
        items = [{"shard": json.dumps(asdict(shard))} for shard in missing]
        written = dataset(items).map_batches(
            _Forecasts,
            fn_constructor_args=(config, store, requests, fingerprint),
            batch_size=1,
            compute=pool,
            num_cpus=1,
            num_gpus=1 if config.gpu else 0,
        )
        for row in written.iter_rows():
            stage.advance(row["tiles"], row["shard"])


def _conclude(out: Location, planned: Plan, run: dict[str, Any], draws: int, effort: dict[str, float]) -> None:
    """Writes what the run came to: failures, manifest and summary, in this order; ValueError where no station was answered."""
    files = [out.child("shards", shard.name) for shard in planned.shards]
    with ThreadPoolExecutor(_READERS) as pool:
        hashes = dict(zip((file.name for file in files), pool.map(_sha256, files), strict=True))
        found = dict(zip(files, pool.map(read_facts, files), strict=True))
    facts = [one for one in found.values() if one is not None]
    if len(facts) < len(files):
        damaged = next(file for file, one in found.items() if one is None)
        raise OSError(f"{damaged}: was written and is no whole shard, expected one; the same command makes it again")
    told, failures = summary(planned, facts, draws), all_failures(planned, facts)
    out.child("failures.parquet").write_table(table_of_failures(failures))
    if not told["stations"]:
        first = next(iter(told["reasons"].items()), ("the store holds no station", 0))
        raise ValueError(f"{out}: no station could be answered ({first[1]} of {told['failed']}: {first[0]}), expected at least one")
    out.child("manifest.json").write_bytes(json.dumps({**run, "shards": hashes, "failed": len(failures)}, indent=1).encode())
    seconds = max(effort["seconds"], 1e-9)
    rates = {"stations_per_s": told["stations"] / seconds, "draws_per_s": told["draws"] / seconds} if effort["shards_made"] else {}
    out.child("summary.json").write_bytes(json.dumps({**told, **effort, **rates}, indent=1).encode())
    print(f"forecast: {json.dumps({**told, **effort, **rates})}", flush=True)


def _sha256(file: Location) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _request(config: ForecastConfig, step_minutes: int, users: ExpectedUsers | None) -> ForecastRequest:
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
        hop=config.hop,
        expected_users=users,
    )


def _prepared(config: ForecastConfig, out: Location) -> Location:
    """The store of a table, prepared beside the forecast; stations at fault are left out of it and reported."""
    table = str(config.table)
    if table.startswith("table:") and "faulty=" not in table:
        table += ("&" if "?" in table else "?") + "faulty=skip"
    return prepare(PrepareConfig(sources=(table,), out=str(out.child("store"))))


def _minute(issue: str) -> int:
    """Minutes since 1970-01-01 of a local ISO time."""
    try:
        moment = datetime.fromisoformat(issue)
    except ValueError:
        raise ValueError(f"issue: {issue!r}, expected an ISO time such as 2024-01-15T00:00") from None
    if moment.tzinfo is not None:
        raise ValueError(f"issue: {issue!r}, expected a local time without a zone")
    return int((moment - datetime(1970, 1, 1)).total_seconds() // 60)


def _fingerprint(config: ForecastConfig, store: Store, identity: dict[str, Any]) -> str:
    marker = Location.of(config.checkpoint).child(MARKER).read_bytes()
    manifest = store.location.child("manifest.json").read_bytes()
    users = b"" if config.expected_users is None else Location.of(config.expected_users).read_bytes()
    return hashlib.sha256(marker + manifest + json.dumps(identity, sort_keys=True).encode() + users).hexdigest()


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

    def __init__(self, config: ForecastConfig, store: Store, requests: _Requests, fingerprint: str) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.requests = requests
        self.fingerprint = fingerprint
        forecaster, _, model_config = load_forecaster(config.checkpoint)
        self.forecaster = forecaster.to("cuda" if config.gpu else "cpu")
        self.windows = windows_for(store, "all", model_config)
        self.counts = {name: Counter(f"raytraffic_fleet_{name}", text) for name, text in _COUNTED.items()}

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        shard = Shard(**json.loads(str(item["shard"][0])))
        data, facts = shard_bytes(self.forecaster, self.windows, shard, self.requests[shard.step_minutes], self.fingerprint)
        Location.of(self.config.out).child("shards", shard.name).write_bytes(data)
        made = {"shards": 1, "stations": facts.stations, "failures": len(facts.failures), "draws": facts.stations * self.config.draws}
        for name, count in made.items():
            if count:
                self.counts[name].inc(count)
        return {"shard": [shard.name], "tiles": [len(shard.rows)]}


_COUNTED = {
    "shards": "Shards of a fleet forecast that were written.",
    "stations": "Stations that were answered.",
    "failures": "Stations that could not be answered.",
    "draws": "Draws made (stations x draws).",
}
