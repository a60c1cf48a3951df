"""Refinement of machine-written captions against sentences labelled by hand: precision and recall of what it drops, and of each rule.

python benchmarks/refinement.py --data DATA --labels tests/environment/urbanclip_labels.json [--json figures.json]

DATA holds urbanclip/captions_2000.parquet and urbanclip/tiles_z16_24.npz. The labelled sentences were drawn by `draw` and labelled
before any rule was written; the rules were written and tuned on the other captions only. Precision is the share of labelled sentences
that should be dropped among those that were, recall the share of those that were dropped among those that should be. A rule's recall
is its share of all that should be dropped: the rules' add up to the whole's.
"""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from measure import write_figures

from raytraffic.environment.describe import Description, Facts, Scene
from raytraffic.environment.refine import Audit, refine, write_audit
from raytraffic.environment.sentences import split_sentences
from raytraffic.environment.statistics import image_statistics
from raytraffic.environment.tiles import RgbImage

#: A pixel of these tiles: they are of a map service whose zoom 16 has 1,024 m of the equator a tile, as names and coordinates show.
_METRES_AT_EQUATOR = 4.0
_SEED = 20240607


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """A tile of the map, its caption and its image where there is one."""

    tile: str
    caption: str
    longitude: float
    latitude: float
    image: RgbImage | None = None


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a reader decided of a sentence, "keep" or "drop", and why in a word."""

    tile: str
    sentence: int
    label: str
    reason: str


def read_captions(folder: Path) -> dict[str, Captioned]:
    """The captioned tiles by name, those with an image included; their coordinates are their city's where the table has none."""
    table = pd.read_parquet(folder / "captions_2000.parquet")
    rows = zip(table["tile"], table["caption"], table["lon"], table["lat"], strict=True)
    found = {tile: Captioned(tile=tile, caption=caption, longitude=lon, latitude=lat) for tile, caption, lon, lat in rows}
    places = table.groupby(table["tile"].str.split("/").str[0])[["lon", "lat"]].mean()
    tiles = np.load(folder / "tiles_z16_24.npz")
    for name, image, caption in zip(tiles["name"].tolist(), tiles["images"], tiles["caption"].tolist(), strict=True):
        if caption:
            longitude, latitude = places.loc[name.split("/")[0]]
            found[name] = Captioned(tile=name, caption=caption, longitude=longitude, latitude=latitude, image=image)
    return found


def draw(captions: Mapping[str, Captioned]) -> tuple[list[str], list[tuple[str, int]]]:
    """200 tiles, 9 of the 18 with an image and 191 of the others, and 100 of their sentences, 40 and 60 of the two kinds.

    The other 9 tiles with an image, and all captions that are not drawn, are what the rules were tuned on.
    """
    generator = np.random.default_rng(_SEED)
    pictured = sorted(tile for tile, one in captions.items() if one.image is not None)
    others = sorted(set(captions) - set(pictured))
    tiles, sentences = [], []
    for names, count in ((pictured, 9), (others, 191)):
        tiles.append(sorted(names[i] for i in generator.permutation(len(names))[:count]))
    for names, count in zip(tiles, (40, 60), strict=True):
        all_of_them = [(tile, i) for tile in names for i in range(len(split_sentences(captions[tile].caption)))]
        sentences += [all_of_them[i] for i in sorted(generator.permutation(len(all_of_them))[:count])]
    return [*tiles[0], *tiles[1]], sentences


def read_labels(file: Path, drawn: Iterable[tuple[str, int]]) -> list[Label]:
    """The labels; ValueError where they are not those of the draw."""
    labels = [Label(**row) for row in json_module.loads(file.read_text(encoding="utf-8"))["labels"]]
    if [(label.tile, label.sentence) for label in labels] != list(drawn):
        raise ValueError(f"{file}: {len(labels)} labels, expected those of the sentences that the draw chose, in its order")
    return labels


