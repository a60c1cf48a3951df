"""STOUTER's Table 1 from a miniature of the public download: what is read, how stations are grouped, and that what is done stays done."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from raytraffic.types import TrafficBatch
from tests.test_benchmarks import BENCHMARKS, ENVIRONMENT

BEGIN = 1_383_260_400_000  # 2013-11-01 00:00 in Rome, in milliseconds
#: Squares with records, and the degrees of their areas' south-west corners and of a square's side.
AREAS = {"milan": ("mi", (1, 2, 3, 101, 102, 103), (9.0, 45.3)), "trentino": ("tn", (38, 39, 40, 155, 156, 157), (10.9, 46.0))}
SIDE = 0.01
#: Base stations by the square that each stands in, and the squares whose nearest it is (a degree of longitude is the shorter one).
STATIONS = {"milan": {"a": 2, "b": 3, "c": 101}, "trentino": {"d": 38, "e": 157}}
NEAREST = {"milan": {"a": (1, 2), "b": (3, 103), "c": (101, 102)}, "trentino": {"d": (38, 39, 155), "e": (40, 156, 157)}}


@pytest.fixture(scope="module")
def benchmark_module() -> Iterator[ModuleType]:
    """benchmarks/stouter_table.py, imported as its own folder's scripts import each other."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("stouter_table", BENCHMARKS / "stouter_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stouter_table"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


def centre(area: str, square: int) -> tuple[float, float]:
    """Longitude and latitude of a square's middle."""
    _, squares, (west, south) = AREAS[area]
    row, column = divmod(squares.index(square), 3)
    return west + (column + 0.5) * SIDE, south + (row + 0.5) * SIDE


def activity(area: str, days: int) -> np.ndarray:
    """(time, square, service) records by ten minutes: some rhythm, and levels of squares and services."""
    slots = np.arange(144 * days)
    rhythm = 1.3 + np.sin(2 * np.pi * slots / 144) + 0.2 * (slots // 144 % 7 < 5)
    noise = np.random.default_rng(len(area)).lognormal(0, 0.2, (len(slots), 6, 5))
    return rhythm[:, None, None] * noise * np.arange(1, 7)[:, None] * np.array([1, 2, 3, 4, 50])


def write_download(folder: Path, days: int) -> dict[str, Path]:
    """The published layout in small, as the benchmark's options name it: a day a file, GeoJSON, and tables of stations and of POI."""
    paths = {}
    for area, (short, squares, _) in AREAS.items():
        paths[area] = folder / area
        paths[area].mkdir(parents=True)
        records = activity(area, days)
        for day in range(days):
            lines = [
                "\t".join([str(square), str(BEGIN + slot * 600_000), "39", *(f"{value:.6g}" for value in records[slot, i])])
                for slot in range(144 * day, 144 * (day + 1))
                for i, square in enumerate(squares)
            ]
            (paths[area] / f"sms-call-internet-{short}-2013-11-{day + 1:02}.txt").write_text("\n".join(lines) + "\n")
        features = []
        for square in squares:
            x, y = centre(area, square)
            corners = [[x + dx * SIDE / 2, y + dy * SIDE / 2] for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1))]
            features.append({"properties": {"cellId": square}, "geometry": {"type": "Polygon", "coordinates": [corners]}})
        paths[f"{area}-cells"] = folder / f"{area}.geojson"
        paths[f"{area}-cells"].write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    places = [(name, *centre(area, square)) for area, named in STATIONS.items() for name, square in named.items()]
    paths["stations"] = folder / "stations.csv"
    pd.DataFrame(places, columns=["unique_id", "lon", "lat"]).to_csv(paths["stations"], index=False)
    points = [("cafe", x, y) for _, x, y in places] + [("cafe", *places[0][1:]), ("school", *places[3][1:])]
    paths["poi"] = folder / "poi.csv"
    pd.DataFrame(points, columns=["category", "lon", "lat"]).to_csv(paths["poi"], index=False)
    return paths


def download(module: ModuleType, paths: dict[str, Path], until: datetime) -> object:
    return module.Download(
        records={area: paths[area] for area in AREAS},
        cells={area: paths[f"{area}-cells"] for area in AREAS},
        stations=paths["stations"],
        poi=paths["poi"],
        until=until,
    )


