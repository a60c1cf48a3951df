"""Checks of what a sentence states against geography and computation (LEC-Diff, Fig. 3: "secondary fact verification").

A sentence is searched for claims that can be checked: coordinates, POI counts, the radius they hold for, percentages of the image or of
the land, amounts in words ("no water", "dense forest"), lengths that the image would have to contain, and things too small for its pixels.
Each claim becomes a `Finding`. What cannot be read as a claim, or of which no fact is known, is not judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from raytraffic.environment.describe import Facts
from raytraffic.environment.lexicon import MOVABLE_METRES, NUMBER_WORDS, named_in_order, word_pattern

__all__ = ["CHECKS", "Finding", "Ground", "Tolerances", "findings"]


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How far a stated value may lie from the known one before it is called wrong.

    degrees       of latitude and longitude
    count         of POI, as a share of the known count, or one point, whichever is more
    length        of the radius counts hold for, as a share of the known one
    image_share   of the image: its statistics are rough, so that only clear contradictions should count
    land_share    of the land use, which is known exactly where it is known
    pixels        side of the smallest thing that a picture lets one recognise (Johnson's criteria: 4 cycles and so 8 pixels for
                  certain, half of it for many)
    """

    degrees: float = 0.01
    count: float = 0.1
    length: float = 0.05
    image_share: float = 0.3
    land_share: float = 0.05
    pixels: float = 4.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: {value}, expected a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What the image of a scene covers: metres a pixel, and metres from corner to corner."""

    metres_per_pixel: float
    diagonal_metres: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: {value}, expected a length > 0")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim and what is known of it: the claim `holds` where `stated` lies within `tolerance` of [`least`, `most`]."""

    check: str
    claim: str
    stated: float
    least: float
    most: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the claim is not contradicted; a hair of rounding is allowed."""
        return self.least - self.tolerance - 1e-9 <= self.stated <= self.most + self.tolerance + 1e-9


def findings(sentence: str, facts: Facts, ground: Ground | None = None, tolerances: Tolerances | None = None) -> tuple[Finding, ...]:
    """Every claim of a sentence that can be checked against the facts and, where given, the ground that the image covers."""
    case = _Case(sentence=sentence, facts=facts, ground=ground, tolerances=tolerances or Tolerances())
    return tuple(finding for check in CHECKS.values() for finding in check(case))


@dataclass(frozen=True, kw_only=True)
class _Case:
    sentence: str
    facts: Facts
    ground: Ground | None
    tolerances: Tolerances


_NUMBER = r"(\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)"
_AXIS = re.compile(rf"\b(latitude|longitude|lat|lon)\b\.?[^\d,;-]{{0,16}}(-?)\s*{_NUMBER}", re.IGNORECASE)
_HEMISPHERE = re.compile(rf"{_NUMBER}\s*(?:°|degrees?)\s*(north|south|east|west|[NSEW])\b")


def _coordinates(case: _Case) -> Iterator[Finding]:
    stated = [(axis[:3].lower(), _value(number) * (-1 if sign else 1)) for axis, sign, number in _AXIS.findall(case.sentence)]
    for number, side in _HEMISPHERE.findall(case.sentence):
        sign = -1 if side[0].upper() in "SW" else 1
        stated.append(("lat" if side[0].upper() in "NS" else "lon", _value(number) * sign))
    for axis, degrees in dict.fromkeys(stated):
        known = case.facts.latitude if axis == "lat" else case.facts.longitude
        yield _finding("coordinates", {"lat": "latitude", "lon": "longitude"}[axis], degrees, known, case.tolerances.degrees)


#: What the points of a category are called, singular; the points of any other are its name or "<name> places".
_POI_NOUNS: Mapping[str, tuple[str, ...]] = {
    "medical place|hospital|clinic|pharmacy": ("medical care", "public health"),
    "hotel|hostel": ("hotel", "accommodation"),
    "office": ("business",),
    "company site|company": ("enterprise",),
    "everyday service": ("life service", "local living"),
    "transport stop|bus stop|subway station|metro station": ("transport hub", "transportation"),
    "car service": ("automobile",),
    "culture venue|museum|library": ("culture",),
    "sports ground|gym": ("sports", "physical facilities"),
    "housing estate": ("residence",),
    "entertainment venue|cinema": ("entertainment",),
    "scenic spot": ("scenic spot",),
    "government office": ("government", "government organs"),
    "plant|factory": ("factory",),
    "shop|store|supermarket": ("shopping",),
    "restaurant|cafe": ("restaurant",),
    "school|kindergarten": ("education",),
    "bank": ("finance",),
    "public facility site": ("public facilities",),
    "landmark": ("landmark",),
    "other place": ("other",),
}
_HOW_MANY = (
    r"\b(?:(?P<bound>at least|more than|over|at most|up to|fewer than|less than|about|around|approximately|roughly|nearly)\s+)?"
    rf"(?:(?P<number>{_NUMBER})|(?P<word>{'|'.join(NUMBER_WORDS)}))"
)
_WITHIN = re.compile(
    rf"\b(?:within|in a radius of|radius of)\s+(?:a radius of\s+)?{_NUMBER}\s*(m|metres?|meters?|km|kilometres?|kilometers?)\b",
    re.IGNORECASE,
)


def _poi_counts(case: _Case) -> Iterator[Finding]:
    """Counts of categories and of all points; a bound such as "at least" is heeded."""
    if not case.facts.poi:
        return
    yield from _counts_of("points of interest", re.compile(r"\bpoints? of interest\b", re.IGNORECASE), sum(case.facts.poi.values()), case)
    for category, known in case.facts.poi.items():
        yield from _counts_of(category, word_pattern(_nouns(category)), known, case)


def _counts_of(name: str, noun: re.Pattern[str], known: int, case: _Case) -> Iterator[Finding]:
    counted = re.compile(rf"{_HOW_MANY}\s+(?:{noun.pattern})|\bcount of (?P<listed>{_NUMBER}) for (?:{noun.pattern})", re.IGNORECASE)
    tolerance = max(case.tolerances.count * known, 1.0 if known else 0.0)
    for match in counted.finditer(case.sentence):
        word = match["word"]
        stated = float(NUMBER_WORDS[word.lower()]) if word else _value(match["number"] or match["listed"])
        least, most = _allowed(match["bound"], known)
        yield Finding(check="poi count", claim=name, stated=stated, least=least, most=most, tolerance=tolerance if stated else 0.0)


def _allowed(bound: str | None, known: float) -> tuple[float, float]:
    """What may be stated with a bound such as "at least" of what is known."""
    if bound is None:
        return known, known
    if bound.lower() in ("at least", "more than", "over"):
        return -math.inf, known
    return (known, math.inf) if bound.lower() in ("at most", "up to", "fewer than", "less than") else (known, known)


def _nouns(category: str) -> tuple[str, ...]:
    name = category.lower()
    called = [noun for nouns, categories in _POI_NOUNS.items() if name in categories for noun in nouns.split("|")]
    return tuple(called) or (f"{name} place", name)


def _radius(case: _Case) -> Iterator[Finding]:
    """The radius of a count; other distances "within" which something lies are not the site's."""
    known = case.facts.poi_radius_metres
    if known is None or not case.facts.poi or not any(True for _ in _poi_counts(case)):
        return
    for number, unit in _WITHIN.findall(case.sentence):
        yield _finding("radius", "radius of the count", _metres(number, unit), known, case.tolerances.length * known)