def refined(one: Captioned) -> list[Audit]:
    """The records of a caption, by the tile's place, scale and statistics; without an image nothing is known of its colours."""
    image = np.zeros((256, 256, 3), dtype=np.uint8) if one.image is None else one.image
    statistics = None if one.image is None else image_statistics(one.image)
    facts = Facts(site=one.tile, longitude=one.longitude, latitude=one.latitude, statistics=statistics)
    metres = _METRES_AT_EQUATOR * math.cos(math.radians(one.latitude))
    description = Description(site=one.tile, describer="UrbanCLIP", text=one.caption)
    return list(refine(description, Scene(facts=facts, image=image), metres_per_pixel=metres).audit)


def figures_of(labels: Iterable[Label], records: Mapping[tuple[str, int], Audit], pictured: Container[str]) -> dict[str, float]:
    """Precision and recall overall, of tiles with and without an image, by rule, and recall by the reader's reason."""
    pairs = [(label, records[label.tile, label.sentence]) for label in labels]
    wanted = [label for label, _ in pairs if label.label == "drop"]
    figures = {"sentences": float(len(pairs)), "labelled_drop": float(len(wanted))} | _quality("", pairs, len(wanted))
    for name, has_image in (("pictured_", True), ("unpictured_", False)):
        of_kind = [pair for pair in pairs if (pair[0].tile in pictured) == has_image]
        figures |= _quality(name, of_kind, sum(label.label == "drop" for label, _ in of_kind))
    for name in sorted({_rule(record) for _, record in pairs if record.decision == "drop"}):
        figures |= _quality(f"{name}_", [pair for pair in pairs if _rule(pair[1]) == name], len(wanted))
    for reason in sorted({label.reason for label in wanted}):
        of_reason = [record for label, record in pairs if label.reason == reason]
        figures[f"recall_of_{reason}"] = sum(record.decision == "drop" for record in of_reason) / len(of_reason)
    return figures


def _quality(prefix: str, pairs: list[tuple[Label, Audit]], wanted: int) -> dict[str, float]:
    dropped = [label for label, record in pairs if record.decision == "drop"]
    right = sum(label.label == "drop" for label in dropped)
    return {f"{prefix}dropped": float(len(dropped)), f"{prefix}precision": right / len(dropped), f"{prefix}recall": right / wanted}


def _rule(record: Audit) -> str:
    return f"{record.stage}_{record.reason}".replace(" ", "_")


def main(data: Path, labels: Path, json: Path | None = None, audit: Path | None = None, disagreements: bool = False) -> None:
    """Refine the 200 captions of the draw and compare.

    Args:
        data: The folder that holds urbanclip.
        labels: What a reader decided of the drawn sentences.
        json: Where the figures are written.
        audit: Where the audit of all 200 captions is written (.parquet or .json).
        disagreements: Print the sentences that reader and refinement judge differently.
    """
    captions = read_captions(data / "urbanclip")
    tiles, drawn = draw(captions)
    judged = read_labels(labels, drawn)
    records = [record for tile in tiles for record in refined(captions[tile])]
    by_sentence = {(record.site, record.sentence): record for record in records}
    pictured = {tile for tile in tiles if captions[tile].image is not None}
    whole = {
        "captions": float(len(tiles)),
        "captions_sentences": float(len(records)),
        "captions_dropped": float(sum(record.decision == "drop" for record in records)),
        "captions_trimmed": float(sum(record.decision == "keep" and record.trims != "" for record in records)),
    }
    write_figures(whole | figures_of(judged, by_sentence, pictured), json)
    if audit is not None:
        write_audit(records, audit)
    for label in judged if disagreements else []:
        record = by_sentence[label.tile, label.sentence]
        if record.decision != label.label:
            print(f"{label.label} ({label.reason}), was {record.decision} {_rule(record)}: {record.text}")


if __name__ == "__main__":
    tyro.cli(main)
