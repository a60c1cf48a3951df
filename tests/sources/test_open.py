"""One string names a source; what it cannot name is refused with the list of what it can."""

from __future__ import annotations

import inspect
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytraffic.sources import open as opening
from raytraffic.sources.open import open_source
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity
from raytraffic.sources.table import Columns, LongTable


def test_synthetic() -> None:
    source = open_source("synthetic:east%20end?days=3&grid=4x6&step=15&seed=7&users=false&dead_share=0.5&tail=0")
    expected = SyntheticCity(name="east%20end", days=3, grid=(4, 6), step_minutes=15, seed=7, users=False, dead_share=0.5, tail=0.0)
    assert source == SyntheticCities([expected])
    (city,) = source.read("east%20end")
    assert city.shape == (1, 288, 24) and city.users is None
    assert open_source("synthetic:plain") == SyntheticCities([SyntheticCity(name="plain")])


def test_table(tmp_path: Path) -> None:
    traffic, sites = tmp_path / "a=1 traffic.csv", tmp_path / "sites & masts.csv"
    traffic.write_text("cell,ds,y\nx,2024-03-04 00:00,1\nx,2024-03-04 00:15,2\nx,2024-03-04 00:30,-3\nx,2024-03-04 00:45,4\n")
    sites.write_text("cell,lat,lon\nx,45.0,9.0\n")
    masts = str(sites).replace("&", "%26")
    source = open_source(f"table:{traffic}?sites={masts}&cell_metres=500&step=30&negatives=missing&name=milan&column_unique_id=cell")
    assert isinstance(source, LongTable) and source.columns == Columns(unique_id="cell")
    (city,) = source.read("milan")
    assert city.grid == (1, 1) and city.start == datetime(2024, 3, 4)
    np.testing.assert_array_equal(city.traffic[0, :, 0], [3, np.nan])


@pytest.mark.parametrize(
    ("spec", "called", "path", "arguments"),
    [
        ("uomo:some/release", "UomoRelease", "some/release", {}),
        ("series:folder", "SeriesFiles", "folder", {}),
        (
            "grid:c:/x.npz?cell_metres=250.5&row_order=south-first&aggregate_minutes=30&name=m",
            "GridArrays",
            "c:/x.npz",
            {"cell_metres": 250.5, "row_order": "south-first", "aggregate_minutes": 30, "name": "m"},
        ),
        (
            "cdr:milan?squares=5,10-12&timezone=Etc/GMT+1",
            "TelecomItaliaRecords",
            "milan",
            {"squares": (5, 10, 11, 12), "timezone": "Etc/GMT+1"},
        ),
    ],
)
def test_options_reach_their_source(spec: str, called: str, path: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(opening, called, lambda place, **given: calls.append((place, given)))
    open_source(spec)
    assert calls == [(path, arguments)]


@pytest.mark.parametrize(
    ("scheme", "source"),
    [("grid", "GridArrays"), ("cdr", "TelecomItaliaRecords"), ("table", "LongTable"), ("synthetic", "SyntheticCity")],
)
def test_every_option_sets_an_argument_that_exists(scheme: str, source: str) -> None:
    parameters = set(inspect.signature(getattr(opening, source)).parameters)
    options = opening._SCHEMES[scheme].options.values()
    assert {option.argument for option in options if not option.argument.startswith("column_")} <= parameters


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("traffic.csv", r"scheme 'traffic.csv', expected one of uomo:, series:, grid:, cdr:, table:, synthetic:"),
        ("s3:bucket", r"scheme 's3', expected one of uomo:"),
        ("table:", r"nothing after 'table', expected a CSV or Parquet file"),
        ("synthetic:?days=2", r"nothing after 'synthetic', expected the name of a city"),
        ("synthetic:x?day=2", r"option 'day', expected one of \['days', 'dead_share', 'grid'"),
        ("synthetic:x?days=2&", r"option '', expected one of"),
        ("synthetic:x?name=y", r"option 'name', expected one of"),
        ("uomo:x?days=2", r"option 'days', expected none"),
        ("table:x?column_z=y", r"option 'column_z', expected one of .*'column_y'"),
        ("synthetic:x?days=two", r"option 'days' is 'two', expected an integer"),
        ("synthetic:x?days", r"option 'days' is '', expected an integer"),
        ("synthetic:x?grid=8", r"option 'grid' is '8', expected ROWSxCOLUMNS"),
        ("synthetic:x?users=yes", r"option 'users' is 'yes', expected true or false"),
        ("cdr:x?squares=9-5", r"option 'squares' is '9-5', expected integers and ranges"),
        ("synthetic:x?days=2&days=3", r"option 'days' is given twice"),
        ("synthetic:x?step=7", r"step_minutes: 7, expected one of"),
    ],
)
def test_what_cannot_be_named_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(spec)