#: What the statistics call what a sentence names.
_MEASURED = {
    "vegetation": r"vegetation|greenery|trees?|forests?|grass|green",
    "water": r"water|lakes?|rivers?|sea",
    "bare": r"bare(?: soil| land)?|soil|sand",
    "built": r"built(?:-up)?(?: land| area)?|buildings?",
    "paved": r"paved(?: surface)?|asphalt",
}
_PERCENT = re.compile(rf"{_NUMBER}\s*(?:%|percent\b|per cent\b)", re.IGNORECASE)
_LAND = re.compile(r"\b(?:land|area|site)\b", re.IGNORECASE)
_VIEW = re.compile(r"\b(?:image|view|picture|scene|pixels?)\b", re.IGNORECASE)


def _shares(case: _Case) -> Iterator[Finding]:
    """Percentages, clause by clause: of the land use where its kind is known, else of the image."""
    for clause in re.split(r"[,;]\s|\bwhile\b|\band\b", case.sentence):
        percents = _PERCENT.findall(clause)
        if len(percents) != 1:
            continue
        stated = _value(percents[0]) / 100
        kinds = [kind for kind in case.facts.land_use or {} if re.search(rf"\b{re.escape(kind)}\b", clause, re.IGNORECASE)]
        measured = [name for name, words in _MEASURED.items() if re.search(rf"\b(?:{words})\b", clause, re.IGNORECASE)]
        if kinds and _LAND.search(clause) and not _VIEW.search(clause):
            known = (case.facts.land_use or {})[kinds[0]]
            yield _finding("land share", kinds[0], stated, known, case.tolerances.land_share)
        elif measured and case.facts.statistics is not None:
            name = measured[-1] if measured != ["built", "paved"] else "paved"
            yield _finding("image share", name, stated, getattr(case.facts.statistics, name), case.tolerances.image_share)


@dataclass(frozen=True)
class _Amount:
    """Words for an amount, the statistic they speak of, and the share of the image that they stand for: at least, at most."""

    words: re.Pattern[str]
    statistic: str
    least: float
    most: float