def test_an_area_is_hours_of_stations_with_the_poi_around_them(benchmark_module: ModuleType, tmp_path: Path) -> None:
    paths = write_download(tmp_path, days=2)
    both = download(benchmark_module, paths, datetime(2013, 11, 2, 12))
    for area, named in STATIONS.items():
        hours = both.hours(area, tmp_path / "cache.npz")  # type: ignore[attr-defined]
        assert (hours.start, hours.categories) == (datetime(2013, 11, 1), ("cafe", "school"))
        assert hours.traffic.shape == (5, 36, len(named))
        by_square = (
            np.array([[float(f"{x:.6g}") for x in row] for row in activity(area, 2).reshape(-1, 5)]).reshape(48, 6, 6, 5).sum(axis=1)
        )
        for i, squares in enumerate(NEAREST[area].values()):
            mine = np.isin(AREAS[area][1], squares)
            np.testing.assert_allclose(hours.traffic[:, :, i].T, by_square[:36, mine].sum(axis=1), rtol=1e-5)
        calls = hours.of_type("call").traffic[0, 0].numpy()
        np.testing.assert_allclose(calls, hours.traffic[2] + hours.traffic[3], rtol=1e-6)
        again = both.hours(area, tmp_path / "cache.npz")  # type: ignore[attr-defined]
        assert all(getattr(again, name).tobytes() == getattr(hours, name).tobytes() for name in ("traffic", "xy", "poi"))
        (tmp_path / "cache.npz").unlink()
        assert hours.poi.tolist() == {"milan": [[2, 1, 1], [0, 0, 0]], "trentino": [[1, 1], [1, 0]]}[area]
        window = hours.of_type("internet")
        assert window.clock[0, 0].tolist() == [0, 4] and window.clock[0, -1].tolist() == [11, 5]  # from a Friday on


def test_poi_may_be_counts_and_what_is_wrong_with_them_is_named(benchmark_module: ModuleType, tmp_path: Path) -> None:
    counts = pd.DataFrame({"unique_id": ["b", "c", "a"], "cafe": [1.0, 0.0, 3.0], "school": [4, 5, 6]})
    path = tmp_path / "counts.csv"
    counts.to_csv(path, index=False)
    found, categories = benchmark_module._poi_counts(path, tmp_path / "none.csv", ["a", "b", "c"])
    assert categories == ("cafe", "school") and found.tolist() == [[3, 1, 0], [6, 4, 5]]
    with pytest.raises(ValueError, match=r"counts.csv: no row of station 'd', expected one of every station"):
        benchmark_module._poi_counts(path, tmp_path / "none.csv", ["a", "d"])
    counts.assign(school=[4, -5, 6]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"counts.csv: -5 'school' of station 'c', expected counts >= 0"):
        benchmark_module._poi_counts(path, tmp_path / "none.csv", ["a", "c"])


