"""From a forecast's files to a decision on a cluster: whatever the workers and pieces, the same tables; and the best there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytraffic.config import ForecastConfig
from raytraffic.config.decisions import DeploymentSettings, OptimizeConfig, SleepSettings
from raytraffic.decisions.deployment import DeploymentProblem, StationType
from raytraffic.decisions.deployment_program import plan
from raytraffic.decisions.problems import Installed, sleep_problem
from raytraffic.decisions.sleep_chain import schedule
from raytraffic.files import Location
from raytraffic.on_ray import optimize as job
from raytraffic.on_ray.forecast import forecast
from raytraffic.on_ray.optimize import optimize

SITES, SLOTS, DRAWS = 9, 48, 4
START = np.datetime64("2024-01-15T00:00", "s")
HOUR = np.timedelta64(3600, "s")
SLEEP = SleepSettings(rrus=1, rru_capacity=1.0, served_share=0.75, least_active=1, least_on_slots=2)
CELLS = Installed(rrus=np.arange(SITES) % 5 + 2, rru_capacity=np.linspace(4.0, 12.0, SITES))


def load() -> np.ndarray:
    """(draws, sites, slots)."""
    rng = np.random.default_rng(1)
    profile = 1 + 0.8 * np.sin(2 * np.pi * np.arange(SLOTS) / 24)
    values: np.ndarray = (rng.gamma(1.5, 10.0, (SITES, 1)) * profile * rng.gamma(9.0, 1 / 9, (DRAWS, SITES, SLOTS))).astype(np.float32)
    return values


def long(values: np.ndarray, start: np.datetime64) -> pa.Table:
    """A long table of (sites, slots)."""
    names = np.repeat([f"r{i // 3}c{i % 3}" for i in range(SITES)], values.shape[1])
    return pa.table({"unique_id": names, "ds": np.tile(start + np.arange(values.shape[1]) * HOUR, SITES), "y": values.ravel()})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forecast's folder of two shards, what really came, and the week before."""
    folder, drawn = tmp_path_factory.mktemp("optimize"), load()
    table = long(drawn.mean(axis=0), START).drop_columns(["y"])
    draws = pa.FixedSizeListArray.from_arrays(pa.array(drawn.transpose(1, 2, 0).ravel()), DRAWS)
    table = table.append_column("city", pa.array(["east"] * len(table))).append_column("draws", draws)
    names = ["forecast-00000.parquet", "forecast-00001.parquet"]
    for name, part in zip(names, (table.slice(0, 4 * SLOTS), table.slice(4 * SLOTS)), strict=True):
        Location.of(folder).child("forecast", "shards", name).write_table(part)
    manifest = json.dumps({"shards": dict.fromkeys(names, "")}).encode()
    Location.of(folder).child("forecast", "manifest.json").write_bytes(manifest)
    rng = np.random.default_rng(2)
    real = drawn.mean(axis=0) * rng.gamma(9.0, 1 / 9, (SITES, SLOTS))
    Location.of(folder).child("real.parquet").write_table(long(real, START))
    lines = [f"r{i // 3}c{i % 3},{CELLS.rrus[i]},{CELLS.rru_capacity[i]}" for i in reversed(range(SITES))]
    (folder / "cells.csv").write_text("\n".join(["unique_id,rrus,rru_capacity", *lines]))
    weights = [f"r{i // 3}c{i % 3},{i % 4},{100 + i}" for i in range(SITES)]
    (folder / "weights.csv").write_text("\n".join(["unique_id,poi,residents", *weights]))
    past = np.tile(drawn[0], (1, 4))[:, : 7 * 24]
    Location.of(folder).child("past.parquet").write_table(long(past, START - np.timedelta64(7, "D")))
    return folder


def wanted(files: Path, problem: str, out: Path, **settings: object) -> OptimizeConfig:
    """An optimisation of these files."""
    return OptimizeConfig(
        problem=problem,  # type: ignore[arg-type]
        forecast=str(files / "forecast"),
        real=str(files / "real.parquet"),
        history=str(files / "past.parquet"),
        out=str(out),
        **settings,  # type: ignore[arg-type]
    )


