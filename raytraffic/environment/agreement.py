"""Which sentences agree with an image by an image-text encoder: the second of LEC-Diff's two scores, and the threshold on it.

    agreement(image, sentence) = cos(f_I(image), f_T(sentence))

Every encoder has a scale of its own, so the threshold is measured on pairs that it was not trained on. Of the scores of n true sentences,
each with its own image, the threshold is the j-th smallest, j = floor((n + 1)(1 - kept)): a new true sentence then scores at least as
much with probability `kept` or more (split conformal). What the encoder is worth is the share of sentences of other images that score
less. It is kept beside the weights, as calibration.json, and names the encoder that it is of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raytraffic.config import from_json, to_json
from raytraffic.environment.describe import Scene
from raytraffic.environment.encoder import ImageTextEncoder, encoder_address
from raytraffic.environment.refine import Refinement
from raytraffic.environment.score import Thresholds
from raytraffic.environment.sentences import split_sentences
from raytraffic.environment.tiles import RgbImage
from raytraffic.files import Location

__all__ = ["Calibration", "EncoderAgreement", "Judged", "calibrate", "judged", "read_calibration", "refinement_by", "write_calibration"]

_FILE = "calibration.json"
#: An encoder is of use where it drops sentences of other images at least so many times as often as true ones.
_OF_USE = 2.0
#: Texts that are computed together; a description has about so many.
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The threshold of one encoder.

    encoder            its content address
    threshold          sentences that score less are dropped
    kept               the share of true sentences that it was chosen to keep
    sentences          how many true ones it was chosen on, and the shares of
    true_kept          these that it keeps,
    others_dropped     sentences of other images that it drops
    """

    encoder: str
    threshold: float
    kept: float
    sentences: int
    true_kept: float
    others_dropped: float

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold: {self.threshold}, expected a cosine")
        for name in ("kept", "true_kept", "others_dropped"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a share in [0, 1]")


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """True sentences with the scores (n,) that they have with their own image, and `others` with those (m,) that they have with an image
    of which they were not said: that of the pair `image_of_others` (m,)."""

    sentences: tuple[str, ...]
    scores: NDArray[np.float64]
    others: tuple[str, ...]
    scores_of_others: NDArray[np.float64]
    image_of_others: NDArray[np.int64]

    def threshold(self, kept: float) -> float:
        """By this file's rule; ValueError where so few sentences cannot tell."""
        if not 0 < kept < 1:
            raise ValueError(f"kept: {kept}, expected a share in (0, 1)")
        rank = math.floor((len(self.scores) + 1) * (1 - kept) + 1e-9)  # 100 * (1 - 0.98) is a little less than 2
        if rank < 1:
            raise ValueError(
                f"sentences: {len(self.scores)}, expected at least {math.ceil(1 / (1 - kept) - 1e-9) - 1} to keep {kept:g} of them"
            )
        return float(np.sort(self.scores)[rank - 1])


def judged(encoder: ImageTextEncoder, images: Sequence[RgbImage], texts: Sequence[str], seed: int = 0) -> Judged:
    """Scores each sentence of n pairs with its own image, and with one of another pair, drawn by a seed, whose text does not say it too.

    ValueError for fewer than two pairs.
    """
    if not len(images) == len(texts) >= 2:
        raise ValueError(f"pairs: {len(images)} images, {len(texts)} texts, expected as many, at least 2")
    said = [split_sentences(text) for text in texts]
    sentences = tuple(sentence for some in said for sentence in some)
    own = np.repeat(np.arange(len(said)), [len(some) for some in said])
    other = (own + np.random.default_rng(seed).integers(1, len(said), len(own))) % len(said)
    foreign = np.array([sentence not in said[image] for sentence, image in zip(sentences, other, strict=True)], dtype=bool)
    distinct = {sentence: row for row, sentence in enumerate(dict.fromkeys(sentences))}
    rows = np.array([distinct[sentence] for sentence in sentences])
    seen = encoder.images(list(images)).numpy().astype(np.float64)
    read = encoder.texts(list(distinct)).numpy().astype(np.float64)[rows]
    return Judged(
        sentences=sentences,
        scores=(seen[own] * read).sum(axis=1),
        others=tuple(sentence for sentence, kept in zip(sentences, foreign, strict=True) if kept),
        scores_of_others=(seen[other] * read).sum(axis=1)[foreign],
        image_of_others=other[foreign],
    )


def calibrate(
    encoder: ImageTextEncoder, address: str, images: Sequence[RgbImage], texts: Sequence[str], *, kept: float = 0.98
) -> Calibration:
    """The calibration of an encoder with this content address, on n pairs that it was not trained on.

    ValueError where the pairs hold too few sentences, or the encoder hardly tells true ones from those of other images.
    """
    scored = judged(encoder, images, texts)
    threshold = scored.threshold(kept)
    true_kept = float((scored.scores >= threshold).mean())
    dropped = float((scored.scores_of_others < threshold).mean()) if scored.others else 0.0
    if dropped < _OF_USE * (1 - kept):
        raise ValueError(
            f"others_dropped: {dropped:.3f} of the sentences of other images and {1 - true_kept:.3f} of the true ones, expected at least "
            f"{_OF_USE * (1 - kept):.3f}; the encoder does not know what single sentences mean"
        )
    return Calibration(
        encoder=address, threshold=threshold, kept=kept, sentences=len(scored.sentences), true_kept=true_kept, others_dropped=dropped
    )


def write_calibration(folder: Location | str, calibration: Calibration) -> None:
    """Keeps a calibration beside the weights that it is of; ValueError where the folder holds others."""
    _check(Location.of(folder), calibration)
    Location.of(folder).child(_FILE).write_bytes((json.dumps(to_json(calibration), indent=1) + "\n").encode())


def read_calibration(folder: Location | str) -> Calibration | None:
    """The calibration of the encoder in a folder (local or s3://), None where it has none; ValueError for a file that is no calibration, or
    of another encoder."""
    file = Location.of(folder).child(_FILE)
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}, expected a calibration as JSON") from None
    calibration = from_json(Calibration, content, str(file))
    _check(Location.of(folder), calibration)
    return calibration


def _check(folder: Location, calibration: Calibration) -> None:
    address = encoder_address(folder)
    if calibration.encoder != address:
        found = f"of encoder {calibration.encoder[:16]}"
        raise ValueError(
            f"{folder.child(_FILE)}: {found}, expected that of {address[:16]}, which lies there; delete it, or calibrate again"
        )


@dataclass(frozen=True, eq=False)
class EncoderAgreement:
    """An Agreement (raytraffic.environment.score): the cosines of an encoder."""

    encoder: ImageTextEncoder

    def __call__(self, scene: Scene, sentences: Sequence[str]) -> list[float]:
        """See Agreement; ValueError for a scene without an image."""
        if scene.image is None:
            raise ValueError(f"image of {scene.facts.site!r}: none, expected one to compare its sentences with")
        image = self.encoder.images([scene.image], batch=1).numpy().astype(np.float64)
        texts = self.encoder.texts(list(sentences), batch=_BATCH).numpy().astype(np.float64)
        scores: list[float] = (texts * image).sum(axis=1).tolist()  # row by row, so that none hangs on the others
        return scores


def refinement_by(encoder: ImageTextEncoder, calibration: Calibration) -> Refinement:
    """Refinement whose agreement is this encoder's, with its threshold."""
    return Refinement(
        thresholds=Thresholds(agreement=calibration.threshold),
        agreement=EncoderAgreement(encoder),
        agreement_by=f"encoder {calibration.encoder[:16]}",
    )
