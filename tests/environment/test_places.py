"""Sites from tables and synthetic cities, and their pairs of image and text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raytraffic.config import from_json, to_json
from raytraffic.config.environment import ContrastConfig, EmbedConfig, EndpointConfig, ScenesConfig
from raytraffic.environment.describe import Description, Scene, TemplateDescriber
from raytraffic.environment.endpoint import EndpointDescriber
from raytraffic.environment.limits import Prices
from raytraffic.environment.places import Place, open_describer, open_tiles, pairs, read_places
from raytraffic.environment.tiles import FolderTiles, ZipTiles
from raytraffic.environment.url_tiles import UrlTiles
from raytraffic.sources.open import open_source
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity
from tests.environment.scenes import synthetic_scenes

EAST = "synthetic:east?grid=3x4&seed=5"


def table(folder: Path, name: str = "sites.csv", **columns: object) -> str:
    values = {"city": ["b", "a"], "unique_id": ["7", "007"], "lat": [10.5, -20.25], "lon": [3.5, 4.5], "poi:Bank": [2, 0], **columns}
    frame = pd.DataFrame(values)
    frame.to_csv(folder / name, index=False) if name.endswith(".csv") else frame.to_parquet(folder / name)
    return str(folder / name)


@pytest.mark.parametrize("name", ["sites.csv", "sites.parquet"])
def test_a_table_of_sites_is_read_as_it_stands(tmp_path: Path, name: str) -> None:
    found = read_places(ScenesConfig(sites=(table(tmp_path, name),), tiles=str(tmp_path)))
    assert found == [
        Place(city="a", unique_id="007", longitude=4.5, latitude=-20.25, poi={"Bank": 0}),
        Place(city="b", unique_id="7", longitude=3.5, latitude=10.5, poi={"Bank": 2}),
    ]
    assert [place.site for place in found] == ["a/007", "b/7"]


def test_a_synthetic_city_lies_where_its_landscape_says_and_has_its_points() -> None:
    city = SyntheticCity(name="east", grid=(3, 4), seed=5)
    (record,) = SyntheticCities([city]).read("east")
    expected = sorted((scene.facts for scene in synthetic_scenes(city, record)), key=lambda facts: facts.site)
    found = read_places(ScenesConfig(sites=(EAST,)))
    assert [(place.site, place.longitude, place.latitude, place.poi) for place in found] == [
        (facts.site, facts.longitude, facts.latitude, facts.poi) for facts in expected
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"unique_id": ["7", None]}, "row 2, column 'unique_id': empty, expected a value"),
        ({"lat": [10.5, 95.0]}, "row 2, column 'lat': 95, expected degrees"),
        ({"lon": [float("nan"), 1.0]}, "row 1, column 'lon': nan, expected degrees"),
        ({"poi:Bank": [1.5, 1]}, "row 1, column 'poi:Bank': 1.5, expected a count of points"),
        ({"poi:Bank": [1, None]}, "row 2, column 'poi:Bank': '', expected a finite number"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    file = table(tmp_path, **columns)
    with pytest.raises(ValueError, match=re.escape(f"sites ({file}): {message}")):
        read_places(ScenesConfig(sites=(file,), tiles=str(tmp_path)))


def test_wrong_tables_are_refused(tmp_path: Path) -> None:
    file = table(tmp_path)
    with pytest.raises(ValueError, match="'b/7' is there twice"):
        read_places(ScenesConfig(sites=(file, file), tiles=str(tmp_path)))
    with pytest.raises(ValueError, match="no such file, expected a CSV or Parquet file"):
        read_places(ScenesConfig(sites=(str(tmp_path / "none.csv"),)))
    pd.DataFrame({"city": [], "unique_id": [], "lat": []}).to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(ValueError, match="no column 'lon', expected"):
        read_places(ScenesConfig(sites=(str(tmp_path / "short.csv"),)))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"broken\.parquet\): .*expected a whole CSV or Parquet file"):
        read_places(ScenesConfig(sites=(str(tmp_path / "broken.parquet"),)))


def test_tiles_and_describers_are_what_the_settings_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ScenesConfig(sites=(EAST,), cache=str(tmp_path), user_agent="me", zooms=(3,))
    opened = [open_tiles(dataclasses.replace(config, tiles=tiles)) for tiles in ("tiles", "tiles.zip")]
    assert opened == [FolderTiles(folder="tiles", zooms=(3,)), ZipTiles(file="tiles.zip", zooms=(3,))]
    monkeypatch.setenv("RAYTRAFFIC_TILES_KEY", "secret")
    service = open_tiles(dataclasses.replace(config, tiles="https://tiles.example.org/{z}/{x}/{y}.png?key={key}"))
    assert isinstance(service, UrlTiles) and service.template == "https://tiles.example.org/{z}/{x}/{y}.png?key=secret"
    assert open_describer(config) == TemplateDescriber(topics=("image", "poi"))
    monkeypatch.setenv("RAYTRAFFIC_VISION_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("RAYTRAFFIC_VISION_MODEL", "model")
    limits = EndpointConfig(
        requests_per_minute=6.0, tokens_per_minute=70.0, concurrency=8, prompt_price=2.5, completion_price=10.0, budget=3.0
    )
    asking = open_describer(dataclasses.replace(config, describer="endpoint", endpoint=limits))
    assert isinstance(asking, EndpointDescriber) and (asking.endpoint.url, asking.endpoint.model) == ("http://127.0.0.1:1/v1", "model")
    assert (asking.endpoint.requests_per_minute, asking.endpoint.tokens_per_minute, asking.endpoint.concurrency) == (6.0, 70.0, 8)
    assert (asking.endpoint.prices, asking.endpoint.budget) == (Prices(prompt=2.5, completion=10.0), 3.0)
    with pytest.raises(ValueError, match="expected a synthetic city among them"):
        open_tiles(dataclasses.replace(config, sites=("sites.csv",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": ()}, "sites: none"),
        ({"metres": 0.0}, "metres: 0.0, expected a length > 0"),
        ({"pixels": 0}, "pixels: 0, expected at least 1"),
        ({"describer": "endpoint"}, "cache: not given"),
        ({"tiles": "https://a/{z}/{x}/{y}"}, "cache: not given"),
        ({"tiles": "https://a/{z}/{x}/{y}", "cache": "c"}, "user_agent: not given"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ScenesConfig(sites=(EAST,)), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_threshold_keeps_some_true_sentences_but_not_all(share: float) -> None:
    with pytest.raises(ValueError, match=rf"true_kept: {share}, expected a share in \(0, 1\)"):
        ContrastConfig(out="o", scenes=ScenesConfig(sites=(EAST,)), true_kept=share)


def test_settings_survive_json() -> None:
    scenes = ScenesConfig(sites=(EAST,), topics=("poi",), endpoint=EndpointConfig(budget=2.5, completion_price=10.0))
    for config in (EmbedConfig(encoder="e", out="o", scenes=scenes), ContrastConfig(out="o", scenes=scenes, held_out=("east",))):
        assert from_json(type(config), to_json(config), "config") == config


def test_a_site_without_image_fails_alone() -> None:
    config = ScenesConfig(sites=(EAST,), pixels=16)
    places = read_places(config)[:2]
    lost = Place(city="x", unique_id="1", longitude=places[0].longitude + 1, latitude=0.0)
    made = pairs([places[0], lost, places[1]], open_tiles(config), open_describer(config), config)
    found = made.pairs
    assert [pair.site for pair in found] == [places[0].site, places[1].site]
    assert made.failures.keys() == {"x/1"} and "expected a place in one of the synthetic cities" in made.failures["x/1"]
    assert all(pair.image.shape == (16, 16, 3) and pair.text for pair in found)
    (alone,) = pairs(places[1:], open_tiles(config), open_describer(config), config).pairs
    assert alone.text == found[1].text and np.array_equal(alone.image, found[1].image)


def test_a_site_without_text_fails_alone() -> None:
    config = ScenesConfig(sites=(EAST,), pixels=16, topics=("land use",))
    places = read_places(config)[:1]
    made = pairs(places, open_tiles(config), open_describer(config), config)
    assert made.pairs == () and made.failures == {places[0].site: "no fact of land use is known"}


class Parrot:
    """A describer that says the same of every place: something true, a guess, and something false of a place without water."""

    name = "parrot"
    SAID = "The buildings are packed densely along the roads. It seems to be a pleasant day. About 90% of the image is water."

    def describe(self, scenes: Sequence[Scene]) -> list[Description]:
        return [Description(site=scene.facts.site, describer=self.name, text=self.SAID) for scene in scenes]


def test_texts_are_refined_and_every_sentence_is_accounted_for() -> None:
    config = ScenesConfig(sites=(EAST,), pixels=32)
    places = read_places(config)[:2]
    made = pairs(places, open_tiles(config), Parrot(), config)
    assert [pair.text for pair in made.pairs] == ["The buildings are packed densely along the roads."] * 2
    assert [(record.sentence, record.decision) for record in made.audit] == 2 * [(0, "keep"), (1, "drop"), (2, "drop")]
    as_said = pairs(places, open_tiles(config), Parrot(), dataclasses.replace(config, refine=False))
    assert as_said.pairs[0].text == Parrot.SAID and as_said.audit == ()


def test_a_table_tells_of_the_land(tmp_path: Path) -> None:
    table = tmp_path / "sites.csv"
    table.write_text("city,unique_id,lat,lon,land:housing,land:park\na,1,1.5,2.5,0.25,0\n")
    config = ScenesConfig(sites=(str(table),))
    assert read_places(config)[0].land_use == {"housing": 0.25}
    table.write_text("city,unique_id,lat,lon,land:housing\na,1,1.5,2.5,1.2\n")
    with pytest.raises(ValueError, match=r"row 1, column 'land:housing': 1\.2, expected a share in \[0, 1\]"):
        read_places(config)


def test_the_places_of_synthetic_users_have_tiles_poi_and_land() -> None:
    config = ScenesConfig(sites=("services:town?users=5&grid=4x4",), pixels=16, topics=("land use", "image", "poi"))
    places = read_places(config)
    city = open_source(config.sites[0])
    (record,) = city.read("town")
    assert {place.site for place in places} == {f"town/{name}" for name in record.places}
    made = pairs(places, open_tiles(config), open_describer(config), config)
    assert len(made.pairs) == len(places) and not made.failures
    assert len({pair.image.tobytes() for pair in made.pairs}) == len(places) and all("land" in pair.text for pair in made.pairs)
