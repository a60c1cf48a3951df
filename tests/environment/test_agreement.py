"""The agreement of sentences with images by an encoder, its calibrated threshold, and the file that goes with the encoder's weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from raytraffic.environment.agreement import (
    Calibration,
    EncoderAgreement,
    Judged,
    calibrate,
    judged,
    read_calibration,
    refinement_by,
    write_calibration,
)
from raytraffic.environment.describe import Description, Facts, Scene
from raytraffic.environment.encoder import encoder_address
from raytraffic.environment.refine import refine
from tests.environment.test_encoder import mini, pictures


class Compass:
    """An encoder that knows two things: an image is water by its blueness, and a sentence by the number of lakes or roads it names.

    An image (h, w, 3) of one colour (r, 0, b) and a sentence of "road" and "lake" become unit vectors in a plane.
    """

    def images(self, images: list[NDArray[np.uint8]], batch: int = 64) -> Tensor:
        return self._unit([(float(image[0, 0, 0]), float(image[0, 0, 2])) for image in images])

    def texts(self, texts: list[str], batch: int = 64) -> Tensor:
        return self._unit([(float(text.lower().count("road")), float(text.lower().count("lake"))) for text in texts])

    def _unit(self, rows: list[tuple[float, float]]) -> Tensor:
        return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


def flat(red: int, blue: int) -> NDArray[np.uint8]:
    return np.full((4, 4, 3), (red, 0, blue), dtype=np.uint8)


def land_and_water(pairs: int) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Land and water by turns, each with one true sentence; no two say the same."""
    images = [flat(200, 20) if number % 2 else flat(20, 200) for number in range(pairs)]
    texts = [f"A {'road' if number % 2 else 'lake'} lies at {number}." for number in range(pairs)]
    return images, texts


def scores(values: list[float], others: list[float]) -> Judged:
    return Judged(
        sentences=("a",) * len(values),
        scores=np.array(values),
        others=("b",) * len(others),
        scores_of_others=np.array(others),
        image_of_others=np.zeros(len(others), dtype=np.int64),
    )


CALIBRATION = Calibration(encoder="e" * 64, threshold=0.25, kept=0.9, sentences=40, true_kept=0.95, others_dropped=0.5)


@given(st.lists(st.floats(-1, 1), min_size=19, max_size=200), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_the_threshold_is_the_largest_score_that_keeps_so_many(values: list[float], kept: float) -> None:
    threshold = scores(values, []).threshold(kept)
    dropped = sum(value < threshold for value in values)
    n = len(values)
    assert dropped <= (n + 1) * (1 - kept) - 1 + 1e-6
    larger = [value for value in values if value > threshold]
    if larger:  # the next larger threshold would promise too much
        assert sum(value < min(larger) for value in values) + 1 > (n + 1) * (1 - kept) - 1e-6


def test_the_threshold_is_a_plain_rank() -> None:
    assert scores([i / 100 for i in range(1, 100)], []).threshold(0.98) == 0.02
    assert scores([i / 100 for i in range(1, 100)], []).threshold(0.5) == 0.5


def test_new_true_sentences_are_kept_as_often_as_was_asked() -> None:
    generator = np.random.default_rng(0)
    kept = []
    for _ in range(4000):
        values = generator.standard_normal(60)
        kept.append(values[-1] >= scores(list(values[:-1]), []).threshold(0.9))
    assert 0.9 - 0.01 < np.mean(kept) < 0.9 + 1 / 60 + 0.01  # the law says at least 0.9, and less than 1 / n more


@pytest.mark.parametrize(("count", "kept"), [(48, 0.98), (8, 0.9), (0, 0.5)])
def test_too_few_sentences_are_refused(count: int, kept: float) -> None:
    with pytest.raises(ValueError, match=rf"sentences: {count}, expected at least {count + 1} to keep {kept}"):
        scores([0.5] * count, []).threshold(kept)
    assert scores([0.5] * (count + 1), []).threshold(kept) == 0.5


@pytest.mark.parametrize("kept", [0.0, 1.0, math.nan])
def test_a_share_that_is_none_is_refused(kept: float) -> None:
    with pytest.raises(ValueError, match=r"kept: .*, expected a share in \(0, 1\)"):
        scores([0.5] * 10, []).threshold(kept)


def test_sentences_are_scored_with_their_own_image_and_with_one_they_were_not_said_of() -> None:
    images, texts = [flat(200, 0), flat(0, 200), flat(200, 0)], ["A road. No lake, no lake.", "A lake.", "A road."]
    found = judged(Compass(), images, texts)  # type: ignore[arg-type]
    assert found.sentences == ("A road.", "No lake, no lake.", "A lake.", "A road.")
    assert found.scores.tolist() == [1.0, 0.0, 1.0, 1.0]
    for sentence, score, image in zip(found.others, found.scores_of_others, found.image_of_others, strict=True):
        assert sentence not in texts[image]
        assert score == ("road" in sentence) * (image != 1) + ("lake" in sentence) * (image == 1)
    assert judged(Compass(), images, texts, seed=0).others == found.others  # type: ignore[arg-type]


def test_a_calibration_keeps_what_is_true_and_drops_what_was_said_of_others() -> None:
    images, texts = land_and_water(60)
    found = calibrate(Compass(), "address", images, texts, kept=0.95)  # type: ignore[arg-type]
    assert (found.encoder, found.kept, found.sentences, found.true_kept) == ("address", 0.95, 60, 1.0)
    assert found.threshold == pytest.approx(200 / math.hypot(200, 20))
    assert 0.3 < found.others_dropped < 0.7  # every second other image is of the other kind


def test_an_encoder_that_tells_nothing_apart_is_refused() -> None:
    images, texts = land_and_water(60)
    with pytest.raises(ValueError, match=r"others_dropped: 0.000 of the sentences of other images and 0.000 of the true ones, expected"):
        calibrate(Compass(), "address", [flat(100, 100)] * 60, texts, kept=0.95)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"others_dropped: 0\.000"):  # all say the same, so nobody says anything of others only
        calibrate(Compass(), "address", images, ["A road."] * 60, kept=0.95)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pairs: 1 images, 1 texts, expected as many, at least 2"):
        calibrate(Compass(), "address", images[:1], texts[:1])  # type: ignore[arg-type]


