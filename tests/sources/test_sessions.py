"""Session traces: the law by which a session's volume falls into slots, the same city from every kind of file, and rows at fault."""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.files import Location
from raytraffic.sources import session_rows
from raytraffic.sources.city import City
from raytraffic.sources.open import open_source
from raytraffic.sources.sessions import PRESETS, SessionColumns, Sessions, spread
from tests.fixtures_s3 import _s3_server, s3_bucket

__all__ = ["_s3_server", "s3_bucket"]

COLUMNS = SessionColumns(end="end", volume="bytes", device="who", station="cell")
BEGIN = pd.Timestamp("2014-08-01 00:03")
PUBLISHED = "month,date,start time,end time,latitude,longitude,user id"


def read(path: Path | str, columns: SessionColumns = COLUMNS, **options: Any) -> City:
    (city,) = Sessions(path, columns=columns, **options).read("sessions")
    return city


def trace(rows: int = 300, days: float = 1.0) -> pd.DataFrame:
    """Sessions of 7 devices at 4 stations, some as short as nothing and some that last for hours."""
    random = np.random.default_rng(3)
    start = BEGIN + pd.to_timedelta(random.integers(0, int(days * 86400), rows), unit="s")
    end = start + pd.to_timedelta(np.rint(random.exponential(4000, rows)) * (random.random(rows) < 0.9), unit="s")
    return pd.DataFrame(
        {
            "start": start,
            "end": end,
            "bytes": np.rint(random.lognormal(8, 2, rows)) * (random.random(rows) < 0.8),
            "who": [f"d{i}" for i in random.integers(0, 7, rows)],
            "cell": np.array(["north", "east", "007", "west"])[random.integers(0, 4, rows)],
        }
    )


