"""Describers: an image and the facts of a site in, a text out. Here are their types and the one that needs no language model.

The template describer states facts, one a sentence, in one of several phrasings that a hash of the site chooses: enough to train and test
an image-text encoder offline, and a text whose every claim can be checked. What an image shows comes first, because CLIP's text encoder
reads 77 tokens and drops the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from raytraffic.environment.mercator import check_place
from raytraffic.environment.statistics import ImageStatistics
from raytraffic.environment.tiles import RgbImage
from raytraffic.randomness import text_key

__all__ = ["TOPICS", "Describer", "Description", "Facts", "Scene", "Statement", "TemplateDescriber", "poi_text"]

#: What a template can speak of, in the order in which it does.
TOPICS = ("land use", "image", "poi", "place")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a site's surroundings.

    site                identifier, unique in a data set
    poi                 counts by category, `poi_radius_metres` around the site, or in the area of the image where that is None
    statistics          of the site's image
    land_use            shares of kinds of land in the image, where they are known
    """

    site: str
    longitude: float
    latitude: float
    poi: Mapping[str, int] = field(default_factory=dict)
    poi_radius_metres: float | None = None
    statistics: ImageStatistics | None = None
    land_use: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        check_place(self.longitude, self.latitude)
        for category, count in self.poi.items():
            if not (count >= 0 and count == int(count)):
                raise ValueError(f"poi {category!r} of {self.site!r}: {count}, expected a count")
        if self.poi_radius_metres is not None and not 0 < self.poi_radius_metres < math.inf:
            raise ValueError(f"poi_radius_metres of {self.site!r}: {self.poi_radius_metres}, expected a length > 0")
        shares = (self.land_use or {}).values()
        if not all(0 <= share <= 1 for share in shares) or sum(shares) > 1.001:
            raise ValueError(f"land_use of {self.site!r}: {self.land_use}, expected shares in [0, 1] of at most 1 in all")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What a describer is shown: the facts of a site and its image (h, w, 3), if there is one."""

    facts: Facts
    image: RgbImage | None = None


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a describer said of a site, or why it said nothing (`failure`)."""

    site: str
    describer: str
    text: str = ""
    failure: str | None = None

    def __post_init__(self) -> None:
        if bool(self.text) == (self.failure is not None):
            raise ValueError(f"text of {self.site!r}: {self.text!r} and failure {self.failure!r}, expected one of the two")


