"""The places of a synthetic service city can be looked at and described as any other sites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raytraffic.config.environment import ScenesConfig
from raytraffic.environment.landscape import landscape
from raytraffic.environment.places import open_describer, open_tiles, pairs, read_places
from raytraffic.environment.poi import LSDM_CATEGORIES
from raytraffic.environment.render import render
from raytraffic.environment.service_scenes import service_places_table, write_service_scenes
from raytraffic.sources.services import ServiceCity

CITY = ServiceCity(name="harbour", grid=(1, 2), seed=4)


def test_scenes_are_read_as_written(tmp_path: Path) -> None:
    write_service_scenes(CITY, str(tmp_path), zoom=15, margin_metres=250.0)
    config = ScenesConfig(
        sites=(str(tmp_path / "places.csv"),),
        tiles=str(tmp_path / "tiles"),
        zooms=(15,),
        metres=400.0,
        pixels=64,
        topics=("image", "poi", "land use"),
    )
    places = read_places(config)
    assert [place.site for place in places] == [f"harbour/{name}" for name in CITY.layout.ids] and len(places) == 2
    for place, counts in zip(places, CITY.place_poi(), strict=True):
        assert [place.poi[category] for category in LSDM_CATEGORIES] == counts.tolist()
    found = pairs(places, open_tiles(config), open_describer(config), config)
    assert not found.failures and all("points of interest" in pair.text for pair in found.pairs)
    land = landscape(CITY.land)
    for place, pair, xy in zip(places, found.pairs, CITY.layout.xy, strict=True):
        np.testing.assert_allclose(land.metres(place.longitude, place.latitude), xy, atol=0.01)
        direct = render(land, *xy.tolist(), metres=400.0, pixels=64).astype(float)
        # the tiles' pixels are not the picture's: what is compared is colour over 8 x 8 pixels, 50 m
        rough, expected = (image.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)) for image in (pair.image.astype(float), direct))
        assert np.abs(rough - expected).mean() < 0.25 * np.abs(rough - expected[::-1]).mean()


def test_the_table_tells_of_the_land_in_each_cell() -> None:
    city = ServiceCity(name="town", grid=(5, 4))
    table = service_places_table(city)
    assert list(table["unique_id"]) == list(city.layout.ids) and set(table["city"]) == {"town"}
    shares = table.filter(like="land:")
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert np.corrcoef(shares["land:residential"], city.layout.mix[0])[0, 1] > 0.8
    assert isinstance(table, pd.DataFrame) and len(table) == 16


def test_what_makes_no_tiles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zoom: 25, expected one from 10 to 20"):
        write_service_scenes(CITY, str(tmp_path), zoom=25)
    with pytest.raises(ValueError, match="margin_metres: -1, expected a length"):
        write_service_scenes(CITY, str(tmp_path), margin_metres=-1)
