"""The image-text encoder against open_clip itself, and where its weights may come from."""

from __future__ import annotations

import copy
import json
import math
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg
from PIL import Image

from raytraffic.environment import encoder as module
from raytraffic.environment.encoder import TINY, ImageTextEncoder, encoder_address

#: As TINY and smaller still, so that a test takes no time.
MINI: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TEXTS = ["About 30% of the image is vegetation.", "No water is visible.", "12 schools can be found in the area shown."]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(module, "download_pretrained", refuse)
    monkeypatch.setattr(module, "download_pretrained_from_hf", refuse)


def mini(seed: int = 0, model: dict[str, Any] = MINI) -> ImageTextEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageTextEncoder(copy.deepcopy(model), asdict(PreprocessCfg())).eval()


def pictures(count: int, height: int = 20, width: int = 24) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def weights_file(folder: Path, encoder: ImageTextEncoder, name: str = "weights.safetensors") -> Path:
    safetensors.torch.save_file(encoder.network.state_dict(), folder / name)
    return folder / name


def test_vectors_are_of_unit_length_and_of_the_models_dimension() -> None:
    encoder = mini()
    for vectors in (encoder.images(pictures(3)), encoder.texts(TEXTS)):
        assert vectors.shape == (3, 8) == (3, encoder.dimension) and vectors.dtype == torch.float32
        assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-6)
    assert encoder.images([]).shape == encoder.texts([]).shape == (0, 8)


def test_a_vector_is_the_same_alone_and_in_any_company() -> None:
    encoder, images = mini(), pictures(11)
    whole, texts = encoder.images(images, batch=4), encoder.texts(TEXTS, batch=4)
    for i in range(11):
        assert torch.equal(encoder.images([images[i]], batch=4)[0], whole[i])
    assert torch.equal(encoder.images(images[::-1], batch=4).flip(0), whole)
    assert torch.equal(encoder.texts(TEXTS[1:2], batch=4)[0], texts[1])


def test_different_images_and_texts_have_different_vectors() -> None:
    encoder = mini()
    assert len({tuple(row) for row in encoder.images(pictures(5)).tolist()}) == 5
    assert len({tuple(row) for row in encoder.texts(TEXTS).tolist()}) == 3


def test_what_lies_beyond_77_tokens_is_not_read() -> None:
    encoder, long = mini(), "vegetation " * 76
    first, second, short = encoder.texts([long + "water", long + "railways", "vegetation " * 70 + "water"])
    assert torch.equal(first, second) and not torch.equal(first, short)


def test_open_clip_reads_a_saved_encoder_and_computes_the_same(tmp_path: Path) -> None:
    encoder, images = mini(), pictures(3)
    encoder.save(tmp_path)
    name = f"local-dir:{tmp_path}"
    network, _, prepare = open_clip.create_model_and_transforms(name)
    with torch.inference_mode():
        pixels = torch.stack([prepare(Image.fromarray(image)) for image in images])
        tokens = open_clip.get_tokenizer(name)(TEXTS)
        assert torch.allclose(network.eval().encode_image(pixels, normalize=True), encoder.images(images), atol=1e-6)
        assert torch.allclose(network.encode_text(tokens, normalize=True), encoder.texts(TEXTS), atol=1e-6)


def test_a_loaded_encoder_is_the_saved_one_and_has_its_address(tmp_path: Path) -> None:
    encoder = mini()
    encoder.save(tmp_path / "a")
    ImageTextEncoder.load(tmp_path / "a").save(tmp_path / "b")
    mini(seed=1).save(tmp_path / "c")
    assert torch.equal(ImageTextEncoder.load(tmp_path / "b").texts(TEXTS), encoder.texts(TEXTS))
    assert encoder_address(tmp_path / "a") == encoder_address(tmp_path / "b") != encoder_address(tmp_path / "c")


