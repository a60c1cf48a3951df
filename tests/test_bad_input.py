"""The user's mistakes through the command line: exit code 2, one line naming field, value and expectation, nothing half-written.

Ray never starts here: what a verb can know, it checks before it connects. What only a reading task can know (what is inside a
source's files) is raised by the same functions, called in this process; tests/ray holds one such mistake for real.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from raytraffic import registry
from raytraffic.checkpoint import commit, save_forecaster
from raytraffic.cli import main
from raytraffic.config import TrainConfig
from raytraffic.files import Location
from raytraffic.on_ray import evaluate, forecast, prepare, train
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity
from raytraffic.store import Layout, open_store, prepare_store
from raytraffic.training import initial_model


class InProcess:
    """Stands for a dataset: the work is done here, one item at a time."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        self.items = items
        self.work: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def map_batches(self, work: Callable[[dict[str, Any]], dict[str, Any]], batch_size: int) -> InProcess:
        assert batch_size == 1
        self.work = work
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        assert self.work is not None
        for item in self.items:
            yield {name: values[0] for name, values in self.work({name: np.array([value]) for name, value in item.items()}).items()}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting is a failure of the test, but for `prepare`, whose reading tasks run in this process."""

    def connect() -> None:
        raise AssertionError("ray was connected to before the mistake was found")

    for module in (evaluate, forecast, train):
        monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(prepare, "connect", lambda: None)
    monkeypatch.setattr(prepare, "dataset", InProcess)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of one hourly city."""
    folder = tmp_path_factory.mktemp("store")
    city = SyntheticCity(name="east", grid=(4, 4), days=12, step_minutes=60)
    prepare_store([SyntheticCities([city]).read("east")], Location.of(folder), Layout())
    return str(folder)


@pytest.fixture
def checkpoint(tmp_path: Path, store: str) -> Path:
    """A tiny model that fits the store."""
    entry = registry.model("uomo")
    config = initial_model(TrainConfig(store=store, out="", preset="tiny"), open_store(store))[1]
    folder = tmp_path / "model"
    save_forecaster(folder, entry.build(config).state_dict(), "uomo", config, {})
    return folder


