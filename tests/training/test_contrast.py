"""Contrastive training in one process: it learns, goes on where it was, and says what is wrong before it starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raytraffic.config.environment import ContrastConfig, ScenesConfig
from raytraffic.environment.agreement import read_calibration
from raytraffic.environment.encoder import ImageTextEncoder, encoder_address
from raytraffic.environment.sentences import split_sentences
from raytraffic.training.contrast import ContrastRun, contrast_alone
from raytraffic.training.pairs import make_part, missing_parts, read_pairs
from raytraffic.training.run import Worker
from tests.environment.test_encoder import mini

CITIES = ("synthetic:east?grid=4x4&seed=1", "synthetic:west?grid=3x3&seed=2")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a very small encoder."""
    folder = tmp_path_factory.mktemp("start")
    mini().save(folder)
    return str(folder)


def settings(out: Path, start: str, **changes: Any) -> ContrastConfig:
    values: dict[str, Any] = {"steps": 6, "batch": 8, "warmup": 2, "validate_every": 3, "pairs_per_part": 10, "held_out": ("west",)}
    scenes = ScenesConfig(sites=CITIES, pixels=16)
    return ContrastConfig(out=str(out), scenes=scenes, encoder=start, **{**values, **changes})


def read(file: Path) -> Any:
    return json.loads(file.read_bytes())


def test_training_lowers_the_loss_and_measures_unseen_cities(tmp_path: Path, start: str) -> None:
    contrast_alone(settings(tmp_path, start, steps=60, learning_rate=0.01, validate_every=20))
    rows = read(tmp_path / "metrics.json")
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    found = read(tmp_path / "retrieval.json")
    assert found["candidates"] == 9 and found["step"] == 60
    assert rows[-1]["image_to_text@1"] == found["image_to_text"]["1"]


