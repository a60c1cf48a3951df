"""App-usage records: no byte is lost, hours are local ones, users are where most of their bytes were, and every bad row is named."""

from __future__ import annotations

import gzip
import re
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raytraffic.environment.poi import LSDM_CATEGORIES
from raytraffic.sources import delimited, trace_sums
from raytraffic.sources.app_usage import PUBLISHED_CATEGORY, AppLayout, AppUsage, StationLayout, TraceLayout
from raytraffic.sources.city import City
from raytraffic.sources.session_parameters import SERVICE_CATEGORIES
from raytraffic.sources.whereabouts import carried

Row = tuple[str, str, str, str, int]
#: App "a<i>" is of the published category of that number.
PUBLISHED = list(PUBLISHED_CATEGORY)
STATIONS = ("b1", "b2", "b3")
SMALL = {"min_active_hours": 1}


def at(hour: float, minute: int = 0, start: str = "2016-04-20T00") -> str:
    instant = np.datetime64(start) + np.timedelta64(int(hour), "h") + np.timedelta64(minute, "m")
    return re.sub(r"\D", "", str(instant.astype("datetime64[s]")))


def write(folder: Path, rows: list[Row] | str, stations: tuple[str, ...] = STATIONS) -> Path:
    """The four files in the published layout."""
    text = rows if isinstance(rows, str) else "".join(" ".join(map(str, row)) + "\n" for row in rows)
    (folder / "App_usage_trace.txt").write_text(text)
    poi = "".join(f"{name}\t" + "\t".join(str(i + k) for k in range(17)) + "\n" for i, name in reversed(list(enumerate(stations))))
    (folder / "base_poi.txt").write_text("BaseID\t" + "\t".join(LSDM_CATEGORIES) + "\n" + poi)
    (folder / "App2Category.txt").write_text("".join(f"a{i}\t{i + 1}\n" for i in range(len(PUBLISHED))))
    (folder / "Categorys.txt").write_text("".join(f"{i + 1}\t{name}\n" for i, name in enumerate(PUBLISHED)))
    return folder


def read(folder: Path, **options: Any) -> City:
    (city,) = AppUsage(folder, **options).read("app-usage")
    return city


TWO: list[Row] = [
    ("u2", at(9, 5), "b1", "a4", 100),
    ("u1", at(9, 59), "b2", "a0", 7),
    ("u2", at(9, 50), "b3", "a4", 30),
    ("u2", at(9, 55), "b3", "a9", 80),
    ("u1", at(12, 0), "b1", "a10", 5),
]


def test_the_published_layout(tmp_path: Path) -> None:
    usage = AppUsage(write(tmp_path, TWO), carry_hours=1, **SMALL)
    (city,) = usage.read("app-usage")
    assert city.shape == (10, 4, 2) and tuple(city.services) == SERVICE_CATEGORIES and list(city.sites) == ["u1", "u2"]
    assert city.start == datetime(2016, 4, 20, 9) and city.step_minutes == 60 and city.unit == "bytes" and city.refused == ()
    expected = np.zeros((10, 4, 2), dtype=np.float32)
    expected[4, 0, 1], expected[9, 0, 1], expected[0, 0, 0] = 130, 80, 7
    expected[SERVICE_CATEGORIES.index("Lifestyle"), 3, 0] = 5  # a10 is Shopping, which Table I has not
    np.testing.assert_array_equal(city.traffic, expected)
    assert list(city.places) == list(STATIONS)
    # most bytes in the hour: u2 had 110 at b3 and 100 at b1; then carried for one hour, then unknown
    np.testing.assert_array_equal(city.place, [[1, 2], [1, 2], [-1, -1], [0, -1]])
    np.testing.assert_array_equal(usage.place_poi(), [[i + k for k in range(17)] for i in range(3)])  # by name, not by row
    with pytest.raises(ValueError, match=r"no city 'milan', expected one of \['app-usage'\]"):
        next(usage.read("milan"))


