"""Contrastive training on synthetic tiles: retrieval among pairs of cities that were never seen, and what the encoder knows of sentences.

python benchmarks/contrast.py [--cities 12] [--held-out 3] [--cells 16] [--steps 400] [--sentences 0.5] [--json figures.json] [--quick]

Texts are the template describer's of image and POI, cut at CLIP's 77 tokens; recall@k is that of raytraffic.environment.contrastive:
pairs of one caption are right answers to each other, and ties count against. `over_chance` is image-to-text recall@1 over that of blind
guessing among the same candidates. One process, one thread, no Ray: `training_cpu_seconds` is what an idle core takes.

Agreement: the threshold that is to keep 98 % of true sentences is fitted on all held-out cities but one and measured on that one, for each
of them in turn. `true_kept` is the share of its sentences that is kept, `others_dropped` the share dropped of sentences said of another
image of that city, and `false_dropped` that among those of them which the statistics of the image disprove; each also by what the sentence
is about. Sentences of other images are often true by chance. `calibrated` is the share of the fits that found the encoder of use.
"""

from __future__ import annotations

import json as json_
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from measure import write_figures

from raytraffic.config.environment import ContrastConfig, ScenesConfig
from raytraffic.environment.agreement import calibrate, judged
from raytraffic.environment.checks import Tolerances, findings
from raytraffic.environment.describe import Facts
from raytraffic.environment.encoder import ImageTextEncoder
from raytraffic.environment.statistics import image_statistics
from raytraffic.environment.tiles import RgbImage
from raytraffic.training.contrast import contrast_alone
from raytraffic.training.pairs import Pairs, make_part, missing_parts, read_pairs

#: What a sentence of the template is about, by its words; the first that fits.
_ABOUT: Mapping[str, str] = {
    "vegetation": r"\bvegetation\b",
    "water": r"\bwater\b",
    "bare_soil": r"\bbare soil\b",
    "built_up": r"\bbuilt-up land\b",
    "paved": r"\bpaved surface\b",
    "poi_total": r"\bpoints? of interest\b",
    "poi_category": r"",
}
_KEPT = 0.98
#: Shares of fewer false sentences than this are not told.
_ENOUGH = 20


def main(
    cities: int = 12,
    held_out: int = 3,
    cells: int = 16,
    steps: int = 400,
    batch: int = 64,
    sentences: float = 0.0,
    learning_rate: float = 1e-3,
    seed: int = 0,
    json: Path | None = None,
    quick: bool = False,
) -> None:
    """Train the tiny encoder and measure retrieval and agreement.

    Args:
        cities: Synthetic cities in all.
        held_out: Cities of them that are not trained on, at least 2.
        cells: Cells of a city along a side.
        steps: Training steps.
        batch: Pairs of a step.
        sentences: Share of a step's texts of which one sentence stands for the whole.
        learning_rate: The highest, after warm-up.
        seed: Of the encoder's first weights and of the order of pairs; the cities stay the same.
        json: Where the figures are written.
        quick: Few cells and steps: shows that it runs, measures nothing.
    """
    cities, held_out, cells, steps, batch = (4, 2, 4, 4, 8) if quick else (cities, held_out, cells, steps, batch)
    names = [f"city-{number:02d}" for number in range(cities)]
    scenes = ScenesConfig(sites=tuple(f"synthetic:{name}?grid={cells}x{cells}&seed=0" for name in names))
    with tempfile.TemporaryDirectory() as folder:
        config = ContrastConfig(
            out=folder,
            scenes=scenes,
            held_out=tuple(names[-held_out:]),
            steps=steps,
            batch=batch,
            sentences=sentences,
            learning_rate=learning_rate,
            seed=seed,
        )
        began = time.monotonic()
        for number, places in missing_parts(config):
            make_part(config, number, places)
        made, worked = time.monotonic(), time.process_time()
        encoder = ImageTextEncoder.load(contrast_alone(config))
        trained, spent = time.monotonic(), time.process_time() - worked
        found = json_.loads((Path(folder) / "retrieval.json").read_bytes())
        pairs, apart = read_pairs(config)
        by_city = [read_pairs(replace(config, held_out=(name,)))[1] for name in config.held_out]
    figures = {
        "candidates": float(found["candidates"]),
        "distinct_captions": float(len(set(apart.texts))),
        "training_pairs": float(len(pairs)),
        "parameters": float(sum(parameter.numel() for parameter in encoder.parameters())),
        "chance_at_1": found["chance"]["1"],
        "image_to_text_at_1": found["image_to_text"]["1"],
        "image_to_text_at_5": found["image_to_text"]["5"],
        "text_to_image_at_1": found["text_to_image"]["1"],
        "text_to_image_at_5": found["text_to_image"]["5"],
        "over_chance": found["image_to_text"]["1"] / found["chance"]["1"],
        "pairs_seconds": made - began,
        "training_seconds": trained - made,
        "training_cpu_seconds": spent,
    }
    write_figures(figures | agreement_figures(encoder, by_city), json)


def agreement_figures(encoder: ImageTextEncoder, cities: Sequence[Pairs]) -> dict[str, float]:
    """Shares kept and dropped in each city by the threshold of the others, in all and by what sentences are about."""
    rows, calibrated = [], []
    for number, city in enumerate(cities):
        fitted = [other for at, other in enumerate(cities) if at != number]
        images, texts = [image for one in fitted for image in one.images], [text for one in fitted for text in one.texts]
        threshold = judged(encoder, images, texts).threshold(_KEPT)
        calibrated.append(_of_use(encoder, images, texts))
        rows += list(_dropped(encoder, city, threshold))
    table = pd.DataFrame(rows, columns=["about", "said_of", "dropped"])
    figures = {"calibrated": float(np.mean(calibrated)), "sentences": float((table["said_of"] == "own").sum())}
    for suffix, part in [("", table), *((f"_{about}", table[table["about"] == about]) for about in _ABOUT)]:
        figures[f"true_kept{suffix}"] = 1 - float(part.loc[part["said_of"] == "own", "dropped"].mean())
        figures[f"others_dropped{suffix}"] = float(part.loc[part["said_of"] != "own", "dropped"].mean())
        false = part.loc[part["said_of"] == "false", "dropped"]
        if len(false) >= _ENOUGH:
            figures[f"false_dropped{suffix}"] = float(false.mean())
    return figures


def _of_use(encoder: ImageTextEncoder, images: Sequence[RgbImage], texts: Sequence[str]) -> bool:
    try:
        calibrate(encoder, "benchmark", images, texts, kept=_KEPT)
    except ValueError:
        return False
    return True


def _dropped(encoder: ImageTextEncoder, city: Pairs, threshold: float) -> Iterator[tuple[str, str, bool]]:
    """What each sentence is about, whether it was said of its image ("own") or of another and is disproved ("false") or not ("other"), and
    its fate."""
    scored = judged(encoder, list(city.images), city.texts)
    for sentence, score in zip(scored.sentences, scored.scores, strict=True):
        yield _about(sentence), "own", bool(score < threshold)
    facts = [Facts(site=str(row), longitude=0.0, latitude=0.0, statistics=image_statistics(image)) for row, image in enumerate(city.images)]
    for sentence, score, row in zip(scored.others, scored.scores_of_others, scored.image_of_others, strict=True):
        false = any(not claim.holds for claim in findings(sentence, facts[row], None, Tolerances()))
        yield _about(sentence), "false" if false else "other", bool(score < threshold)


def _about(sentence: str) -> str:
    return next(about for about, words in _ABOUT.items() if re.search(words, sentence, re.IGNORECASE))


if __name__ == "__main__":
    tyro.cli(main)
