"""The template describer states facts, each once and as they are; its text depends on nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.environment.describe import TOPICS, Describer, Description, Facts, Scene, TemplateDescriber, poi_text
from raytraffic.environment.poi import LSDM_CATEGORIES, UOMO_CATEGORIES
from raytraffic.environment.statistics import ImageStatistics, image_statistics
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity
from tests.environment.scenes import synthetic_scenes

STATISTICS = ImageStatistics(
    vegetation=0.234, water=0.0, bare=0.001, built=0.765, paved=0.31, edges=0.2, brightness=0.4, contrast=0.1, mean_colour=(0.4, 0.4, 0.4)
)
FACTS = Facts(
    site="town/r0c0",
    longitude=115.8912,
    latitude=28.654,
    poi={"Restaurant": 12, "Shopping": 8, "Education": 1, "Hotel": 0, "Factory": 3, "Sports": 2},
    poi_radius_metres=500.0,
    statistics=STATISTICS,
    land_use={"residential": 0.61, "park": 0.3, "office": 0.09},
)


def text_of(describer: Describer, facts: Facts) -> str:
    (found,) = describer.describe([Scene(facts=facts)])
    assert found.failure is None and found.site == facts.site and found.describer == describer.name
    return found.text


def test_each_sentence_states_one_fact() -> None:
    said = TemplateDescriber().statements(FACTS)
    assert [(each.topic, each.value) for each in said] == [
        ("land use: residential", 61),
        ("land use: park", 30),
        ("image: vegetation", 23),
        ("image: water", 0),
        ("image: built-up land", 76),
        ("image: grey paved surface", 31),
        ("poi", 26),
        ("poi: Restaurant", 12),
        ("poi: Shopping", 8),
        ("poi: Factory", 3),
        ("poi: Sports", 2),
        ("place: latitude", 28.654),
        ("place: longitude", 115.891),
    ]
    for each in said:
        assert each.text.count(". ") == 0 and each.text.endswith(".") and each.text[0].isupper() | each.text[0].isdigit()
        if each.topic != "image: water":
            assert f"{each.value:g}" in re.findall(r"-?\d+(?:\.\d+)?", each.text)
    assert text_of(TemplateDescriber(), FACTS) == " ".join(each.text for each in said)


def test_topics_and_number_of_categories_are_chosen() -> None:
    only = TemplateDescriber(topics=("poi",), categories=2).statements(FACTS)
    assert [each.topic for each in only] == ["poi", "poi: Restaurant", "poi: Shopping"]
    assert all("within 500 m" in each.text for each in only)
    assert "in the area shown" in text_of(TemplateDescriber(topics=("poi",)), replace(FACTS, poi_radius_metres=None))


def test_phrases_vary_with_site_and_seed_and_with_nothing_else() -> None:
    describer = TemplateDescriber()
    assert text_of(describer, FACTS) == text_of(TemplateDescriber(), FACTS)
    texts = {text_of(describer, replace(FACTS, site=f"town/{i}")) for i in range(30)}
    assert len(texts) > 25
    assert text_of(describer, FACTS) != text_of(TemplateDescriber(seed=1), FACTS)
    many = [Scene(facts=replace(FACTS, site=f"town/{i}")) for i in range(10)]
    alone = [describer.describe([scene])[0] for scene in many]
    assert describer.describe(many) == alone
    assert describer.describe(many[::-1]) == alone[::-1]


def test_equal_names_mean_equal_texts() -> None:
    names = {TemplateDescriber(topics=topics, categories=n, seed=s).name for topics in (TOPICS, ("poi",)) for n in (3, 4) for s in (0, 1)}
    assert len(names) == 8


def test_a_scene_without_facts_fails_and_stops_no_other() -> None:
    bare = Facts(site="nowhere", longitude=0.0, latitude=0.0)
    describer = TemplateDescriber(topics=("land use", "image", "poi"))
    first, second = describer.describe([Scene(facts=bare), Scene(facts=FACTS)])
    assert first.failure == "no fact of land use, image, poi is known" and first.text == ""
    assert second.failure is None and second.text


def test_no_points_of_interest_is_a_fact_and_none_counted_is_not() -> None:
    describer = TemplateDescriber(topics=("poi",))
    (said,) = describer.statements(replace(FACTS, poi={"Hotel": 0}))
    assert said.value == 0 and re.match(r"^(There are no points|No point) of interest", said.text)
    assert describer.statements(replace(FACTS, poi={})) == ()


def test_counts_as_one_sentence() -> None:
    assert poi_text(FACTS.poi, radius_metres=500) == (
        "There are 12 restaurants, 8 shops, 3 plants, 2 sports grounds and 1 school within 500 m."
    )
    assert poi_text({"Hotel": 1}) == "There is 1 hotel in the area shown."
    assert poi_text({"Hotel": 0}) == "There are no points of interest in the area shown."
    assert poi_text({"zoo": 2, "Hotel": 2}, categories=1) == "There are 2 hotels in the area shown."
    assert poi_text({"zoo": 2}) == "There are 2 zoo places in the area shown."


@given(st.dictionaries(st.sampled_from(LSDM_CATEGORIES + UOMO_CATEGORIES), st.integers(0, 500)))
def test_all_counts_come_back_out_of_the_text(poi: dict[str, int]) -> None:
    numbers = [int(found) for found in re.findall(r"\d+", poi_text(poi, categories=50))]
    assert numbers == sorted((count for count in poi.values() if count > 0), reverse=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"latitude": 99.0}, "^latitude: 99.0, expected"),
        ({"poi": {"Hotel": -1}}, "^poi 'Hotel' of 'town/r0c0': -1, expected a count"),
        ({"poi": {"Hotel": 1.5}}, "^poi 'Hotel' of 'town/r0c0': 1.5, expected a count"),
        ({"poi_radius_metres": 0.0}, "^poi_radius_metres of 'town/r0c0': 0.0, expected"),
        ({"land_use": {"park": 1.2}}, "^land_use of 'town/r0c0': .* expected shares"),
        ({"land_use": {"park": 0.7, "water": 0.7}}, "^land_use of 'town/r0c0': .* expected shares"),
    ],
)
def test_bad_facts_are_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(FACTS, **change)  # type: ignore[arg-type]


def test_a_description_is_a_text_or_a_failure() -> None:
    for options in ({}, {"text": "a", "failure": "b"}):
        with pytest.raises(ValueError, match="expected one of the two"):
            Description(site="s", describer="d", **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"topics": ()}, "^topics: "),
        ({"topics": ("weather",)}, r"^topics: \('weather',\), expected"),
        ({"categories": 0}, "^categories: 0, "),
    ],
)
def test_a_bad_describer_is_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TemplateDescriber(**options)  # type: ignore[arg-type]


def test_scenes_of_a_synthetic_city_are_complete() -> None:
    city = SyntheticCity(name="town", grid=(3, 4), days=1, seed=5)
    (record,) = SyntheticCities([city]).read("town")
    scenes = list(synthetic_scenes(city, record, pixels=32))
    assert [scene.facts.site for scene in scenes] == [f"town/{site}" for site in record.sites]
    assert record.poi is not None
    for i, scene in enumerate(scenes):
        assert scene.image is not None and scene.image.shape == (32, 32, 3)
        assert scene.facts.statistics == image_statistics(scene.image)
        assert list(scene.facts.poi.values()) == record.poi[:, i].tolist()
        assert scene.facts.land_use is not None and sum(scene.facts.land_use.values()) == pytest.approx(1)
    assert len({np.asarray(scene.image).tobytes() for scene in scenes}) == 12
    texts = [found.text for found in TemplateDescriber().describe(scenes)]
    assert len(set(texts)) == 12
    with pytest.raises(ValueError, match=r"^record: 'town' with grid \(3, 4\), expected that of 'village'"):
        next(synthetic_scenes(replace(city, name="village"), record))