rows = st.lists(
    st.tuples(
        st.sampled_from(["7", "07", "x-1"]),
        st.integers(0, 40).flatmap(lambda hour: st.integers(0, 59).map(lambda minute: at(hour, minute))),
        st.sampled_from(STATIONS),
        st.integers(0, 19).map(lambda i: f"a{i}"),
        st.sampled_from([0, 5]) | st.integers(0, 10**6),  # equals too
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_rows=rows, least=st.integers(1, 4), carry=st.integers(0, 5))
def test_no_byte_is_lost_and_users_are_where_most_of_theirs_were(
    given_rows: list[Row], least: int, carry: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours: dict[str, set[str]] = defaultdict(set)
    by_place: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for user, time, station, _, volume in given_rows:
        hours[user].add(time[:10])
        by_place[user, time[:10]][station] += volume
    usage = AppUsage(write(tmp_path, given_rows), min_active_hours=least, carry_hours=carry)
    if max(map(len, hours.values())) < least:
        with pytest.raises(ValueError, match=r"App_usage_trace.txt: no user is left of \d"):
            next(usage.read("app-usage"))
        return
    (city,) = usage.read("app-usage")
    assert list(city.sites) == sorted(user for user in hours if len(hours[user]) >= least)
    assert [user for user, _ in city.refused] == sorted(user for user in hours if len(hours[user]) < least)
    left_out = sum(int(re.search(r"\((\d+) bytes\)", reason)[1]) for _, reason in city.refused)  # type: ignore[index]
    assert city.traffic.sum(dtype=np.float64) + left_out == sum(row[4] for row in given_rows)
    assert city.place is not None
    for column, user in enumerate(city.sites):
        last = None
        for slot in range(city.shape[1]):
            hour = at(slot, start=city.start.isoformat()[:13])[:10]
            if hour in hours[user]:
                sums = by_place[user, hour]
                last = (slot, min(sums, key=lambda place: (-sums[place], place)))
            where = last[1] if last is not None and slot - last[0] <= carry else None
            assert (STATIONS[city.place[slot, column]] if city.place[slot, column] >= 0 else None) == where
    with monkeypatch.context() as patch:
        patch.setattr(delimited, "CHUNK_BYTES", 400)  # several chunks ...
        patch.setattr(trace_sums, "_WAITING", 3)  # ... which are added up in between
        again = read(tmp_path, min_active_hours=least, carry_hours=carry)
    np.testing.assert_array_equal(again.traffic, city.traffic)
    np.testing.assert_array_equal(again.place, city.place)


def test_of_equals_the_first_by_name_is_the_place(tmp_path: Path) -> None:
    for order in (("b3", "b1", "b2"), ("b2", "b3", "b1")):
        assert read(write(tmp_path, [("u", at(9), station, "a4", 5) for station in order]), **SMALL).place == 0


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    forward, backward = (read(write(tmp_path, order), **SMALL) for order in (TWO, TWO[::-1]))
    np.testing.assert_array_equal(forward.traffic, backward.traffic)
    np.testing.assert_array_equal(forward.place, backward.place)


@pytest.mark.parametrize(("zone", "scale"), [("Asia/Shanghai", 1), ("Asia/Kolkata", 1000), ("America/St_Johns", 1)])
def test_instants_become_local_hours(zone: str, scale: int, tmp_path: Path) -> None:
    instants = [datetime(2016, 4, 20, 9, minute, tzinfo=UTC) for minute in (0, 29, 31, 59)]
    unit = "seconds" if scale == 1 else "milliseconds"
    rows = [("u", str(int(instant.timestamp()) * scale), "b1", "a4", 10**i) for i, instant in enumerate(instants)]
    city = read(write(tmp_path, rows), time_format=unit, timezone=zone, **SMALL)  # type: ignore[arg-type]
    local = [instant.astimezone(ZoneInfo(zone)) for instant in instants]
    assert city.start == local[0].replace(minute=0, tzinfo=None)
    hours = [moment.hour - local[0].hour for moment in local]
    expected = np.bincount(hours, weights=[10**i for i in range(4)])
    np.testing.assert_array_equal(city.traffic[4, :, 0], expected)


def test_a_change_of_the_clock_neither_doubles_nor_loses_an_hour(tmp_path: Path) -> None:
    for day, month in ((31, 3), (27, 10)):  # Rome goes to summer time, and back
        first = int(datetime(2024, month, day - 1, 22, tzinfo=UTC).timestamp())
        rows = [("u", str(first + 3600 * hour), "b1", "a4", hour + 1) for hour in range(12)]
        city = read(write(tmp_path, rows), time_format="seconds", timezone="Europe/Rome", **SMALL)  # type: ignore[arg-type]
        np.testing.assert_array_equal(city.traffic[4, :, 0], np.arange(1, 13))
        assert city.start == datetime.fromtimestamp(first, ZoneInfo("Europe/Rome")).replace(tzinfo=None)


def test_digits_know_the_calendar(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("u", "20240228235959", "b1", "a4", 1),
        ("u", "20240229000000", "b1", "a4", 2),
        ("u", "20240301000060", "b1", "a4", 3),
    ]
    city = read(write(tmp_path, rows), **SMALL)
    assert city.start == datetime(2024, 2, 28, 23) and city.shape[1] == 26
    np.testing.assert_array_equal(city.traffic[4, [0, 1, 25], 0], [1, 2, 3])


def test_other_layouts(tmp_path: Path) -> None:
    expected = read(write(tmp_path, TWO), **SMALL)
    text = "volume,when,who,app,tower\n" + "".join(f"{row[4]}.0,{row[1]},{row[0]},{row[3]},{row[2]}\n" for row in TWO)
    (tmp_path / "usage.csv.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    (tmp_path / "apps.csv").write_text("".join(f"{name},a{i},x\n" for i, name in enumerate(PUBLISHED)))
    usage = AppUsage(
        tmp_path,
        trace=TraceLayout(file="usage.csv.gz", delimiter=",", header=True, user="who", time="when", station=5, app="app", bytes="volume"),
        apps=AppLayout(file="apps.csv", delimiter=",", app=2, category=1),
        categories=None,
        stations=None,
        **SMALL,  # type: ignore[arg-type]
    )
    (city,) = usage.read("app-usage")
    np.testing.assert_array_equal(city.traffic, expected.traffic)
    np.testing.assert_array_equal(city.place, expected.place)
    with pytest.raises(ValueError, match="stations: None, expected the file"):
        usage.place_poi()


def test_unknown_apps_are_refused_unless_they_are_given_a_category(tmp_path: Path) -> None:
    write(tmp_path, [*TWO, ("u1", at(12), "b1", "a99", 50)])
    with pytest.raises(ValueError, match=r"App_usage_trace.txt: row 6, column 4: 'a99', expected an app of App2Category.txt"):
        read(tmp_path, **SMALL)
    assert read(tmp_path, unknown_app="News", **SMALL).traffic[3].sum() == 50  # type: ignore[arg-type]


def test_users_with_few_records_are_left_out_with_a_reason(tmp_path: Path) -> None:
    city = read(write(tmp_path, TWO), min_active_hours=2)
    assert list(city.sites) == ["u1"] and city.refused == (("u2", "trace: records in 1 hours (210 bytes), expected at least 2"),)


GOOD = " ".join(map(str, TWO[0])) + "\n"


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ("", r"App_usage_trace.txt: 0 rows"),
        (GOOD + "u1 20160420 b1 a4 5\n", r"App_usage_trace.txt: row 2, column 2: '20160420', expected yyyymmddHHMMSS"),
        (GOOD + "u1 20160431120000 b1 a4 5\n", r"row 2, column 2: '20160431120000', expected yyyymmddHHMMSS"),
        (GOOD + "u1 20160420240000 b1 a4 5\n", r"row 2, column 2: '20160420240000', expected yyyymmddHHMMSS"),
        (GOOD + "u1 noon b1 a4 5\n", r"row 2, column 2: 'noon', expected a whole number"),
        (GOOD + "u1 20160420120000 b9 a4 5\n", r"row 2, column 3: 'b9', expected a base station of base_poi.txt"),
        (GOOD * 3 + "u1 20160420120000 b1 a4 5kB\n", r"row 4, column 5: '5kB', expected a number >= 0"),
        (GOOD + "u1 20160420120000 b1 a4 -5\n", r"row 2, column 5: '-5', expected a number >= 0"),
        (GOOD + "u1 20160420120000 b1 a4 inf\n", r"row 2, column 5: 'inf', expected a number >= 0"),
        (GOOD + "u1 20160420120000 b1 a4 \n", r"row 2, column 5: '', expected a number >= 0"),
        (GOOD + " 20160420120000 b1 a4 5\n", r"row 2, column 1: '', expected a value"),
        (GOOD + "u1 20160420120000 b1 a4\n", r"App_usage_trace.txt: cannot be read, .*Row #2: Expected 5 columns, got 4"),
        ("u1 20160420120000 b1 a4\n", r"App_usage_trace.txt: no column 5, expected it \(it has \['1', '2', '3', '4'\]\)"),
        (GOOD + "u1 99990420120000 b1 a4 5\n", r"row 2, column 2: '99990420120000', expected yyyymmddHHMMSS"),
    ],
)
def test_bad_rows_are_named(trace: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, trace)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **SMALL)