def write(path: Path, *rows: str, header: str = "start,end,bytes,who,cell") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def same(one: City, other: City) -> None:
    assert np.array_equal(one.traffic, other.traffic, equal_nan=True) and list(one.sites) == list(other.sites)
    assert (one.start, one.step_minutes, one.unit, one.refused) == (other.start, other.step_minutes, other.unit, other.refused)
    assert one.users is not None and other.users is not None and np.array_equal(one.users, other.users, equal_nan=True)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 45), st.integers(0, 100)), min_size=1, max_size=8),
    st.integers(1, 12),
)
def test_a_volume_falls_into_slots_by_the_ticks_that_a_session_is_in_them(sessions: Sequence[tuple[int, int, int]], step: int) -> None:
    start, length, volume = (np.array(column, dtype=np.int64) for column in zip(*sessions, strict=True))
    expected: dict[tuple[int, int], float] = defaultdict(float)
    for row, (begin, ticks, amount) in enumerate(sessions):
        for tick in range(begin, begin + ticks) if ticks else [begin]:
            expected[row, tick // step] += amount / max(ticks, 1)
    row, slot, part = spread(start, start + length, volume.astype(np.float64), step)
    assert list(zip(row.tolist(), slot.tolist(), strict=True)) == list(expected)
    np.testing.assert_allclose(part, list(expected.values()), rtol=1e-12)


@pytest.mark.parametrize("step", [15, 60])
def test_a_city_is_what_counting_session_by_session_gives(tmp_path: Path, step: int) -> None:
    """Traffic by the seconds of every session, users as sets of devices, and outages where no session of any station is."""
    frame = trace(12)
    frame.to_csv(tmp_path / "trace.csv", index=False)
    city = read(tmp_path / "trace.csv", step_minutes=step)
    assert (list(city.sites), city.unit, city.xy, city.step_minutes) == (sorted(set(frame["cell"])), "bytes", None, step)
    traffic = np.zeros(city.traffic.shape[1:])
    devices: dict[tuple[int, int], set[str]] = defaultdict(set)
    for start, end, volume, who, cell in frame.itertuples(index=False):
        instants = pd.date_range(start, end, freq="s")[: max(int((end - start).total_seconds()), 1)]
        for slot, seconds in zip(*np.unique((instants - city.start) // pd.Timedelta(minutes=step), return_counts=True), strict=True):
            traffic[slot, city.sites.index(cell)] += volume * seconds / len(instants)
            devices[slot, city.sites.index(cell)].add(who)
    users = np.array([[len(devices[t, s]) for s in range(traffic.shape[1])] for t in range(len(traffic))], dtype=np.float64)
    quiet = users.sum(axis=1) == 0
    assert 0 < quiet.sum() < len(quiet)
    traffic[quiet], users[quiet] = np.nan, np.nan
    np.testing.assert_allclose(city.traffic[0], traffic, rtol=1e-6)
    np.testing.assert_array_equal(city.users, users)
    assert not np.isnan(city.traffic[0, [0, -1]]).any()


def test_every_kind_of_file_gives_the_same_city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text, compressed text, typed Parquet, both in one folder, epochs, quoted cells, and whatever the size of what is read at once."""
    frame = trace(days=2)
    frame.to_csv(tmp_path / "trace.csv", index=False)
    city = read(tmp_path / "trace.csv")
    (tmp_path / "trace.csv.gz").write_bytes(gzip.compress((tmp_path / "trace.csv").read_bytes()))
    frame.assign(cell=frame["cell"].astype("category"), bytes=frame["bytes"].astype(int)).to_parquet(tmp_path / "trace.parquet")
    frame.to_csv(tmp_path / "quoted.csv", index=False, quoting=1)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "README.txt").write_text("no trace")
    frame[:100].to_csv(tmp_path / "parts" / "a.csv", index=False)
    frame[100:].to_parquet(tmp_path / "parts" / "b.pq")
    for path in ("trace.csv.gz", "trace.parquet", "quoted.csv", "parts"):
        same(read(tmp_path / path), city)
    spoken = frame.assign(**{name: frame[name].dt.strftime("%Y/%-m/%-d %H:%M:%S") for name in ("start", "end")})
    spoken.to_csv(tmp_path / "spoken.csv", index=False)
    same(read(tmp_path / "spoken.csv"), city)
    utc = {name: frame[name].dt.tz_localize("Asia/Shanghai").dt.tz_convert("UTC") for name in ("start", "end")}
    frame.assign(**utc).to_parquet(tmp_path / "zoned.parquet")
    same(read(tmp_path / "zoned.parquet", timezone="Asia/Shanghai"), city)
    for unit, name in (("s", "seconds"), ("ms", "milliseconds")):
        epochs = {column: times.dt.tz_localize(None).astype(f"datetime64[{unit}]").astype(int) for column, times in utc.items()}
        frame.assign(**epochs).to_csv(tmp_path / f"{name}.csv", index=False)
        same(read(tmp_path / f"{name}.csv", time_format=name, timezone="Asia/Shanghai"), city)
    monkeypatch.setattr(session_rows, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(session_rows, "_PARQUET_ROWS", 7)
    for path in ("trace.csv", "trace.parquet"):
        again = read(tmp_path / path)
        np.testing.assert_allclose(again.traffic, city.traffic, rtol=1e-6)
        assert np.array_equal(again.users, city.users, equal_nan=True)


def test_a_trace_in_s3(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bucket = request.getfixturevalue("s3_bucket")
    trace().to_csv(tmp_path / "trace.csv.gz", index=False)
    trace().to_parquet(tmp_path / "trace.parquet")
    for path in list(tmp_path.iterdir()):
        Location.of(f"{bucket}/in/{path.name}").write_bytes(path.read_bytes())
        same(read(f"{bucket}/in/{path.name}"), read(path))
    np.testing.assert_allclose(read(f"{bucket}/in").traffic, 2 * read(path).traffic, rtol=1e-6)
    with pytest.raises(ValueError, match=r"s3://.*/none\.csv: no such file"):
        read(f"{bucket}/none.csv")


def test_without_an_end_all_is_in_the_slot_of_the_start(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "2014-08-01 00:29,,7,a,x", "2014-08-01T00:30,2014-08-01 00:30,5,a,x", "2014-08-01 01:00:00,,1,b,x")
    assert read(path).traffic[0, :, 0].tolist() == [7, 5, 1]
    assert read(path, replace(COLUMNS, end=None, device=None)).users is None
    same(read(path, replace(COLUMNS, end=None)), read(path))


def test_without_a_volume_seconds_of_connection_are_counted(tmp_path: Path) -> None:
    """So that a slot's share of them is the mean number of open sessions."""
    path = write(tmp_path / "t.csv", "2014-08-01 00:00,2014-08-01 01:00,,a,x", "2014-08-01 00:15,2014-08-01 00:30,,b,x")
    city = read(path, replace(COLUMNS, volume=None))
    assert city.unit == "connection seconds" and (city.traffic[0, :, 0] / 1800).tolist() == [1.5, 1.0]
    with pytest.raises(ValueError, match=r"unit: 'MB', expected none without a column of volume"):
        Sessions(path, columns=replace(COLUMNS, volume=None), unit="MB")
    assert read(write(path, "2014-08-01 00:00,,5,a,x"), unit="MB").unit == "MB"


def test_a_published_file(tmp_path: Path) -> None:
    """Columns as in the Shanghai Telecom data set; a station is a distinct place, to 10 cm, however it is written."""
    folder = tmp_path / "telecom"
    folder.mkdir()
    write(folder / "data_8.1~8.15.csv", "2014-08,1,2014-08-01 00:00:00,2014-08-01 00:45:00,31.20,121.4,u1", header=PUBLISHED)
    write(
        folder / "data_8.16~8.31.csv",
        "2014-08,1,2014/8/1 0:30,2014/8/1 0:40,31.2000000,121.40,u1",
        "2014-08,1,2014-08-01 00:30:00,2014-08-01 00:30:10,31.21,121.4,u2",
        "2014-08,1,2014-08-01 00:30:00,2014-08-01 00:30:10,,,u2",
        "2014-08,1,2014-08-01 00:31:00,2014-08-01 00:30:10,31.22,121.4,u2",
        "2014-08,1,2014-08-01 00:31:00,2014-08-01 00:30:10,31.22,121.4,u3",
        header=PUBLISHED,
    )
    (city,) = open_source(f"sessions:{folder}?preset=shanghai_telecom&faulty=skip&name=shanghai").read("shanghai")
    assert (city.start, city.step_minutes, city.unit) == (datetime(2014, 8, 1), 30, "connection seconds")
    assert list(city.sites) == ["31.200000_121.400000", "31.210000_121.400000"]
    np.testing.assert_array_equal(city.traffic[0], [[1800, 0], [1500, 10]])
    np.testing.assert_array_equal(city.users, [[1, 0], [1, 1]])
    assert city.xy is not None and np.linalg.norm(city.xy[1] - city.xy[0]) == pytest.approx(0.01 * 110_870, rel=1e-3)
    ((station, reason),) = city.refused
    assert station == "" and reason.startswith("sessions: left out of 6 rows: ")
    assert "1 (" in reason and "data_8.16~8.31.csv: row 3, column 'latitude': '', expected degrees in [-90, 90])" in reason
    assert (
        "2 (" in reason
        and "row 4, column 'end time': '2014-08-01 00:30:10', expected a time from the start on, by at most 7 days)" in reason
    )
    joined = write(
        tmp_path / "joined.csv", "2014-08-01 00:00,2014-08-01 00:45,u1,31.2/121.4", header="start time,end time,user id,location"
    )
    (other,) = open_source(f"sessions:{joined}?preset=shanghai_telecom&column_lat=&column_lon=&column_location=location").read("sessions")
    assert list(other.sites) == ["31.200000_121.400000"] and other.traffic[0, :, 0].tolist() == [1800, 900]
    south = write(tmp_path / "south.csv", "2014-08-01 00:00,2014-08-01 00:45,u1,-33.000001/-0.000002", header="start,end,who,location")
    assert list(read(south, SessionColumns(end="end", location="location")).sites) == ["-33.000001_-0.000002"]


def test_sites_give_the_stations_places(tmp_path: Path) -> None:
    trace().to_csv(tmp_path / "trace.csv", index=False)
    places = {"west": (45.0, 9.0), "007": (45.01, 9.0), "east": (45.0, 9.02), "north": (45.02, 9.0), "unused": (46.0, 9.0)}
    rows = [f"{name},{lat},{lon}" for name, (lat, lon) in places.items()]
    sites = write(tmp_path / "sites.csv", *rows, header="unique_id,lat,lon")
    city = read(tmp_path / "trace.csv", sites=sites)
    assert city.xy is not None
    found = dict(zip(city.sites, city.xy, strict=True))
    assert found["007"] - found["west"] == pytest.approx([0, 1111.4], abs=1.0)
    assert found["east"] - found["west"] == pytest.approx([1577.0, 0], abs=1.0)
    write(sites, *rows[1:3], "north,95,9.0", header="unique_id,lat,lon")
    with pytest.raises(ValueError, match=r"sites \(.*sites\.csv\): row 3, column 'lat': 95, expected degrees in"):
        read(tmp_path / "trace.csv", sites=sites)
    fewer = read(tmp_path / "trace.csv", sites=sites, faulty="skip")
    assert list(fewer.sites) == ["007", "east"] and [station for station, _ in fewer.refused] == ["north", "west"]
    assert fewer.refused[1][1] == "sites: no row for station 'west', expected one for every station of the trace"
    kept = [city.sites.index(name) for name in fewer.sites]
    np.testing.assert_allclose(np.nansum(fewer.traffic, axis=1), np.nansum(city.traffic[:, :, kept], axis=1), rtol=1e-6)
    with pytest.raises(ValueError, match="no row for station '007'"):
        read(tmp_path / "trace.csv", sites=write(tmp_path / "none.csv", "unused,46,9", header="unique_id,lat,lon"))
    with pytest.raises(ValueError, match=r"none\.csv: no place of any station, expected some"):
        read(tmp_path / "trace.csv", sites=tmp_path / "none.csv", faulty="skip")


def test_a_change_of_the_clock_neither_doubles_nor_loses_a_slot(tmp_path: Path) -> None:
    """Six hours around the end of summer time in Rome, a session begun every 30 minutes: 12 slots, counted on as the first row's are."""
    times = pd.date_range("2014-10-25 22:00", periods=12, freq="30min", tz="UTC")
    rows = [f"{time.tz_convert('Europe/Rome').isoformat()},,1,a,x" for time in times]
    city = read(write(tmp_path / "t.csv", *rows), timezone="Europe/Rome")
    assert city.start == datetime(2014, 10, 26) and city.traffic[0, :, 0].tolist() == [1.0] * 12
    with pytest.raises(ValueError, match=r"timezone: None, expected an IANA name .* for '2014-10-26T00:00:00\+02:00'"):
        read(tmp_path / "t.csv")


GOOD = "2014-08-01 00:10,2014-08-01 00:20,5,a,x"
AT_FAULT = [
    ("yesterday,,5,a,x", r"column 'start': 'yesterday', expected an ISO 8601 date-time without a zone, between 1971 and 2099"),
    ("0:34:28,,5,a,x", r"column 'start': '0:34:28', expected an ISO"),
    (",,5,a,x", r"column 'start': '', expected an ISO"),
    ("2014-08-01 00:10Z,,5,a,x", r"column 'start': '2014-08-01 00:10Z', expected an ISO 8601 date-time without a zone"),
    ("2104-08-01 00:10,,5,a,x", r"column 'start': '2104-08-01 00:10', expected .* between 1971 and 2099"),
    ("2014-08-01 00:10,soon,5,a,x", r"column 'end': 'soon', expected an ISO 8601 date-time .*, or nothing"),
    ("2014-08-01 00:10,2014-08-01 00:09,5,a,x", r"column 'end': '2014-08-01 00:09', expected a time from the start on"),
    ("2014-08-01 00:10,2014-08-08 00:11,5,a,x", r"column 'end': '2014-08-08 00:11', expected .* by at most 7 days"),
    ("2014-08-01 00:10,,-5,a,x", r"column 'bytes': '-5', expected a number >= 0"),
    ("2014-08-01 00:10,,inf,a,x", r"column 'bytes': 'inf', expected a number >= 0"),
    ("2014-08-01 00:10,,,a,x", r"column 'bytes': '', expected a number >= 0"),
    ("2014-08-01 00:10,,5,,x", r"column 'who': '', expected a value"),
    ("2014-08-01 00:10,,5,a, ", r"column 'cell': ' ', expected a value"),
]


@pytest.mark.parametrize(("row", "message"), AT_FAULT)
def test_a_row_at_fault_is_refused_or_left_out(tmp_path: Path, row: str, message: str) -> None:
    """Left out, the city is as if the row had never been there, and says so."""
    path = write(tmp_path / "t.csv", GOOD, GOOD.replace("5,a", "7,b"), GOOD, row, GOOD)
    with pytest.raises(ValueError, match=rf"^.*t\.csv: row 4, {message}"):
        read(path)
    city = read(path, faulty="skip")
    assert city.traffic.tolist() == [[[22.0]]] and city.users is not None and city.users.tolist() == [[2.0]]
    ((station, reason),) = city.refused
    assert station == "" and reason.startswith("sessions: left out of 5 rows: 1 (") and "row 4, column" in reason


def test_a_row_far_down_has_its_number_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_rows, "CHUNK_BYTES", 200)
    path = write(tmp_path / "t.csv", *[GOOD] * 41, GOOD.replace("5,a", "-5,a"), GOOD)
    with pytest.raises(ValueError, match=r"t\.csv: row 42, column 'bytes': '-5'"):
        read(path)
    assert read(path, faulty="skip").refused[0][1].startswith("sessions: left out of 43 rows: 1 (")


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ({"lat": "a", "lon": "b"}, "91,9", r"column 'a': '91', expected degrees in \[-90, 90\]"),
        ({"lat": "a", "lon": "b"}, "45,nan", r"column 'b': 'nan', expected degrees in \[-180, 180\]"),
        ({"location": "a"}, "45.0/,x", r"column 'a': '45.0/', expected degrees as LATITUDE/LONGITUDE"),
        ({"location": "a"}, "45.0,x", r"column 'a': '45.0', expected degrees as LATITUDE/LONGITUDE"),
        ({"location": "a"}, "121.4/31.2,x", r"column 'a': '121.4/31.2', expected degrees"),
    ],
)
def test_a_place_at_fault(tmp_path: Path, columns: dict[str, str], row: str, message: str) -> None:
    path = write(tmp_path / "t.csv", f"2014-08-01 00:10,5,{row}", header="start,bytes,a,b")
    with pytest.raises(ValueError, match=rf"t\.csv: row 1, {message}"):
        read(path, SessionColumns(volume="bytes", **columns))
    with pytest.raises(ValueError, match=r"t\.csv: no session is left, expected one that is not at fault \(sessions: left out of 1 rows"):
        read(path, SessionColumns(volume="bytes", **columns), faulty="skip")