def test_sleep_is_the_best_schedule_whatever_the_workers_and_pieces(
    cluster: None, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SLEEP, cells=str(files / "cells.csv"), rrus=None, rru_capacity=None)
    config = wanted(files, "sleep", tmp_path / "a", sleep=settings)
    assert optimize(config) == Location.of(tmp_path / "a")
    monkeypatch.setattr(job, "_PIECE_ENTRIES", 2 * DRAWS * SLOTS)
    optimize(replace(config, out=str(tmp_path / "b"), workers=1))
    assert (tmp_path / "a" / "schedule.parquet").read_bytes() == (tmp_path / "b" / "schedule.parquet").read_bytes()
    rows = pq.read_table(tmp_path / "a" / "schedule.parquet").to_pandas()
    best = schedule(sleep_problem(SLEEP, load(), CELLS))
    np.testing.assert_array_equal(rows["active"].to_numpy().reshape(SITES, SLOTS), best.active)
    np.testing.assert_array_equal(rows["overloaded"].to_numpy().reshape(SITES, SLOTS), best.overloaded)
    assert best.overloaded.any()
    told = json.loads((tmp_path / "a" / "summary.json").read_bytes())
    assert told["status"] == "optimal" and told["gap"] == 0 and told["seconds"] > told["solver_seconds"] > 0
    assert -told["solver_objective"] == pytest.approx(told["objective"]) == pytest.approx(-best.proof.objective)
    cost = {row["strategy"]: row["real"] for row in told["measures"] if row["name"] == "objective"}
    assert list(cost) == ["forecast", "mean forecast", "last week", "real", "all on"] and min(cost.values()) == cost["real"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["report.html", "schedule.parquet", "summary.json"]


def test_a_deployment_is_the_best_plan(cluster: None, files: Path, tmp_path: Path) -> None:
    settings = DeploymentSettings(station_types=("macro=20,2,1", "micro=8"), most_stations=7, money=9.0, grid_limit=3)
    config = wanted(files, "deployment", tmp_path, deployment=settings)
    optimize(config)
    rows = pq.read_table(tmp_path / "plan.parquet").to_pandas()
    types = (StationType(capacity=20.0, price=2.0, operating_cost=1.0), StationType(capacity=8.0))
    problem = DeploymentProblem(demand=load(), station_types=types, most_stations=7, money=9.0, grid_limit=np.full(SITES, 3))
    best = plan(problem)
    told = json.loads((tmp_path / "summary.json").read_bytes())
    assert told["status"] == "optimal" and told["objective"] == pytest.approx(best.proof.objective, rel=1e-4)
    assert rows["built_macro"].sum() + rows["built_micro"].sum() == told["built"] <= 7
    assert told["spent"] == 2 * rows["built_macro"].sum() <= 9
    gain = {row["strategy"]: row["gain_share"] for row in told["measures"] if row["name"] == "objective"}
    assert gain["real"] == 1 and gain["nothing built"] == 0 and 0.5 < gain["forecast"] <= 1
    assert "really came" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("problem", ["deployment", "sleep"])
def test_each_column_of_weights_is_a_strategy(cluster: None, files: Path, tmp_path: Path, problem: str) -> None:
    building = DeploymentSettings(station_types=("macro=20,2,1", "micro=8"), most_stations=7)
    config = wanted(files, problem, tmp_path, deployment=building, sleep=SleepSettings(rrus=4, rru_capacity=8.0))
    optimize(replace(config, weights=str(files / "weights.csv")))
    told = json.loads((tmp_path / "summary.json").read_bytes())
    nothing = {"deployment": "nothing built", "sleep": "all on"}[problem]
    assert list(told["strategies"]) == ["forecast", "mean forecast", "last week", "poi", "residents", "real"]
    real = {row["strategy"]: row["real"] for row in told["measures"] if row["name"] == "objective"}
    assert list(real) == [*told["strategies"], nothing]
    gain = {row["strategy"]: row["gain_share"] for row in told["measures"] if row["name"] == "objective"}
    assert gain["forecast"] > gain["poi"] and gain["residents"] <= gain["real"] == 1
    text = (tmp_path / "report.html").read_text()
    assert all(f'<th scope="row">{name}</th>' in text for name in ("poi", "residents"))
    demands = load().mean(axis=0)
    spread = np.arange(SITES) % 4 / (np.arange(SITES) % 4).sum()
    if problem == "deployment":
        types = (StationType(capacity=20.0, price=2.0, operating_cost=1.0), StationType(capacity=8.0))
        asked = DeploymentProblem(demand=(spread[:, None] * demands.sum(axis=0))[None], station_types=types, most_stations=7)
        assert told["strategies"]["poi"]["solver_objective"] == pytest.approx(plan(asked).proof.objective, rel=1e-4)


def test_what_does_not_fit_is_told_before_anything_is_written(files: Path, tmp_path: Path) -> None:
    short = wanted(files, "sleep", tmp_path / "out", sleep=SLEEP)
    with pytest.raises(ValueError, match=r"real.parquet: no value of site 'east/r0c0' at 2024-01-08"):
        optimize(replace(short, history=short.real))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def forecasts(prepared: Path, trained: Path) -> Path:
    """What `raytraffic forecast --keep-draws` leaves of the next six hours of every cell of three cities."""
    out = prepared.parent / "drawn"
    settings = {"checkpoint": str(trained / "best"), "store": str(prepared), "out": str(out)}
    forecast(ForecastConfig(**settings, hours=6, draws=4, steps=2, keep_draws=True, tiles_per_shard=2))  # type: ignore[arg-type]
    return out


def table_of(folder: Path, city: str) -> pd.DataFrame:
    """The rows of a city as the forecast wrote them."""
    parts = [pq.read_table(path).to_pandas() for path in sorted((folder / "shards").iterdir())]
    table = pd.concat(parts, ignore_index=True)
    return table[table["city"] == city]


@pytest.mark.parametrize(("city", "slots"), [("east", 24), ("west", 6)])
def test_decisions_are_made_from_what_the_forecast_verb_leaves(
    cluster: None, forecasts: Path, tmp_path: Path, city: str, slots: int
) -> None:
    rows = table_of(forecasts, city)
    sites = list(dict.fromkeys(rows["unique_id"]))
    drawn = np.stack(rows.sort_values("ds", kind="stable")["draws"].to_list()).reshape(slots, len(sites), 4)
    order = list(rows.sort_values("ds", kind="stable")["unique_id"][: len(sites)])
    demand = drawn.transpose(2, 1, 0)[:, [order.index(site) for site in sites]]
    level = float(np.float32(demand.mean()))
    assert demand.shape == (4, 64, slots) and level > 0

    building = DeploymentSettings(station_types=(f"macro={4 * level},3", f"micro={level},1"), money=60.0, grid_limit=2)
    config = OptimizeConfig(problem="deployment", forecast=str(forecasts), cities=(city,), out=str(tmp_path / "build"), deployment=building)
    optimize(config)
    types = (StationType(capacity=4 * level, price=3.0), StationType(capacity=level, price=1.0))
    best = plan(DeploymentProblem(demand=demand, station_types=types, money=60.0, grid_limit=np.full(64, 2)))
    built = pq.read_table(tmp_path / "build" / "plan.parquet").to_pandas()
    assert built["unique_id"].to_list() == sites and (built["city"] == city).all()
    np.testing.assert_array_equal(built[["built_macro", "built_micro"]].to_numpy(), best.built)
    assert best.built.sum() > 0 and "Maps of demand" in (tmp_path / "build" / "report.html").read_text()

    sleeping = SleepSettings(rrus=6, rru_capacity=level, served_share=0.75)
    optimize(OptimizeConfig(problem="sleep", forecast=str(forecasts), cities=(city,), out=str(tmp_path / "sleep"), sleep=sleeping))
    cells = Installed(rrus=np.full(64, 6), rru_capacity=np.full(64, level))
    found = pq.read_table(tmp_path / "sleep" / "schedule.parquet").to_pandas()
    active = schedule(sleep_problem(sleeping, demand, cells)).active
    np.testing.assert_array_equal(found["active"].to_numpy().reshape(64, slots), active)
    assert found["unique_id"].to_list() == list(np.repeat(sites, slots)) and 0 < active.mean() < 6
    assert (found["ds"].to_numpy().reshape(64, slots) == np.sort(rows["ds"].unique())).all()