def test_the_number_of_a_bad_row_counts_all_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "CHUNK_BYTES", 400)
    write(tmp_path, GOOD * 40 + "u1 noon b1 a4 5\n")
    with pytest.raises(ValueError, match=r"row 41, column 2: 'noon'"):
        read(tmp_path, **SMALL)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("App2Category.txt", "a4\t99\n", r"App2Category.txt: column 2: '99' of app 'a4', expected a category of Categorys.txt"),
        ("App2Category.txt", "a4\t1\na5\t1\na4\t2\n", r"App2Category.txt: row 3, column 1: 'a4', expected every one once"),
        ("Categorys.txt", "\n".join(f"{i + 1}\tGossip" for i in range(20)), r"Categorys.txt: category 'Gossip', expected one of \['Books'"),
        ("base_poi.txt", "BaseID\tx\nb1\t3\n", r"base_poi.txt: no column 3, expected it \(it has \['BaseID', 'x'\]\)"),
        ("base_poi.txt", "BaseID\tx\tx\nb1\t3\t3\n", r"base_poi.txt: header .*, expected every name once"),
    ],
)
def test_bad_tables_are_named(file: str, text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, TWO)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **SMALL)


def test_bad_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, TWO)
    (tmp_path / "App_usage_trace.txt").write_bytes(b"u1 20160420120000 b\xff1 a4 5\n")
    with pytest.raises(ValueError, match=r"App_usage_trace.txt: cannot be read"):
        read(tmp_path, **SMALL)
    (tmp_path / "Categorys.txt").unlink()
    with pytest.raises(ValueError, match=r"Categorys.txt: no such file"):
        read(tmp_path, **SMALL)


