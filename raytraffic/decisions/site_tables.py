"""Tables of sites: what stands at each, what it can serve, how demand divides over them.

A site is known by city and unique_id; a table without a city column speaks of the one city there is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pandas import Index

from raytraffic.sources.faulty import Refused
from raytraffic.sources.sheet import Columns, Sheet

__all__ = ["Site", "check_one_city", "read_existing", "read_per_site", "read_weights", "site_name"]

#: City ("" where a table has none) and unique_id.
Site = tuple[str, str]


def read_per_site(path: str, sites: Sequence[Site], columns: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """(sites,) of each column of a table with exactly one row a site; ValueError naming a site that is unknown, missing or double."""
    sheet, order = _row_a_site(path, sites, columns)
    return {name: _numbers(sheet, name)[order] for name in columns}


def read_weights(path: str, sites: Sequence[Site]) -> dict[str, NDArray[np.float64]]:
    """(sites,) of each column beside the sites' names of a table with exactly one row a site, numbers of at least 0.

    Raises ValueError as `read_per_site` does, for a negative weight, and where there is no such column.
    """
    sheet, order = _row_a_site(path, sites, ())
    names = [str(name) for name in sheet.frame.columns if name not in ("unique_id", "city")]
    if not names:
        raise ValueError(f"{sheet.label}: columns {list(sheet.frame.columns)}, expected one of weights beside the sites' names")
    return {name: _weights(sheet, name)[order] for name in names}


def read_existing(path: str, sites: Sequence[Site], types: Sequence[str]) -> NDArray[np.int64]:
    """(sites, types) stations that stand already, from a table `unique_id, type, count`; sites without a row have none.

    Raises ValueError naming an unknown site or type, and a count that is no whole number of at least 0.
    """
    sheet, at = _site_sheet(path, sites, ("type", "count"))
    kinds, counts = sheet.texts("type"), _numbers(sheet, "count")
    column = Index(types).get_indexer(kinds)
    sheet.refuse(column < 0, lambda row: f"type {kinds[row]!r} of site {site_name(sites[at[row]])}, expected one of {list(types)}")
    odd = (counts < 0) | (counts != np.floor(counts))
    sheet.refuse(odd, lambda row: f"count {counts[row]:g} of site {site_name(sites[at[row]])}, expected a whole number of at least 0")
    standing = np.zeros((len(sites), len(types)), dtype=np.int64)
    np.add.at(standing, (at, column), counts.astype(np.int64))
    return standing


def check_one_city(label: str, cities: Sequence[str], sites: Sequence[Site]) -> None:
    """ValueError where a table without cities speaks of sites of several."""
    several = sorted({city for city, _ in sites})
    if list(cities) == [""] and len(several) > 1:
        raise ValueError(f"{label}: no column 'city', expected one: the forecast has the cities {several}")


def site_name(site: Site) -> str:
    """The site as messages call it."""
    return repr("/".join(part for part in site if part))


def _site_sheet(path: str, sites: Sequence[Site], columns: Sequence[str]) -> tuple[Sheet, NDArray[np.int64]]:
    """A table of sites, and each row's position in `sites`."""
    sheet = Sheet(path, "sites", ("unique_id", *columns), Columns(), Refused(skip=False))
    assert sheet.station is not None, "unique_id is required"
    cities = sheet.texts("city") if "city" in sheet.frame.columns else None
    check_one_city(path, [""] if cities is None else cities, sites)
    named = [(sites[0][0] if cities is None else cities[row], name) for row, name in enumerate(sheet.ids[sheet.station])]
    known = {site: i for i, site in enumerate(sites)}
    index = np.array([known.get(site, -1) for site in named], dtype=np.int64)
    sheet.refuse(index < 0, lambda row: f"row {row + 1}, unknown site {site_name(named[row])}, expected sites of the forecast")
    return sheet, index


def _row_a_site(path: str, sites: Sequence[Site], columns: Sequence[str]) -> tuple[Sheet, NDArray[np.int64]]:
    """A table with exactly one row a site, and (sites,) the row of each."""
    sheet, index = _site_sheet(path, sites, columns)
    counts = np.bincount(index, minlength=len(sites))
    if (counts != 1).any():
        first = int(np.flatnonzero(counts != 1)[0])
        told = f"{counts[first]} rows of site {site_name(sites[first])}"
        raise ValueError(f"{sheet.label}: {told}, expected one of every site of the forecast")
    return sheet, np.argsort(index)


def _weights(sheet: Sheet, name: str) -> NDArray[np.float64]:
    """A column of finite numbers of at least 0, one in every row."""
    values = _numbers(sheet, name)
    sheet.refuse(values < 0, lambda row: f"row {row + 1}, column {name!r}: {values[row]:g}, expected a number of at least 0")
    return values


def _numbers(sheet: Sheet, name: str) -> NDArray[np.float64]:
    """A column of finite numbers, one in every row."""
    values = sheet.numbers(name)
    sheet.refuse(np.isnan(values), lambda row: f"row {row + 1}, column {name!r}: empty, expected a finite number")
    return values
