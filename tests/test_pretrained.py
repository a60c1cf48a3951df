"""The notebook user's path: a checkpoint, a data frame of any kind, a frame of forecasts; mistakes named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import raytraffic
from raytraffic import registry
from raytraffic.checkpoint import save_forecaster
from raytraffic.pretrained import Forecaster
from raytraffic.sources.table import Columns

FAST: dict[str, Any] = {"draws": 5, "steps": 3}
LAST = pd.Timestamp("2024-03-10 23:00")


def frame(stations: tuple[str, ...] = ("north", "south"), hours: int = 240, services: tuple[str, ...] = ()) -> pd.DataFrame:
    """Hourly traffic with a daily rhythm, up to and including LAST."""
    random = np.random.default_rng(0)
    times = pd.date_range(end=LAST, periods=hours, freq="h")
    rhythm = 2 + np.sin(2 * np.pi * np.arange(hours) / 24)
    parts = []
    for number, station in enumerate(stations):
        for service in services or ("",):
            y = 100.0 * (number + 1) * rhythm * np.exp(0.1 * random.standard_normal(hours))
            part = pd.DataFrame({"unique_id": station, "ds": times, "y": y})
            parts.append(part.assign(service=service) if services else part)
    return pd.concat(parts, ignore_index=True)


def checkpoint(folder: Path, services: int = 1, poi: tuple[str, ...] = (), window: int = 64) -> Path:
    """A tiny model, saved as `train` saves it."""
    torch.manual_seed(0)
    entry = registry.model("uomo")
    contexts = ("users", "poi") if poi else ("users",)
    config = replace(entry.preset("tiny"), services=services, contexts=contexts, poi_categories=poi, window=window)
    model = entry.build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_forecaster(folder, model.state_dict(), "uomo", config, {})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Forecaster:
    """The model as a notebook gets it."""
    return raytraffic.Forecaster.from_pretrained(checkpoint(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("horizon", [6, 60])
def test_one_row_a_station_and_slot_right_after_the_last_one(model: Forecaster, horizon: int) -> None:
    out = model.predict_df(frame(), horizon, (0.1, 0.5, 0.9), **FAST)
    assert list(out.columns) == ["unique_id", "ds", "mean", "0.1", "0.5", "0.9"]
    assert len(out) == 2 * horizon
    for station in ("north", "south"):
        own = out[out["unique_id"] == station]
        assert list(own["ds"]) == list(pd.date_range(LAST + pd.Timedelta(hours=1), periods=horizon, freq="h"))
    numbers = out[["0.1", "0.5", "0.9", "mean"]].to_numpy()
    assert np.isfinite(numbers).all() and (numbers >= 0).all()
    assert (np.diff(out[["0.1", "0.5", "0.9"]].to_numpy(), axis=1) >= 0).all() and (out["0.1"] < out["0.9"]).any()


def test_every_kind_of_frame_gives_the_same(model: Forecaster) -> None:
    ours = model.predict_df(frame(), 6, **FAST)
    for other in (pl.from_pandas(frame()), pa.Table.from_pandas(frame(), preserve_index=False)):
        pd.testing.assert_frame_equal(ours, model.predict_df(other, 6, **FAST))


def test_the_same_seed_gives_the_same_and_another_another(model: Forecaster) -> None:
    ours = model.predict_df(frame(), 60, seed=3, **FAST)
    pd.testing.assert_frame_equal(ours, model.predict_df(frame(), 60, seed=3, **FAST))
    assert not ours.equals(model.predict_df(frame(), 60, seed=4, **FAST))
    alone = model.predict_df(frame(("south",), hours=240), 6, **FAST)
    assert set(alone["unique_id"].astype(str)) == {"south"}


def test_draws_come_back_and_make_the_figures(model: Forecaster) -> None:
    out = model.predict_df(frame(), 6, (0.3, 0.5, 0.95), keep_draws=True, **FAST)
    draws = np.stack(out["draws"].to_list())
    assert draws.shape == (12, 5)
    for level in (0.3, 0.5, 0.95):
        np.testing.assert_allclose(np.quantile(draws, level, axis=1, method="weibull"), out[str(level)], rtol=1e-5)
    np.testing.assert_allclose(draws.mean(axis=1), out["mean"], rtol=1e-5)


def test_services_are_told_apart(tmp_path: Path) -> None:
    model = Forecaster.from_pretrained(checkpoint(tmp_path, services=2))
    out = model.predict_df(frame(services=("video", "web")), 6, **FAST)
    assert list(out.columns[:3]) == ["unique_id", "service", "ds"]
    assert out.groupby(["unique_id", "service"], observed=True).size().to_dict() == {
        (station, service): 6 for station in ("north", "south") for service in ("video", "web")
    }
    with pytest.raises(ValueError, match=r"services \['traffic'\], expected 2 as the model was trained on"):
        model.predict_df(frame(), 6, **FAST)


def test_the_model_s_own_window_and_poi_vocabulary_count(tmp_path: Path) -> None:
    model = Forecaster.from_pretrained(checkpoint(tmp_path, poi=("bank", "bar", "park"), window=32))
    places = {"lat": [45.0, 45.001], "lon": [9.0, 9.0]}
    sites = pd.DataFrame({"unique_id": ["north", "south"], **places})
    answers = []
    for category in ("park", "zoo", "mill"):  # the model knows parks only
        poi = pd.DataFrame({**places, "category": category})
        answers.append(model.predict_df(frame(hours=26), 6, sites=sites, poi=poi, **FAST))
    pd.testing.assert_frame_equal(answers[1], answers[2])
    assert not answers[0].equals(answers[1])
    with pytest.raises(ValueError, match="25 steps before the issue time, expected at least 26"):
        model.predict_df(frame(hours=25), 6, **FAST)


def test_own_column_names_and_users(model: Forecaster) -> None:
    named = frame().rename(columns={"unique_id": "site", "ds": "at", "y": "megabytes"})
    columns = Columns(unique_id="site", ds="at", y="megabytes")
    out = model.predict_df(named, 6, columns=columns, **FAST)
    pd.testing.assert_frame_equal(out, model.predict_df(frame(), 6, **FAST))
    users = named.assign(users=named["megabytes"] / 7)[["site", "at", "users"]]
    assert not out.equals(model.predict_df(named, 6, columns=columns, users=users, **FAST))


def test_saved_again_it_is_the_same_model(model: Forecaster, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "copy")
    again = Forecaster.from_pretrained(tmp_path / "copy")
    pd.testing.assert_frame_equal(model.predict_df(frame(), 6, **FAST), again.predict_df(frame(), 6, **FAST))


@pytest.mark.parametrize("horizon", [6, 48])
def test_a_frame_that_is_too_short_names_the_station(model: Forecaster, horizon: int) -> None:
    needed = max(64 - horizon, 32)
    assert len(model.predict_df(frame(hours=needed), horizon, **FAST)) == 2 * horizon
    message = f"operator/north: {needed - 1} steps before the issue time, expected at least {needed} steps of history"
    with pytest.raises(ValueError, match=message):
        model.predict_df(frame(hours=needed - 1), horizon, **FAST)


def test_mistakes_are_named(model: Forecaster) -> None:
    with pytest.raises(ValueError, match=r"traffic: no column 'y', expected \['unique_id', 'ds', 'y'\] \(it has"):
        model.predict_df(frame().rename(columns={"y": "traffic"}), 6)
    with pytest.raises(ValueError, match="traffic: no column 'bytes'"):
        model.predict_df(frame(), 6, columns=Columns(y="bytes"))
    with pytest.raises(ValueError, match="horizon: 0, expected at least 1 slot"):
        model.predict_df(frame(), 0)
    with pytest.raises(ValueError, match=r"quantiles: \[0\.1, 1\.5\], expected increasing levels in \[0, 1\]"):
        model.predict_df(frame(), 6, (0.1, 1.5))
    broken = frame()
    broken.loc[broken["unique_id"] == "south", "y"] = np.nan
    with pytest.raises(ValueError, match="every y of station 'south' is missing"):
        model.predict_df(broken, 6)
    with pytest.raises(ValueError, match=r"no committed\.json"):
        Forecaster.from_pretrained("nowhere")
