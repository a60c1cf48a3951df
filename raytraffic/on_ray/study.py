"""A scaling-law study on the cluster: one task a run, packed on what is free, every row kept, then the table, the laws and the report.

A run of one worker trains inside its task: starting Ray Train for it would cost more than a small run itself (docs/decisions/0018).
One of several workers starts Ray Train from a task of its own that reserves nothing.
"""

from __future__ import annotations

import json
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from raytraffic.config import StudyConfig, to_json
from raytraffic.files import Location
from raytraffic.lease import held
from raytraffic.on_ray.cluster import connect
from raytraffic.on_ray.progress import Stage
from raytraffic.on_ray.train import train
from raytraffic.report.study import study_report
from raytraffic.study import write_runs
from raytraffic.training import train_alone
from raytraffic.training.study import PlannedRun, carry_out, hours, plan, planned_columns, read_row, write_row

__all__ = ["study"]

_COLUMNS = ("size", "parameters", "body", "cities", "share", "days", "places", "data tokens", "steps", "tokens", "passes", "FLOPs", "seed")


def study(config: StudyConfig) -> Location:
    """Carries out what is missing of a study, fits the laws and returns its folder; the same or a larger study reuses what is done.

    Raises ValueError for a plan that cannot be, and RuntimeError, after everything else is done, where a run failed every time.
    """
    planned = plan(config)
    show(config, planned)
    out = Location.of(config.out)
    if config.dry_run:
        return out
    with held(out):
        rows = {run.address: row for run in planned if (row := read_row(run)) is not None}
        missing = [run for run in planned if run.address not in rows]
        rows |= _carried_out(config, missing, len(planned))
        ordered = [rows[run.address] for run in planned]
        out.child("config.json").write_bytes(json.dumps(to_json(config), indent=1).encode())
        write_runs(out, ordered)
        study_report(out, metrics=config.metrics, budgets=config.flops, seed=config.seed, settings=to_json(config))
    failed = [row for row in ordered if row["status"] == "failed"]
    if failed:
        told = "; ".join(f"{row['size']} share {row['share']} seed {row['seed']}: {row['error']}" for row in failed[:3])
        raise RuntimeError(
            f"{len(failed)} of {len(ordered)} runs failed ({told}); they stand in {out}/runs.parquet, and the same command tries them again"
        )
    return out


def _carried_out(config: StudyConfig, missing: list[PlannedRun], total: int) -> dict[str, dict[str, Any]]:
    """The rows of the missing runs; those of runs that failed every time say why."""
    rows: dict[str, dict[str, Any]] = {}
    if not missing:
        return rows
    connect()
    alone = _one_worker.options(num_cpus=config.cpus_per_run, num_gpus=1 if config.gpu else 0)
    task = alone if config.workers == 1 else _several_workers
    running = {task.remote(run): (run, 1) for run in missing}
    with Stage("study", total, total - len(missing)) as stage:
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            run, attempt = running.pop(ended)
            try:
                row = ray.get(ended) | {"attempts": attempt}
            except Exception as error:
                if attempt < config.attempts and not isinstance(error, ValueError):
                    running[task.remote(run)] = (run, attempt + 1)
                    continue
                row = failed_row(run, attempt, error)
            else:
                write_row(run, row)
            rows[run.address] = row
            stage.advance(1, f"{run.config.preset}, {row['status']}")
    return rows


@ray.remote(max_retries=0)
def _one_worker(run: PlannedRun) -> dict[str, Any]:
    return carry_out(run, train_alone)


@ray.remote(num_cpus=0, max_retries=0)
def _several_workers(run: PlannedRun) -> dict[str, Any]:
    return carry_out(run, train)


def failed_row(run: PlannedRun, attempts: int, error: BaseException) -> dict[str, Any]:
    """What stands in the table of a run that failed every time: what it was to be, and the last line of why it is not."""
    told = (str(error).strip() or repr(error)).splitlines()[-1]
    return planned_columns(run) | {"status": "failed", "error": told, "attempts": attempts}


def show(config: StudyConfig, planned: list[PlannedRun]) -> None:
    """Prints every planned run with what it costs; predicted hours and money where the device is described."""
    table = Table(title=f"{len(planned)} runs on {config.store}", title_justify="left")
    priced = config.device is not None
    for name in [*_COLUMNS, "device-hours", "cost"] if priced else _COLUMNS:
        table.add_column(name, justify="right")
    total = 0.0
    for run in planned:
        spent = 0.0 if config.device is None else hours(run, config.device, config.utilisation)
        total += spent
        cells = [
            run.config.preset,
            f"{run.cost.parameters:,}",
            f"{run.cost.body_parameters:,}",
            str(len(run.config.cities)),
            f"{run.config.share:g}",
            "all" if run.config.days is None else f"{run.config.days:g}",
            f"{run.places:,}",
            f"{run.data_tokens:,}",
            f"{run.config.steps:,}",
            f"{run.tokens:,}",
            f"{run.config.steps * run.config.batch / run.windows:.2f}",
            f"{run.flops:.3g}",
            str(run.config.seed),
        ]
        table.add_row(*cells, *([f"{spent:.3g}", f"{spent * config.price_per_hour:.2f}"] if priced else []))
    Console(width=200).print(table)
    flops = sum(run.flops for run in planned)
    spending = f", {total:.3g} device-hours, cost {total * config.price_per_hour:.2f}" if priced else ""
    print(f"{len(planned)} runs, {flops:.3g} FLOPs{spending}", flush=True)
