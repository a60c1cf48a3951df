"""Operators' tables: what is defined is done, and every other table is refused with its name, row and remedy."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.sources.city import City
from raytraffic.sources.table import Columns, LongTable

NAN = float("nan")


def table(*rows: tuple[Any, ...], columns: str = "unique_id ds y") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())


def series(station: str, values: list[float], step: int = 30, start: str = "2024-03-04 00:00") -> pd.DataFrame:
    ds = pd.date_range(start, periods=len(values), freq=f"{step}min").strftime("%Y-%m-%d %H:%M")
    return pd.DataFrame({"unique_id": station, "ds": ds, "y": values})


def read(source: Any, **options: Any) -> City:
    (city,) = LongTable(source, **options).read(options.get("name", "operator"))
    return city


def refused(source: Any, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        read(source, **options)


TWO = pd.concat([series("b", [1, 2, 3, 4]), series("a", [5, 6, 7, 8])])
SITES = table(("a", 31.20, 121.50), ("b", 31.21, 121.50), ("c", 40.0, 100.0), columns="unique_id lat lon")


def test_stations_without_places() -> None:
    city = read(TWO, name="east", unit="MB")
    assert (city.name, city.unit, list(city.sites), city.grid, city.xy) == ("east", "MB", ["a", "b"], None, None)
    assert city.start == datetime(2024, 3, 4) and city.step_minutes == 30
    np.testing.assert_array_equal(city.traffic, np.array([[[5, 1], [6, 2], [7, 3], [8, 4]]], dtype=np.float32))


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "arrow", "polars", "typed"])
def test_every_form_of_a_table_is_the_same_city(form: str, tmp_path: Path) -> None:
    source: Any = tmp_path / f"traffic.{form}"
    if form.startswith("csv"):
        TWO.to_csv(source, index=False)
    elif form == "parquet":
        TWO.to_parquet(source)
    elif form == "arrow":
        source = pa.Table.from_pandas(TWO)
    elif form == "polars":
        source = pytest.importorskip("polars").from_pandas(TWO.reset_index(drop=True))
    else:
        source = TWO.assign(unique_id=TWO["unique_id"].astype("category"), ds=pd.to_datetime(TWO["ds"]), y=TWO["y"].astype("Int32"))
    city, expected = read(source), read(TWO)
    assert list(city.sites) == list(expected.sites) and city.start == expected.start
    np.testing.assert_array_equal(city.traffic, expected.traffic)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), step=st.sampled_from([5, 10, 15, 20, 30, 60]))
def test_an_array_written_as_rows_comes_back(data: st.DataObject, step: int) -> None:
    t, s = data.draw(st.integers(3, 8)), data.draw(st.integers(1, 4))
    values = np.array(data.draw(st.lists(st.floats(0, 1e6, width=32), min_size=t * s, max_size=t * s)), dtype=np.float32).reshape(t, s)
    frame = pd.concat([series(f"s{i}", list(values[:, i]), step) for i in range(s)])
    frame = frame.sample(frac=1.0, random_state=data.draw(st.integers(0, 99)))
    city = read(frame)
    assert city.step_minutes == step
    np.testing.assert_array_equal(city.traffic[0], values)


def test_column_names_and_services() -> None:
    rows = table(
        ("a", "2024-03-04 00:00", 1, "web"),
        ("a", "2024-03-04 00:30", 2, "web"),
        ("a", "2024-03-04 00:30", 3, "video"),
        columns="cell time bytes app",
    )
    columns = Columns(unique_id="cell", ds="time", y="bytes", service="app")
    city = read(rows, columns=columns)
    assert list(city.services) == ["video", "web"]
    np.testing.assert_array_equal(city.traffic[:, :, 0], [[NAN, 3], [1, 2]])
    refused(rows, r"no column 'kind', expected the service's column", columns=replace(columns, service="kind"))


def test_csv_ids_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("unique_id,ds,y\n007,2024-03-04T00:00,1\n007,2024-03-04T00:30,NA\nNA,2024-03-04T00:00,\nNA,2024-03-04T00:30,2\n")
    city = read(path)
    assert list(city.sites) == ["007", "NA"]
    np.testing.assert_array_equal(city.traffic[0], [[1, NAN], [NAN, 2]])


def test_gaps() -> None:
    frame = pd.concat([series("a", [1, 2, 3, 4, NAN]), series("b", [5, 6], start="2024-03-04 00:30")]).drop(index=[2])
    np.testing.assert_array_equal(read(frame).traffic[0], [[1, NAN], [2, 5], [NAN, 6], [4, NAN], [NAN, NAN]])
    # an absent row is a zero, an empty value stays missing
    np.testing.assert_array_equal(read(frame, gaps="zero").traffic[0], [[1, 0], [2, 5], [0, 6], [4, 0], [NAN, 0]])


def test_duplicates() -> None:
    frame = pd.concat([series("a", [1, 2, 3]), series("a", [10, NAN], start="2024-03-04 00:30")])
    refused(frame, r"station 'a' has more than one row at 2024-03-04T00:30:00, expected one \(or duplicates=")
    expected: dict[str, list[float]] = {"sum": [1, 12, 3], "mean": [1, 6, 3], "last": [1, 10, NAN]}
    for treatment, values in expected.items():
        np.testing.assert_array_equal(read(frame, duplicates=treatment).traffic[0, :, 0], values)


def test_negative_values() -> None:
    frame = series("a", [1, -2, 3])
    refused(frame, r"traffic: row 2, column 'y': -2, expected a value >= 0")
    np.testing.assert_array_equal(read(frame, negatives="missing").traffic[0, :, 0], [1, NAN, 3])


def test_mixed_granularity() -> None:
    mixed = pd.concat([series("a", [1, 2, 3, 4], 15), series("b", [5, 6], 30)])
    refused(mixed, r"'a' has 15 minutes, 'b' has 30 minutes, expected one granularity, or step_minutes")
    np.testing.assert_array_equal(read(mixed, step_minutes=30).traffic[0], [[3, 5], [7, 6]])
    refused(mixed, r"'b' has 30 minutes \(1 in all\), expected whole parts of 15 minutes", step_minutes=15)
    refused(series("a", [1, 2, 3], 20), r"'a' has 20 minutes .* whole parts of 30 minutes", step_minutes=30)


def test_a_slot_with_a_missing_finer_slot_is_missing() -> None:
    frame = series("a", [1, 2, 3, 4, 5, 6, 7, 8], 15).drop(index=[2])
    np.testing.assert_array_equal(read(frame, step_minutes=30).traffic[0, :, 0], [3, NAN, 11, 15])
    np.testing.assert_array_equal(read(frame, step_minutes=30, gaps="zero").traffic[0, :, 0], [3, 4, 11, 15])


def test_rows_left_out_because_they_are_zero() -> None:
    sparse = pd.concat([series("a", [1, 2, 3, 4, 5, 6]), series("b", [7, 8], 120)])
    refused(sparse, "'b' has 120 minutes .* whole parts of 30 minutes", step_minutes=30)
    np.testing.assert_array_equal(read(sparse, step_minutes=30, gaps="zero").traffic[0, :, 1], [7, 0, 0, 0, 8, 0])


def test_minutes_are_summed_to_the_asked_step() -> None:
    refused(series("a", [1.0] * 30, 1), r"step of 1 minutes, expected one of \(5, ")
    np.testing.assert_array_equal(read(series("a", [1.0] * 30, 1), step_minutes=15).traffic[0, :, 0], [15, 15])


def test_times_off_the_step() -> None:
    frame = pd.concat([series("a", [1, 2, 3]), table(("a", "2024-03-04 01:40", 4.0))])
    refused(frame, r"station 'a' at 2024-03-04T01:40:00, expected a whole step of 30 minutes")
    refused(series("a", [1, 2, 3], start="2024-03-04 00:10"), "whole step of 30 minutes")


def test_one_row_a_station_needs_a_step() -> None:
    refused(table(("a", "2024-03-04", 1.0)), "expected step_minutes to be given")
    assert read(table(("a", "2024-03-04", 1.0)), step_minutes=60).shape == (1, 1, 1)


def test_zoned_times_keep_the_offset_of_the_first_instant() -> None:
    # Rome leaves winter time on 2024-03-31 at 01:00 UTC; half-hours from 00:00 UTC on
    utc = pd.date_range("2024-03-31 00:00", periods=6, freq="30min", tz="UTC")
    frame = pd.DataFrame({"unique_id": "a", "ds": utc, "y": np.arange(6.0)})
    local = read(frame, timezone="Europe/Rome")
    assert local.start == datetime(2024, 3, 31, 1, 0)
    np.testing.assert_array_equal(local.traffic[0, :, 0], np.arange(6))
    text = frame.assign(ds=[stamp.tz_convert("Europe/Rome").isoformat() for stamp in utc])
    assert "+01:00" in text["ds"].iloc[0] and "+02:00" in text["ds"].iloc[-1]
    again = read(text, timezone="Europe/Rome")
    assert again.start == local.start
    np.testing.assert_array_equal(again.traffic, local.traffic)
    refused(frame, "date-times with a zone, expected timezone to be given")
    assert read(series("a", [1, 2]), timezone="Europe/Rome").start == datetime(2024, 3, 4)  # without a zone: local already


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table(("a", "2024-03-04", "12kB")), r"traffic: row 1, column 'y': '12kB', expected a finite number"),
        (table(("a", "2024-03-04", 1.0), ("a", "2024-03-05", np.inf)), r"row 2, column 'y': .*inf.*, expected a finite number"),
        (table(("a", "2024-03-04", 1.0), ("a", "04/03/2024", 2.0)), r"row 2, column 'ds': '04/03/2024', expected an ISO 8601"),
        (table(("a", "2024-03-04", 1.0), ("a", None, 2.0)), r"row 2, column 'ds'"),
        (table(("a", 1709510400, 1.0)), r"column 'ds': .*1709510400.*, a number, expected an ISO 8601"),
        (table(("a", "2024-03-04T00:00Z", 1.0), ("a", "2024-03-04T00:30", 2.0)), r"row 2, column 'ds': .*with a zone, or none"),
        (table(("a", "2024-03-04", 1.0), (None, "2024-03-05", 2.0)), r"row 2, column 'unique_id': empty"),
        (table(), r"traffic: 0 rows, expected at least one"),
        (table(("a", "2024-03-04"), columns="unique_id ds"), r"no column 'y', expected \['unique_id', 'ds', 'y'\] \(it has"),
        (pd.concat([series("a", [1, 2]), series("b", [NAN, NAN])]), r"every y of station 'b' is missing"),
        ([1, 2], r"traffic: list, expected a CSV or Parquet path, or a pandas"),
    ],
)
def test_bad_rows_are_named(rows: Any, message: str) -> None:
    refused(rows, message, timezone="UTC")


def test_bad_files_are_named(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    TWO.to_parquet(whole)
    cut.write_bytes(whole.read_bytes()[:-200])
    refused(cut, re.escape(f"traffic ({cut}): cannot be read, expected a whole CSV or Parquet file"))
    refused(tmp_path / "none.csv", r"none\.csv\): no such file")
    (tmp_path / "empty.csv").write_text("")
    refused(tmp_path / "empty.csv", r"empty\.csv\): cannot be read")
    (tmp_path / "header.csv").write_text("unique_id,ds,y\n")
    refused(str(tmp_path / "header.csv"), r"header\.csv\): 0 rows")
    (tmp_path / "ragged.csv").write_text("unique_id,ds,y\na,2024-03-04,1\na,2024-03-05,1,2,3\n")
    refused(tmp_path / "ragged.csv", r"ragged\.csv\): cannot be read")
    (tmp_path / "word.csv").write_text("unique_id,ds,y\na,2024-03-04,1\na,2024-03-05,many\n")
    refused(tmp_path / "word.csv", r"word\.csv\): row 2, column 'y': 'many'")
    (tmp_path / "t.xlsx").write_text("x")
    refused(tmp_path / "t.xlsx", r"t\.xlsx\): unknown kind of file, expected \.csv")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("gaps", "fill"),
        ("duplicates", "first"),
        ("negatives", "zero"),
        ("faulty", "drop"),
        ("step_minutes", 7),
        ("timezone", "Rome"),
        ("cell_metres", -1),
    ],
)
def test_options_are_checked_before_reading(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option}: .*{value}.*expected"):
        LongTable("nowhere.csv", sites=SITES, **{option: value})


def test_context_needs_sites_and_the_name_must_match() -> None:
    for options in ({"cell_metres": 500.0}, {"poi": SITES}):
        with pytest.raises(ValueError, match="sites: not given"):
            LongTable(TWO, **options)
    with pytest.raises(ValueError, match="'west', expected 'east'"):
        next(LongTable(TWO, name="east").read("west"))


def test_a_dead_city_is_a_city() -> None:
    assert (read(series("a", [0, 0, 0])).traffic == 0).all()


def test_a_mistyped_year_makes_no_enormous_array() -> None:
    frame = pd.concat([series(f"s{i}", [1.0, 2.0, 3.0]) for i in range(3000)] + [table(("s0", "2204-03-04 00:00", 1.0))])
    refused(frame, r"2204-03-04T00:00:00 makes .* entries, expected at most .*misplaced")


def test_stations_with_places_and_poi_around_them() -> None:
    points = ((31.2001, 121.5, "shop"), (31.2040, 121.5, "shop"), (31.2100, 121.501, "bank"), (39.0, 116.0, "shop"))
    poi = table(*points, columns="lat lon category")
    city = read(TWO, sites=SITES, poi=poi)
    assert city.grid is None and city.xy is not None and city.poi is not None
    assert np.linalg.norm(city.xy[0] - city.xy[1]) == pytest.approx(1109, abs=2)  # 0.01 degrees north
    assert list(city.poi_categories) == ["bank", "shop"]
    np.testing.assert_array_equal(city.poi, [[0, 1], [2, 0]])
    np.testing.assert_array_equal(read(TWO, sites=SITES, poi=poi, poi_radius_metres=100.0).poi, [[0, 1], [1, 0]])
    refused(TWO, r"poi: no point lies within 500 m .*swapped", sites=SITES, poi=poi.iloc[[3]])
    refused(TWO, r"poi: row 1, column 'lat': 121.5, expected degrees", sites=SITES, poi=poi.rename(columns={"lat": "lon", "lon": "lat"}))


def test_stations_summed_into_cells() -> None:
    traffic = pd.concat([series("a", [1, NAN, 3]), series("b", [10, NAN, NAN]), series("c", [5, 6, 7])])
    sites = table(("a", 31.2000, 121.5), ("b", 31.2010, 121.5), ("c", 31.2080, 121.5), ("far", -30.0, 0.0), columns="unique_id lat lon")
    users = pd.concat([series("a", [4, 5, 6]), series("c", [1, 2, 3])]).rename(columns={"y": "users"})
    poi = table((31.2005, 121.5001, "shop"), (31.3, 121.5, "shop"), columns="lat lon category")
    city = read(traffic, sites=sites, users=users, poi=poi, cell_metres=300.0)
    assert city.grid == (3, 1) and list(city.sites) == ["r0c0", "r1c0", "r2c0"]
    np.testing.assert_array_equal(city.traffic[0], [[5, NAN, 11], [6, NAN, NAN], [7, NAN, 3]])
    np.testing.assert_array_equal(city.users, [[1, NAN, 4], [2, NAN, 5], [3, NAN, 6]])
    np.testing.assert_array_equal(city.poi, [[0, 0, 1]])
    assert city.xy is not None and np.diff(city.xy[:, 1]).tolist() == pytest.approx([-300, -300])


def test_users_are_aligned_with_the_traffic() -> None:
    users = series("a", [1, 3, 5, 7, 9, 11], 15, start="2024-03-04 00:30").rename(columns={"y": "users"})
    city = read(TWO, users=users)
    # averaged to half-hours; outside the users' period and for station b: not measured
    np.testing.assert_array_equal(city.users, [[NAN, NAN], [2, NAN], [6, NAN], [10, NAN]])
    refused(TWO, "users: unknown station 'z'", users=users.assign(unique_id="z"))
    refused(TWO, "users: no ds lies in the period", users=users.assign(ds=users["ds"].str.replace("2024", "2023")))
    refused(TWO, "users: no column 'users'", users=users.rename(columns={"users": "y"}))


MOVING = "unique_id ds service y site"


def test_users_who_move_have_a_place_in_every_slot() -> None:
    rows = table(
        ("u", "2024-03-04 00:00", "web", 1, "hub"),
        ("u", "2024-03-04 00:00", "video", 5, "home"),
        ("u", "2024-03-04 01:00", "web", 2, "office"),
        ("u", "2024-03-04 01:00", "video", 2, "hub"),  # equals: the first by name
        ("u", "2024-03-04 02:00", "web", 9, None),
        ("u", "2024-03-04 02:00", "video", 1, ""),
        ("v", "2024-03-04 01:00", "web", 0, "office"),
        ("v", "2024-03-04 03:00", "web", NAN, "hub"),
        columns=MOVING,
    )
    city = read(rows, gaps="zero", step_minutes=60)
    assert list(city.places) == ["home", "hub", "office"] and city.place is not None
    np.testing.assert_array_equal(city.place, [[0, -1], [1, 2], [-1, -1], [-1, 1]])
    assert list(city.services) == ["video", "web"] and city.traffic[0, 0, 0] == 5
    renamed = rows.rename(columns={"site": "mast"})
    assert read(renamed, gaps="zero", step_minutes=60).place is None
    np.testing.assert_array_equal(read(renamed, gaps="zero", step_minutes=60, columns=Columns(site="mast")).place, city.place)
    refused(rows, r"no column 'mast', expected the site's column", gaps="zero", step_minutes=60, columns=Columns(site="mast"))


def test_the_place_of_a_coarser_slot_is_that_of_most_traffic() -> None:
    rows = series("u", [1.0, 1.0, 1.0, 4.0, 0.0, 0.0, 0.0, 0.0], 15).assign(site=["a", "a", "a", "b", "c", None, "b", "b"])
    city = read(rows, step_minutes=60)
    np.testing.assert_array_equal(city.place, [[1], [1]])  # 4 at b against 3 at a; then 0 at b and at c
    assert read(rows, step_minutes=60, sites=table(("u", 31.2, 121.5), columns="unique_id lat lon")).place is not None
    cells = read(rows, step_minutes=60, sites=table(("u", 31.2, 121.5), columns="unique_id lat lon"), cell_metres=500.0)
    assert cells.place is None and cells.grid == (1, 1)


def test_places_are_those_of_local_slots_and_of_users_that_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    utc = pd.date_range("2024-03-30 22:00", periods=6, freq="60min", tz="UTC")  # Rome goes to summer time at the fourth
    frame = pd.DataFrame({"unique_id": "u", "ds": utc, "y": 1.0, "site": ["007", "7", "007", "7", "007", "NA"]})
    faulty = frame.assign(unique_id="bad", y=["x"] * 6)
    pd.concat([faulty, frame]).to_csv(path, index=False)
    city = read(path, timezone="Europe/Rome", faulty="skip")
    assert list(city.places) == ["007", "7", "NA"] and city.start == datetime(2024, 3, 30, 23)
    np.testing.assert_array_equal(city.place, [[0], [1], [0], [1], [0], [2]])
    assert [station for station, _ in city.refused] == ["bad"]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_places_written_as_rows_come_back(data: st.DataObject) -> None:
    t, s, c = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    place = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=t * s, max_size=t * s)), dtype=np.int32).reshape(t, s)
    names = ["a", "b", "c", "d"]
    rows = [
        (f"u{user}", f"2024-03-04 0{hour}:00", f"s{service}", 1.0, None if place[hour, user] < 0 else names[place[hour, user]])
        for hour in range(t)
        for user in range(s)
        for service in range(c)
    ]
    city = read(table(*data.draw(st.permutations(rows)), columns=MOVING), step_minutes=60)
    assert city.place is not None
    found = np.array([*city.places, ""], dtype=object)[city.place]
    np.testing.assert_array_equal(found, np.array([*names, ""], dtype=object)[place])


def test_sites_are_checked() -> None:
    refused(TWO, "sites: no row for station 'b'", sites=SITES.iloc[[0]])
    refused(TWO, "sites: more than one row for station 'a'", sites=pd.concat([SITES, SITES.iloc[[0]]]))
    refused(TWO, "sites: row 1, column 'lon': nan, expected degrees", sites=SITES.assign(lon=NAN))


def test_the_real_milan_stations_make_a_grid(shared_data: Path) -> None:
    stations = pd.read_parquet(shared_data / "milan" / "milan_lte_base_stations_opencellid.parquet")
    stations = stations.drop_duplicates("bs_id").head(2000)
    traffic = pd.concat([pd.DataFrame({"unique_id": stations["bs_id"], "ds": f"2013-11-01 0{hour}:00", "y": 1.0}) for hour in range(3)])
    columns = Columns(lon="lng")
    city = read(traffic, sites=stations.rename(columns={"bs_id": "unique_id"}), columns=columns, cell_metres=1000.0)
    assert city.step_minutes == 60 and city.grid is not None
    assert np.nansum(city.traffic[0, 0]) == len(stations) == 2000
    assert 5 < city.grid[0] < 100 and 5 < city.grid[1] < 100
