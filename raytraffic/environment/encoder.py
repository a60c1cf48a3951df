"""Image-text encoders of open_clip: images and texts to unit vectors of one space (LSDM, Eq. 7: z_I = f_I(x_I), z_T = f_T(x_T)).

    ImageTextEncoder.create("ViT-B-32", pretrained="laion2b_s34b_b79k")       a tag: its weights are downloaded
    ImageTextEncoder.create("ViT-B-32", pretrained="weights.safetensors")     a file
    ImageTextEncoder.create("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K")   a hub id: downloaded
    ImageTextEncoder.create("tiny")                                           random weights, for tests and offline use
    ImageTextEncoder.load("runs/contrast/encoder")                            what `save` wrote; nothing is ever downloaded

Weights are safetensors; a pickle is refused wherever it comes from. A saved folder holds open_clip's own open_clip_config.json, so that
open_clip reads it too ("local-dir:<folder>"). Supported is every open_clip model of two towers with CLIP's tokenizer, which comes with the
package; those with a tokenizer or text tower of `transformers` and captioning models (CoCa) are refused.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import safetensors
import torch
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torch import Tensor, nn

from raytraffic.checkpoint import commit, read_committed, read_marker, read_tensors
from raytraffic.environment.tiles import RgbImage
from raytraffic.files import Location

__all__ = ["TINY", "ImageTextEncoder", "encoder_address"]

WEIGHTS = "model.safetensors"
CONFIG = "open_clip_config.json"
_HUB = "hf-hub:"
#: The temperature is kept from falling below 1/100, as CLIP does, and from rising above 1.
_MAX_LOG_SCALE = math.log(100.0)

#: A model of open_clip's CLIP class, small enough to be trained on one core in minutes.
TINY: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 96, "layers": 3, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 96, "heads": 3, "layers": 2},
}


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where a model comes from: open_clip's description of the network and of its images, and a file of weights (None: random)."""

    model: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path | None = None


