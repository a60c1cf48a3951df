"""Draws and tables become demand as they were written, in any order of rows and files; what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.config.decisions import DeploymentSettings, OptimizeConfig, SleepSettings
from raytraffic.decisions.deployment import StationType
from raytraffic.decisions.reading import demand_of_table, read_demand, read_values, station_types
from raytraffic.files import Location
from raytraffic.forecasting import draws_table

START = np.datetime64("2024-01-15T00:00", "s")


def moments(slots: int, minutes: int = 30) -> np.ndarray:
    """Slots from START on."""
    return START + np.arange(slots) * np.timedelta64(60 * minutes, "s")


def rows(sites: list[tuple[str, str]], draws: np.ndarray, minutes: int = 30, service: str = "traffic") -> pa.Table:
    """The table of draws (n, sites, slots) as a forecast writes it."""
    n, _, slots = draws.shape
    city, name = (np.repeat(values, slots) for values in zip(*sites, strict=True))
    values = pa.array(draws.transpose(1, 2, 0).ravel().astype(np.float32))
    return pa.table(
        {
            "city": pa.array(city).dictionary_encode(),
            "unique_id": pa.array(name).dictionary_encode(),
            "service": pa.array([service] * len(city)).dictionary_encode(),
            "ds": np.tile(moments(slots, minutes), len(sites)),
            "draws": pa.FixedSizeListArray.from_arrays(values, n),
        }
    )


def forecast(folder: Path, *shards: pa.Table) -> str:
    """The folder of a finished forecast."""
    names = [f"forecast-{i:05d}.parquet" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        Location.of(folder).child("shards", name).write_table(shard)
    Location.of(folder).child("manifest.json").write_bytes(json.dumps({"shards": dict.fromkeys(names, "")}).encode())
    return str(folder)


EAST, WEST = [("east", "a"), ("east", "b")], [("west", "a")]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_draws_come_back_whatever_the_order_of_rows(tmp_path_factory: pytest.TempPathFactory, n: int, slots: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.random((n, 2, slots)).astype(np.float32), rng.random((n, 1, slots)).astype(np.float32)
    shuffled = rows(EAST, first).take(rng.permutation(2 * slots))
    found = read_demand(forecast(tmp_path_factory.mktemp("f"), shuffled, rows(WEST, second)))
    assert set(found.sites[:2]) == set(EAST) and found.sites[2:] == (("west", "a"),)
    order = [EAST.index(site) for site in found.sites[:2]]
    np.testing.assert_array_equal(found.draws, np.concatenate([first[:, order], second], axis=1))
    np.testing.assert_array_equal(found.slots, moments(slots))
    assert found.step_minutes == (30 if slots > 1 else 60)


def test_what_the_fleet_s_forecast_writes_is_read_back(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).random((2, 3, 1, 4, 2)).astype(np.float32)  # (tiles, draws, services, slots, sites)
    table = draws_table(
        torch.from_numpy(drawn),
        answered=np.ones((2, 1, 4, 2), dtype=bool),
        cities=np.array(["east", "west"], dtype=object),
        sites=np.array([["a", "b"], ["b", "c"]], dtype=object),
        minutes=np.tile(START.astype("datetime64[m]").astype(int) + 30 * np.arange(4), (2, 1)),
        services=("traffic",),
        quantiles=(0.5,),
        keep_draws=True,
    )
    found = read_demand(forecast(tmp_path, table))
    assert found.sites == (("east", "a"), ("east", "b"), ("west", "b"), ("west", "c"))
    np.testing.assert_array_equal(found.slots, moments(4))
    np.testing.assert_array_equal(found.draws, np.concatenate([drawn[0, :, 0], drawn[1, :, 0]], axis=2).transpose(0, 2, 1))


def test_sites_stand_in_the_forecast_s_order_and_cities_are_chosen_by_name(tmp_path: Path) -> None:
    path = forecast(tmp_path, rows([("east", "z"), ("east", "b")], np.ones((2, 2, 3))), rows(WEST, np.full((2, 1, 3), 5.0)))
    assert read_demand(path).sites == (("east", "z"), ("east", "b"), ("west", "a"))
    only = read_demand(path, cities=["west"])
    assert only.sites == (("west", "a"),) and only.draws.tolist() == np.full((2, 1, 3), 5.0).tolist()
    with pytest.raises(ValueError, match=r"cities: \['north'\], expected some of \['east', 'west'\]"):
        read_demand(path, cities=["north"])


def test_a_city_of_another_granularity_is_refused_but_can_be_decided_on_alone(tmp_path: Path) -> None:
    path = forecast(tmp_path, rows(EAST, np.ones((2, 2, 4))), rows(WEST, np.ones((2, 1, 2)), minutes=60))
    with pytest.raises(ValueError, match=r"city 'west' has 2 slots from .*, expected 4 slots from .*one by one"):
        read_demand(path)
    assert read_demand(path, cities=["west"]).step_minutes == 60


def test_what_is_wrong_with_a_forecast_is_named(tmp_path: Path) -> None:
    good, fewer = rows(EAST, np.ones((3, 2, 4))), rows(WEST, np.ones((2, 1, 4)))
    folders = iter(range(99))

    def refused(message: str, *shards: pa.Table, service: str | None = None) -> None:
        with pytest.raises(ValueError, match=message):
            read_demand(forecast(tmp_path / str(next(folders)), *shards), service=service)

    refused("2 draws, expected 3", good, fewer)
    refused("no column 'draws' .*--keep-draws", good.drop_columns(["draws"]))
    refused(r"more than one value of site 'east/a' at 2024-01-15T00:00:00.*\(1 of 8", pa.concat_tables([good, good.slice(0, 1)]))
    refused("site 'east/a' in more than one file", good, good)
    refused("no value of site 'east/b' at 2024-01-15T00:30:00", good.take([0, 1, 2, 3, 4, 6, 7]))
    refused("after slot 2024-01-15T00:30:00 of city 'east' comes 2024-01-15T01:30:00, expected one every 30", good.take([0, 1, 3, 4, 5, 7]))
    refused("a negative value of site 'east/a' at 2024-01-15T00:30", rows(EAST, np.arange(-1.0, 7.0).reshape(1, 2, 4)[:, :, [1, 0, 2, 3]]))
    refused("missing or not finite of site 'east/b'", rows(EAST, np.array([[[1.0, 1], [1, np.nan]]])))
    both = pa.concat_tables([good, rows(EAST, np.ones((3, 2, 4)), service="video")])
    refused(r"service: None, expected one of \['traffic', 'video'\]", both)
    refused(r"service: 'voice', expected one of", good, service="voice")
    with pytest.raises(ValueError, match=r"no manifest.json, expected the folder of a finished"):
        read_demand(str(tmp_path))
    with pytest.raises(ValueError, match=r"gone.parquet: no such file"):
        read_demand(str(tmp_path / "gone.parquet"))


def test_one_of_several_services_is_read(tmp_path: Path) -> None:
    video = rows(EAST, np.full((3, 2, 4), 7.0), service="video")
    path = forecast(tmp_path, pa.concat_tables([rows(EAST, np.ones((3, 2, 4))), video]))
    assert np.unique(read_demand(path, service="video").draws).tolist() == [7.0]


def test_a_long_table_is_one_draw(tmp_path: Path) -> None:
    file = tmp_path / "load.csv"
    file.write_text("unique_id,ds,y\n007,2024-01-15 00:00,1.5\n007,2024-01-15 01:00,2\n8,2024-01-15 01:00,4\n8,2024-01-15 00:00,3\n")
    found = read_demand(str(file))
    assert found.sites == (("", "007"), ("", "8")) and found.draws.tolist() == [[[1.5, 2], [3, 4]]]
    zoned = tmp_path / "zoned.csv"
    zoned.write_text("unique_id,ds,y\na,2024-01-15T00:00Z,1\n")
    with pytest.raises(ValueError, match=r"zoned.csv: .*without a zone"):
        read_demand(str(zoned))
    text = tmp_path / "text.csv"
    text.write_text("unique_id,ds,y\na,2024-01-15T00:00,many\n")
    with pytest.raises(ValueError, match=r"text.csv: .*expected numbers"):
        read_demand(str(text))


def test_values_are_those_of_the_wanted_sites_and_slots(tmp_path: Path) -> None:
    file = tmp_path / "real.csv"
    lines = [
        f"{site},2024-01-15 00:{minute:02d},{value}" for site in "abc" for minute, value in ((0, 1), (15, 8), (30, ord(site)), (45, 9))
    ]
    file.write_text("\n".join(["unique_id,ds,y", *reversed(lines)]))
    slots = moments(2)
    assert read_values(str(file), [("east", "c"), ("east", "a")], slots).tolist() == [[1, 99], [1, 97]]
    with pytest.raises(ValueError, match=r"no value of site 'east/d' at 2024-01-15T00:00:00.*\(2 of 4"):
        read_values(str(file), [("east", "a"), ("east", "d")], slots)
    with pytest.raises(ValueError, match=r"no column 'city', expected one: the forecast has the cities \['east', 'west'\]"):
        read_values(str(file), [("east", "a"), ("west", "a")], slots)


def test_values_of_stations_of_one_name_are_told_apart_by_city(tmp_path: Path) -> None:
    file = tmp_path / "real.csv"
    file.write_text("city,unique_id,ds,y\neast,a,2024-01-15 00:00,1\nwest,a,2024-01-15 00:00,2\nwest,b,2024-01-15 00:00,3\n")
    assert read_values(str(file), [("west", "a"), ("east", "a")], moments(1)).tolist() == [[2], [1]]
    found = read_demand(str(file))
    assert found.sites == (("east", "a"), ("west", "a"), ("west", "b")) and found.draws.tolist() == [[[1], [2], [3]]]


def test_a_table_in_memory_is_read_as_a_file_is(tmp_path: Path) -> None:
    table = rows([("east", "b"), ("east", "a")], np.random.default_rng(0).random((3, 2, 4)))
    there, here = read_demand(forecast(tmp_path, table)), demand_of_table("draws", table)
    assert here.sites == there.sites
    np.testing.assert_array_equal(here.draws, there.draws)
    np.testing.assert_array_equal(here.slots, there.slots)
    with pytest.raises(ValueError, match=r"^draws: no value of site 'east/a' at 2024-01-15T01:30:00"):
        demand_of_table("draws", table.slice(0, 7))


def test_station_types_are_read_from_text() -> None:
    assert station_types(["macro=200,1.9,4", "micro=50"]) == {
        "macro": StationType(capacity=200.0, price=1.9, operating_cost=4.0),
        "micro": StationType(capacity=50.0),
    }
    for text in ("200", "=200", "macro=", "macro=a", "macro=1,2,3,4"):
        with pytest.raises(ValueError, match=rf"station_types: '{text}', expected name=capacity"):
            station_types([text])
    with pytest.raises(ValueError, match=r"station_types: 'a=2', expected .* names differing"):
        station_types(["a=1", "a=2"])
    with pytest.raises(ValueError, match=r"station_types: 'a=-3': capacity: -3.0, expected a finite number of at least 0"):
        station_types(["a=-3"])


def test_settings_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"deployment.station_types: none, expected at least one"):
        OptimizeConfig(problem="deployment", forecast="f", out="o")
    with pytest.raises(ValueError, match=r"sleep.rrus, rru_capacity: 3, None, expected both"):
        OptimizeConfig(problem="sleep", forecast="f", out="o", sleep=SleepSettings(rrus=3))
    with pytest.raises(ValueError, match=r"sleep.cells: 'c.csv' beside rrus or rru_capacity"):
        SleepSettings(cells="c.csv", rrus=3)
    with pytest.raises(ValueError, match=r"sleep.served_share: 90"):
        SleepSettings(served_share=90)
    built = DeploymentSettings(station_types=("a=1",))
    with pytest.raises(ValueError, match=r"history: 'h.csv' without real"):
        OptimizeConfig(problem="deployment", forecast="f", out="o", history="h.csv", deployment=built)
    with pytest.raises(ValueError, match=r"weights: 'w.csv' without real, expected what the strategies are judged on"):
        OptimizeConfig(problem="deployment", forecast="f", out="o", weights="w.csv", deployment=built)
