"""Points of interest: from a table of points with raw categories to counts of each category around sites or in cells.

Distances are those of the local plane of raytraffic.sources.gridding, so points and sites are to be those of one city or region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raytraffic.poi_categories import LSDM_CATEGORIES, UOMO_CATEGORIES
from raytraffic.sources.faulty import Refused
from raytraffic.sources.gridding import CellGrid, LocalPlane, count_in_cells, count_within
from raytraffic.sources.sheet import Columns, Sheet, Table

__all__ = [
    "AMAP_TO_LSDM",
    "AMAP_TO_UOMO",
    "LSDM_CATEGORIES",
    "UOMO_CATEGORIES",
    "UOMO_TO_LSDM",
    "CategoryMap",
    "Points",
    "count_around",
    "count_per_cell",
    "read_points",
]

#: At 1,000 km from the centre the plane stretches distances by 0.4 %; beyond, points and sites are not of one region.
_REGION_METRES = 1e6


@dataclass(frozen=True, kw_only=True)
class CategoryMap:
    """Which of the `categories` each raw category belongs to: `of`[raw], None for points that are left out.

    A raw category that `of` does not name belongs to `rest`; without a rest it is refused.
    """

    categories: tuple[str, ...]
    of: Mapping[str, str | None] = field(default_factory=dict)
    rest: str | None = None

    def __post_init__(self) -> None:
        if not self.categories or len(set(self.categories)) < len(self.categories):
            raise ValueError(f"categories: {self.categories}, expected at least one, each of them once")
        for raw, category in (*self.of.items(), ("rest", self.rest)):
            if category is not None and category not in self.categories:
                raise ValueError(f"of {raw!r}: {category!r}, expected one of {self.categories} or None")

    def codes(self, raw: Sequence[str]) -> NDArray[np.int64]:
        """(n,) index of each raw category into `categories`, -1 where it is left out; ValueError lists those that are unknown."""
        unknown = sorted({name for name in raw if name not in self.of}) if self.rest is None else []
        if unknown:
            raise ValueError(f"category: {', '.join(map(repr, unknown))}, expected one of {sorted(self.of)} (or a rest to be given)")
        index: dict[str | None, int] = {category: i for i, category in enumerate(self.categories)} | {None: -1}
        return np.array([index[self.of.get(name, self.rest)] for name in raw], dtype=np.int64)

    def regroup(self, counts: NDArray[np.floating], raw: Sequence[str]) -> NDArray[np.float32]:
        """(k, s) counts by `categories` from counts (r, s) by raw categories, such as City.poi by City.poi_categories."""
        if len(counts) != len(raw):
            raise ValueError(f"counts: {len(counts)} rows, expected {len(raw)}, one a raw category")
        out = np.zeros((len(self.categories), counts.shape[1]), dtype=np.float32)
        code = self.codes(raw)
        np.add.at(out, code[code >= 0], counts[code >= 0].astype(np.float32))
        return out


#: Raw categories of the map service AMap as the public Nanchang file spells them.
AMAP_TO_LSDM = CategoryMap(
    categories=LSDM_CATEGORIES,
    of={
        "MedicalHealthcareServices": "Medical Care",
        "AccommodationServices": "Hotel",
        "FinanceInsuranceServices": "Business",
        "AutomotiveServices": "Life Service",
        "AutomotiveRepair": "Life Service",
        "MotorcycleServices": "Life Service",
        "PublicFacilities": "Life Service",
        "RoadFacilities": "Transport Hub",
        "SportsLeisureServices": "Sports",
        "BusinessResidential": "Residence",
        "ScenicSpots": "Scenic Spot",
        "AutomotiveSales": "Shopping",
        "EducationCultureServices": "Education",
        "PlaceNameAddressInfo": "Landmark",
    },
    rest="Other",
)
AMAP_TO_UOMO = CategoryMap(
    categories=UOMO_CATEGORIES,
    of={
        "MedicalHealthcareServices": "Public Health",
        "AccommodationServices": "Accommodation",
        "FinanceInsuranceServices": "Finance",
        "AutomotiveServices": "Automobile",
        "AutomotiveRepair": "Automobile",
        "AutomotiveSales": "Automobile",
        "MotorcycleServices": "Automobile",
        "PublicFacilities": "Public facilities",
        "IndoorFacilities": "Public facilities",
        "RoadFacilities": "Transportation",
        "SportsLeisureServices": "Physical facilities",
        "BusinessResidential": "Local Living",
        "ScenicSpots": "scenic spot",
        "EducationCultureServices": "Education",
        "PlaceNameAddressInfo": None,
    },
)
#: UoMo's release and the synthetic cities count these; LSDM's Culture, Residence, Factory and Landmark have no counterpart there.
UOMO_TO_LSDM = CategoryMap(
    categories=LSDM_CATEGORIES,
    of={
        "Shopping": "Shopping",
        "Enterprise": "Business",
        "Restaurant": "Restaurant",
        "Local Living": "Life Service",
        "Transportation": "Transport Hub",
        "Public Health": "Medical Care",
        "Automobile": "Life Service",
        "Physical facilities": "Sports",
        "Accommodation": "Hotel",
        "Finance": "Business",
        "Government organs": "Government",
        "Education": "Education",
        "Business": "Business",
        "Public facilities": "Other",
        "scenic spot": "Scenic Spot",
    },
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points (n,) in degrees (WGS 84), and the index of each into `categories`."""

    longitude: NDArray[np.float64]
    latitude: NDArray[np.float64]
    category: NDArray[np.int64]
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.category)


