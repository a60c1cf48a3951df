"""What the explorer's tests share: a prepared store of three kinds of city and a service of one small model over it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raytraffic.files import Location
from raytraffic.serving.service import ForecastService
from raytraffic.sources.city import City
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity
from raytraffic.store import prepare_store
from tests.serving.local_stages import LAYOUT, grid_city, service_of, small_model, station_city

#: A name that would do harm in a page that builds HTML from its data.
HOSTILE = "<img src=x onerror=alert(1)>, \"site\" & 'co'"


def explorer_cities() -> dict[str, City]:
    """A synthetic city with positions, one of lone stations without, and one on a grid without."""
    (dawnport,) = SyntheticCities([SyntheticCity(name="dawnport", grid=(8, 12), days=14)]).read("dawnport")
    stations = station_city("lone & far/away", steps=90, stations=7)
    stations = replace(stations, sites=[HOSTILE, *stations.sites[1:]])
    return {city.name: city for city in (dawnport, stations, grid_city("gridton", steps=90))}


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """As every worker of ours has: sums over more threads round otherwise, and a pool's threads keep the number they began with."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def explorer_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared store of `explorer_cities`."""
    folder = tmp_path_factory.mktemp("explorer") / "store"
    prepare_store([[city] for city in explorer_cities().values()], Location.of(folder), LAYOUT)
    return folder


@pytest.fixture(scope="session")
def explorer_service(explorer_store: Path) -> ForecastService:
    """A service of a small model with windows of 64 slots, and that store."""
    return service_of(small_model(explorer_store.parent / "model", window=64), store=explorer_store)


def row_of(city: City, site: str) -> np.ndarray:
    """(t,) the traffic of one site of a city's first service."""
    return city.traffic[0, :, list(city.sites).index(site)]
