"""What descriptions of satellite images speak of: kinds of land and structures, things that move, and words of mood.

One vocabulary for the rules, the checks and the scores, so that they agree on what a sentence names. English only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

__all__ = ["MOVABLE_METRES", "NUMBER_WORDS", "THEMES", "content_words", "filler_words", "named", "named_in_order", "word_pattern"]


def _listed(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(","))


#: Names by theme, singular. Of these the image statistics measure water, vegetation, bare and built; an open field is green or bare.
THEMES: Mapping[str, tuple[str, ...]] = {
    "water": _listed("""body of water, waterway, water, lake, river, pond, sea, ocean, bay, canal, reservoir, stream, coast, harbor,
        harbour, beach"""),
    "vegetation": _listed("""forest, woodland, wooded, wood, tree, bush, grass, lawn, vegetation, greenery, garden, golf course, park,
        green space, orchard"""),
    "open": _listed("field, farmland, crop, farm, agricultural, agriculture, meadow, pasture, greenhouse, open space, rural"),
    "bare": _listed("desert, sand, sandy, dirt, soil, quarry, construction site, snow, rock, rocky"),
    "built": _listed("""apartment, building, house, residential, housing, commercial, business district, industrial, industry, factory,
        warehouse, skyscraper, shopping mall, shopping center, shopping centre, mall, hotel, hospital, school, campus, university, stadium,
        track field, sports ground, baseball field, soccer field, football field, tennis court, basketball court, swimming pool, airport,
        runway, power plant, plant, tank, temple, church, pagoda, museum, library, zoo, amusement park, marina, playground, cemetery, plaza,
        square, monument, crane, wall, fence, solar panel, hangar, tower, dam, barn, village, town, city, suburb, suburban, urban, downtown,
        office, market, gas station, structure"""),
    "transport": _listed("""road, street, highway, expressway, roundabout, intersection, bridge, railway, railroad, rail, train track,
        train station, station, parking lot, parking, car park, car service, car wash, car dealership, bus stop, bus station,
        traffic junction, pier, dock, port, path, trail, lane"""),
    "relief": _listed("mountain, mountainous, hill, hilly, hillside, valley, cliff, slope, terrain, island, peninsula"),
}
#: Side in metres of a square as large as a large one of its kind seen from above: whether a picture can show it depends on its pixels.
MOVABLE_METRES: Mapping[str, float] = {
    "person": 0.6, "people": 0.6, "pedestrian": 0.6, "individual": 0.6, "bird": 0.6, "cow": 1.5, "animal": 1.5, "sheep": 1.0, "horse": 1.5,
    "traffic light": 1.0, "traffic sign": 1.0, "street light": 1.0, "bench": 1.0, "umbrella": 2.0, "bicycle": 1.0, "motorcycle": 1.2,
    "car": 3.2, "vehicle": 3.2, "traffic": 3.2, "truck": 6.7, "bus": 5.5, "boat": 20.0, "ship": 60.0, "airplane": 40.0, "plane": 40.0,
    "aircraft": 40.0, "train": 25.0,
}  # fmt: skip
_COUNTED = _listed("no, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen")
NUMBER_WORDS: Mapping[str, int] = {word: number for number, word in enumerate(_COUNTED)}
#: Words of mood, of inference and about the picture itself; every use takes from a sentence's informativeness.
_FILLERS = re.compile(
    r"\b(?:bustling|busy|lively|vibrant|serene|serenity|picturesque|scenic|atmosphere|ambiance|sense|feel|feeling|essence|charm\w*|beaut\w+|"
    r"tranquil\w*|peaceful\w*|calm\w*|harmon\w+|activit\w+|active|suggest\w*|indicat\w+|impression|comprehensive|overview|perspective|"
    r"showcas\w+|captur\w+|contrast\w*|blend\w*|unique|inviting|attractive|dynamic|thriving|interconnected\w*|hustle|overall|enjoy\w*|"
    r"leisure|popular|visitors?|residents?|touch|appeal\w*|aesthetic\w*|breathtaking|stunning|layout|architecture|infrastructure|elements?|"
    r"life|lifestyle|diverse|diversity|interplay|importan\w+|hub|convenien\w+|efficien\w+|organi[sz]ed|well-\w+|developed|visually)\b",
    re.IGNORECASE,
)
_STOPWORDS = frozenset(
    _listed("""a, an, the, and, or, of, in, on, at, to, by, with, for, from, is, are, was, be, been, it, its, this, that, these, those,
    there, as, which, while, some, other, others, also, can, has, have, into, through, throughout""")
)


def word_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Any of the names as whole words, in singular or plural, the longest first; the name is group 1."""
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(rf"\b({'|'.join(_inflected(name) for name in longest_first)})\b", re.IGNORECASE)


def named_in_order(text: str) -> list[tuple[int, str]]:
    """Where the text names what: (position, singular name), things that move included."""
    return [(match.start(), _singular(match.group(1))) for match in _pattern().finditer(text)]


def named(text: str) -> frozenset[str]:
    """The land, structures and relief a text names (singular), but not what moves."""
    return frozenset(name for _, name in named_in_order(text) if name not in MOVABLE_METRES)


def filler_words(text: str) -> int:
    """How many words of mood, inference and picture talk a text has."""
    return len(_FILLERS.findall(text))


def content_words(text: str) -> frozenset[str]:
    """The distinct words and numbers of a text but those that carry no meaning, in lower case and without a plural s."""
    words = re.findall(r"[a-z]+|\d+(?:\.\d+)?", text.lower())
    return frozenset(word.removesuffix("s") for word in words if word not in _STOPWORDS)


def _inflected(name: str) -> str:
    if name.endswith("y") and name[-2] not in "aeiou":
        return rf"{re.escape(name[:-1])}(?:y|ies)"
    if name == "person":
        return "persons?"
    return rf"{re.escape(name)}(?:e?s)?"


@cache
def _names() -> tuple[str, ...]:
    return (*(name for names in THEMES.values() for name in names), *MOVABLE_METRES)


@cache
def _pattern() -> re.Pattern[str]:
    return word_pattern(_names())


@cache
def _singular(found: str) -> str:
    return next(name for name in sorted(_names(), key=lambda name: -len(name)) if re.fullmatch(_inflected(name), found, re.IGNORECASE))
