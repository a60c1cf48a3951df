"""Trims and filters: what each cuts and drops, and what they leave alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.environment.describe import Facts, TemplateDescriber
from raytraffic.environment.lexicon import content_words, filler_words, named
from raytraffic.environment.rules import FILTERS, TRIMS, filtered_by, repeats, trimmed


@pytest.mark.parametrize(
    ("sentence", "left", "trim"),
    [
        ("**A lake** lies in the `north`.", "A lake lies in the north.", "markdown"),
        ("- A lake lies in the north.", "A lake lies in the north.", "markdown"),
        ("2) A lake.", "A lake.", "markdown"),
        ("## Land use", "Land use.", "markdown"),
        ("Sure! A lake lies in the north.", "A lake lies in the north.", "preamble"),
        ("Here is a description of the image: a lake lies in the north.", "A lake lies in the north.", "preamble"),
        ("The image is a bird's eye view of a city.", "A city.", "image shows"),
        ("This satellite image shows a large lake.", "A large lake.", "image shows"),
        ("In this image, we can see a lake.", "A lake.", "image shows"),
        ("In the image, a lake lies in the north.", "A lake lies in the north.", "image shows"),
        ("The scene also features a highway and a lake.", "A highway and a lake.", "image shows"),
        ("A road runs north, indicating that the area is busy.", "A road runs north.", "inference"),
        ("A road runs north, which suggests a busy area.", "A road runs north.", "inference"),
        ("Houses stand there, with some closer to the road and others further away.", "Houses stand there.", "scattering"),
        ("There are houses scattered throughout the area.", "There are houses.", "scattering"),
        ("A body of water, possibly a lake, lies in the north.", "A body of water lies in the north.", "hedge"),
        ("There are houses and possibly some factories.", "There are houses.", "hedge"),
        ("The sky is blue, and the city lies near a forest.", "The city lies near a forest.", "sky clause"),
    ],
)
def test_a_trim_cuts_its_piece_and_nothing_else(sentence: str, left: str, trim: str) -> None:
    assert trimmed(sentence) == (left, (trim,))


def test_every_trim_and_filter_has_a_name_of_its_own() -> None:
    names = [rule.name for rule in (*TRIMS, *FILTERS)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("sentence", "rule"),
    [
        ("I'm sorry, but I cannot determine the scale.", "apology"),
        ("As an AI, I see no people.", "apology"),
        ("Let me know if you need more.", "offer"),
        ("Would you like a map?", "offer"),
        ("More trees should be planted.", "advice"),
        ("It is recommended to widen the road.", "advice"),
        ("The aerial view provides a comprehensive view of the city's layout.", "picture talk"),
        ("The image captures the essence of a city.", "picture talk"),
        ("The overall scene gives a sense of calm.", "picture talk"),
        ("Overall, the area is quiet.", "mood"),
        ("Nearby there is a sense of calm.", "mood"),
        ("The presence of a park adds a touch of green.", "conclusion"),
        ("The combination of lake and park is pleasant.", "conclusion"),
        ("The city's layout shows care.", "conclusion"),
        ("This suggests a rich area.", "conclusion"),
        ("The sky is cloudy.", "sky"),
        ("The park is a popular spot for walks.", "use"),
        ("The.", "fragment"),
        ("The scene ends with the.", "fragment"),
    ],
)
def test_a_filter_drops_what_it_is_for(sentence: str, rule: str) -> None:
    assert filtered_by(sentence) == rule


@pytest.mark.parametrize(
    "sentence",
    [
        "A lake lies in the north.",
        "The city is densely populated, with numerous buildings.",
        "A map of fields lies around the village.",
        "The mountains reach into the sky.",
        "No water is visible.",
        "The mixed forest covers about 30% of the image.",
        "A stadium is used for sports.",
        "Its latitude is 28.650 degrees.",
    ],
)
def test_what_describes_a_place_is_left_as_it_is(sentence: str) -> None:
    assert trimmed(sentence) == (sentence, ())
    assert filtered_by(sentence) is None


@pytest.mark.parametrize(
    ("sentence", "again"),
    [
        ("A large lake lies in the north.", True),
        ("In the north lies a lake.", True),
        ("A small lake lies in the south.", False),
        ("A large lake and a road lie in the north.", False),
        ("A large forest lies in the north.", False),
    ],
)
def test_a_repetition_says_nothing_new(sentence: str, again: bool) -> None:
    assert repeats(sentence, ["There are houses.", "A large lake lies in the north."]) is again


def test_one_new_thing_among_many_old_words_is_no_repetition() -> None:
    sentence = "In the far north, between two old brick walls and one long white shed, lies a large, dark {}."
    assert repeats(sentence.format("lake"), [sentence.format("lake")])
    assert not repeats(sentence.format("forest"), [sentence.format("lake")])


def test_an_earlier_sentence_is_needed_for_a_repetition() -> None:
    assert not repeats("A lake.", [])


@pytest.mark.parametrize("categories", [("Shopping", "Restaurant"), ("Kiosk", "Tram"), ("Automobile", "Local Living")])
def test_template_sentences_of_other_categories_are_no_repetitions(categories: tuple[str, str]) -> None:
    """They differ in one word only."""
    facts = Facts(site="a", longitude=0.0, latitude=0.0, poi=dict.fromkeys(categories, 3), poi_radius_metres=500.0)
    for seed in range(20):
        texts = [said.text for said in TemplateDescriber(topics=("poi",), seed=seed).statements(facts)]
        assert not any(repeats(text, texts[:i]) for i, text in enumerate(texts))


WORDS = st.lists(
    st.sampled_from(
        [
            "the image shows",
            "a lake",
            ",",
            "possibly",
            "indicating that",
            "and",
            "some closer to",
            "**",
            "-",
            ".",
            "!",
            "with",
            "overall",
            "sense of",
            "3.5",
        ]
    ),
    max_size=20,
)


@given(WORDS.map(" ".join) | st.text())
def test_trims_only_take_away_and_leave_a_sentence_or_nothing(text: str) -> None:
    left, trims = trimmed(text)
    assert (left == text) == (not trims) or left.rstrip(".").lower() == text.strip().rstrip(".").lower()
    if trims:
        assert len(content_words(left)) <= len(content_words(text))
        assert left == "" or (left[-1] in ".!?" and left == " ".join(left.split()))


@given(WORDS.map(" ".join))
def test_what_was_trimmed_names_nothing_that_was_not_named(text: str) -> None:
    assert named(trimmed(text)[0]) <= named(text)


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("Two lakes and a parking lot near the cities.", {"lake", "parking lot", "city"}),
        ("A train track and a train.", {"train track"}),
        ("Forests, trees and several factories.", {"forest", "tree", "factory"}),
        ("A carpet of seasonal flowers.", set()),
        ("The body of water.", {"body of water"}),
    ],
)
def test_names_are_found_in_singular_and_plural_as_whole_words(text: str, things: set[str]) -> None:
    assert named(text) == things


def test_filler_words_are_counted_each_time() -> None:
    assert filler_words("A bustling, vibrant city with a sense of life.") == 4
    assert filler_words("A lake in the north.") == 0