def test_a_calibration_decides_in_refinement_and_stands_in_the_audit() -> None:
    refinement = refinement_by(Compass(), replace(CALIBRATION, threshold=0.5))  # type: ignore[arg-type]
    scene = Scene(facts=Facts(site="a", longitude=0.0, latitude=0.0), image=flat(200, 50))
    found = refine(Description(site="a", describer="m", text="A road leads west. A lake lies there. The sky is blue."), scene, refinement)
    assert found.description.text == "A road leads west."
    kept, dropped, untold = found.audit
    assert kept.agreement == pytest.approx(200 / math.hypot(200, 50)) and dropped.agreement == pytest.approx(50 / math.hypot(200, 50))
    assert (dropped.decision, dropped.stage, dropped.reason) == ("drop", "score", "agreement")
    assert {(record.agreement_by, record.agreement_threshold) for record in (kept, dropped)} == {(f"encoder {'e' * 16}", 0.5)}
    assert (untold.reason, untold.agreement_by, untold.agreement_threshold) == ("sky", None, None)
    offline = refine(Description(site="a", describer="m", text="A road leads west."), scene).audit[0]
    assert (offline.agreement_by, offline.agreement_threshold) == ("image statistics", 0.15)


def test_a_sentence_s_score_is_a_cosine_whatever_stands_beside_it() -> None:
    encoder, (image, *_) = mini(), pictures(1)
    scene = Scene(facts=Facts(site="a", longitude=0.0, latitude=0.0), image=image)
    sentences = [f"{number} roads cross a field." for number in range(11)]
    found = EncoderAgreement(encoder)(scene, sentences)
    expected = (encoder.texts(sentences) @ encoder.images([image])[0]).tolist()
    assert found == pytest.approx(expected, abs=1e-6)
    assert [EncoderAgreement(encoder)(scene, [sentence])[0] for sentence in sentences] == found
    with pytest.raises(ValueError, match="image of 'a': none, expected one"):
        EncoderAgreement(encoder)(replace(scene, image=None), sentences)


def test_a_calibration_lies_with_the_weights_that_it_is_of(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    mini().save(first)
    mini(seed=1).save(second)
    assert read_calibration(str(first)) is None
    calibration = replace(CALIBRATION, encoder=encoder_address(first))
    write_calibration(str(first), calibration)
    assert read_calibration(str(first)) == calibration
    assert encoder_address(first) == calibration.encoder, "vectors would be of another encoder"
    with pytest.raises(ValueError, match=r"calibration\.json: of encoder .*, expected that of .*, which lies there"):
        write_calibration(str(second), calibration)
    mini(seed=1).save(first)
    with pytest.raises(ValueError, match=r"calibration\.json: of encoder .*; delete it, or calibrate again"):
        read_calibration(str(first))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": math.nan}, "expected a cosine"),
        ({"threshold": 1.5}, "expected a cosine"),
        ({"kept": -0.1}, r"kept: -0.1, expected a share in \[0, 1\]"),
        ({"threshold": "high"}, "threshold: 'high', expected"),
        ({"extra": 1}, "extra: unknown field"),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    mini().save(tmp_path)
    (tmp_path / "calibration.json").write_text(json.dumps({**vars(CALIBRATION), "encoder": encoder_address(tmp_path), **change}))
    with pytest.raises(ValueError, match=message):
        read_calibration(str(tmp_path))
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(ValueError, match=r"calibration\.json: .*, expected a calibration as JSON"):
        read_calibration(str(tmp_path))