class Describer(Protocol):
    """Turns scenes into text, many at a time, so that a remote model can work on them side by side."""

    @property
    def name(self) -> str:
        """What made a text: equal names make equal texts of equal scenes, so a text may be kept under it."""
        ...

    def describe(self, scenes: Sequence[Scene]) -> list[Description]:
        """One description a scene, in their order; a scene that cannot be described has a `failure` and stops no other."""
        ...


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One sentence and the fact it states: a topic such as "image: water" or "poi: Restaurant", and the number it says."""

    topic: str
    value: float
    text: str


@dataclass(frozen=True, kw_only=True)
class TemplateDescriber:
    """States the facts of a scene in set phrases; looks at no image itself, only at its statistics.

    topics       of TOPICS, those that are spoken of: ("poi",) is LSDM's text of a site
    categories   at most so many POI categories are named, the most frequent ones
    seed         of the choice of phrases
    """

    topics: tuple[str, ...] = TOPICS
    categories: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.topics or not set(self.topics) <= set(TOPICS):
            raise ValueError(f"topics: {self.topics}, expected some of {TOPICS}")
        if self.categories < 1:
            raise ValueError(f"categories: {self.categories}, expected at least 1")

    @property
    def name(self) -> str:
        """See Describer."""
        return f"template 1 ({', '.join(self.topics)}; categories={self.categories}, seed={self.seed})"

    def describe(self, scenes: Sequence[Scene]) -> list[Description]:
        """See Describer; it fails for a scene of which no fact of its topics is known."""
        return [self._described(scene.facts) for scene in scenes]

    def statements(self, facts: Facts) -> tuple[Statement, ...]:
        """The sentences, each with the fact it states."""
        makers = {"land use": _land_use, "image": _image, "poi": lambda facts: _poi(facts, self.categories), "place": _place}
        said = [claim for topic in TOPICS if topic in self.topics for claim in makers[topic](facts)]
        return tuple(self._phrased(facts.site, claim) for claim in said)

    def _described(self, facts: Facts) -> Description:
        text = " ".join(statement.text for statement in self.statements(facts))
        failure = None if text else f"no fact of {', '.join(self.topics)} is known"
        return Description(site=facts.site, describer=self.name, text=text, failure=failure)

    def _phrased(self, site: str, claim: _Claim) -> Statement:
        phrases = _PHRASES[claim.phrases]
        chosen = phrases[text_key(f"{self.seed}/{site}/{claim.topic}") % len(phrases)]
        text = chosen.format(**claim.words)
        return Statement(topic=claim.topic, value=claim.value, text=text[0].upper() + text[1:])


@dataclass(frozen=True)
class _Claim:
    """A fact before it is put into words: `words` fill the phrases of that name."""

    topic: str
    value: float
    phrases: str
    words: Mapping[str, str]


_PHRASES = {
    "land use": (
        "about {percent}% of the land is {what}.",
        "{what} land takes up about {percent}% of the area.",
        "the area is about {percent}% {what}.",
    ),
    "share": (
        "{what} covers about {percent}% of the image.",
        "about {percent}% of the image is {what}.",
        "{what} makes up roughly {percent}% of the view.",
    ),
    "none": ("no {what} is visible.", "there is no {what} in the image.", "the image shows no {what}."),
    "total": (
        "there are {count} points of interest {where}.",
        "{count} points of interest lie {where}.",
        "a total of {count} points of interest is found {where}.",
    ),
    "count": (
        "it has {count} {what} {where}.",
        "there is a count of {count} for {what} {where}.",
        "{count} {what} can be found {where}.",
    ),
    "empty": ("there are no points of interest {where}.", "no point of interest lies {where}."),
    "latitude": ("its latitude is {degrees} degrees.", "it lies at latitude {degrees}."),
    "longitude": ("its longitude is {degrees} degrees.", "it lies at longitude {degrees}."),
}
#: Plural (and, where it is regular, by dropping its s, singular) of the categories of LSDM's Table II and UoMo's Table 7.
_NOUNS = {
    "medical care": "medical places",
    "public health": "medical places",
    "hotel": "hotels",
    "accommodation": "hotels",
    "business": "offices",
    "enterprise": "company sites",
    "life service": "everyday services",
    "local living": "everyday services",
    "transport hub": "transport stops",
    "transportation": "transport stops",
    "automobile": "car services",
    "culture": "culture venues",
    "sports": "sports grounds",
    "physical facilities": "sports grounds",
    "residence": "housing estates",
    "entertainment": "entertainment venues",
    "scenic spot": "scenic spots",
    "government": "government offices",
    "government organs": "government offices",
    "factory": "plants",
    "shopping": "shops",
    "restaurant": "restaurants",
    "education": "schools",
    "finance": "banks",
    "public facilities": "public facility sites",
    "landmark": "landmarks",
    "other": "other places",
}


def poi_text(poi: Mapping[str, int], *, radius_metres: float | None = None, categories: int = 17) -> str:
    """POI counts as one descriptive sentence, the most frequent categories first (LSDM, Fig. 3); those that are 0 are not named."""
    where = _where(radius_metres)
    named = [f"{count} {_noun(category, count)}" for category, count in _ranked(poi)[:categories]]
    if not named:
        return f"There are no points of interest {where}."
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    return f"{'There is' if listed.startswith('1 ') else 'There are'} {listed} {where}."


def _land_use(facts: Facts) -> Iterator[_Claim]:
    """The two largest kinds of land, if they are of at least a twentieth."""
    ranked = sorted((facts.land_use or {}).items(), key=lambda item: (-item[1], item[0]))
    for kind, share in ranked[:2]:
        if share >= 0.05:
            yield _Claim(f"land use: {kind}", round(100 * share), "land use", {"what": kind, "percent": f"{100 * share:.0f}"})


def _image(facts: Facts) -> Iterator[_Claim]:
    """Shares of the image, by the rules of raytraffic.environment.statistics."""
    if facts.statistics is None:
        return
    shares = {
        "vegetation": facts.statistics.vegetation,
        "water": facts.statistics.water,
        "bare soil": facts.statistics.bare,
        "built-up land": facts.statistics.built,
        "grey paved surface": facts.statistics.paved,
    }
    for what, share in shares.items():
        percent = round(100 * share)
        if percent > 0:
            yield _Claim(f"image: {what}", percent, "share", {"what": what, "percent": str(percent)})
        elif what in ("vegetation", "water"):
            yield _Claim(f"image: {what}", 0, "none", {"what": what})


def _poi(facts: Facts, categories: int) -> Iterator[_Claim]:
    """How many points there are, and of the most frequent categories."""
    if not facts.poi:
        return
    where, total = _where(facts.poi_radius_metres), int(sum(facts.poi.values()))
    if total == 0:
        yield _Claim("poi", 0, "empty", {"where": where})
        return
    yield _Claim("poi", total, "total", {"count": str(total), "where": where})
    for category, count in _ranked(facts.poi)[:categories]:
        yield _Claim(f"poi: {category}", count, "count", {"count": str(count), "what": _noun(category, count), "where": where})


def _place(facts: Facts) -> Iterator[_Claim]:
    for name, degrees in (("latitude", facts.latitude), ("longitude", facts.longitude)):
        yield _Claim(f"place: {name}", round(degrees, 3), name, {"degrees": f"{degrees:.3f}"})


def _ranked(poi: Mapping[str, int]) -> list[tuple[str, int]]:
    """Categories that occur, the most frequent first, equals by name."""
    return sorted(((category, int(count)) for category, count in poi.items() if count > 0), key=lambda item: (-item[1], item[0]))


def _noun(category: str, count: int) -> str:
    plural = _NOUNS.get(category.lower(), f"{category.lower()} places")
    return plural.removesuffix("s") if count == 1 else plural


def _where(radius_metres: float | None) -> str:
    return "in the area shown" if radius_metres is None else f"within {radius_metres:g} m"
