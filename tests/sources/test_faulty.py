"""Stations at fault: refused with a message each, or skipped, and then the others are as if those had never been there."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.files import Location
from raytraffic.sources.city import City
from raytraffic.sources.faulty import FaultyStationsError
from raytraffic.sources.open import open_source
from raytraffic.sources.table import LongTable, _Reading
from raytraffic.store import Layout, open_store, prepare_store

NAN = float("nan")


def series(station: str, values: list[Any], step: int = 30, start: str = "2024-03-04 00:00", suffix: str = "") -> pd.DataFrame:
    ds = pd.date_range(start, periods=len(values), freq=f"{step}min").strftime("%Y-%m-%d %H:%M") + suffix
    return pd.DataFrame({"unique_id": station, "ds": ds, "y": values})


def read(traffic: Any, **options: Any) -> City:
    (city,) = LongTable(traffic, **options).read(options.get("name", "operator"))
    return city


def same(city: City, expected: City) -> None:
    """Two cities but for what was refused."""
    for field in ("name", "start", "step_minutes", "unit", "grid"):
        assert getattr(city, field) == getattr(expected, field)
    for field in ("sites", "services", "poi_categories"):
        assert list(getattr(city, field)) == list(getattr(expected, field))
    for field in ("traffic", "xy", "users", "poi"):
        mine, other = getattr(city, field), getattr(expected, field)
        assert (mine is None) == (other is None)
        if mine is not None:
            np.testing.assert_array_equal(mine, other)


GOOD = pd.concat([series("b", [1.5, 2, NAN, 4]), series("a", [5, 6, 7, 8.25]), series("d", [9, 10, 11, 12])])
SITES = pd.DataFrame({"unique_id": ["a", "b", "c", "d"], "lat": [31.20, 31.21, 31.22, 31.23], "lon": 121.5})
USERS = pd.concat([series(name, [1, 2, 3, 4]) for name in "abcd"]).rename(columns={"y": "users"})


def cell(column: str, row: int, value: Any) -> pd.DataFrame:
    """Station c with one other cell."""
    frame = series("c", [1, 2, 3, 4]).astype(object)
    frame.loc[row, column] = value
    return frame


OF_TRAFFIC: dict[str, tuple[pd.DataFrame, str]] = {
    "text": (cell("y", 1, "12kB"), "row 14, column 'y': '12kB', expected a finite number"),
    "infinite": (cell("y", 2, np.inf), "row 15, column 'y': inf, expected a finite number"),
    "negative": (cell("y", 3, -2), "row 16, column 'y': -2, expected a value >= 0 (or negatives='missing')"),
    "no date": (cell("ds", 0, "04/03/2024"), "row 13, column 'ds': '04/03/2024', expected an ISO 8601 date-time"),
    "empty date": (cell("ds", 1, None), "row 14, column 'ds': empty, expected a value"),
    "a zone": (
        cell("ds", 1, "2024-03-04 00:30Z"),
        "row 14, column 'ds': '2024-03-04 00:30Z', expected all date-times with a zone, or none",
    ),
    "no id": (cell("unique_id", 1, None).iloc[[1]], "row 13, column 'unique_id': empty, expected a value"),
    "twice": (
        pd.concat([series("c", [1, 2, 3])] * 2),
        "station 'c' has more than one row at 2024-03-04T00:00:00, expected one (or duplicates='sum', 'mean' or 'last')",
    ),
    "step": (
        series("c", [1, 2, 3], 60),
        "steps of 'a' has 30 minutes, 'c' has 60 minutes, expected one granularity, or step_minutes to be given",
    ),
    "finer step": (
        series("c", [1, 2, 3], 20),
        "steps of 'c' has 20 minutes, 'a' has 30 minutes, expected one granularity, or step_minutes to be given",
    ),
    "off step": (
        series("c", [1, 2, 3], start="2024-03-03 23:50"),
        "station 'c' at 2024-03-03T23:50:00, expected a whole step of 30 minutes",
    ),
    "no measurement": (series("c", [NAN] * 9), "every y of station 'c' is missing, expected a measurement"),
}


@pytest.mark.parametrize("kind", OF_TRAFFIC)
def test_a_station_at_fault_is_refused_or_skipped(kind: str) -> None:
    rows, reason = OF_TRAFFIC[kind]
    frame = pd.concat([GOOD, rows])
    with pytest.raises(FaultyStationsError) as error:
        read(frame)
    assert str(error.value) == f"traffic: {reason}"
    (station,) = {name or "" for name in rows["unique_id"]}
    assert error.value.stations == ((station, f"traffic: {reason}"),)
    city = read(frame, faulty="skip")
    assert city.refused == ((station, f"traffic: {reason}"),)
    same(city, read(GOOD))
    # the faulty rows first: the same station is at fault
    assert [name for name, _ in read(pd.concat([rows, GOOD]), faulty="skip").refused] == [station]


def test_a_station_of_a_step_that_does_not_fit() -> None:
    frame = pd.concat([GOOD, series("c", [1, 2, 3], 20)])
    reason = "traffic: steps of 'c' has 20 minutes (1 in all), expected whole parts of 60 minutes"
    same(read(frame, step_minutes=60), read(frame, step_minutes=60, faulty="skip"))  # 20 minutes do fit
    frame = pd.concat([GOOD, series("c", [1, 2, 3], 40)])
    with pytest.raises(ValueError, match=re.escape(reason.replace("20", "40", 1))):
        read(frame, step_minutes=60)
    city = read(frame, step_minutes=60, faulty="skip")
    assert city.refused == (("c", reason.replace("20", "40", 1)),)
    same(city, read(GOOD, step_minutes=60))


def test_an_empty_service_and_a_service_of_the_station_at_fault_alone() -> None:
    good = GOOD.assign(service="web")
    frame = pd.concat([good, series("c", [1, 2, 3]).assign(service=["web", "voice", ""])])
    city = read(frame, faulty="skip")
    assert city.refused == (("c", "traffic: row 15, column 'service': empty, expected a value"),)
    assert list(city.services) == ["web"]
    same(city, read(good))


def test_a_misplaced_date_is_its_station_s_fault_but_a_large_table_is_nobody_s() -> None:
    good = pd.concat([series(f"s{i}", [1.0, 2.0, 3.0]) for i in range(2500)])
    far = pd.concat([series("s7", [1.0], start="2204-03-04"), series("zz", [1.0, 2.0], start="1900-01-01")])
    frame = pd.concat([good, far])
    message = r"traffic: 1900-01-01T00:00:00 to 2204-03-04T00:00:00 makes 1 x \d+ x 2501 entries, .*misplaced"
    with pytest.raises(ValueError, match=message):
        read(frame)
    city = read(frame, faulty="skip")
    assert [name for name, _ in city.refused] == ["s7", "zz"]
    assert all(re.match(message, reason) for _, reason in city.refused)
    same(city, read(good[good["unique_id"] != "s7"]))
    later = good.assign(ds=good["ds"].str.replace("2024", "2204"))
    for large in (pd.concat([good, later]), pd.concat([good, later.assign(unique_id="t" + later["unique_id"])])):
        with pytest.raises(ValueError, match="misplaced") as error:
            read(large, faulty="skip")
        assert not isinstance(error.value, FaultyStationsError)


OF_CONTEXT: dict[str, tuple[dict[str, pd.DataFrame], str]] = {
    "no place": ({"sites": SITES.iloc[[0, 1, 3]]}, "sites: no row for station 'c', expected one for every station of the traffic"),
    "two places": ({"sites": pd.concat([SITES, SITES.iloc[[2]]])}, "sites: more than one row for station 'c', expected one"),
    "empty latitude": (
        {"sites": SITES.assign(lat=[31.2, 31.21, NAN, 31.23])},
        "sites: row 3, column 'lat': nan, expected degrees in [-90, 90]",
    ),
    "longitude": (
        {"sites": SITES.assign(lon=[121.5, 121.5, "east", 121.5])},
        "sites: row 3, column 'lon': 'east', expected a finite number",
    ),
    "users": (
        {"sites": SITES, "users": USERS.assign(users=USERS["users"].where(USERS["unique_id"] != "c", -1))},
        "users: row 9, column 'users': -1, expected a value >= 0 (or negatives='missing')",
    ),
    "users twice": (
        {"sites": SITES, "users": pd.concat([USERS, USERS.iloc[[9]]])},
        "users: station 'c' has more than one row at 2024-03-04T00:30:00, expected one (or duplicates='sum', 'mean' or 'last')",
    ),
    "users of no traffic": (
        {"sites": SITES, "users": pd.concat([USERS, series("z", [1, 2]).rename(columns={"y": "users"})])},
        "users: unknown station 'z', expected stations of the traffic",
    ),
    "users off step": (
        {"sites": SITES, "users": USERS.assign(ds=USERS["ds"].where(USERS["unique_id"] != "c", USERS["ds"].str[:-1] + "5"))},
        "users: station 'c' at 2024-03-04T00:05:00, expected a whole step of 30 minutes",
    ),
}


@pytest.mark.parametrize("kind", OF_CONTEXT)
@pytest.mark.parametrize("cell_metres", [None, 800.0])
def test_a_station_at_fault_in_another_table(kind: str, cell_metres: float | None) -> None:
    context, reason = OF_CONTEXT[kind]
    station = "z" if "'z'" in reason else "c"
    traffic = pd.concat([GOOD, series("c", [1, 2, 3, 4])])
    poi = pd.DataFrame({"lat": [31.2001, 31.2301], "lon": 121.5, "category": ["shop", "bank"]})
    options: dict[str, Any] = {"cell_metres": cell_metres, "poi": poi}
    with pytest.raises(FaultyStationsError, match=re.escape(reason)) as error:
        read(traffic, **context, **options)
    assert error.value.stations == ((station, reason),)
    city = read(traffic, **context, **options, faulty="skip")
    assert city.refused == ((station, reason),)
    clean = {name: table[table["unique_id"] != station].infer_objects() for name, table in context.items()}
    same(city, read(traffic[traffic["unique_id"] != station], **clean, **options))


def test_a_station_at_fault_in_its_users_alone_is_left_out_of_the_traffic() -> None:
    users = USERS.assign(users=USERS["users"].where(USERS["unique_id"] != "b", -1))
    others = GOOD[GOOD["unique_id"] != "b"]
    same(read(GOOD, users=users[users["unique_id"] != "c"], faulty="skip"), read(others, users=users[users["unique_id"].isin(["a", "d"])]))


def test_users_of_refused_stations_alone_are_no_users() -> None:
    frame = pd.concat([GOOD, cell("y", 1, -1)])
    users = USERS[USERS["unique_id"] == "c"]
    city = read(frame, users=users, faulty="skip")
    assert city.users is not None and np.isnan(city.users).all()


def test_a_skipped_station_decides_nothing_for_the_others() -> None:
    # Rome changes to summer time on 2024-03-31 at 01:00 UTC; the stations at fault alone begin before that
    good = pd.concat([series(name, [1, 2, 3], start="2024-03-31 01:00", suffix="Z") for name in "abd"])
    early = [series("c", [1, 2, 3, -4], start="2024-03-31 00:00", suffix="Z"), series("e", [NAN] * 4, start="2024-03-30 00:00", suffix="Z")]
    expected = read(good, timezone="Europe/Rome")
    assert expected.start.hour == 3
    for bad in (*early, pd.concat(early)):
        same(read(pd.concat([bad, good]), timezone="Europe/Rome", faulty="skip"), expected)


def test_clocks_are_decided_by_most_stations_and_then_by_the_timezone() -> None:
    local, zoned = series("a", [1, 2, 3]), series("b", [4, 5, 6], suffix="Z")
    both = pd.concat([zoned, local])
    assert list(read(both, faulty="skip").sites) == ["a"]
    assert list(read(both, faulty="skip", timezone="Europe/Rome").sites) == ["b"]
    more = pd.concat([both, series("c", [1, 2, 3])])
    assert list(read(more, faulty="skip", timezone="Europe/Rome").sites) == ["a", "c"]
    # a station that is refused already has no say
    silenced = pd.concat([both, cell("y", 2, "?")])
    assert list(read(silenced, faulty="skip", timezone="Europe/Rome").sites) == ["b"]
    with pytest.raises(ValueError, match="holds date-times with a zone, expected timezone"):
        read(pd.concat([zoned, series("c", [1, 2], suffix="Z"), local]), faulty="skip")


def test_a_file_is_named_in_the_message_and_not_in_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    values = np.random.default_rng(0).random(50)
    pd.concat([series("a", list(values)), series("b", list(values[::-1]))]).to_csv(path, index=False)
    expected = read(path)
    path.write_text(path.read_text() + "007,2024-03-04 00:00,many\n007,2024-03-04 00:30,2\n")
    reason = "row 101, column 'y': 'many', expected a finite number"
    with pytest.raises(FaultyStationsError) as error:
        list(open_source(f"table:{path}").read("operator"))
    assert str(error.value) == f"traffic ({path}): {reason}"
    (city,) = open_source(f"table:{path}?faulty=skip").read("operator")
    assert city.refused == (("007", f"traffic: {reason}"),)
    same(city, expected)


def test_the_error_survives_a_process_boundary() -> None:
    with pytest.raises(FaultyStationsError) as error:
        read(pd.concat([cell("y", 1, -1), cell("y", 1, -3).assign(unique_id="b")]))
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.stations) == (str(error.value), error.value.stations)
    assert [name for name, _ in again.stations] == ["b", "c"]


def test_what_is_wrong_with_the_whole_table_is_refused_all_the_same(tmp_path: Path) -> None:
    for traffic, message in (
        (GOOD.drop(columns="y"), "no column 'y'"),
        (GOOD.assign(ds=1), "a number, expected an ISO 8601"),
        (tmp_path / "t.xlsx", "unknown kind of file"),
        (pd.concat([series(name, [1.0, 2, 3], 1) for name in "ab"]), "step of 1 minutes, expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            read(traffic, faulty="skip")
    poi = pd.DataFrame({"lat": [31.2, 95.0], "lon": 121.5, "category": "shop"})
    with pytest.raises(ValueError, match="poi: row 2, column 'lat': 95, expected degrees"):
        read(GOOD, sites=SITES, poi=poi, faulty="skip")
    bad = pd.concat([cell("y", 1, -1), series("a", [NAN, NAN])])
    with pytest.raises(ValueError, match=r"traffic: no station is left of 2 at fault, expected at least one .* \('a': traffic: every y of"):
        read(bad, faulty="skip")


def test_many_stations_at_fault_in_one_way_cost_one_more_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    once = _Reading._city
    monkeypatch.setattr(_Reading, "_city", lambda self: passes.append(1) or once(self))
    dead = pd.concat([series(f"x{i}", [NAN] * 4) for i in range(40)])
    assert len(read(pd.concat([GOOD, dead]), faulty="skip").refused) == 40
    assert len(passes) == 2


def spoiled(change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def spoil(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype(object).reset_index(drop=True)
        changed = change(frame)
        return frame if changed is None else changed

    return spoil


FAULTS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "text": spoiled(lambda f: f.__setitem__("y", ["?", *f["y"][1:]])),
    "infinite": spoiled(lambda f: f.__setitem__("y", [*f["y"][:-1], -np.inf])),
    "negative": spoiled(lambda f: f.__setitem__("y", [-1e-3, *f["y"][1:]])),
    "no date": spoiled(lambda f: f.__setitem__("ds", ["noon", *f["ds"][1:]])),
    "empty date": spoiled(lambda f: f.__setitem__("ds", [None, *f["ds"][1:]])),
    "clock": spoiled(
        lambda f: f.__setitem__("ds", [f["ds"][0].removesuffix("Z") + ("" if f["ds"][0].endswith("Z") else "Z"), *f["ds"][1:]])
    ),
    "empty service": spoiled(lambda f: f.__setitem__("service", ["", *f["service"][1:]])),
    "twice": spoiled(lambda f: pd.concat([f, f.iloc[[0]]])),
    "off step": spoiled(lambda f: f.__setitem__("ds", [f["ds"][0].replace(":00", ":07", 1), *f["ds"][1:]])),
    "no measurement": spoiled(lambda f: f.__setitem__("y", NAN)),
    "step": spoiled(lambda f: f.iloc[::2]),
}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_mixture_gives_the_good_stations_and_reports_the_bad(data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["", "Z"]))
    good = data.draw(st.integers(1, 4))
    kinds = data.draw(st.lists(st.sampled_from(sorted(FAULTS)), max_size=6))
    while kinds.count("step") >= good:
        kinds.remove("step")
    order = data.draw(st.permutations([f"s{i}" for i in range(good + len(kinds))]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))

    def station(name: str, start: str) -> pd.DataFrame:
        frame = series(name, list(random.gamma(2.0, 50.0, 8)), start=start, suffix=suffix)
        return frame.assign(service=random.choice(["web", "voice"]))

    # good stations begin in Rome's summer time and bad ones before it, so that what a bad station decides would show
    parts = [station(name, "2024-03-31 01:00") for name in order[:good]]
    bad = [FAULTS[kind](station(name, "2024-03-31 00:00")) for kind, name in zip(kinds, order[good:], strict=True)]
    options: dict[str, Any] = {"timezone": "Europe/Rome", "gaps": "missing"}
    table = pd.concat([*parts, *bad]).sample(frac=1.0, random_state=data.draw(st.integers(0, 99)))
    city = read(table, faulty="skip", **options)
    same(city, read(pd.concat(parts), **options))
    assert [name for name, _ in city.refused] == sorted(order[good:])
    if not bad:
        assert city.refused == ()
        return
    with pytest.raises(FaultyStationsError) as error:
        read(table, **options)
    assert {name for name, _ in error.value.stations} <= set(order)


def test_the_manifest_tells_who_was_refused(tmp_path: Path) -> None:
    frame = pd.concat([GOOD, cell("y", 1, -1), series("é", [NAN, NAN])])
    city = read(frame, name="east", faulty="skip")
    prepare_store([[city], [read(GOOD, name="west", faulty="skip")]], Location.of(tmp_path / "both"), Layout())
    store = open_store(tmp_path / "both")
    assert store.refused == {"east": city.refused}
    assert [name for name, _ in city.refused] == ["c", "é"]
    # the shards are those of a table without the stations, and where none is refused nothing is written about it
    prepare_store([[read(GOOD, name="east")]], Location.of(tmp_path / "clean"), Layout())
    clean = open_store(tmp_path / "clean")
    assert clean.refused == {}
    assert clean.manifest["shards"] == [shard for shard in store.manifest["shards"] if "/east-" in shard["path"]]
    assert "refused" not in (tmp_path / "clean" / "manifest.json").read_text()
    assert "refused" not in (tmp_path / "clean" / "parts" / "east.json").read_text()
