"""Refinement of descriptions (LEC-Diff, Fig. 3): trims and filters, checks of facts, two scores; and an audit record for each sentence.

A sentence goes through trims, filters, checks and scores in this order; the first that objects drops it. Everything here is a pure
function: the same description, scene and settings give the same text and the same records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from raytraffic.environment.checks import Finding, Ground, Tolerances, findings
from raytraffic.environment.describe import Description, Scene
from raytraffic.environment.lexicon import named
from raytraffic.environment.rules import REPETITION, filtered_by, repeats, trimmed
from raytraffic.environment.score import Agreement, Thresholds, informativeness, statistics_agreement
from raytraffic.environment.sentences import split_sentences
from raytraffic.files import Location

__all__ = ["AUDIT_SCHEMA", "Audit", "Refined", "Refinement", "audit_table", "refine", "write_audit"]


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """How descriptions are refined; `agreement` scores by statistics unless an image-text encoder's function is given
    (raytraffic.environment.agreement.refinement_by), and `agreement_by` is what the audit calls it."""

    tolerances: Tolerances = field(default_factory=Tolerances)
    thresholds: Thresholds = field(default_factory=Thresholds)
    agreement: Agreement = statistics_agreement
    agreement_by: str = "image statistics"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What became of one sentence.

    sentence           its number in the description, from 0
    text, kept         as it was, and what of it is in the refined text ("" where it was dropped)
    stage, reason      what dropped it: "rule" and the filter's name, "fact" and the check's, "score" and the score's; "" where it was kept
    trims              names of the trims that cut, joined by ", "
    claim              the claim that was found wrong, or else the first that was checked; `stated` and the range [`least`, `most`] that is
                       allowed with `tolerance` around it; None where nothing was compared
    informativeness    the scores, None where it did not get so far
    agreement
    agreement_by       what scored the agreement, and the least score that is kept
    agreement_threshold
    """

    site: str
    describer: str
    sentence: int
    decision: Literal["keep", "drop"]
    stage: Literal["", "rule", "fact", "score"] = ""
    reason: str = ""
    text: str
    kept: str = ""
    trims: str = ""
    claim: str | None = None
    stated: float | None = None
    least: float | None = None
    most: float | None = None
    tolerance: float | None = None
    informativeness: float | None = None
    agreement: float | None = None
    agreement_by: str | None = None
    agreement_threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A refined description, a failure where no sentence is left, and the record of each sentence that it had."""

    description: Description
    audit: tuple[Audit, ...] = ()


def refine(description: Description, scene: Scene, settings: Refinement | None = None, *, metres_per_pixel: float | None = None) -> Refined:
    """Keeps, trims or drops each sentence of a description of a scene; a failed description is handed on as it is.

    `metres_per_pixel` of the scene's image (raytraffic.environment.mercator.metres_per_pixel for a tile) lets the checks tell what is too
    small to be seen. ValueError where the description is of another site.
    """
    settings = settings or Refinement()
    if description.site != scene.facts.site:
        raise ValueError(f"site: {description.site!r}, expected that of the scene, {scene.facts.site!r}")
    name = f"{description.describer}, refined"
    if description.failure is not None:
        return Refined(description=replace(description, describer=name))
    judged = _judged(description, scene, settings, _ground(scene, metres_per_pixel))
    audit = tuple(_scored(judged, scene, settings))
    text = " ".join(record.kept for record in audit if record.decision == "keep")
    failure = None if text else f"none of its {len(audit)} sentences was kept"
    return Refined(description=Description(site=description.site, describer=name, text=text, failure=failure), audit=audit)


def _ground(scene: Scene, metres_per_pixel: float | None) -> Ground | None:
    if metres_per_pixel is None or scene.image is None:
        return None
    height, width = scene.image.shape[:2]
    return Ground(metres_per_pixel=metres_per_pixel, diagonal_metres=metres_per_pixel * math.hypot(height, width))


def _judged(description: Description, scene: Scene, settings: Refinement, ground: Ground | None) -> list[Audit]:
    """Each sentence by rules, facts and informativeness, in order: what was kept before decides what is new."""
    records: list[Audit] = []
    said: frozenset[str] = frozenset()
    for number, sentence in enumerate(split_sentences(description.text)):
        text, trims = trimmed(sentence)
        before = [record.kept for record in records if record.decision == "keep"]
        record = Audit(
            site=description.site,
            describer=description.describer,
            sentence=number,
            decision="keep",
            text=sentence,
            kept=text,
            trims=", ".join(trims),
        )
        records.append(_judge(record, before, said, findings(text, scene.facts, ground, settings.tolerances), settings.thresholds))
        said |= named(records[-1].kept)
    return records


def _judge(record: Audit, before: Sequence[str], said: frozenset[str], claims: Sequence[Finding], thresholds: Thresholds) -> Audit:
    rule = "fragment" if not record.kept else filtered_by(record.kept) or (REPETITION if repeats(record.kept, before) else None)
    if rule is not None:
        return _dropped(record, "rule", rule)
    wrong = next((claim for claim in claims if not claim.holds), None)
    shown = wrong or next(iter(claims), None)
    if shown is not None:
        values = {name: getattr(shown, name) for name in ("claim", "stated", "least", "most", "tolerance")}
        record = replace(record, **values)
    if wrong is not None:
        return _dropped(record, "fact", wrong.check)
    score = 1.0 if claims else informativeness(record.kept, said)
    record = replace(record, informativeness=score)
    return record if score >= thresholds.informativeness else _dropped(record, "score", "informativeness")


def _scored(records: Sequence[Audit], scene: Scene, settings: Refinement) -> Iterable[Audit]:
    """The records with the agreement of those that are left, which are scored together: an encoder embeds the image once."""
    left = [record.kept for record in records if record.decision == "keep"]
    scores = [float(score) for score in settings.agreement(scene, left)] if left else []
    if len(scores) != len(left):
        raise ValueError(f"agreement: {len(scores)} scores, expected {len(left)}, one a sentence")
    remaining = iter(scores)
    for record in records:
        if record.decision == "drop":
            yield record
            continue
        score = next(remaining)
        if not math.isfinite(score):
            raise ValueError(f"agreement of {record.kept!r}: {score}, expected a finite number")
        threshold = settings.thresholds.agreement
        scored = replace(record, agreement=score, agreement_by=settings.agreement_by, agreement_threshold=threshold)
        yield scored if score >= threshold else _dropped(scored, "score", "agreement")


def _dropped(record: Audit, stage: Literal["rule", "fact", "score"], reason: str) -> Audit:
    return replace(record, decision="drop", stage=stage, reason=reason, kept="")


_TYPES = {"str": pa.string(), "int": pa.int32(), "float | None": pa.float64(), "str | None": pa.string()}
#: Columns of the audit as a table, one row a sentence.
AUDIT_SCHEMA = pa.schema([(column.name, _TYPES.get(str(column.type), pa.string())) for column in fields(Audit)])


def audit_table(records: Iterable[Audit]) -> pa.Table:
    """The records as a table of AUDIT_SCHEMA."""
    return pa.Table.from_pylist([asdict(record) for record in records], schema=AUDIT_SCHEMA)


def write_audit(records: Iterable[Audit], path: str | Path | Location) -> None:
    """Writes the records as Parquet or as JSON, by the name's ending (.parquet, .json); local or s3://.

    A JSON file holds a list of objects; where a range has no end its value is null.
    """
    location = Location.of(path)
    if location.name.endswith(".parquet"):
        location.write_table(audit_table(records))
    elif location.name.endswith(".json"):
        rows = [{name: _finite(value) for name, value in asdict(record).items()} for record in records]
        location.write_bytes((json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    else:
        raise ValueError(f"path: {location.name!r}, expected a name that ends with .parquet or .json")


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
