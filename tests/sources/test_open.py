"""One string names a source; what it cannot name is refused with the list of what it can."""

from __future__ import annotations

import inspect
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytraffic.sources import open as opening
from raytraffic.sources.app_usage import AppLayout, AppUsage, CategoryLayout, StationLayout, TraceLayout
from raytraffic.sources.open import open_source
from raytraffic.sources.services import ServiceCity
from raytraffic.sources.sessions import SessionColumns, Sessions
from raytraffic.sources.stations import StationCities, StationCity
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


def test_sessions() -> None:
    source = open_source(
        "sessions:trace?column_start=from&column_end=to&column_volume=kB&column_station=cell&sites=s.csv&name=sh&step=15"
        "&time_format=seconds&timezone=Asia/Shanghai&unit=kB&faulty=skip"
    )
    assert isinstance(source, Sessions)
    assert source.columns == SessionColumns(start="from", end="to", volume="kB", station="cell")
    assert (source.path, source.sites, source.name, source.step_minutes) == ("trace", "s.csv", "sh", 15)
    assert (source.time_format, source.timezone, source.unit, source.faulty) == ("seconds", "Asia/Shanghai", "kB", "skip")
    known = open_source("sessions:trace?preset=shanghai_telecom&column_volume=bytes&column_device=")
    assert isinstance(known, Sessions) and (known.name, known.step_minutes, known.sites) == ("sessions", 30, None)
    assert known.columns == SessionColumns(start="start time", end="end time", volume="bytes", lat="latitude", lon="longitude")


def test_generated_stations_of_the_papers_cities() -> None:
    """LEC-Diff's Table 1, of which any option may be another."""
    shanghai = StationCity(name="a", stations=4505, days=31, start=date(2014, 8, 1), step_minutes=30)
    nanjing = StationCity(name="b", stations=8000, days=58, start=date(2021, 2, 2), step_minutes=30)
    assert nanjing.start + timedelta(days=nanjing.days - 1) == date(2021, 3, 31)
    assert open_source("stations:a?preset=shanghai") == StationCities([shanghai])
    assert open_source("stations:b?preset=nanjing") == StationCities([nanjing])
    few = replace(nanjing, name="c", stations=9, start=date(2021, 3, 1), coupling=0.5)
    assert open_source("stations:c?preset=nanjing&stations=9&start=2021-03-01&coupling=0.5") == StationCities([few])


def test_services() -> None:
    options = "users=30&weeks=2&seed=7&environment_effect=0.5&coupling=0&sessions_per_hour=9&grid=4x6&start=2024-02-05&parameters=a/b"
    assert open_source(f"services:east?{options}") == ServiceCity(
        name="east",
        users=30,
        weeks=2,
        seed=7,
        environment_effect=0.5,
        coupling=0.0,
        sessions_per_hour=9.0,
        grid=(4, 6),
        start=date(2024, 2, 5),
        parameters="a/b",
    )
    assert open_source("services:plain") == ServiceCity(name="plain")


def test_app_usage() -> None:
    source = open_source(
        "app-usage:records?name=sh&trace_file=t.csv&trace_delimiter=comma&trace_header=true&trace_user=who&trace_time=3&stations_poi=4-20"
        "&apps_category=5&categories_file=&time_format=seconds&timezone=Asia/Shanghai&min_active_hours=3&carry_hours=0&unknown_app=News"
    )
    assert isinstance(source, AppUsage) and source.folder == "records" and source.name == "sh"
    assert source.trace == TraceLayout(file="t.csv", delimiter=",", header=True, user="who", time=3)
    assert source.stations == StationLayout(poi=tuple(range(4, 21))) and source.apps == AppLayout(category=5) and source.categories is None
    assert (source.time_format, source.timezone, source.min_active_hours, source.carry_hours) == ("seconds", "Asia/Shanghai", 3, 0)
    assert source.unknown_app == "News"
    plain = open_source("app-usage:records")
    assert isinstance(plain, AppUsage) and plain.trace == TraceLayout() and plain.categories == CategoryLayout()
    assert isinstance(named := open_source("app-usage:x?trace_header=true&trace_app=2nd"), AppUsage) and named.trace.app == "2nd"


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
    [
        ("grid", "GridArrays"),
        ("cdr", "TelecomItaliaRecords"),
        ("table", "LongTable"),
        ("synthetic", "SyntheticCity"),
        ("services", "ServiceCity"),
        ("sessions", "Sessions"),
        ("stations", "StationCity"),
    ],
)
def test_every_option_sets_an_argument_that_exists(scheme: str, source: str) -> None:
    parameters = set(inspect.signature(getattr(opening, source)).parameters)
    options = opening._SCHEMES[scheme].options.values()
    assert {option.argument for option in options if not option.argument.startswith("column_")} - {"preset"} <= parameters


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "traffic.csv",
            r"expected one of uomo:, series:, grid:, cdr:, table:, sessions:, stations:, synthetic:, services:, app-usage:",
        ),
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
        ("stations:x?preset=paris", r"preset: 'paris', expected one of \['nanjing', 'shanghai'\]"),
        ("sessions:x?preset=paris", r"preset: 'paris', expected one of \['shanghai_telecom'\]"),
        ("sessions:x?column_end=to", r"columns: \[\] given, expected either station, or lat and lon, or location"),
        ("services:x?start=monday", r"option 'start' is 'monday', expected a date, such as"),
        ("services:x?coupling=2", r"coupling: 2.0, expected a number in \[0, 1\]"),
        ("app-usage:x?trace_delimiter=pipe", r"option 'trace_delimiter' is 'pipe', expected tab, space, comma or semicolon"),
        ("app-usage:x?trace_file=", r"file: '', expected the name of a file"),
        ("app-usage:x?trace_poi=3", r"option 'trace_poi', expected one of .*'trace_app'"),
    ],
)
def test_what_cannot_be_named_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(spec)
