"""Sentences of a description, in order: what refinement keeps or drops is one of them, known by its number."""

from __future__ import annotations

import re

__all__ = ["split_sentences"]

#: Words whose full stop ends no sentence; those of the second kind end one where a capital follows ("it is 3 km. The city").
_TITLES = frozenset(["e.g", "i.e", "approx", "ca", "cf", "vs", "fig", "st", "mt", "dr", "mr", "mrs", "ms", "prof"])
_UNITS = frozenset(["no", "nr", "ave", "blvd", "rd", "sq", "km", "m", "ft", "lat", "lon", "long", "incl", "est", "etc"])
#: A run of enders with what closes behind it: Latin ones before a blank, or where the next sentence begins without one ("area.There").
_END = re.compile(r"""(?:[.!?…]+["'”’)\]*_]*(?=\s|$)|(?<=[a-z0-9)%])[.!?](?=[A-Z][a-z])|[。！？]+["'”’）]*)""")
_LIST_NUMBER = re.compile(r"\s*\(?\d{1,2}[.)]?$")


def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, none empty, blanks made single; a line break always ends one, an abbreviation or a list number does not.

    Nothing but blanks is lost, and a sentence splits into itself.
    """
    return tuple(sentence for line in text.splitlines() for sentence in _of_line(" ".join(line.split())))


def _of_line(line: str) -> list[str]:
    sentences, start = [], 0
    for match in _END.finditer(line):
        if not _goes_on(line[start : match.start()], match.group(), line[match.end() :]):
            sentences.append(line[start : match.end()].strip())
            start = match.end()
    rest = line[start:].strip()
    return [sentence for sentence in [*sentences, rest] if sentence]


def _goes_on(before: str, ender: str, after: str) -> bool:
    """Whether what looks like an end is none: after an abbreviation, an initial or the number of a list item."""
    if ender != "." or not after:
        return False
    if _LIST_NUMBER.fullmatch(before):
        return True
    word = before.rsplit(" ", 1)[-1].lstrip("([\"'“‘").lower()
    if word in _UNITS:
        return after.lstrip()[:1].isdigit() or after.lstrip()[:1].islower()
    return word in _TITLES or (len(word) == 1 and word.isalpha() and word != "i")