def refused(capsys: pytest.CaptureFixture[str], out: Path, arguments: list[str], *told: str) -> None:
    """Runs a verb that must fail with one line that holds `told`, and leave nothing that could be taken for a result."""
    assert main([*arguments, "--out", str(out)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"raytraffic {arguments[0]}: ")
    for text in (*told, "expected"):
        assert text in lines[0], lines[0]
    left = {path.name for path in out.rglob("*")} if out.exists() else set()
    assert not left & {"manifest.json", "committed.json", "scores.json", "metrics.parquet", "config.json", "run.json"}, left
    assert not any(name.startswith(".tmp-") or name.startswith("forecast-") for name in left), left


def hourly(**changes: Any) -> pd.DataFrame:
    """A long table of two stations and ten days."""
    times = pd.date_range("2024-01-01", periods=240, freq="h")
    both = [pd.DataFrame({"unique_id": name, "ds": times, "y": np.arange(240.0) + 1}) for name in ("north", "south")]
    return pd.concat(both, ignore_index=True).assign(**changes)


# --- sources ---------------------------------------------------------------------------------------------------------


def unknown_column(folder: Path) -> tuple[str, list[str]]:
    hourly().to_csv(folder / "t.csv", index=False)
    return f"table:{folder}/t.csv?column_y=bytes", ["t.csv", "no column 'bytes'"]


def nan_city(folder: Path) -> tuple[str, list[str]]:
    traffic = np.full((48, 4, 4), np.nan, dtype=np.float32)
    np.savez(folder / "g.npz", traffic=traffic, step_minutes=60, start="2024-01-01T00:00")
    return f"grid:{folder}/g.npz", ["g.npz", "every value is NaN"]


def nan_station(folder: Path) -> tuple[str, list[str]]:
    hourly(y=np.nan).to_csv(folder / "t.csv", index=False)
    return f"table:{folder}/t.csv", ["t.csv", "station 'north'"]


def wrong_shape(folder: Path) -> tuple[str, list[str]]:
    np.savez(folder / "g.npz", traffic=np.ones((48, 16), dtype=np.float32), step_minutes=60, start="2024-01-01T00:00")
    return f"grid:{folder}/g.npz", ["g.npz: traffic: shape (48, 16)", "(time, row, column)"]


def wrong_users_shape(folder: Path) -> tuple[str, list[str]]:
    traffic, users = np.ones((2, 48, 4, 4)), np.ones((2, 47, 4, 4))
    np.savez(folder / "east_train.npz", traffic=traffic, users=users, start_weekday_slot=np.array([0, 0]), step_minutes=np.array(60))
    return f"series:{folder}", ["east_train.npz", "users", "47"]


def truncated_parquet(folder: Path) -> tuple[str, list[str]]:
    hourly().to_parquet(folder / "t.parquet")
    data = (folder / "t.parquet").read_bytes()
    (folder / "t.parquet").write_bytes(data[: len(data) // 2])
    return f"table:{folder}/t.parquet", ["t.parquet", "cannot be read"]


def truncated_npz(folder: Path) -> tuple[str, list[str]]:
    np.savez(folder / "g.npz", traffic=np.ones((48, 4, 4)), step_minutes=60, start="2024-01-01T00:00")
    data = (folder / "g.npz").read_bytes()
    (folder / "g.npz").write_bytes(data[: len(data) // 2])
    return f"grid:{folder}/g.npz", ["g.npz: cannot be read"]


def mixed_granularity(folder: Path) -> tuple[str, list[str]]:
    frame = hourly()
    coarse = frame["ds"].dt.hour % 2 == 0
    frame[(frame["unique_id"] == "north") | coarse].to_csv(folder / "t.csv", index=False)
    return f"table:{folder}/t.csv", ["t.csv", "step", "120"]


def granularity_of_periods(folder: Path) -> tuple[str, list[str]]:
    for period, step in (("train", 60), ("test", 30)):
        traffic, start = np.ones((2, 48, 4, 4)), np.array([0, 0])
        np.savez(folder / f"east_{period}.npz", traffic=traffic, start_weekday_slot=start, step_minutes=np.array(step))
    return f"series:{folder}", ["step_minutes", "'east'", "one step in all periods"]


def unusual_granularity(folder: Path) -> tuple[str, list[str]]:
    return "synthetic:east?step=7", ["step_minutes: 7", "one of"]


def empty_table(folder: Path) -> tuple[str, list[str]]:
    hourly().iloc[:0].to_csv(folder / "t.csv", index=False)
    return f"table:{folder}/t.csv", ["t.csv", "0 rows"]


def empty_city(folder: Path) -> tuple[str, list[str]]:
    np.savez(folder / "g.npz", traffic=np.ones((0, 4, 4), dtype=np.float32), step_minutes=60, start="2024-01-01T00:00")
    return f"grid:{folder}/g.npz", ["g.npz", "(1, 0, 16)", "none of them empty"]


def no_city(folder: Path) -> tuple[str, list[str]]:
    return f"series:{folder}", [str(folder), "no such file in it"]


def negative(folder: Path) -> tuple[str, list[str]]:
    hourly(y=-1.0).to_csv(folder / "t.csv", index=False)
    return f"table:{folder}/t.csv", ["t.csv", "row 1, column 'y': -1"]


def unknown_scheme(folder: Path) -> tuple[str, list[str]]:
    return "excel:traffic.xlsx", ["scheme 'excel'", "table:"]


def unknown_source_option(folder: Path) -> tuple[str, list[str]]:
    return "synthetic:east?dyas=3", ["option 'dyas'", "'days'"]


WRONG_FILES = (nan_city, wrong_shape, wrong_users_shape, truncated_parquet, truncated_npz, granularity_of_periods, empty_city, no_city)
WRONG_TABLES = (unknown_column, nan_station, mixed_granularity, empty_table, negative)
WRONG_WORDS = (unusual_granularity, unknown_scheme, unknown_source_option)


@pytest.mark.parametrize("mistake", [*WRONG_FILES, *WRONG_TABLES, *WRONG_WORDS])
def test_bad_sources(mistake: Callable[[Path], tuple[str, list[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    source, told = mistake(tmp_path / "in")
    refused(capsys, tmp_path / "out", ["prepare", "--sources", "synthetic:west?days=2&grid=4x4", source], *told)


def test_a_city_from_two_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = ["synthetic:east?days=2&grid=4x4", "synthetic:east?days=3&grid=4x4"]
    refused(capsys, tmp_path / "out", ["prepare", "--sources", *sources], "['east']", "unique names")


def test_a_token_that_does_not_fit_the_tile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prepare", "--sources", "synthetic:east?days=2&grid=4x4", "--token", "4", "3", "4"]
    refused(capsys, tmp_path / "out", arguments, "layout tile height: 4", "multiple of the token's 3")


def test_an_all_dead_city_is_a_city(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "dead.npz", traffic=np.zeros((300, 4, 4), dtype=np.float32), step_minutes=60, start="2024-01-01T00:00")
    assert main(["prepare", "--sources", f"grid:{tmp_path}/dead.npz", "--out", str(tmp_path / "out")]) == 0
    statistics = open_store(tmp_path / "out").statistics("time")["dead"]
    assert statistics is not None and statistics.reference == (0.0,) and np.isfinite(statistics.profile).all()
    capsys.readouterr()


# --- stores ----------------------------------------------------------------------------------------------------------


def copied(store: str, folder: Path) -> Path:
    """A copy of a store that may be damaged."""
    for path in Path(store).rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(store)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("verb", ["train", "evaluate", "forecast"])
@pytest.mark.parametrize("damage", ["absent", "unfinished", "other version", "changed index", "lost shard"])
def test_bad_stores(verb: str, damage: str, store: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = copied(store, tmp_path / "bad")
    manifest = bad / "manifest.json"
    if damage == "absent":
        bad, told = tmp_path / "nowhere", ["nowhere", "a prepared store"]
    elif damage == "unfinished":
        manifest.unlink()
        told = ["bad", "a prepared store"]
    elif damage == "other version":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 99}))
        told = ["manifest.json", "schema_version 99"]
    elif damage == "changed index":
        (bad / "index.parquet").write_bytes((bad / "index.parquet").read_bytes()[:-3])
        told = ["index.parquet", "sha256"]
    else:
        shard = next((bad / "shards").iterdir())
        shard.unlink()
        told = [shard.name]
    arguments = [verb, "--store", str(bad)] + ([] if verb == "train" else ["--checkpoint", str(checkpoint)])
    if damage == "lost shard":
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        assert shard.name in capsys.readouterr().err and not (tmp_path / "out").exists()
    else:
        refused(capsys, tmp_path / "out", arguments, *told)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def flipped_byte(folder: Path) -> list[str]:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 4
    (folder / "model.safetensors").write_bytes(bytes(data))
    return ["model.safetensors", "SHA-256"]


def truncated(folder: Path) -> list[str]:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    return ["model.safetensors", "SHA-256"]


def no_marker(folder: Path) -> list[str]:
    (folder / "committed.json").unlink()
    return [str(folder), "no committed.json"]


def no_folder(folder: Path) -> list[str]:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return [str(folder), "a whole checkpoint"]


def _recommitted(folder: Path, **files: Any) -> None:
    names = {"weights": "model.safetensors", "config": "config.json"}
    content = {name: (folder / name).read_bytes() for name in names.values()}
    commit(Location.of(folder), content | {names[key]: value for key, value in files.items()})


def nan_weights(folder: Path) -> list[str]:
    config = json.loads((folder / "config.json").read_bytes())["config"]
    entry = registry.model("uomo")
    tensors = entry.build(entry.config(**{**config, "forecaster": entry.preset("tiny").forecaster})).state_dict()
    name = "denoiser.token.weight"
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    _recommitted(folder, weights={key: value.clone() for key, value in tensors.items()})
    return ["model.safetensors", f"{name} holds NaN"]


def misspelt_field(folder: Path) -> list[str]:
    content = json.loads((folder / "config.json").read_bytes())
    content["config"]["hiden"] = content["config"]["hidden"]
    _recommitted(folder, config=content)
    return ["config.json.hiden", "unknown field"]


def wrong_value(folder: Path) -> list[str]:
    content = json.loads((folder / "config.json").read_bytes())
    content["config"]["forecaster"]["schedule"] = "square"
    _recommitted(folder, config=content)
    return ["config.json.forecaster.schedule", "'square'", "'linear' or 'cosine'"]


def other_services(folder: Path) -> list[str]:
    entry = registry.model("uomo")
    config = type(entry.preset("tiny"))(depth=2, hidden=32, heads=2, services=5)
    save_forecaster(folder, entry.build(config).state_dict(), "uomo", config, {})
    return ["services ['traffic']", "5 as the model was trained on"]


@pytest.mark.parametrize("verb", ["evaluate", "forecast"])
@pytest.mark.parametrize(
    "damage", [flipped_byte, truncated, no_marker, no_folder, nan_weights, misspelt_field, wrong_value, other_services]
)
def test_bad_checkpoints(
    verb: str, damage: Callable[[Path], list[str]], store: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = damage(checkpoint)
    refused(capsys, tmp_path / "out", [verb, "--store", store, "--checkpoint", str(checkpoint)], *told)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "gpt"], ["model: 'gpt'", "uomo"]),
        (["--preset", "huge"], ["preset: 'huge'", "tiny"]),
        (["--tasks", "short", "tomorrow", "--weights", "1", "1"], ["'tomorrow'", "short"]),
        (["--batch", "9", "--workers", "2"], ["batch: 9", "multiple of workers (2)"]),
        (["--window", "100"], ["window: 100", "1..64"]),
        (["--window", "0"], ["window: 0", "1..64"]),
        (["--learning-rate", "0"], ["learning_rate 0.0", "> 0"]),
        (["--ema", "1"], ["ema 1.0", "< 1"]),
    ],
)
def test_bad_training_settings(
    arguments: list[str], told: list[str], store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, tmp_path / "out", ["train", "--store", store, "--preset", "tiny", *arguments], *told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--hours", "0.5"], ["hours: 0.5", "60-minute slots"]),
        (["--issue", "tomorrow"], ["issue: 'tomorrow'", "an ISO time"]),
        (["--issue", "2024-01-08T00:00+01:00"], ["issue: '2024-01-08T00:00+01:00'", "without a zone"]),
        (["--issue", "2031-01-01T00:00"], ["east/", "before the issue time"]),
        (["--issue", "2024-01-01T05:00"], ["east/", "5 steps before the issue time", "at least 40"]),
        (["--quantiles", "0.5", "0.1"], ["quantiles: [0.5, 0.1]", "increasing levels"]),
        (["--table", "table:t.csv"], ["store, table", "exactly one"]),
    ],
)
def test_bad_forecast_settings(
    arguments: list[str], told: list[str], store: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, tmp_path / "out", ["forecast", "--store", store, "--checkpoint", str(checkpoint), *arguments], *told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tasks", "tomorrow"], ["'tomorrow'", "short"]),
        (["--splits", "place", "--tasks", "short"], ["split 'place', task 'short'", "at least one"]),
    ],
)
def test_bad_evaluation_settings(
    arguments: list[str], told: list[str], store: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, tmp_path / "out", ["evaluate", "--store", store, "--checkpoint", str(checkpoint), *arguments], *told)


@pytest.mark.parametrize(
    ("verb", "arguments", "told"),
    [
        ("train", ["--steps", "0"], "steps: 0, expected at least 1"),
        ("train", ["--tasks", "short"], "weights: (1.0, 1.0, 1.0, 0.5, 0.5), expected one a task of ('short',)"),
        ("train", ["--tasks", "short", "--weights", "0"], "weights: (0.0,), expected positive ones"),
        ("train", ["--split", "random"], "'random'"),
        ("evaluate", ["--steps", "0"], "steps: 0, expected at least 1"),
        ("evaluate", ["--draws", "0"], "draws: 0, expected at least 1"),
        ("evaluate", ["--stride", "0"], "stride: 0, expected at least 1"),
        ("forecast", ["--draws", "0"], "draws: 0, expected at least 1"),
        ("forecast", ["--batch", "0"], "batch: 0, expected at least 1"),
    ],
)
def test_settings_that_the_command_line_refuses(
    verb: str, arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    where = ["--store", "store"] + ([] if verb == "train" else ["--checkpoint", "model"])
    assert main([verb, *where, *arguments, "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_table_for_a_forecast_is_read_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "committed.json").unlink()
    hourly().to_csv(tmp_path / "t.csv", index=False)
    refused(capsys, tmp_path / "out", ["forecast", "--table", f"table:{tmp_path}/t.csv", "--checkpoint", str(checkpoint)], "committed.json")
    assert not (tmp_path / "out").exists()