def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = contrast_alone(settings(tmp_path / "whole", start))
    own = ContrastRun.step

    def dies(run: ContrastRun) -> Tensor:
        if run.done == 4:
            raise KeyboardInterrupt
        return own(run)

    monkeypatch.setattr(ContrastRun, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        contrast_alone(settings(tmp_path / "cut", start))
    steps = []

    def counted(run: ContrastRun) -> Tensor:
        steps.append(run.done)
        return own(run)

    monkeypatch.setattr(ContrastRun, "step", counted)
    again = contrast_alone(settings(tmp_path / "cut", start))
    assert steps == [3, 4, 5]  # from the checkpoint of step 3
    assert encoder_address(again) == encoder_address(whole)
    assert [row["loss"] for row in read(tmp_path / "cut/metrics.json")] == [row["loss"] for row in read(tmp_path / "whole/metrics.json")]
    contrast_alone(settings(tmp_path / "cut", start))
    assert steps == [3, 4, 5]


def test_an_encoder_that_knows_sentences_is_calibrated_on_held_out_pairs(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tmp_path, start, steps=0, true_kept=0.9)
    folder = contrast_alone(config)
    assert read_calibration(folder) is None and "agreement is not calibrated: others_dropped: " in capsys.readouterr().out
    monkeypatch.setattr("raytraffic.environment.agreement._OF_USE", 0.0)
    contrast_alone(config)
    found = read_calibration(folder)
    assert found is not None and (found.encoder, found.kept) == (encoder_address(folder), 0.9)
    assert found.sentences == sum(len(split_sentences(text)) for text in read_pairs(config)[1].texts)
    monkeypatch.setattr("raytraffic.training.contrast.calibrate", None)
    contrast_alone(config)  # once is enough


def test_no_steps_save_the_encoder_as_it_is(tmp_path: Path, start: str) -> None:
    found = ImageTextEncoder.load(contrast_alone(settings(tmp_path, start, steps=0)))
    assert encoder_address(tmp_path / "encoder") == encoder_address(start)
    expected = mini()
    assert torch.equal(found.texts(["water"]), expected.texts(["water"]))
    assert read(tmp_path / "retrieval.json")["step"] == 0


def test_held_out_cities_are_not_trained_on(tmp_path: Path, start: str) -> None:
    config = settings(tmp_path, start)
    for number, places in missing_parts(config):
        make_part(config, number, places)
    assert missing_parts(config) == []
    pairs, held_out = read_pairs(config)
    everything, none = read_pairs(replace(config, held_out=()))
    assert (len(pairs), len(held_out), len(everything), len(none)) == (16, 9, 25, 0)
    assert not set(pairs.texts) & set(held_out.texts) and pairs.texts + held_out.texts == everything.texts
    assert np.array_equal(np.concatenate([pairs.images, held_out.images]), everything.images)
    assert read_pairs(replace(config, candidates=3))[1].texts == (held_out.texts[0], held_out.texts[4], held_out.texts[8])


def test_workers_share_a_step_and_a_pass_takes_each_pair_once(tmp_path: Path, start: str) -> None:
    config = settings(tmp_path, start, workers=1)
    for number, places in missing_parts(config):
        make_part(config, number, places)
    run = ContrastRun.start(config, Worker(device=torch.device("cpu")))
    passes = []
    for done in range(4):
        run.done = done
        run.worker = Worker(device=torch.device("cpu"))
        whole = run._chosen().tolist()
        halves = []
        for rank in (0, 1):
            run.worker = Worker(device=torch.device("cpu"), rank=rank, world=2)
            halves += run._chosen().tolist()
        assert halves == whole and len(whole) == 8
        passes.append(whole)
    assert sorted(passes[0] + passes[1]) == sorted(passes[2] + passes[3]) == list(range(16))
    assert passes[0] + passes[1] != passes[2] + passes[3]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_some_texts_of_a_step_are_one_of_their_sentences(share: float, tmp_path: Path, start: str) -> None:
    config = settings(tmp_path, start, sentences=share)
    for number, places in missing_parts(config):
        make_part(config, number, places)
    run = ContrastRun.start(config, Worker(device=torch.device("cpu")))
    alone, said = [], set()
    for done in range(30):
        run.done, run.worker = done, Worker(device=torch.device("cpu"))
        _, texts = run.pairs.some(run._chosen())
        cut = run._cut(texts)
        halves = []
        for rank in (0, 1):
            run.worker = Worker(device=torch.device("cpu"), rank=rank, world=2)
            halves += run._cut(texts[4 * rank : 4 * rank + 4])
        assert halves == cut
        for whole, text in zip(texts, cut, strict=True):
            assert text == whole or text in split_sentences(whole)
            alone.append(text != whole)
            said |= {(whole, text)} if text != whole else set()
    assert np.mean(alone) == pytest.approx(share, abs=0.1 if 0 < share < 1 else 0)
    if share == 1.0:  # some time each sentence has its turn, and no text is always cut to the same one
        assert len(said) > 3 * len(run.pairs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": ("north",)}, r"held_out: 'north', expected some of \['east', 'west'\]"),
        ({"batch": 17}, r"batch: 17, expected at most the number of pairs to train on \(16\)"),
        ({"workers": 2}, "workers: 2, expected 1 for a run in one process"),
        ({"pretrained": "laion2b"}, "pretrained: 'laion2b', expected none with the saved encoder"),
        ({"encoder": "ViT-Z-99"}, "architecture: 'ViT-Z-99'"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, start: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contrast_alone(replace(settings(tmp_path, start), **changes))
    assert not (tmp_path / "encoder").exists()


def test_a_run_directory_belongs_to_one_run(tmp_path: Path, start: str) -> None:
    contrast_alone(settings(tmp_path, start, steps=0))
    with pytest.raises(ValueError, match="seed is 0, expected 1; this run directory belongs to another run"):
        contrast_alone(settings(tmp_path, start, steps=0, seed=1))


def test_sites_without_pairs_are_told_where_too_few_are_left(tmp_path: Path, start: str) -> None:
    config = settings(tmp_path, start)
    config = replace(config, scenes=replace(config.scenes, topics=("land use",)))
    with pytest.raises(ValueError, match="25 sites failed, the first, east/r0c0: no fact of land use is known"):
        contrast_alone(config)
