"""Embedding and contrastive training on a cluster: the same bytes by any number of workers, and nothing computed twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raytraffic.config.environment import ContrastConfig, EmbedConfig, ScenesConfig
from raytraffic.environment.agreement import Calibration, read_calibration, refinement_by, write_calibration
from raytraffic.environment.embeddings import EmbeddingStore
from raytraffic.environment.encoder import ImageTextEncoder, encoder_address
from raytraffic.environment.places import open_describer, open_tiles, pairs, read_places
from raytraffic.on_ray.contrast import contrast
from raytraffic.on_ray.embed import embed
from raytraffic.training.contrast import contrast_alone
from tests.environment.test_encoder import mini

EAST, WEST = "synthetic:east?grid=4x4&seed=1", "synthetic:west?grid=3x3&seed=2"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    mini().save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same encoder, with a threshold that some sentences of every description fall below."""
    folder = tmp_path_factory.mktemp("calibrated")
    mini().save(folder)
    write_calibration(str(folder), calibration(folder))
    return str(folder)


def calibration(folder: Path) -> Calibration:
    address = encoder_address(folder)
    return Calibration(encoder=address, threshold=0.4, kept=0.9, sentences=99, true_kept=0.9, others_dropped=0.5)


def settings(out: Path, encoder: str, sites: tuple[str, ...] = (EAST, WEST), **changes: Any) -> EmbedConfig:
    scenes = ScenesConfig(sites=sites, pixels=16)
    return EmbedConfig(encoder=encoder, out=str(out), scenes=scenes, batch=4, sites_per_shard=6, **changes)


def summary(out: Path) -> dict[str, float]:
    return dict(json.loads((out / "summary.json").read_bytes()))


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.parquet"))}


def test_embedding_is_the_same_by_any_workers_and_computes_nothing_twice(cluster: None, tmp_path: Path, calibrated: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    embed(settings(one, calibrated, workers=1))
    embed(settings(two, calibrated, workers=2))
    assert files(one) == files(two) and len(files(one)) == 5 + 5 + 2  # shards, audits, index and failures
    assert summary(one)["computed"] == summary(one)["sites"] == 25

    config = settings(one, calibrated)
    places = read_places(config.scenes)
    model, threshold = ImageTextEncoder.load(calibrated), calibration(Path(calibrated))
    refinement = refinement_by(model, threshold)
    made = pairs(places, open_tiles(config.scenes), open_describer(config.scenes), config.scenes, refinement)
    scenes = made.pairs
    audit = pd.concat(pd.read_parquet(file) for file in sorted((one / "audit").iterdir()))
    assert set(audit["agreement_by"]) == {f"encoder {threshold.encoder[:16]}"} and set(audit["agreement_threshold"]) == {0.4}
    assert (audit["decision"] == "drop").tolist() == (audit["agreement"] < 0.4).tolist()
    assert 0 < (audit["decision"] == "drop").sum() == sum(record.decision == "drop" for record in made.audit)
    images, texts = EmbeddingStore.open(str(one)).read_both([pair.site for pair in scenes])
    assert np.allclose(images, model.images([pair.image for pair in scenes]).numpy(), atol=1e-6)
    assert np.allclose(texts, model.texts([pair.text for pair in scenes]).numpy(), atol=1e-6)

    before = files(one)
    embed(config)
    assert (summary(one)["computed"], summary(one)["kept"]) == (0, 25) and files(one) == before
    (one / "sites.parquet").unlink()  # as after a crash: the shards stand, the index was never written
    embed(config)
    assert (summary(one)["computed"], summary(one)["kept"]) == (0, 0) and files(one) == before


@pytest.mark.slow
def test_only_new_sites_are_computed_and_failures_say_why(cluster: None, tmp_path: Path, encoder: str) -> None:
    embed(settings(tmp_path, encoder, sites=(WEST,)))
    shards = set((tmp_path / "shards").iterdir())
    table = tmp_path / "sites.csv"
    west = read_places(ScenesConfig(sites=(WEST,)))
    rows = [("extra", "twin", west[0].latitude, west[0].longitude), ("extra", "lost", 0.0, west[0].longitude + 2)]
    pd.DataFrame(rows, columns=["city", "unique_id", "lat", "lon"]).to_csv(table, index=False)
    embed(settings(tmp_path, encoder, sites=(WEST, str(table))))
    told = summary(tmp_path)
    assert (told["kept"], told["computed"], told["failed"], told["sites"]) == (9, 1, 1, 10)
    assert shards < set((tmp_path / "shards").iterdir())
    (failure,) = pd.read_parquet(tmp_path / "failures.parquet").to_dict("records")
    assert failure["site"] == "extra/lost" and "expected a place in one of the synthetic cities" in failure["reason"]
    store = EmbeddingStore.open(str(tmp_path))
    assert np.array_equal(store.read(["extra/twin"], 1.0, 0.0), store.read([west[0].site], 1.0, 0.0))  # the same image
    with pytest.raises(ValueError, match="no embedding of extra/lost"):
        store.read(["extra/lost"])
    own = tmp_path / "own"
    mini().save(own)
    write_calibration(str(own), calibration(own))
    embed(settings(tmp_path, str(own), sites=(WEST,)))
    assert summary(tmp_path)["kept"] == 0, "another threshold, and the texts stayed"
    other = tmp_path / "other"
    mini(seed=1).save(other)
    with pytest.raises(ValueError, match="its vectors are of encoder"):
        embed(settings(tmp_path, str(other)))


@pytest.mark.slow
def test_two_workers_train_what_one_process_does(
    cluster: None, tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ContrastConfig(
        out=str(tmp_path / "two"),
        scenes=ScenesConfig(sites=(EAST, WEST), pixels=16),
        encoder=encoder,
        held_out=("west",),
        steps=4,
        batch=8,
        warmup=2,
        validate_every=2,
        workers=2,
    )
    folder = contrast(config)
    assert read_calibration(folder) is None and "agreement is not calibrated: others_dropped: " in capsys.readouterr().out
    monkeypatch.setattr("raytraffic.environment.agreement._OF_USE", 0.0)
    contrast(config)  # nothing is trained again; what is missing is fitted
    found = read_calibration(folder)
    assert found is not None and (found.encoder, found.kept) == (encoder_address(folder), 0.98)
    contrast_alone(replace(config, out=str(tmp_path / "one"), workers=1))
    rows = [json.loads((tmp_path / name / "metrics.json").read_bytes()) for name in ("one", "two")]
    assert [row["loss"] for row in rows[1]] == pytest.approx([row["loss"] for row in rows[0]], rel=1e-4)
    folders = (encoder, tmp_path / "one" / "encoder", tmp_path / "two" / "encoder")
    start, one_process, two_workers = (ImageTextEncoder.load(folder).texts(["no water is visible"]) for folder in folders)
    assert np.allclose(one_process, two_workers, atol=1e-3) and not np.allclose(one_process, start, atol=1e-3)
