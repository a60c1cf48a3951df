"""Contrastive training on synthetic tiles, and retrieval among pairs of cities that were never seen.

python benchmarks/contrast.py [--cities 12] [--held-out 3] [--cells 16] [--steps 400] [--batch 64] [--json figures.json] [--quick]

Texts are the template describer's of image and POI, cut at CLIP's 77 tokens; recall@k is that of raytraffic.environment.contrastive:
pairs of one caption are right answers to each other, and ties count against. `over_chance` is image-to-text recall@1 over that of blind
guessing among the same candidates. One process, one thread, no Ray: `training_cpu_seconds` is what an idle core takes.
"""

from __future__ import annotations

import json as json_
import tempfile
import time
from pathlib import Path

import tyro
from measure import write_figures

from raytraffic.config.environment import ContrastConfig, ScenesConfig
from raytraffic.environment.encoder import ImageTextEncoder
from raytraffic.training.contrast import contrast_alone
from raytraffic.training.pairs import make_part, missing_parts, read_pairs


def main(
    cities: int = 12,
    held_out: int = 3,
    cells: int = 16,
    steps: int = 400,
    batch: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    json: Path | None = None,
    quick: bool = False,
) -> None:
    """Train the tiny encoder and measure retrieval.

    Args:
        cities: Synthetic cities in all.
        held_out: Cities of them that are not trained on.
        cells: Cells of a city along a side.
        steps: Training steps.
        batch: Pairs of a step.
        learning_rate: The highest, after warm-up.
        seed: Of the encoder's first weights and of the order of pairs; the cities stay the same.
        json: Where the figures are written.
        quick: Few cells and steps: shows that it runs, measures nothing.
    """
    cities, held_out, cells, steps, batch = (3, 1, 4, 4, 8) if quick else (cities, held_out, cells, steps, batch)
    names = [f"city-{number:02d}" for number in range(cities)]
    scenes = ScenesConfig(sites=tuple(f"synthetic:{name}?grid={cells}x{cells}&seed=0" for name in names))
    with tempfile.TemporaryDirectory() as folder:
        config = ContrastConfig(
            out=folder,
            scenes=scenes,
            held_out=tuple(names[-held_out:]),
            steps=steps,
            batch=batch,
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
    write_figures(
        {
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
        },
        json,
    )


if __name__ == "__main__":
    tyro.cli(main)
