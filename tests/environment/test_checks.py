"""Checks of claims: a template's every statement holds of its own facts and not of others; words are checked by amount and scale."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.environment.checks import Ground, Tolerances, findings
from raytraffic.environment.describe import Facts, TemplateDescriber
from raytraffic.environment.poi import LSDM_CATEGORIES, UOMO_CATEGORIES
from raytraffic.environment.statistics import ImageStatistics


def statistics(**shares: float) -> ImageStatistics:
    of_image = {"vegetation": 0.3, "water": 0.1, "bare": 0.2, "built": 0.4, "paved": 0.1} | shares
    return ImageStatistics(**of_image, edges=0.1, brightness=0.4, contrast=0.1, mean_colour=(0.4, 0.4, 0.4))


FACTS = Facts(
    site="a",
    longitude=115.9,
    latitude=-28.65,
    poi={"Restaurant": 20, "Shopping": 1, "Education": 0, "Automobile": 7},
    poi_radius_metres=500.0,
    statistics=statistics(),
    land_use={"park": 0.25, "industrial": 0.6, "water": 0.1},
)
GROUND = Ground(metres_per_pixel=2.0, diagonal_metres=700.0)


def claims(sentence: str, facts: Facts = FACTS, ground: Ground | None = GROUND) -> list[tuple[str, bool]]:
    return [(found.check, found.holds) for found in findings(sentence, facts, ground)]


@pytest.mark.parametrize(
    ("sentence", "check", "holds"),
    [
        ("Its latitude is -28.653 degrees.", "coordinates", True),
        ("Its latitude is 28.65 degrees.", "coordinates", False),
        ("It lies at longitude 115.92.", "coordinates", False),
        ("It lies at 28.65° S.", "coordinates", True),
        ("It lies at 28.65 degrees north.", "coordinates", False),
        ("There are 21 restaurants.", "poi count", True),
        ("There are 23 restaurants.", "poi count", False),
        ("There are at least 12 restaurants.", "poi count", True),
        ("There are at least 30 restaurants.", "poi count", False),
        ("There are fewer than 12 restaurants.", "poi count", False),
        ("There are about 19 restaurants.", "poi count", True),
        ("Two shops can be found.", "poi count", True),
        ("No shop can be found.", "poi count", False),
        ("There are no schools.", "poi count", True),
        ("One school stands there.", "poi count", False),
        ("There is a count of 20 for restaurants.", "poi count", True),
        ("There is a count of 2 for restaurants.", "poi count", False),
        ("A total of 28 points of interest is found.", "poi count", True),
        ("There are 1,028 points of interest.", "poi count", False),
        ("Vegetation covers about 50% of the image.", "image share", True),
        ("Vegetation covers about 75% of the image.", "image share", False),
        ("About 90 percent of the view is water.", "image share", False),
        ("Grey paved surface makes up roughly 8% of the view.", "image share", True),
        ("About 26% of the land is park.", "land share", True),
        ("About 40% of the land is industrial.", "land share", False),
        ("No water can be seen.", "amount", False),
        ("It is a barren place.", "amount", True),
        ("A dense forest covers it.", "amount", True),
        ("A road of 600 m crosses it.", "length", True),
        ("A road of 3 km crosses it.", "length", False),
        ("There are several cars on the streets.", "resolution", False),
        ("The park is filled with people.", "resolution", False),
        ("The cars are parked near the lake.", "resolution", False),
        ("The city is full of life, as numerous people walk there.", "resolution", False),
        ("Several airplanes stand there.", "resolution", True),
    ],
)
def test_a_claim_is_found_and_judged(sentence: str, check: str, holds: bool) -> None:
    assert claims(sentence) == [(check, holds)]


@pytest.mark.parametrize(
    "sentence",
    [
        "A lake lies in the north.",
        "The street is surrounded by buildings, and there are several cars.",
        "A parking lot with numerous cars lies there.",
        "In addition to the highway, there are several cars.",
        "With 2 other buildings it forms a block.",
        "About 3 in 10 houses are red.",
        "Several small restaurants can be seen.",
        "A large, green field.",
    ],
)
def test_what_cannot_be_checked_is_not_judged(sentence: str) -> None:
    assert claims(sentence) == []


def test_the_radius_of_a_count_is_checked_and_other_distances_are_not() -> None:
    assert claims("There are 20 restaurants within 500 m.") == [("poi count", True), ("radius", True)]
    assert claims("There are 20 restaurants within 2 km.") == [("poi count", True), ("radius", False)]
    assert claims("A lake lies within 2 km.") == []


def test_nothing_is_judged_of_which_no_fact_is_known() -> None:
    unknown = Facts(site="a", longitude=0.0, latitude=0.0)
    for sentence in (
        "There are 20 restaurants.",
        "Water covers 90% of the image.",
        "No water can be seen.",
        "Cars stand there.",
        "A 9 km road.",
    ):
        assert claims(sentence, unknown, None) == []


@pytest.mark.parametrize(
    ("words", "shares", "holds"),
    [
        ("a large body of water", {"water": 0.0}, False),
        ("a large body of water", {"water": 0.02}, True),
        ("a small pond", {"water": 0.0}, None),
        ("a treeless plain", {"vegetation": 0.5}, False),
        ("a dense, lush forest", {"vegetation": 0.01}, False),
        ("a lush green forest", {"vegetation": 0.01}, False),
        ("desert", {"vegetation": 0.8}, False),
        ("a densely populated area", {"built": 0.02}, False),
        ("no buildings", {"built": 0.9}, False),
    ],
)
def test_amounts_in_words_are_only_found_wrong_by_far(words: str, shares: dict[str, float], holds: bool | None) -> None:
    facts = Facts(site="a", longitude=0.0, latitude=0.0, statistics=statistics(**shares))
    assert claims(f"There is {words} there.", facts, None) == ([] if holds is None else [("amount", holds)])


@pytest.mark.parametrize(("metres", "seen"), [(0.1, True), (0.5, True), (2.0, False)])
def test_cars_are_seen_by_sharper_images_only(metres: float, seen: bool) -> None:
    ground = Ground(metres_per_pixel=metres, diagonal_metres=300.0)
    assert claims("Several cars stand there.", ground=ground) == [("resolution", seen)]


@pytest.mark.parametrize("categories", [LSDM_CATEGORIES, UOMO_CATEGORIES, ("Kiosk", "Tram Depot")])
@pytest.mark.parametrize("count", [1, 3, 1234])
def test_a_template_is_right_of_its_own_counts_and_wrong_of_others(categories: tuple[str, ...], count: int) -> None:
    """For every phrase and category there is, so that a new one that the checks cannot read is noticed."""
    facts = Facts(site="a", longitude=1.0, latitude=2.0, poi=dict.fromkeys(categories, count), poi_radius_metres=500.0)
    other = replace(facts, poi=dict.fromkeys(categories, 2 * count + 3))
    for seed in range(8):
        for said in TemplateDescriber(topics=("poi",), categories=20, seed=seed).statements(facts):
            found = findings(said.text, facts)
            assert found and all(claim.holds for claim in found), said.text
            assert found[0].stated == said.value
            assert not all(claim.holds for claim in findings(said.text, other)), said.text


@given(
    st.floats(-180, 180),
    st.floats(-85, 85),
    st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    st.integers(0, 5),
)
def test_a_template_is_right_of_any_facts(longitude: float, latitude: float, image: list[float], land: list[float], seed: int) -> None:
    vegetation, water, bare, built = (share / sum(image) for share in image)
    facts = Facts(
        site="a",
        longitude=longitude,
        latitude=latitude,
        statistics=statistics(vegetation=vegetation, water=water, bare=bare, built=built, paved=built / 2),
        land_use=dict(zip(("residential", "water", "park"), (share / sum(land) for share in land), strict=True)),
    )
    for said in TemplateDescriber(seed=seed).statements(facts):
        found = findings(said.text, facts)
        assert found and all(claim.holds for claim in found), said.text


@given(
    st.text()
    | st.lists(
        st.sampled_from(
            ["no", "3", "1,000", "%", "of", "restaurants", "within", "km", "latitude", "-1", "cars", "the", "is", "water", "5", "m"]
        ),
        max_size=12,
    ).map(" ".join)
)
def test_any_text_can_be_checked(text: str) -> None:
    for claim in findings(text, FACTS, GROUND):
        assert math.isfinite(claim.stated) and claim.least <= claim.most and claim.tolerance >= 0


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_wider_tolerance_objects_to_no_more(stated: float, known: float, one: float, other: float) -> None:
    facts = Facts(site="a", longitude=0.0, latitude=0.0, statistics=statistics(vegetation=known))
    sentence = f"Vegetation covers {100 * stated:.0f}% of the image."
    narrow, wide = (findings(sentence, facts, None, Tolerances(image_share=share))[0].holds for share in (min(one, other), max(one, other)))
    assert wide or not narrow


def test_tolerances_and_ground_are_checked() -> None:
    with pytest.raises(ValueError, match=r"count: -0.1, expected a number of at least 0"):
        Tolerances(count=-0.1)
    with pytest.raises(ValueError, match=r"metres_per_pixel: 0.0, expected a length > 0"):
        Ground(metres_per_pixel=0.0, diagonal_metres=1.0)
