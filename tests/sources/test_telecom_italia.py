"""Telecom Italia's records: sums over countries, absence as zero, outages as NaN, local time and the grid of squares."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raytraffic.sources.city import City
from raytraffic.sources.telecom_italia import COLUMNS, SERVICES, TelecomItaliaRecords
from raytraffic.sources.telecom_squares import read_centres

REAL = "milan/raw_cdr_4cells_2013-11-01.parquet"
BEGIN = 1_383_260_400_000  # 2013-11-01 00:00 in Rome
STEP = 600_000


def line(square: int, step: int, country: int, *values: float | None, begin: int = BEGIN) -> str:
    """A record as the original files have it: an empty field for what did not happen."""
    fields = [*values, *[None] * (len(SERVICES) - len(values))]
    return "\t".join([str(square), str(begin + step * STEP), str(country), *("" if each is None else repr(each) for each in fields)])


def write(path: Path, *lines: str) -> Path:
    data = "".join(f"{each}\n" for each in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path, **options: Any) -> City:
    (city,) = TelecomItaliaRecords(path, **options).read("milan")
    return city


def test_countries_are_summed_and_absence_is_zero(tmp_path: Path) -> None:
    path = write(
        tmp_path / "day.txt",
        line(1, 0, 39, 1.0, 2.0, 3.0, 4.0, 5.0),
        line(1, 0, 33, 0.5, None, None, None, 0.25),
        line(2, 0, 0, None, None, None, None, 7.0),
        line(1, 1, 39, 1.0),
        line(2, 3, 39, None, 8.0),
    )
    city = read(path)
    assert (city.name, city.shape, city.step_minutes, city.unit) == ("milan", (5, 4, 2), 10, "activity index")
    assert tuple(city.services) == ("sms_in", "sms_out", "call_in", "call_out", "internet")
    assert city.start == datetime(2013, 11, 1)
    assert city.traffic[:, 0].T.tolist() == [[1.5, 2, 3, 4, 5.25], [0, 0, 0, 0, 7]]
    assert city.traffic[:, 1].T.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert np.isnan(city.traffic[:, 2]).all()  # no record of any square: an outage
    assert city.traffic[:, 3].T.tolist() == [[0, 0, 0, 0, 0], [0, 8, 0, 0, 0]]


def test_an_outage_is_one_of_all_squares_not_of_the_wanted_ones(tmp_path: Path) -> None:
    path = write(
        tmp_path / "day.txt", line(5, 0, 39, 1.0), line(9, 0, 39, 1.0), line(9, 1, 39, 2.0), line(5, 3, 39, 4.0), line(9, 4, 39, 4.0)
    )
    city = read(path, squares=[5])
    assert list(city.sites) == ["5"]
    np.testing.assert_array_equal(city.traffic[0, :, 0], [1, 0, np.nan, 4, 0])


def test_a_folder_of_days_in_any_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [(square, step, 39, *rng.random(5).tolist()) for square in (1, 2, 101, 102) for step in range(3 * 144)]
    whole = read(write(tmp_path / "whole.txt", *(line(*row) for row in rows)))
    folder = tmp_path / "days"
    folder.mkdir()
    days = [[row for row in rows if row[1] // 144 == day] for day in range(3)]
    write(folder / "sms-call-internet-mi-2013-11-01.txt", *(line(*row) for row in days[0]))
    write(folder / "sms-call-internet-mi-2013-11-02.txt.gz", *(line(*row) for row in days[1]))
    frame = pd.DataFrame([(row[0], BEGIN + row[1] * STEP, *row[2:]) for row in days[2]], columns=list(COLUMNS))
    frame[list(reversed(COLUMNS))].to_parquet(folder / "2013-11-03.parquet")
    (folder / "readme.md").write_text("not records")
    city = read(folder)
    assert city.shape == (5, 432, 4)
    assert city.traffic.tobytes() == whole.traffic.tobytes()
    assert city.traffic[2, 200, 3] == np.float32(rows[3 * 432 + 200][5])


def test_squares_of_a_rectangle_are_a_grid(tmp_path: Path) -> None:
    squares = [4143, 4242, 4142, 4243, 4144, 4244, 9999]
    path = write(tmp_path / "day.txt", *(line(square, 0, 39, float(square)) for square in squares))
    block = read(path, squares=squares[:6])
    assert block.grid == (2, 3)
    assert list(block.sites) == ["4142", "4143", "4144", "4242", "4243", "4244"]
    assert block.traffic[0, 0].tolist() == [4142, 4143, 4144, 4242, 4243, 4244]
    assert block.xy is not None
    assert block.xy[0].tolist() == [41.5 * 235, 41.5 * 235]
    assert block.xy[5].tolist() == [43.5 * 235, 42.5 * 235]
    stations = read(path)
    assert stations.grid is None and stations.xy is not None and stations.xy[-1].tolist() == [98.5 * 235, 99.5 * 235]
    assert read(path, squares=squares[:5]).grid is None
    assert read(path, squares=[4142, 4144]).grid is None
    assert read(path, squares=[4142, 4242]).grid == (2, 1)


def test_local_time_keeps_the_first_offset(tmp_path: Path) -> None:
    """Summer time ended on 2013-10-27 at 01:00 UTC: no slot is doubled."""
    begin = int(datetime(2013, 10, 27, tzinfo=UTC).timestamp()) * 1000
    path = write(tmp_path / "day.txt", *(line(1, step, 39, float(step + 1), begin=begin) for step in range(12)))
    city = read(path, aggregate_minutes=60)
    assert city.start == datetime(2013, 10, 27, 2)
    assert city.traffic[0, :, 0].tolist() == [21, 57]
    assert read(path, timezone="UTC").start == datetime(2013, 10, 27)
    winter = write(tmp_path / "winter.txt", line(1, 0, 39, 1.0))
    assert read(winter, timezone="America/New_York").start == datetime(2013, 10, 31, 19)


def test_aggregation_of_an_outage_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "day.txt", *(line(1, step, 39, 1.0) for step in range(9) if step != 4))
    np.testing.assert_array_equal(read(path, aggregate_minutes=30).traffic[0, :, 0], [3, np.nan, 3])


def test_real_records(shared_data: Path) -> None:
    path = shared_data / REAL
    city = read(path)
    assert (city.shape, list(city.sites), city.grid) == ((5, 144, 4), ["1", "10", "100", "1000"], None)
    assert city.start == datetime(2013, 11, 1) and not np.isnan(city.traffic).any()
    frame = pd.read_parquet(path)
    totals = frame.groupby("square_id")[list(SERVICES)].sum().to_numpy().T
    np.testing.assert_allclose(city.traffic.sum(axis=1, dtype=np.float64), totals, rtol=1e-5)
    noon = frame[(frame["square_id"] == 1000) & (frame["t_ms"] == BEGIN + 72 * STEP)]["internet"].sum()
    assert city.traffic[4, 72, 3] == np.float32(noon)


def test_real_records_as_text(shared_data: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(shared_data / REAL)[list(COLUMNS)]
    frame.to_csv(tmp_path / "day.txt.gz", sep="\t", header=False, index=False)
    assert read(tmp_path).traffic.tobytes() == read(shared_data / REAL).traffic.tobytes()


GOOD = line(1, 0, 39, 1.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(10001, 1, 39, 1.0), r"row 2, column 'square_id': 10001, expected 1\.\.10000"),
        (line(1, 0, 40, 1.0, begin=BEGIN + 300_000), rf"row 2, column 't_ms': {BEGIN + 300_000}, expected a whole step of 10 minutes"),
        (line(1, 1, 39, None, -2.5), r"row 2, column 'sms_out': -2\.5, expected a finite value >= 0"),
        (line(1, 1, 39, None, None, None, None, float("inf")), "row 2, column 'internet': inf"),
        (GOOD, "row 2, column 'country_code': 39, expected one record a square, step and country"),
        (line(1, 1, 39)[:-1], "cannot be read.*Expected 8 columns, got 7"),
        (line(1, 1, 39) + "\t", "cannot be read.*Expected 8 columns, got 9"),
        (line(1, 1, 39).replace("39", "Italy"), "cannot be read.*invalid value 'Italy'"),
        (line(1, 1, 39).replace("39", ""), "column 'country_code': float64, expected whole numbers, none of them empty"),
        (line(1, 2_000_000_000, 39, 1.0), r"t_ms: spans 2000000001 steps of 1 squares"),
    ],
)
def test_refuses_bad_records(tmp_path: Path, bad: str, message: str) -> None:
    write(tmp_path / "day.txt", GOOD, bad)
    with pytest.raises(ValueError, match=rf"(?s)day\.txt: {message}"):
        read(tmp_path / "day.txt")


def test_refuses_damaged_and_absent_files(tmp_path: Path) -> None:
    path = write(tmp_path / "day.txt.gz", *(line(1, step, 39, step / 7) for step in range(500)))
    path.write_bytes(path.read_bytes()[:-100])
    parquet = tmp_path / "day.parquet"
    pd.DataFrame([(1, BEGIN)], columns=list(COLUMNS[:2])).to_parquet(parquet)
    for file, message in ((path, "cannot be read.*Truncated"), (parquet, "cannot be read, expected the columns.*'country_code'")):
        with pytest.raises(ValueError, match=rf"(?s)day\.[a-z.]+: {message}"):
            read(file)
    parquet.write_bytes(parquet.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"day\.parquet: cannot be read"):
        read(parquet)
    words = pd.DataFrame([(1, BEGIN, 39, "many", 0.0, 0.0, 0.0, 0.0)], columns=list(COLUMNS))
    words.to_parquet(parquet)
    with pytest.raises(ValueError, match=r"day\.parquet: column 'sms_in': .*, expected numbers"):
        read(parquet)
    words.assign(sms_in=1.0, t_ms=pd.Timestamp("2013-11-01")).to_parquet(parquet)
    with pytest.raises(ValueError, match=r"day\.parquet: column 't_ms': datetime64.*, expected whole numbers"):
        read(parquet)
    pd.DataFrame(columns=list(COLUMNS)).to_parquet(parquet)
    with pytest.raises(ValueError, match=r"day\.parquet: 0 records"):
        read(parquet)
    with pytest.raises(ValueError, match=r"absent\.txt: no such file"):
        read(tmp_path / "absent.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no records in the folder"):
        read(tmp_path / "empty")


def test_refuses_a_day_told_twice(tmp_path: Path) -> None:
    write(tmp_path / "day.txt", GOOD, line(2, 5, 39, 1.0))
    write(tmp_path / "day.txt.gz", line(2, 5, 39, 1.0))
    with pytest.raises(ValueError, match=rf"day\.txt\.gz: square_id 2 at t_ms {BEGIN + 5 * STEP} is in another file too"):
        read(tmp_path)


def test_refuses_arguments(tmp_path: Path) -> None:
    path = write(tmp_path / "day.txt", GOOD)
    with pytest.raises(ValueError, match=r"area: 'rome', expected one of \['milan', 'trentino'\]"):
        TelecomItaliaRecords(path, area="rome")  # type: ignore[arg-type]
    for services in ([], ["internet", "internet"], ["video"]):
        with pytest.raises(ValueError, match=r"services: .*, expected one or more different ones of \['sms_in', .*'call'\]"):
            TelecomItaliaRecords(path, services=services)
    with pytest.raises(ValueError, match=r"cells, stations: None and stations.csv, expected both files or neither"):
        TelecomItaliaRecords(path, stations="stations.csv")
    for squares in ([], [1, 1], [0], [10001]):
        with pytest.raises(ValueError, match="squares: "):
            TelecomItaliaRecords(path, squares=squares)
    with pytest.raises(ValueError, match="timezone: 'Milan'"):
        TelecomItaliaRecords(path, timezone="Milan")
    with pytest.raises(ValueError, match=r"day\.txt: no record of the squares \[7\]"):
        read(path, squares=[1, 7])
    with pytest.raises(ValueError, match=r"no city 'rome', expected one of \['milan'\]"):
        next(TelecomItaliaRecords(path).read("rome"))
    with pytest.raises(ValueError, match=r"day\.txt: .*to 15 minutes, expected one of \[10, 20, 30, 60\]"):
        read(path, aggregate_minutes=15)


def test_services_and_their_aggregates_in_the_order_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "day.txt", line(1, 0, 39, 1.0, 2.0, 4.0, 8.0, 16.0), line(1, 2, 39, None, 32.0))
    city = read(path, services=["call", "internet", "sms", "call_out"])
    assert tuple(city.services) == ("call", "internet", "sms", "call_out")
    np.testing.assert_array_equal(city.traffic[:, :, 0], [[12, np.nan, 0], [16, np.nan, 0], [3, np.nan, 32], [8, np.nan, 0]])


def test_trentino_has_more_squares_and_no_grid_by_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "day.txt", line(1, 0, 39, 1.0), line(11466, 0, 39, 2.0))
    (city,) = TelecomItaliaRecords(path, area="trentino").read("trentino")
    assert (city.name, list(city.sites), city.grid, city.xy) == ("trentino", ["1", "11466"], None, None)
    with pytest.raises(ValueError, match=r"row 2, column 'square_id': 11466, expected 1\.\.10000"):
        read(path)
    with pytest.raises(ValueError, match=r"squares: 1\.\.11467, expected ids in 1\.\.11466"):
        TelecomItaliaRecords(path, area="trentino", squares=[1, 11467])


LATITUDE, LONGITUDE = 46.0, 11.0
DEGREE = 111_194.9  # metres of a degree of latitude on a sphere; the ellipsoid's differ by less than 1 %


def write_squares(path: Path, count: int = 4) -> Path:
    """A row of squares of 0.01 degrees from west to east, as the published GeoJSON has them."""
    features = [
        {
            "type": "Feature",
            "properties": {"cellId": 100 + i},
            "geometry": {
                "type": "Polygon",
                "coordinates": [
                    [
                        [LONGITUDE + 0.01 * (i + dx), LATITUDE + 0.01 * dy]
                        for dx, dy in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5))
                    ]
                ],
            },
        }
        for i in range(count)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def write_stations(path: Path, **places: tuple[float, float]) -> Path:
    rows = [f"{name},{LATITUDE + dy},{LONGITUDE + dx}" for name, (dx, dy) in places.items()]
    path.write_text("\n".join(["unique_id,lat,lon", *rows]) + "\n")
    return path


def station_records(folder: Path) -> Path:
    """Squares 100 to 103 from west to east with traffic 1, 2, 4, 8, and an outage."""
    (folder / "cdr").mkdir()
    lines = [line(100 + i, step, 39, None, None, None, None, 2.0**i) for i in range(4) for step in (0, 2)]
    return write(folder / "cdr" / "day.txt", *lines)


def test_a_squares_centre_is_that_of_its_corners(tmp_path: Path) -> None:
    centres = read_centres(write_squares(tmp_path / "grid.geojson"))
    assert centres.index.tolist() == [100, 101, 102, 103]
    np.testing.assert_allclose(centres["lat"], LATITUDE, atol=1e-9)
    np.testing.assert_allclose(centres["lon"], LONGITUDE + 0.01 * np.arange(4), atol=1e-9)


def test_every_square_belongs_to_its_nearest_station(tmp_path: Path) -> None:
    """Stations at 0.001 and 0.019 degrees east, one north of the last square but nearest to it, and one that is nearest to none."""
    cells = write_squares(tmp_path / "grid.geojson")
    stations = write_stations(tmp_path / "stations.csv", west=(0.001, 0.0), middle=(0.019, 0.0), north=(0.032, 0.004), far=(0.5, 0.5))
    options: dict[str, Any] = {"area": "trentino", "cells": cells, "stations": stations, "services": ["internet"]}
    (city,) = TelecomItaliaRecords(station_records(tmp_path), **options).read("trentino")
    assert (list(city.sites), city.grid) == (["west", "middle", "north"], None)
    # Square 101, at 0.01 degrees, lies 0.009 degrees from both of them; centres are of corners, so it may go either way by rounding.
    total = city.traffic[0, 0].tolist()
    assert total in ([3.0, 4.0, 8.0], [1.0, 6.0, 8.0]) and city.traffic[0, 2].tolist() == total
    assert np.isnan(city.traffic[:, 1]).all()
    assert city.xy is not None
    east, north = city.xy[2] - city.xy[0]
    assert east == pytest.approx(0.031 * DEGREE * np.cos(np.radians(LATITUDE)), rel=0.01) and north == pytest.approx(
        0.004 * DEGREE, rel=0.01
    )


def test_nothing_is_lost_by_assignment_and_cells_may_be_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    squares = rng.choice(10_000, 60, replace=False) + 1
    path = write(tmp_path / "day.txt", *(line(int(square), step, 39, *rng.random(5).tolist()) for square in squares for step in range(4)))
    centres = pd.DataFrame({"square_id": squares, "lat": 45 + rng.random(60) / 5, "lon": 9 + rng.random(60) / 5})
    centres.to_csv(tmp_path / "cells.csv", index=False)
    stations = pd.DataFrame({"unique_id": [f"s{i}" for i in range(20)], "lat": 45 + rng.random(20) / 5, "lon": 9 + rng.random(20) / 5})
    stations.to_parquet(tmp_path / "stations.parquet")
    plain, city = read(path), read(path, cells=tmp_path / "cells.csv", stations=tmp_path / "stations.parquet")
    np.testing.assert_allclose(city.traffic.sum(axis=2), plain.traffic.sum(axis=2), rtol=1e-5)
    # Brute force, on a plane whose east-west metres are shrunk by the cosine of the latitude: right to a few metres over 20 km.
    shrink = np.cos(np.radians(45.1))
    for site, traffic in zip(city.sites, city.traffic[0, 0], strict=True):
        mine = []
        for square, lat, lon in centres.itertuples(index=False):
            distance = (stations["lat"] - lat) ** 2 + ((stations["lon"] - lon) * shrink) ** 2
            if stations["unique_id"][int(distance.argmin())] == site:
                mine.append(plain.traffic[0, 0, list(plain.sites).index(str(int(square)))])
        assert traffic == pytest.approx(sum(mine), rel=1e-5)


def test_refuses_squares_and_stations_that_are_not_as_described(tmp_path: Path) -> None:
    records = station_records(tmp_path)
    cells = write_squares(tmp_path / "grid.geojson")
    stations = write_stations(tmp_path / "stations.csv", a=(0, 0))

    def attempt(cells: Path, stations: Path) -> None:
        next(TelecomItaliaRecords(records, area="trentino", cells=cells, stations=stations).read("trentino"))

    with pytest.raises(ValueError, match=r"few\.geojson: no place of the squares \[102, 103\]"):
        attempt(write_squares(tmp_path / "few.geojson", 2), stations)
    with pytest.raises(ValueError, match=r"absent\.geojson: no such file"):
        attempt(tmp_path / "absent.geojson", stations)
    (tmp_path / "odd.geojson").write_text('{"features": [{"properties": {}}]}')
    with pytest.raises(ValueError, match=r"odd\.geojson: cannot be read, expected a GeoJSON of polygons with property cellId"):
        attempt(tmp_path / "odd.geojson", stations)
    metres = tmp_path / "metres.geojson"
    metres.write_text(cells.read_text().replace("[11.", "[651234."))
    with pytest.raises(ValueError, match=r"metres\.geojson: a square that is no polygon of degrees"):
        attempt(metres, stations)
    twice = tmp_path / "twice.csv"
    twice.write_text(stations.read_text() + "a,46,11\n")
    with pytest.raises(ValueError, match="'a' is there twice"):
        attempt(cells, twice)
    (tmp_path / "none.csv").write_text("unique_id,lat\na,46\n")
    with pytest.raises(ValueError, match="lon"):
        attempt(cells, tmp_path / "none.csv")