@pytest.mark.parametrize("unit", ["seconds", "milliseconds"])
def test_instants_of_another_unit_are_refused(unit: str, tmp_path: Path) -> None:
    wrong = "1461142800000" if unit == "seconds" else "1461142800"
    write(tmp_path, f"u1 {wrong} b1 a4 5\n")
    with pytest.raises(ValueError, match=rf"row 1, column 2: '{wrong}', expected {unit} since 1970"):
        read(tmp_path, time_format=unit, timezone="UTC", **SMALL)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_format": "iso"}, "time_format: 'iso', expected one of"),
        ({"time_format": "seconds"}, "timezone: None, expected an IANA name"),
        ({"time_format": "seconds", "timezone": "Rome"}, "timezone: 'Rome', expected an IANA name"),
        ({"timezone": "Europe/Rome"}, "timezone: 'Europe/Rome', expected none for digits"),
        ({"min_active_hours": 0}, "min_active_hours: 0, expected at least 1"),
        ({"carry_hours": -1}, "carry_hours: -1, expected at least 0"),
        ({"unknown_app": "Gossip"}, "category: 'Gossip', expected one of"),
        ({"category": {"Games": "Play"}}, "category: 'Play', expected one of"),
    ],
)
def test_options_are_checked_before_reading(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AppUsage("nowhere", **options)


def test_layouts_are_checked() -> None:
    with pytest.raises(ValueError, match=r"column of 'App_usage_trace.txt': 'who', expected a number, as the file has no header"):
        TraceLayout(user="who")
    with pytest.raises(ValueError, match=r"column of 'App_usage_trace.txt': 0, expected a number from 1 on"):
        TraceLayout(user=0)
    with pytest.raises(ValueError, match=r"poi of 'base_poi.txt': 2 columns, expected 17"):
        StationLayout(poi=(2, 3))
    with pytest.raises(ValueError, match=r"delimiter of 'App2Category.txt': ', ', expected one character"):
        AppLayout(delimiter=", ")
    with pytest.raises(ValueError, match=r"file: '', expected the name of a file"):
        AppLayout(file="")


def test_all_published_categories_have_one_of_table_i() -> None:
    assert len(PUBLISHED_CATEGORY) == 20 and set(PUBLISHED_CATEGORY.values()) == set(SERVICE_CATEGORIES)


def test_a_place_is_carried_for_so_many_slots() -> None:
    place = np.array([[-1, 3], [2, -1], [-1, -1], [-1, -1], [5, -1]], dtype=np.int32)
    np.testing.assert_array_equal(carried(place, 0), place)
    np.testing.assert_array_equal(carried(place, 1), [[-1, 3], [2, 3], [2, -1], [-1, -1], [5, -1]])
    np.testing.assert_array_equal(carried(place, 9), [[-1, 3], [2, 3], [2, 3], [2, 3], [5, 3]])