def test_epochs_in_the_wrong_unit_are_at_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "1406822580000,,5,a,x")
    with pytest.raises(ValueError, match=r"row 1, column 'start': '1406822580000', expected seconds since 1970-01-01 UTC, between 1971"):
        read(path, time_format="seconds", timezone="Asia/Shanghai")
    with pytest.raises(ValueError, match=r"row 1, column 'start': '1406822580', expected milliseconds since"):
        read(write(path, "1406822580,,5,a,x"), time_format="milliseconds", timezone="Asia/Shanghai")


def test_files_that_are_not_as_described(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.parquet"
    trace().to_parquet(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-10])
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none.csv", "none.csv: no such file"),
        (tmp_path / "empty", r"empty: no trace in the folder, expected files \.csv, \.csv\.gz, \.parquet"),
        (write(tmp_path / "t.xlsx"), r"t\.xlsx: unknown kind of file, expected .* \(a workbook is to be saved as one"),
        (write(tmp_path / "few.csv", "1", header="start"), r"few\.csv: 0 columns 'end', expected one \(it has \['start'\]\)"),
        (write(tmp_path / "twice.csv", header="start,start,end,bytes,who,cell"), r"twice\.csv: 2 columns 'start', expected one"),
        (write(tmp_path / "bare.csv"), r"bare\.csv: 0 rows, expected at least one"),
        (write(tmp_path / "wide.csv", GOOD + ",more"), r"wide\.csv: cannot be read, expected a whole CSV or Parquet file"),
        (damaged, r"damaged\.parquet: cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read(path)


def test_a_misplaced_time_is_no_city(tmp_path: Path) -> None:
    """Two stations, 80 years apart, so large an array that it cannot be meant."""
    rows = ["1980-01-01 00:00,,5,a,s0", *(f"2060-01-01 00:00,,5,a,s{i}" for i in range(3100))]
    path = write(tmp_path / "t.csv", *rows)
    with pytest.raises(
        ValueError, match=r"1980-01-01T00:00 to 2060-01-01T00:00 makes .* entries, expected at most .* \(is a time misplaced\?\)"
    ):
        read(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"columns: \[\] given, expected either station, or lat and lon, or location"),
        ({"lat": "a", "volume": "v"}, r"columns: \['lat'\] given, expected either"),
        ({"station": "a", "location": "b", "volume": "v"}, r"columns: \['station', 'location'\] given"),
        ({"station": "a"}, "columns: neither end nor volume given, expected one of them"),
        ({"station": "a", "volume": "v", "start": ""}, r"columns\.start: '', expected the name"),
    ],
)
def test_columns_that_cannot_be(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SessionColumns(**fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_minutes": 7}, r"step_minutes: 7, expected one of \(5, 10"),
        ({"time_format": "digits"}, r"time_format: 'digits', expected one of \('iso', 'seconds', 'milliseconds'\)"),
        ({"time_format": "seconds"}, r"timezone: None, expected an IANA name such as 'Asia/Shanghai' for seconds"),
        ({"timezone": "Shanghai"}, r"timezone: 'Shanghai', expected an IANA name"),
        ({"faulty": "ignore"}, r"faulty: 'ignore', expected one of"),
        ({"columns": PRESETS["shanghai_telecom"], "sites": "s.csv"}, r"sites: 's\.csv', expected none where stations are told by"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sessions("t.csv", **({"columns": COLUMNS} | options))


def test_another_name_is_refused(tmp_path: Path) -> None:
    assert Sessions("t.csv", columns=COLUMNS, name="sh").names() == ("sh",)
    with pytest.raises(ValueError, match=r"no city 'nanjing', expected one of \['sh'\]"):
        next(Sessions(tmp_path, columns=COLUMNS, name="sh").read("nanjing"))
