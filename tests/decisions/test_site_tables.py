"""Tables with a row a site stand in the forecast's order; what does not fit is named by its row and column."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytraffic.decisions.site_tables import read_existing, read_per_site, read_weights

EAST, BOTH = [("east", "a"), ("east", "b")], [("east", "a"), ("west", "a")]


def table(folder: Path, text: str) -> str:
    """A CSV file."""
    file = folder / "sites.csv"
    file.write_text(text)
    return str(file)


def test_rows_stand_in_the_order_of_the_sites(tmp_path: Path) -> None:
    path = table(tmp_path, "city,unique_id,rrus,rru_capacity\nwest,a,3,10\neast,a,4,20.5\n")
    found = read_per_site(path, BOTH, ("rrus", "rru_capacity"))
    assert found["rrus"].tolist() == [4, 3] and found["rru_capacity"].tolist() == [20.5, 10]


def test_a_table_without_cities_speaks_of_the_one_there_is(tmp_path: Path) -> None:
    path = table(tmp_path, "unique_id,rrus\nb,2\na,1\n")
    assert read_per_site(path, EAST, ("rrus",))["rrus"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"no column 'city', expected one: the forecast has the cities \['east', 'west'\]"):
        read_per_site(path, BOTH, ("rrus",))


def test_names_stay_text(tmp_path: Path) -> None:
    sites = [("east", "007"), ("east", "NA")]
    assert read_per_site(table(tmp_path, "unique_id,rrus\nNA,2\n007,1\n"), sites, ("rrus",))["rrus"].tolist() == [1, 2]


def test_parquet_is_read_alike(tmp_path: Path) -> None:
    pq.write_table(pa.table({"unique_id": ["b", "a"], "rrus": [2, 1]}), tmp_path / "cells.parquet")
    assert read_per_site(str(tmp_path / "cells.parquet"), EAST, ("rrus",))["rrus"].tolist() == [1, 2]
    pq.write_table(pa.table({"unique_id": ["b", "a"], "rrus": [2, None]}), tmp_path / "gap.parquet")
    with pytest.raises(ValueError, match=r"row 2, column 'rrus': empty, expected a finite number"):
        read_per_site(str(tmp_path / "gap.parquet"), EAST, ("rrus",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unique_id,rrus\na,1\nc,2\n", r"sites \(.*sites.csv\): row 2, unknown site 'east/c', expected sites of the forecast"),
        ("unique_id,rrus\na,1\n", r"0 rows of site 'east/b', expected one of every site of the forecast"),
        ("unique_id,rrus\na,1\nb,1\na,2\n", r"2 rows of site 'east/a', expected one"),
        ("unique_id,lat\na,1\nb,2\n", r"no column 'rrus', expected \['unique_id', 'rrus'\]"),
        ("unique_id,rrus\na,1\nb,many\n", r"row 2, column 'rrus': 'many', expected a finite number"),
        ("unique_id,rrus\na,1\nb,\n", r"row 2, column 'rrus': '', expected a finite number"),
        ("unique_id,rrus\na,inf\nb,1\n", r"row 1, column 'rrus': .*inf.*, expected a finite number"),
        ("unique_id,rrus\n", r"0 rows, expected at least one"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_per_site(table(tmp_path, text), EAST, ("rrus",))


def test_existing_stations_are_counted_by_site_and_type(tmp_path: Path) -> None:
    path = table(tmp_path, "unique_id,type,count\nb,macro,2\nb,micro,1\nb,macro,1\n")
    assert read_existing(path, EAST, ["macro", "micro"]).tolist() == [[0, 0], [3, 1]]
    with pytest.raises(ValueError, match=r"type 'micro' of site 'east/b', expected one of \['macro'\]"):
        read_existing(path, EAST, ["macro"])
    for count in ("-1", "1.5"):
        with pytest.raises(ValueError, match=rf"count {count} of site 'east/a', expected a whole number"):
            read_existing(table(tmp_path, f"unique_id,type,count\na,macro,{count}\n"), EAST, ["macro"])


def test_every_further_column_is_one_of_weights(tmp_path: Path) -> None:
    path = table(tmp_path, "city,unique_id,poi,residents\nwest,a,3,100\neast,a,0,20.5\n")
    found = read_weights(path, BOTH)
    assert {name: values.tolist() for name, values in found.items()} == {"poi": [0, 3], "residents": [20.5, 100]}
    with pytest.raises(ValueError, match=r"row 2, column 'poi': -1, expected a number of at least 0"):
        read_weights(table(tmp_path, "unique_id,poi\na,1\nb,-1\n"), EAST)
    with pytest.raises(ValueError, match=r"columns \['unique_id'\], expected one of weights beside the sites' names"):
        read_weights(table(tmp_path, "unique_id\na\nb\n"), EAST)