@pytest.mark.parametrize("name", ["model.safetensors", "open_clip_config.json"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    mini().save(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-2] ^= 1
    (tmp_path / name).write_bytes(bytes(data))
    with pytest.raises(ValueError, match=f"{name}: its SHA-256 differs"):
        ImageTextEncoder.load(tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    encoder = mini()
    with torch.no_grad():
        encoder.network.ln_final.weight[3] = math.nan
    encoder.save(tmp_path)
    with pytest.raises(ValueError, match="holds NaN or infinite weights"):
        ImageTextEncoder.load(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    encoder = mini()
    encoder.settings = {**encoder.settings, "model_cfg": {**MINI, "embed_dim": 4}}
    encoder.save(tmp_path)
    with pytest.raises(ValueError, match=r"size mismatch.*expected the tensors of its open_clip_config.json"):
        ImageTextEncoder.load(tmp_path)


def test_random_weights_are_a_function_of_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (ImageTextEncoder.create("tiny", seed=seed).network.visual.proj for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_file_of_weights_is_loaded(tmp_path: Path) -> None:
    source = ImageTextEncoder.create("tiny", seed=5)
    found = ImageTextEncoder.create("tiny", str(weights_file(tmp_path, source)))
    assert torch.equal(found.texts(TEXTS), source.texts(TEXTS))


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
def test_a_pickle_is_refused_before_it_is_read(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(b"cposix\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"expected a \.safetensors file.*convert it once: safetensors\.torch\.save_file"):
        ImageTextEncoder.create("tiny", str(file))


def test_a_truncated_or_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    whole = weights_file(tmp_path, mini())
    with pytest.raises(ValueError, match=r"weights\.safetensors: .*expected the whole weights of this architecture"):
        ImageTextEncoder.create("tiny", str(whole))  # of MINI
    whole.write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"weights\.safetensors: .*expected the whole weights of this architecture"):
        ImageTextEncoder.create("tiny", str(whole))


def test_a_tag_is_downloaded_and_brings_its_own_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ImageTextEncoder.create("tiny", seed=6)
    file = weights_file(tmp_path, source)
    tag = {"hf_hub": "someone/tiny/", "quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, given: tag if (name, given) == ("tiny", "mine") else {})
    monkeypatch.setattr(module, "download_pretrained", lambda asked: {"someone/tiny/": str(file)}[asked["hf_hub"]])
    found = ImageTextEncoder.create("tiny", "mine")
    grey = [np.full((64, 64, 3), 51, dtype=np.uint8)]
    assert torch.allclose(found.prepare(grey), torch.tensor((0.2 - 0.5) / 0.5))
    assert torch.equal(found.network.visual.proj, source.network.visual.proj)
    assert not torch.equal(found.texts(TEXTS), source.texts(TEXTS))  # the tag's weights want another activation
    found.save(tmp_path / "saved")
    assert torch.equal(ImageTextEncoder.load(tmp_path / "saved").images(grey), found.images(grey))


def test_a_tag_that_is_a_pickle_is_not_even_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, given: {"url": "https://example.org/weights.pt"})
    with pytest.raises(ValueError, match="published as a pickle only"):
        ImageTextEncoder.create("tiny", "old")


def test_a_hub_id_brings_its_own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = mini(seed=7)
    weights_file(tmp_path, source, "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": MINI, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}))

    def download(name: str, filename: str = "open_clip_model.safetensors") -> str:
        assert name == "someone/mini"
        return str(tmp_path / filename)

    monkeypatch.setattr(module, "download_pretrained_from_hf", download)
    found = ImageTextEncoder.create("hf-hub:someone/mini")
    assert torch.equal(found.texts(TEXTS), source.texts(TEXTS))
    assert found.settings["preprocess_cfg"]["mean"] == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="expected none with 'hf-hub:someone/mini'"):
        ImageTextEncoder.create("hf-hub:someone/mini", "laion2b")


def test_what_is_unknown_or_unsupported_is_said() -> None:
    with pytest.raises(ValueError, match="architecture: 'ViT-Z-99', expected 'tiny'"):
        ImageTextEncoder.create("ViT-Z-99")
    with pytest.raises(ValueError, match=r"pretrained: 'no-such-tag', expected a \.safetensors file, or one of the tags.*laion2b"):
        ImageTextEncoder.create("ViT-B-32", "no-such-tag")
    with pytest.raises(ValueError, match="hf_tokenizer_name 'timm/ViT-B-16-SigLIP'"):
        ImageTextEncoder.create("ViT-B-16-SigLIP")
    with pytest.raises(ValueError, match="multimodal_cfg, expected a model of two towers"):
        ImageTextEncoder.create("coca_base")


def test_an_image_tower_of_timm_is_built_without_the_network() -> None:
    tower = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    encoder = mini(model={**MINI, "vision_cfg": tower})
    assert encoder.images(pictures(2), batch=2).shape == (2, 8)
    with pytest.raises(ValueError, match="'hf-hub:someone/tower', expected the name of a model that timm holds itself"):
        mini(model={**MINI, "vision_cfg": {**tower, "timm_model_name": "hf-hub:someone/tower"}})


def test_the_temperature_stays_within_its_limits() -> None:
    encoder = mini()
    for value, expected in ((9.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2.0))):
        with torch.no_grad():
            encoder.network.logit_scale.fill_(value)
        encoder.clamp_temperature()
        assert float(encoder.scale.detach()) == pytest.approx(expected, rel=1e-6)


def test_tokens_are_those_of_image_patches_and_of_words() -> None:
    encoder = mini()
    images, texts, known = encoder.tokens(pictures(2), ["water", "no water"])
    assert images.shape == (2, 4, 16) and texts.shape == (2, 77, 16)
    assert known.sum(1).tolist() == [3, 4]  # with start and end


def test_tiny_trains_on_one_core() -> None:
    assert sum(parameter.numel() for parameter in mini(model=TINY).parameters()) < 6_000_000