def read_points(table: Table, categories: CategoryMap, columns: Columns | None = None) -> Points:
    """The points of a CSV or Parquet file (local or s3://) or a frame, one a row; columns lon, lat and category unless named otherwise.

    ValueError names the table and the first row whose degrees or category are empty or not what they should be, and a raw category that
    `categories` does not know.
    """
    names = columns or Columns()
    sheet = Sheet(table, "poi", (names.lat, names.lon, names.category), names, Refused(skip=False))
    raw, distinct = pd.factorize(sheet.texts(names.category))
    try:
        code = categories.codes(list(distinct))[raw]
    except ValueError as error:
        raise ValueError(f"{sheet.label}: column {names.category!r}: {error}") from error
    latitude, longitude = sheet.coordinates(names.lat, names.lon)
    kept = code >= 0
    return Points(longitude=longitude[kept], latitude=latitude[kept], category=code[kept], categories=categories.categories)


def count_around(
    points: Points, longitude: NDArray[np.float64], latitude: NDArray[np.float64], radius_metres: float
) -> NDArray[np.float32]:
    """(k, s): how many points of each category lie at most `radius_metres` from each site (s,) in degrees.

    ValueError where sites lie more than 1,000 km from their centroid: count one region at a time.
    """
    if not (np.isfinite(radius_metres) and radius_metres > 0):
        raise ValueError(f"radius_metres: {radius_metres}, expected a length > 0")
    longitude, latitude = np.asarray(longitude, dtype=np.float64), np.asarray(latitude, dtype=np.float64)
    if len(longitude) == 0:
        return np.zeros((len(points.categories), 0), dtype=np.float32)
    plane = LocalPlane.around(latitude, longitude)
    sites = plane.project(latitude, longitude)
    far = float(np.linalg.norm(sites, axis=1).max())
    if not far <= _REGION_METRES:
        raise ValueError(f"longitude, latitude: a site lies {far / 1000:.0f} km from the sites' centroid, expected at most 1000 km")
    places = plane.project(points.latitude, points.longitude)
    near = (np.abs(places) <= far + radius_metres).all(axis=1)  # points of the other side of the Earth have no place on the plane
    return count_within(places[near], points.category[near], len(points.categories), sites, radius_metres)


def count_per_cell(points: Points, plane: LocalPlane, grid: CellGrid) -> NDArray[np.float32]:
    """(k, h * w): how many points of each category lie in each cell of a grid on a plane, row-major; points outside are left out."""
    cells = grid.cells_of(plane.project(points.latitude, points.longitude))
    return count_in_cells(cells, points.category, len(points.categories), grid.count)