def _amount(words: str, statistic: str, *, least: float = 0.0, most: float = 1.0) -> _Amount:
    return _Amount(re.compile(rf"\b(?:{words})\b", re.IGNORECASE), statistic, least, most)


#: The shares are so far from what the words mean that rough statistics can tell: green water is taken for vegetation, dull soil for built.
_AMOUNTS = (
    _amount(r"(?:no|without(?: any)?) (?:visible )?(?:water|lakes?|rivers?)", "water", most=0.05),
    _amount(r"large (?:body of water|lake|river|reservoir)|wide river|sea|ocean", "water", least=0.003),
    _amount(r"(?:no|without(?: any)?) (?:visible )?(?:vegetation|greenery|trees)|treeless", "vegetation", most=0.1),
    _amount(r"barren|desert|desolate|arid", "vegetation", most=0.4),
    _amount(
        r"(?:dense|lush|thick)(?:,? (?:green|lush|dense))* (?:forests?|woods?|vegetation|greenery)|densely (?:wooded|forested)",
        "vegetation",
        least=0.1,
    ),
    _amount(r"(?:no|without(?: any)?) (?:visible )?(?:buildings?|houses|structures)|uninhabited|undeveloped", "built", most=0.7),
    _amount(r"densely (?:populated|built\w*|packed)|dense(?:ly)? urban|skyscrapers|metropolis", "built", least=0.1),
)


def _amounts(case: _Case) -> Iterator[Finding]:
    if case.facts.statistics is None:
        return
    for amount in _AMOUNTS:
        found = amount.words.search(case.sentence)
        if found:
            known = getattr(case.facts.statistics, amount.statistic)
            yield Finding(
                check="amount",
                claim=f"{amount.statistic}: {found.group().lower()}",
                stated=known,
                least=amount.least,
                most=amount.most,
                tolerance=0.0,
            )


_LENGTH = re.compile(rf"{_NUMBER}\s*-?\s*(m|metres?|meters?|km|kilometres?|kilometers?)\b(?!\s*(?:²|2|squared))", re.IGNORECASE)


def _lengths(case: _Case) -> Iterator[Finding]:
    """Distances and lengths in the image; those of POI counts reach beyond it."""
    if case.ground is None or _WITHIN.search(case.sentence):
        return
    for number, unit in _LENGTH.findall(case.sentence):
        most = case.ground.diagonal_metres
        stated = _metres(number, unit)
        yield Finding(
            check="length", claim="length in the image", stated=stated, least=0.0, most=most, tolerance=case.tolerances.length * most
        )


#: A subject with a definite article is known from before; what the sentence says is the rest.
_VERB = r"(?:is|are|was|were|has|have|appears?|seems?|features?|includes?|consists?|runs?)"
_SUBJECT = re.compile(rf"^(?:(?:the|this|these|its|some of the|many of the)\s+)(.{{0,40}}?)\b{_VERB}\b", re.IGNORECASE)
_SETTLEMENTS = frozenset({"city", "town", "village", "suburb", "downtown", "urban", "suburban", "rural"})
#: Where things that move are; it says as little as they do when they come first.
_CARRIERS = frozenset({"parking", "lane"})


def _resolution(case: _Case) -> Iterator[Finding]:
    """Whether what a sentence is about, the first thing it names, is large enough to be recognised; what it names besides is not judged."""
    if case.ground is None:
        return
    subject = _SUBJECT.match(case.sentence)
    about = [name for _, name in named_in_order(subject.group(1))] if subject else []
    if not any(name in MOVABLE_METRES for name in about):
        rest = case.sentence[subject.end() :] if subject else case.sentence
        about = [name for _, name in named_in_order(rest) if name not in _SETTLEMENTS | _CARRIERS]
    if about and about[0] in MOVABLE_METRES:
        least = case.tolerances.pixels * case.ground.metres_per_pixel
        yield Finding(check="resolution", claim=about[0], stated=MOVABLE_METRES[about[0]], least=least, most=math.inf, tolerance=0.0)


#: By the name that the audit records; the order in which claims are looked for.
CHECKS: Mapping[str, Callable[[_Case], Iterator[Finding]]] = {
    "coordinates": _coordinates,
    "poi count": _poi_counts,
    "radius": _radius,
    "share": _shares,
    "amount": _amounts,
    "length": _lengths,
    "resolution": _resolution,
}


def _finding(check: str, claim: str, stated: float, known: float, tolerance: float) -> Finding:
    return Finding(check=check, claim=claim, stated=stated, least=known, most=known, tolerance=tolerance)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _metres(number: str, unit: str) -> float:
    return _value(number) * (1000.0 if unit.lower().startswith("k") else 1.0)