class ImageTextEncoder(nn.Module):
    """Two towers, one space of dimension `dimension`, and a learnable temperature."""

    def __init__(self, model: dict[str, Any], preprocess: dict[str, Any]) -> None:
        """The network of open_clip's model_cfg, with random weights, and how images are made ready for it (preprocess_cfg)."""
        super().__init__()
        self.network = _network(model)
        self.settings = {"model_cfg": model, "preprocess_cfg": {**preprocess, "size": self.network.visual.image_size}}
        self._prepare: Callable[[Image.Image], Tensor] = image_transform_v2(
            PreprocessCfg(**self.settings["preprocess_cfg"]), is_train=False
        )
        self._tokenizer = open_clip.SimpleTokenizer(
            context_length=model["text_cfg"].get("context_length", 77), **(model["text_cfg"].get("tokenizer_kwargs") or {})
        )

    @classmethod
    def create(cls, architecture: str, pretrained: str | None = None, seed: int = 0) -> ImageTextEncoder:
        """An encoder in eval mode: `architecture` is "tiny", a model of open_clip, or a hub id ("hf-hub:owner/name").

        `pretrained` is one of open_clip's tags for it or a local .safetensors file; None: random weights of a seed. Raises ValueError for
        what is unknown, no safetensors file, or does not fit.
        """
        source = _source(architecture, pretrained)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = cls(source.model, source.preprocess)
        if source.weights is not None:
            _load_weights(encoder.network, source.weights)
        return encoder.eval()

    @classmethod
    def load(cls, folder: Location | Path | str) -> ImageTextEncoder:
        """The encoder saved in a folder (local or s3://), in eval mode; ValueError where it is damaged or does not fit."""
        folder = Location.of(folder)
        settings = json.loads(read_committed(folder, CONFIG))
        encoder = cls(settings["model_cfg"], settings["preprocess_cfg"])
        weights = read_tensors(folder, WEIGHTS)
        if any(not bool(value.isfinite().all()) for value in weights.values()):
            raise ValueError(f"{folder.child(WEIGHTS)}: holds NaN or infinite weights, expected finite ones")
        try:
            encoder.network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{folder.child(WEIGHTS)}: {_first_lines(error)}, expected the tensors of its {CONFIG}") from None
        return encoder.eval()

    def save(self, folder: Location | Path | str) -> None:
        """Saves model.safetensors and open_clip_config.json into a folder (local or s3://), committed by their SHA-256."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        commit(Location.of(folder), {WEIGHTS: weights, CONFIG: self.settings})

    @property
    def dimension(self) -> int:
        """d, of every vector."""
        return int(self.settings["model_cfg"]["embed_dim"])

    @property
    def scale(self) -> Tensor:
        """1 / temperature, differentiable."""
        return self.network.logit_scale.exp().squeeze()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Brings the temperature back into [0.01, 1]; to be called after every optimisation step."""
        self.network.logit_scale.clamp_(0.0, _MAX_LOG_SCALE)

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors (n, d) of prepared images and of tokens, and the scale: what the contrastive loss is a function of."""
        return self.network.encode_image(pixels, normalize=True), self.network.encode_text(tokens, normalize=True), self.scale

    def prepare(self, images: Sequence[RgbImage]) -> Tensor:
        """(n, 3, height, width) images (h, w, 3) uint8, resized and normalised as the model wants."""
        return torch.stack([self._prepare(Image.fromarray(image)) for image in images])

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """(n, context) token numbers; what is beyond the model's context (CLIP: 77 tokens) is cut off."""
        tokens: Tensor = self._tokenizer(list(texts))
        return tokens

    def images(self, images: Sequence[RgbImage], batch: int = 64) -> Tensor:
        """(n, d) float32 unit vectors, on the CPU.

        The last batch is filled up, so that a result hangs, by its last bits, on the size of a batch at most and not on what else is asked.
        """
        return self._encoded(images, batch, lambda some: self.network.encode_image(self.prepare(some).to(self._device), normalize=True))

    def texts(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """(n, d) float32 unit vectors, on the CPU; batches as of `images`."""
        return self._encoded(texts, batch, lambda some: self.network.encode_text(self.tokenise(some).to(self._device), normalize=True))

    @torch.inference_mode()
    def tokens(self, images: Sequence[RgbImage], texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """What cross-attention fuses: image tokens (n, p, width), text tokens (n, q, width), and (n, q) where a text token is no padding.

        ValueError where the model's image tower has no tokens to give (open_clip's ResNets).
        """
        if not hasattr(self.network.visual, "forward_intermediates"):
            raise ValueError(f"encoder: image tower {type(self.network.visual).__name__}, expected one with tokens, such as a ViT")
        numbers = self.tokenise(texts).to(self._device)
        found = self.network.forward_intermediates(
            self.prepare(images).to(self._device),
            numbers,
            image_indices=1,
            text_indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            image_output_fmt="NLC",
        )
        ends = numbers.argmax(dim=1, keepdim=True)  # the end of the text has the largest number
        known = torch.arange(numbers.shape[1], device=numbers.device) <= ends
        return found["image_intermediates"][0], found["text_intermediates"][0], known

    @torch.inference_mode()
    def _encoded(self, items: Sequence[Any], batch: int, encode: Callable[[Sequence[Any]], Tensor]) -> Tensor:
        if batch < 1:
            raise ValueError(f"batch: {batch}, expected at least 1")
        parts = [torch.empty(0, self.dimension)]
        for at in range(0, len(items), batch):
            some = list(items[at : at + batch])
            filled = some + some[:1] * (batch - len(some))
            parts.append(encode(filled)[: len(some)].float().cpu())
        return torch.cat(parts)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.network.logit_scale.device
        return device


def encoder_address(folder: Location | Path | str) -> str:
    """The content address of a saved encoder: equal for equal weights and settings, wherever they lie."""
    return hashlib.sha256(read_marker(Location.of(folder))).hexdigest()


def _source(architecture: str, pretrained: str | None) -> _Source:
    if architecture.startswith(_HUB):
        return _hub_source(architecture.removeprefix(_HUB), pretrained)
    model = copy.deepcopy(TINY) if architecture == "tiny" else open_clip.get_model_config(architecture)
    if model is None:
        raise ValueError(f"architecture: {architecture!r}, expected 'tiny', a model of open_clip.list_models() or '{_HUB}owner/name'")
    preprocess = asdict(PreprocessCfg())
    if pretrained is None:
        return _Source(model=model, preprocess=preprocess)
    tag = open_clip.get_pretrained_cfg(architecture, pretrained)
    if tag:
        if not tag.get("hf_hub"):
            raise ValueError(f"pretrained: {pretrained!r} is published as a pickle only, expected another tag of {architecture}, or a file")
        model["quick_gelu"] = tag.get("quick_gelu", model.get("quick_gelu", False))  # the activation that the weights were trained with
        return _Source(model=model, preprocess=merge_preprocess_dict(preprocess, tag), weights=Path(download_pretrained(tag)))
    if not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise ValueError(f"pretrained: {pretrained!r}, expected a .safetensors file, or one of the tags of {architecture}: {tags}")
    return _Source(model=model, preprocess=preprocess, weights=Path(pretrained))


def _hub_source(name: str, pretrained: str | None) -> _Source:
    if pretrained is not None:
        raise ValueError(f"pretrained: {pretrained!r}, expected none with '{_HUB}{name}', which has its own weights")
    settings = json.loads(Path(download_pretrained_from_hf(name, filename=CONFIG)).read_bytes())
    preprocess = merge_preprocess_dict(asdict(PreprocessCfg()), settings.get("preprocess_cfg", {}))
    return _Source(model=settings["model_cfg"], preprocess=preprocess, weights=Path(download_pretrained_from_hf(name)))


def _network(model: dict[str, Any]) -> Any:
    """open_clip's module of a model_cfg, its weights random; nothing is downloaded."""
    settings = copy.deepcopy(model)
    foreign = [name for name in ("hf_tokenizer_name", "hf_model_name") if settings["text_cfg"].get(name)]
    if foreign or "multimodal_cfg" in settings:
        found = f"text_cfg.{foreign[0]} {settings['text_cfg'][foreign[0]]!r}" if foreign else "multimodal_cfg"
        raise ValueError(f"architecture: {found}, expected a model of two towers with CLIP's own tokenizer")
    tower = settings["vision_cfg"].get("timm_model_name")
    if tower is not None:
        if ":" in tower:
            raise ValueError(f"architecture: timm_model_name {tower!r}, expected the name of a model that timm holds itself")
        settings["vision_cfg"]["timm_model_pretrained"] = False  # it would be downloaded
    kind = open_clip.CustomTextCLIP if settings.pop("custom_text", False) else open_clip.CLIP
    return kind(**settings)


def _load_weights(network: nn.Module, file: Path) -> None:
    """Loads a .safetensors file, converted from other projects' names where open_clip knows them."""
    if file.suffix != ".safetensors":
        raise ValueError(
            f"{file}: expected a .safetensors file, because others may run code when they are read. Where you trust it, convert it once: "
            "safetensors.torch.save_file(torch.load(file, weights_only=True), 'weights.safetensors')"
        )
    try:
        open_clip.load_checkpoint(network, str(file))
    except (safetensors.SafetensorError, RuntimeError, KeyError, StopIteration, AssertionError) as error:  # open_clip asserts some shapes
        raise ValueError(f"{file}: {_first_lines(error)}, expected the whole weights of this architecture") from None


def _first_lines(error: BaseException) -> str:
    return " ".join(line.strip() for line in (str(error) or type(error).__name__).splitlines()[:2])
