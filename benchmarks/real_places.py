"""The whole path from real images to stored vectors: captions refined, an encoder trained on the pairs, vectors embedded and read back.

python benchmarks/real_places.py --data DATA --out FOLDER [--steps 200] [--json figures.json] [--quick]

DATA holds urbanclip (18 captioned satellite tiles of a map) and opendiff_shanghai (9 regions with traffic). FOLDER gets the audit of the
captions, the encoder, the embedding store, and sheet.png, on which every tile stands beside what was kept and dropped of its caption:
real images and texts, for the eye and not for redistribution. Retrieval among six pairs says little: chance is 1 in 6.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from measure import write_figures
from refinement import Captioned, read_captions, refined
from scipy.stats import spearmanr

from raytraffic.environment.contrastive import info_nce, retrieval
from raytraffic.environment.describe import Facts, Scene, TemplateDescriber
from raytraffic.environment.embeddings import EmbeddingStore, Entry, content_key
from raytraffic.environment.encoder import ImageTextEncoder, encoder_address
from raytraffic.environment.places import Pair
from raytraffic.environment.refine import Audit, refine, write_audit
from raytraffic.environment.statistics import image_statistics
from raytraffic.files import Location
from raytraffic.fit import Optimisation, optimiser, update

#: Tiles that are trained on; the others are what retrieval is measured on.
_TRAINED = 12
_SHANGHAI = (121.47, 31.23)


def main(data: Path, out: Path, steps: int = 200, json: Path | None = None, quick: bool = False) -> None:
    """Run the path.

    Args:
        data: The folder of the real data.
        out: Where audit, encoder, embedding store and sheet are written.
        steps: Training steps of the encoder.
        json: Where the figures are written.
        quick: Few steps: shows that it runs, measures nothing.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    captions = read_captions(data / "urbanclip")
    tiles = [captions[name] for name in sorted(captions) if captions[name].image is not None]
    audits = {one.tile: refined(one) for one in tiles}
    write_audit([record for records in audits.values() for record in records], out / "audit.parquet")
    sheet(tiles, audits, out / "sheet.png")
    pairs = [pair for one in tiles if (pair := _pair(one, audits[one.tile])) is not None]
    figures = {
        "tiles": float(len(tiles)),
        "sentences": float(sum(map(len, audits.values()))),
        "sentences_dropped": float(sum(record.decision == "drop" for records in audits.values() for record in records)),
        "pairs": float(len(pairs)),
    }

    encoder = ImageTextEncoder.create("tiny", seed=0)
    held_out = pairs[_TRAINED:]
    figures["recall_before"] = _recall(encoder, held_out)
    figures |= _trained(encoder, pairs[:_TRAINED], 5 if quick else steps)
    figures["recall_after"], figures["recall_by_heart"] = _recall(encoder, held_out), _recall(encoder, pairs[:_TRAINED])
    figures["chance"] = 1 / len(held_out)
    encoder.save(out / "encoder")

    regions, traffic = _regions(data / "opendiff_shanghai" / "shanghai_9regions.npz")
    store = _embedded(encoder, [*pairs, *regions], out)
    z_env = store.read([region.site for region in regions])
    distance = np.linalg.norm(z_env[:, None] - z_env[None], axis=-1)[~np.eye(len(regions), dtype=bool)]
    figures |= {"regions": float(len(regions)), "dimension": float(store.dimension), "least_distance": float(distance.min())}
    built = [image_statistics(region.image).built for region in regions]
    figures["built_share_and_mean_traffic_spearman"] = float(spearmanr(built, traffic.mean(axis=1)).statistic)
    write_figures(figures, json)


def _pair(one: Captioned, audit: list[Audit]) -> Pair | None:
    """A tile with what is left of its caption; None where nothing is."""
    assert one.image is not None
    text = " ".join(record.kept for record in audit if record.decision == "keep")
    return Pair(site=one.tile, image=one.image, text=text) if text else None


def _trained(encoder: ImageTextEncoder, pairs: list[Pair], steps: int) -> dict[str, float]:
    """Trains on all pairs at once, and returns the first and last loss."""
    settings = Optimisation(learning_rate=1e-3, warmup=10, steps=steps)
    adam = optimiser(encoder.train(), settings)
    pixels, tokens = encoder.prepare([pair.image for pair in pairs]), encoder.tokenise([pair.text for pair in pairs])
    losses = []
    for step in range(steps):
        loss = info_nce(*encoder(pixels, tokens))
        loss.backward()
        update(encoder, adam, step, settings)
        encoder.clamp_temperature()
        losses.append(float(loss.detach()))
    encoder.eval()
    return {"loss_first": losses[0], "loss_last": losses[-1]}


@torch.no_grad()
def _recall(encoder: ImageTextEncoder, pairs: list[Pair]) -> float:
    """Image-to-text recall@1 among the pairs."""
    texts = [pair.text for pair in pairs]
    encoder.eval()
    return retrieval(encoder.images([pair.image for pair in pairs]), encoder.texts(texts), texts).image_to_text[1]


def _regions(file: Path) -> tuple[list[Pair], np.ndarray]:
    """The regions as pairs, described by what their images show (the file has no coordinates: the city's are used), and their traffic."""
    content = np.load(file)
    images = content["images"]
    facts = [
        Facts(site=f"shanghai/{name}", longitude=_SHANGHAI[0], latitude=_SHANGHAI[1], statistics=image_statistics(image))
        for name, image in zip(content["image_name"].tolist(), images, strict=True)
    ]
    scenes = [Scene(facts=one, image=image) for one, image in zip(facts, images, strict=True)]
    told = TemplateDescriber(topics=("image",)).describe(scenes)
    texts = [refine(description, scene).description.text for description, scene in zip(told, scenes, strict=True)]
    return [Pair(site=one.site, image=image, text=text) for one, image, text in zip(facts, images, texts, strict=True)], content["traffic"]


@torch.no_grad()
def _embedded(encoder: ImageTextEncoder, pairs: list[Pair], out: Path) -> EmbeddingStore:
    """A store of the pairs' vectors."""
    address = encoder_address(out / "encoder")
    store = EmbeddingStore.create(Location.of(out / "environment"), address, encoder.dimension)
    keys = {pair.site: content_key(address, pair.image, pair.text) for pair in pairs}
    content = {keys[pair.site]: pair for pair in pairs}
    images = encoder.images([pair.image for pair in content.values()]).numpy()
    shard = store.write(list(content), images, encoder.texts([pair.text for pair in content.values()]).numpy())
    store.record({site: Entry(key=key, shard=shard, request="") for site, key in keys.items()})
    return store


def sheet(tiles: list[Captioned], audits: dict[str, list[Audit]], file: Path) -> None:
    """Every tile beside its caption's sentences: kept, or dropped with the reason."""
    figure, axes = plt.subplots(len(tiles), 2, figsize=(13, 2.6 * len(tiles)), width_ratios=(1, 4), layout="constrained")
    for one, (left, right) in zip(tiles, axes, strict=True):
        left.imshow(one.image)
        left.set_title(one.tile, fontsize=7)
        lines = []
        for record in audits[one.tile]:
            mark = "keep" if record.decision == "keep" else f"drop, {record.stage} {record.reason}"
            lines += textwrap.wrap(f"[{mark}] {record.text}", 120)
        right.text(0, 1, "\n".join(lines), fontsize=8, va="top", transform=right.transAxes)
        for axis in (left, right):
            axis.set_axis_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=70)
    plt.close(figure)


if __name__ == "__main__":
    tyro.cli(main)
