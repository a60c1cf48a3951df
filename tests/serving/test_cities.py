"""What is told of a store's cities: facts, places, slices that read no run too many."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from raytraffic.files import Location
from raytraffic.serving.cities import HEAT_SLOTS, Cities
from raytraffic.store import prepare_store
from raytraffic.windows import RunReader
from tests.serving.conftest import HOSTILE, explorer_cities
from tests.serving.local_stages import station_city
from tests.store.cities import SMALL, prepared, series_of, tiled_city

START = int(np.datetime64("2024-05-07T06:00", "m").astype(np.int64))


@pytest.fixture
def tiled(tmp_path: Path) -> Cities:
    """100 slots of five tiles with given names: runs of 32 slots, a new one every 24."""
    prepared(tmp_path, [tiled_city(places=("p0", "p1", "p2", "p3", "p4"))])
    return Cities(str(tmp_path))


def test_without_a_store_there_is_no_city() -> None:
    assert Cities(None).names == ()
    assert Cities(None).known(None) is None


def test_facts_are_those_of_the_newest_period(tmp_path: Path) -> None:
    old = tiled_city(period="zeta", steps=60)
    new = replace(tiled_city(period="early", places=("p1", "p2"), steps=40, seed=1), start=datetime(2024, 6, 1, 0, 30))
    prepared(tmp_path, [old, new])
    cities = Cities(str(tmp_path))
    facts = cities.facts("alpha")
    assert (facts.step_minutes, facts.unit, facts.services, facts.slots, facts.tiles) == (30, "unknown", ("traffic",), 40, 2)
    assert (facts.first, facts.last) == (datetime(2024, 6, 1, 0, 30), datetime(2024, 6, 1, 20, 0))
    assert {station.tile for station in cities.map("alpha").stations} == {"p1", "p2"}
    read = cities.series("alpha", "p2", facts.first_minute, 40)
    np.testing.assert_array_equal(read.traffic, series_of(new, "p2"))
    with pytest.raises(ValueError, match="tile: 'p0', expected one of city alpha's 2 tiles"):
        cities.series("alpha", "p0", facts.first_minute, 1)


@pytest.mark.parametrize(("first", "slots"), [(0, 100), (0, 1), (23, 2), (30, 40), (95, 5), (96, 4), (-7, 20), (90, 30), (-9, 4), (200, 3)])
def test_slices_are_the_series(tiled: Cities, first: int, slots: int) -> None:
    whole = series_of(tiled_city(places=("p0", "p1", "p2", "p3", "p4")), "p3")
    expected = np.full((1, slots, 16), np.nan, dtype=np.float32)
    low, high = max(first, 0), min(first + slots, 100)
    if low < high:
        expected[:, low - first : high - first] = whole[:, low:high]
    read = tiled.series("alpha", "p3", START + 30 * first, slots)
    np.testing.assert_array_equal(read.traffic, expected)
    assert read.sites[4] == "alpha-52" and read.sites[5] == ""
    assert np.isfinite(read.users[np.isfinite(expected[0, :, 0])][:, 0]).all()


@pytest.mark.parametrize(("first", "slots", "fewest"), [(0, 32, 1), (0, 33, 2), (24, 32, 1), (23, 33, 2), (99, 1, 1), (0, 100, 4)])
def test_no_run_is_read_too_many(tiled: Cities, monkeypatch: pytest.MonkeyPatch, first: int, slots: int, fewest: int) -> None:
    asked: list[int] = []
    read = RunReader.read

    def counted(reader: RunReader, rows: np.ndarray):  # type: ignore[no-untyped-def]
        asked.extend(rows.tolist())
        return read(reader, rows)

    monkeypatch.setattr(RunReader, "read", counted)
    tiled.series("alpha", "p1", START + 30 * first, slots)
    assert tiled.store is not None
    index = tiled.store.index
    assert {index.places[index.place[row]][1] for row in asked} == {"p1"}
    held = [(run * SMALL.core, run * SMALL.core + SMALL.run_steps) for run in index.run[asked]]
    assert all(any(low <= slot < high for low, high in held) for slot in range(first, min(first + slots, 100)))
    assert len(asked) == fewest


def test_points_of_interest_and_cells_go_with_a_slice(tiled: Cities) -> None:
    city = tiled_city(places=("p0", "p1", "p2", "p3", "p4"))
    read = tiled.series("alpha", "p4", START, 8)
    assert city.poi is not None and read.cells is not None
    np.testing.assert_array_equal(read.poi["park"][[0, 15]], city.poi[1][[64, 79]])
    assert read.cells.tolist()[:5] == [[4, 4], [4, 5], [4, 6], [4, 7], [5, 4]]  # the fifth of five tiles in rows of three


def test_a_minute_between_slots_is_refused(tiled: Cities) -> None:
    with pytest.raises(ValueError, match=f"first_minute: {START + 7}, expected {START} and a multiple of 30"):
        tiled.series("alpha", "p0", START + 7, 4)


def test_stations_lie_in_metres_where_the_store_knows_them(explorer_store: Path) -> None:
    city, known = explorer_cities()["dawnport"], Cities(str(explorer_store)).map("dawnport")
    assert known.layout == "metres"
    assert city.xy is not None
    places = {station.id: (station.x, station.y) for station in known.stations}
    assert places == {site: tuple(xy) for site, xy in zip(city.sites, city.xy.tolist(), strict=True)}
    week = city.traffic[0, -336:].mean(axis=0)
    means = {station.id: station.mean[0] for station in known.stations}
    assert means == pytest.approx(dict(zip(city.sites, week.tolist(), strict=True)), rel=1e-5)
    station = known.station("r5c9")
    assert station is not None and station.tile == "r001c002" and station.cell == 5
    assert known.station("r9c9") is None


def test_grids_without_metres_lie_on_their_grid(explorer_store: Path) -> None:
    known = Cities(str(explorer_store)).map("gridton")
    assert known.layout == "schematic"
    assert sorted((-station.y, station.x) for station in known.stations) == [(row, column) for row in range(6) for column in range(6)]


def test_lone_stations_lie_in_a_near_square(explorer_store: Path) -> None:
    cities = Cities(str(explorer_store))
    known = cities.map("lone & far/away")
    assert known.layout == "schematic"
    assert [(station.x, -station.y) for station in known.stations] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2)]
    assert cities.series("lone & far/away", HOSTILE, START, 1).cells is None


def test_tiles_that_are_no_neighbours_stand_apart(tmp_path: Path) -> None:
    prepared(tmp_path, [replace(tiled_city(places=("p0", "p1", "p2", "p3", "p4")), xy=None)])
    known = Cities(str(tmp_path)).map("alpha")
    corners = {station.tile: (station.x, -station.y) for station in known.stations if station.cell == 0}
    assert corners == {"p0": (0, 0), "p1": (5, 0), "p2": (10, 0), "p3": (0, 5), "p4": (5, 5)}
    assert len({(station.x, station.y) for station in known.stations}) == len(known.stations) == 5 * 15


def test_heat_is_every_stations_traffic_in_the_maps_order(explorer_store: Path) -> None:
    city, cities = explorer_cities()["dawnport"], Cities(str(explorer_store))
    facts = cities.facts("dawnport")
    values = cities.heat("dawnport", "traffic", facts.first_minute + 30 * 500, HEAT_SLOTS)
    order = [list(city.sites).index(station.id) for station in cities.map("dawnport").stations]
    np.testing.assert_array_equal(values, city.traffic[0, 500 : 500 + HEAT_SLOTS][:, order])
    end = cities.heat("dawnport", "traffic", facts.first_minute + 30 * (facts.slots - 1), 3)
    assert np.isfinite(end[0]).all() and np.isnan(end[1:]).all()
    with pytest.raises(ValueError, match=r"slots: 169, expected 1\.\.168"):
        cities.heat("dawnport", "traffic", facts.first_minute, HEAT_SLOTS + 1)
    with pytest.raises(ValueError, match=r"service: 'video', expected one of \['traffic'\]"):
        cities.heat("dawnport", "video", facts.first_minute, 4)


def test_services_keep_apart_and_a_station_without_measurements_has_no_mean(tmp_path: Path) -> None:
    city = station_city("two", steps=50, stations=3, services=("video", "mail"))
    city.traffic[1, :, 2] = np.nan
    prepare_store([[city]], Location.of(tmp_path), SMALL)
    cities = Cities(str(tmp_path))
    means = {station.id: station.mean for station in cities.map("two").stations}
    assert means["site 01"] == pytest.approx(np.nanmean(city.traffic[:, :, 1], axis=1), rel=1e-5)
    assert means["site 02"][1] is None
    np.testing.assert_array_equal(cities.heat("two", "mail", START, 50), city.traffic[1])