def whole(hours: int, stations: int = 5) -> TrafficBatch:
    """One long window from Monday on, each entry another number."""
    traffic = torch.arange(1.0, 1 + hours * stations).reshape(1, 1, hours, stations)
    hour = torch.arange(hours)
    return TrafficBatch(
        traffic=traffic,
        known=torch.isfinite(traffic),
        clock=torch.stack((hour % 24, hour // 24 % 7), dim=-1)[None],
        step_minutes=torch.tensor([60]),
        key=torch.tensor([0]),
        context={"poi": torch.arange(2.0 * stations).reshape(1, 2, stations)},
    )


def test_the_last_whole_week_is_kept_from_training(benchmark_module: ModuleType) -> None:
    city = whole(3 * 168 + 30)
    before, train, test = benchmark_module.split_weeks(city)
    assert test.key.tolist() == [2 * 168 + 30] and torch.equal(test.traffic, city.traffic[:, :, -168:])
    assert train.key.tolist() == [30, 198] and before.shape[2] == 2 * 168 + 30
    assert torch.equal(train.traffic[1, 0], city.traffic[0, 0, 198:366]) and torch.equal(train.clock[0, 0], test.clock[0, 0])
    assert float(train.context["reference"][0, 0]) < float(test.traffic.min())  # it is a level of the training weeks
    city.traffic[0, 0, -3] = torch.nan  # an outage of the last hours
    _, _, earlier = benchmark_module.split_weeks(city)
    assert earlier.key.tolist() == [2 * 168 + 30 - 3]
    with pytest.raises(ValueError, match=r"records: 167 hours before a week that was measured throughout, expected at least 168"):
        benchmark_module.split_weeks(whole(335))


class _Echo:
    """Answers the POI of a station as its traffic."""

    name = "echo"

    def generate(self, context: TrafficBatch, draws: int, seed: int) -> torch.Tensor:
        poi = context.context["poi"][:, None, :1, None].expand(-1, draws, -1, context.shape[2], -1)
        return poi + context.clock[:, None, None, :, 0, None]


def test_stations_are_generated_in_groups_and_come_back_in_their_order(benchmark_module: ModuleType) -> None:
    city = whole(24, stations=37)
    groups = benchmark_module.grouped(city)
    assert groups.shape == (3, 1, 24, 16) and len(set(groups.key.tolist())) == 3
    there = torch.isfinite(groups.traffic[:, 0, 0])
    assert there.sum() == 37 and torch.equal(groups.traffic[:, 0].transpose(1, 2)[there], city.traffic[0, 0].T)
    two = TrafficBatch.cat([city, whole(24, stations=37)])
    made = benchmark_module.generated(_Echo(), two, 3)
    assert made.shape == (2, 3, 1, 24, 37)
    assert torch.equal(made[1, 2, 0], two.context["poi"][1, 0] + two.clock[1, :, 0, None])


def test_measures_are_in_units_of_each_station_s_largest_hour(benchmark_module: ModuleType) -> None:
    real = whole(168, stations=3)
    unit = real.traffic[0, 0].amax(dim=0)
    assert benchmark_module.scores(real, real.traffic[:, None], unit) == {"mae": 0, "rmse": 0, "jsd": 0, "value_jsd": 0}
    off = real.traffic[:, None].expand(-1, 2, -1, -1, -1) + unit * torch.tensor([0.1, -0.3])[None, :, None, None, None]
    found = benchmark_module.scores(real, off, unit)
    assert found["mae"] == pytest.approx(0.2, rel=1e-5) and found["rmse"] == pytest.approx(math.sqrt(0.05), rel=1e-5)


def test_the_paper_s_numbers_stand_beside_their_own_columns(benchmark_module: ModuleType) -> None:
    rows = {
        (kind, name): {"mae": 0.1, "rmse": 0.2, "jsd": 0.3} for kind in ("sms", "call_in") for name in benchmark_module.PAPER["trentino"]
    }
    lines = benchmark_module.table("trentino", ("sms", "call_in"), rows).splitlines()
    assert lines[0] == "| trentino | sms MAE | sms RMSE | sms JSD | call_in MAE | call_in RMSE | call_in JSD |"
    assert lines[-1] == "| STOUTER | 0.1000 (0.0613) | 0.2000 (0.0808) | 0.3000 (0.3380) | 0.1000 | 0.2000 | 0.3000 |"


@pytest.mark.slow
def test_the_table_is_made_row_by_row_and_nothing_twice(tmp_path: Path) -> None:
    paths = write_download(tmp_path / "download", days=14)
    out = tmp_path / "out"

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        given = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
        command = [sys.executable, str(BENCHMARKS / "stouter_table.py"), "--quick", "--out", str(out), *given, *options]
        return subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=600)

    first = run("--types", "internet", "call_in", "--json", str(tmp_path / "figures.json"))
    assert first.returncode == 0, first.stdout + first.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    names = [
        f"{area}_{kind}_{model}"
        for area in AREAS
        for kind in ("internet", "call_in")
        for model in ("tcn_gan", "vae", "diffwave", "stouter")
    ]
    assert figures.keys() == {f"{name}_{what}" for name in names for what in ("mae", "rmse", "jsd", "value_jsd", "stations", "weeks")}
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    assert figures["milan_internet_vae_stations"] == 3 and figures["trentino_call_in_stouter_weeks"] == 1
    assert "(0.4843)" in first.stdout and "(0.5196)" in first.stdout
    rows = {path.name: path.stat().st_mtime_ns for path in out.glob("*_*.json")}
    assert len(rows) == 16
    (out / "milan_internet_VAE.json").unlink()
    for folder in ("milan", "trentino"):  # an area is read once, and not at all where its rows are there
        for path in paths[folder].iterdir():
            path.unlink()
    again = run("--types", "internet", "call_in", "--json", str(tmp_path / "again.json"))
    assert again.returncode == 0, again.stdout + again.stderr
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*_*.json")}
    assert {name for name in rows if rows[name] != after[name]} == {"milan_internet_VAE.json"}
    other = run("--draws", "2", "--until", "2013-11-14")
    assert other.returncode != 0 and "holds rows of other settings or files" in other.stderr
