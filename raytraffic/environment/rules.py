"""Regular expressions that remove what tells nothing of a place (LEC-Diff, Fig. 3: "pre-configured regular filters").

A trim cuts a piece out of a sentence and keeps the rest ("..., indicating that the city is bustling with activity"); a filter drops the
whole sentence. Each has a name, which the audit records. They are written for English.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raytraffic.environment.lexicon import content_words, named

__all__ = ["FILTERS", "REPETITION", "TRIMS", "Filter", "Trim", "filtered_by", "repeats", "trimmed"]

#: The name under which `repeats` drops a sentence.
REPETITION = "repetition"
#: A sentence repeats an earlier one if so much of what it says is in it; 1 is every word.
_REPEATED = 0.9


@dataclass(frozen=True)
class Trim:
    """Replaces what `pattern` finds by `by`."""

    name: str
    pattern: re.Pattern[str]
    by: str = ""


@dataclass(frozen=True)
class Filter:
    """Drops a sentence in which `pattern` is found."""

    name: str
    pattern: re.Pattern[str]


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


_PICTURE = r"(?:image|picture|photo(?:graph)?|scene|view|map|snapshot)"
_ANGLE = r"(?:satellite|aerial|bird['’]s[- ]eye|overhead|top-down|composite|panoramic)"
_STATE = r"(?:are |being |positioned |located |situated |parked )*"
_REGION = r"(?:the|this) (?:\w+ )?(?:area|scene|image|city|landscape|region)"
_INFERENCE = (
    r"(?:indicat|suggest|imply|hint|creat|add|giv|provid|offer|mak|contribut|ensur|showcas|allow|enhanc|highlight|reflect|emphasi[sz]|serv)"
)
_ABSTRACT = r"(?:presence|combination|mix|blend|layout|proximity|contrast|arrangement|diversity|variety|interplay)"
_HEDGE = r"(?:possibly|perhaps|likely|probably|maybe|presumably)"

#: Applied one after the other, in this order.
TRIMS = (
    Trim("markdown", re.compile(r"^\s*(?:#+\s*|>\s*|[-*•+]\s+|\(?\d{1,2}[.)]\s+)+|\*\*|__|`+|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)")),
    Trim("preamble", _any(r"^(?:sure|certainly|of course|okay|here(?:'s| is| are))\b[^.!]*?[:!]\s*", r"^as an? \w+ expert,\s*")),
    Trim(
        "image shows",
        _any(
            rf"^(?:in|from|as (?:seen|shown|depicted) in) (?:this|the) (?:{_ANGLE} )?{_PICTURE},?\s*(?:we|you|one) (?:can )?see\s+",
            rf"^(?:in|from|as (?:seen|shown|depicted) in) (?:this|the) (?:{_ANGLE} )?{_PICTURE},\s*",
            rf"^(?:the|this) (?:{_ANGLE} )?{_PICTURE} (?:also )?(?:is|features|shows|depicts|presents|displays) an? "
            rf"(?:{_ANGLE} )?{_PICTURE} of\s+",
            rf"^(?:the|this) (?:{_ANGLE} )?{_PICTURE} (?:also )?(?:depicts|shows|features|displays|includes|presents|contains)\s+",
        ),
    ),
    Trim("sky clause", _any(r"^the sky\b[^,]*, and (?=\w)")),
    Trim(
        "inference",
        _any(rf",\s*(?:thus |thereby |further |possibly )?\b{_INFERENCE}ing\b.*(?<![.!?])", rf",\s*which {_INFERENCE}\w*\b.*(?<![.!?])"),
    ),
    Trim(
        "scattering",
        _any(
            rf",?\s*(?:with )?some (?:\w+ ){{0,3}}?{_STATE}(?:closer|nearer) to\b.*(?<![.!?])",
            r",?\s*(?:and|while) others? (?:are )?(?:further|farther)\b.*(?<![.!?])",
            rf"(?<!\bare)(?<!\bis)\s*,?\s*(?:which are )?(?:spread|scattered) (?:throughout|across|around|over) {_REGION}\b",
        ),
    ),
    Trim("hedge", _any(rf",?\s*(?:and |or |but )?(?:(?:which|that) (?:is|are|was|were) )?{_HEDGE}\b[^,.!?]*(?:,(?= (?!and|or)))?")),
)

#: The first that is found names the drop.
FILTERS = (
    Filter(
        "apology",
        _any(r"\b(?:sorry|apologi[sz]e|as an ai|language model|unable to|can(?:not|'t) (?:determine|provide|see|identify|tell))\b"),
    ),
    Filter(
        "offer",
        _any(r"\b(?:let me know|feel free|would you like|i hope|hope this helps|further (?:details|assistance|information))\b", r"\?$"),
    ),
    Filter(
        "advice",
        _any(r"\b(?:should|recommend\w*|advis\w+|ought to|would benefit|could be improved|it is (?:important|essential) to)\b"),
    ),
    Filter(
        "picture talk",
        _any(
            rf"^(?:the|this)(?: overall)?(?: {_ANGLE})?(?: \w+)? ?(?:{_PICTURE}s?|perspective|cityscape)\b(?: of [^,]*)? (?:\w+ )?"
            r"(?:captures?|provides?|offers?|showcases?|conveys?|gives?|is captured|is taken|highlights?|allows?|creates?|exudes|evokes)\b",
        ),
    ),
    Filter(
        "mood",
        _any(
            r"^overall\b",
            r"^the overall\b",
            r"\b(?:atmosphere|ambiance|feeling|sense) (?:is|of)\b",
            r"\b(?:gives?|creat\w+) an? [^,]*atmosphere\b",
        ),
    ),
    Filter(
        "conclusion",
        _any(
            rf"^(?:the|this|these|its)(?: \w+'s)? {_ABSTRACT}\b",
            rf"^(?:this|these|it|that)(?: \w+)? (?:{_INFERENCE}\w*)\b",
        ),
    ),
    Filter("sky", _any(r"^(?:the |a )?(?:\w+ )?(?:sky|skies|clouds?|weather|sun|sunlight)\b")),
    Filter(
        "use",
        _any(
            r"\bpopular (?:spot|place|destination|location|area|attraction)\b",
            r"\b(?:enjoying|going about|attending|daily (?:lives|routines|activities)|perfect for|ideal (?:for|location|place|spot))\b",
        ),
    ),
    Filter("fragment", _any(r"^\W*(?:\w+\W*){0,1}$", r"\b(?:a|an|the|of|its|this|their|and|or|with|in|to|for|overall|is|are|as|at)\W*$")),
)


def trimmed(sentence: str) -> tuple[str, tuple[str, ...]]:
    """What the trims leave of a sentence, as a sentence again or "" where they leave no word, and the names of those that cut."""
    text, cuts = sentence, []
    for trim in TRIMS:
        cut = trim.pattern.sub(trim.by, text)
        if cut != text:
            cuts.append(trim.name)
            text = cut
    return (_as_sentence(text) if cuts else text), tuple(cuts)


def filtered_by(sentence: str) -> str | None:
    """The name of the first filter that drops a (trimmed) sentence, or None."""
    return next((rule.name for rule in FILTERS if rule.pattern.search(sentence)), None)


def repeats(sentence: str, earlier: Sequence[str]) -> bool:
    """Whether one of the earlier sentences says nearly every word of this one and names all that it names."""
    words, things = content_words(sentence), named(sentence)
    return bool(words) and any(things <= named(other) and len(words & content_words(other)) >= _REPEATED * len(words) for other in earlier)


def _as_sentence(text: str) -> str:
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split())).strip(" ,;:-")
    text = re.sub(r"[,;:]+(?=[.!?]$)", "", text)
    if not re.search(r"\w", text):
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else f"{text}."
