"""Splitting into sentences: what ends one and what does not, and that nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.environment.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", ()),
        (" \n\t ", ()),
        ("A lake.", ("A lake.",)),
        ("A lake. A road!  Is it wide? Yes", ("A lake.", "A road!", "Is it wide?", "Yes")),
        ("Near the area.There are cars.", ("Near the area.", "There are cars.")),
        ("It lies at 28.65 degrees. It is 3.5 km wide.", ("It lies at 28.65 degrees.", "It is 3.5 km wide.")),
        ("Some trees, e.g. Pines, stand there. So.", ("Some trees, e.g. Pines, stand there.", "So.")),
        ("The road is 3 km. The city is near.", ("The road is 3 km.", "The city is near.")),
        ("It covers 2 sq. km of land.", ("It covers 2 sq. km of land.",)),
        ("St. Mary stands near J. Smith square. Fine.", ("St. Mary stands near J. Smith square.", "Fine.")),
        ("1. A lake.\n2. A road.", ("1. A lake.", "2. A road.")),
        ("- a lake\n- a road", ("- a lake", "- a road")),
        ("He said “a lake.” Then left.", ("He said “a lake.”", "Then left.")),
        ("**A lake.** A road.", ("**A lake.**", "A road.")),
        ("Wait... A lake.", ("Wait...", "A lake.")),
        ("有一个湖。还有一条路！", ("有一个湖。", "还有一条路！")),
        ("See example.com for more.", ("See example.com for more.",)),
    ],
)
def test_sentences(text: str, sentences: tuple[str, ...]) -> None:
    assert split_sentences(text) == sentences


PIECES = st.lists(
    st.sampled_from(["A lake", "area", ".", "!", "?", " ", "\n", "3", "5", "km", "St", "e.g", '"', ")", "x", "The", ",", "1", "。"]),
    max_size=30,
)


@given(PIECES.map("".join) | st.text())
def test_nothing_but_blanks_is_lost_and_none_is_empty(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == " ".join(sentence.split()) != "" for sentence in sentences)


@given(PIECES.map("".join) | st.text())
def test_a_sentence_splits_into_itself(text: str) -> None:
    assert all(split_sentences(sentence) == (sentence,) for sentence in split_sentences(text))


@given(st.lists(st.sampled_from(["A lake lies in the north.", "Is it wide?", "Roads run west!", "It has 3.5 hectares."]), max_size=8))
def test_joined_sentences_come_apart_again(sentences: list[str]) -> None:
    assert split_sentences(" ".join(sentences)) == tuple(sentences)
