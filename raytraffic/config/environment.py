"""What the environment of sites is: their scenes, the training of an image-text encoder on them, and their embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from raytraffic.config.conversion import at_least_one

__all__ = ["ContrastConfig", "EmbedConfig", "EndpointConfig", "ScenesConfig"]


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """How hard a vision model is asked, and what it costs. All limits are of each worker: two of them ask twice as often and may spend
    twice the budget."""

    requests_per_minute: float = 60.0
    """At most so many."""
    tokens_per_minute: float = 100_000.0
    """At most so many, of images, questions and answers."""
    concurrency: int = 4
    """Requests at a time."""
    prompt_price: float = 0.0
    """Of a million tokens asked, images included, in any currency; the account counts in it."""
    completion_price: float = 0.0
    """Of a million tokens answered."""
    budget: float | None = None
    """The most that a worker may spend; sites beyond it fail, and are asked about by the next run."""


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Which sites there are, and where their images and texts come from."""

    sites: tuple[str, ...]
    """Where sites are: tables (CSV or Parquet: city, unique_id, lat, lon, columns poi:<category> of counts and land:<kind> of
    shares that are known), and as in `prepare` synthetic cities and the places of synthetic users, e.g. synthetic:east?grid=8x8,
    services:users?users=2000."""
    tiles: str = "synthetic"
    """Where images come from: `synthetic` (the synthetic cities among the sites, as they are rendered), a folder or s3:// URL of
    slippy-map tiles, a zip file of them, or the URL template of a map service with {z}, {x} and {y}, in which {key} stands for
    RAYTRAFFIC_TILES_KEY of the environment (settings are printed and kept, so no key belongs into them)."""
    zooms: tuple[int, ...] = (17,)
    """Zoom levels of the tiles that may be read."""
    pattern: str = "{z}/{x}/{y}.png"
    """Path of a tile in a folder or zip file."""
    metres: float = 500.0
    """Side of the square around a site that its image shows."""
    pixels: int = 64
    """Pixels of an image along a side; 224 suits the pretrained models."""
    describer: Literal["template", "endpoint"] = "template"
    """Who describes: set phrases about the image's statistics and the POI, or the vision model that RAYTRAFFIC_VISION_URL, _MODEL and _KEY
    of the environment name."""
    topics: tuple[Literal["land use", "image", "poi", "place"], ...] = ("image", "poi")
    """What the template speaks of."""
    refine: bool = True
    """Drop what the texts repeat, guess or say wrong (raytraffic.environment.refine); an audit says of every sentence what became of it."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """How a vision model is asked."""
    cache: str | None = None
    """Folder or s3:// URL that keeps a map service's tiles and a vision model's answers, and the account of them; needed for these."""
    user_agent: str | None = None
    """Who asks a map service: a name and an address that answers; needed for one."""
    requests_per_second: float = 2.0
    """Of a map service, by each worker."""

    def __post_init__(self) -> None:
        if not self.sites:
            raise ValueError("sites: none, expected at least one table or synthetic city")
        if not 0 < self.metres < math.inf:
            raise ValueError(f"metres: {self.metres}, expected a length > 0")
        if self.cache is None and (self.from_service or self.describer == "endpoint"):
            raise ValueError("cache: not given, expected a folder where tiles come from a map service or texts from a vision model")
        if self.user_agent is None and self.from_service:
            raise ValueError("user_agent: not given, expected a name and an address where tiles come from a map service")
        at_least_one(self, "pixels")

    @property
    def from_service(self) -> bool:
        """Whether images come from a map service."""
        return self.tiles.startswith(("http://", "https://"))


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Embed the image and the text of every site into a store of vectors; what is there already is not computed again."""

    encoder: str
    """Folder or s3:// URL of a saved encoder, as `contrast` makes it."""
    out: str
    """Folder or s3:// URL of the embedding store."""
    scenes: ScenesConfig
    refetch: bool = False
    """Look at the images and texts of known sites again too, and embed what has changed."""
    batch: int = 64
    """Images that are computed together."""
    sites_per_shard: int = 256
    """Sites that one output file is made for, which is what a crash can cost."""
    workers: int = 2
    """At most so many processes (GPUs with --gpu)."""
    gpu: bool = False

    def __post_init__(self) -> None:
        at_least_one(self, "batch", "sites_per_shard", "workers")


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Train an image-text encoder on the scenes of sites by bidirectional InfoNCE, negatives gathered over all workers."""

    out: str
    """Folder or s3:// URL of the run: pairs, checkpoints, metrics, and the `encoder`."""
    scenes: ScenesConfig
    encoder: str = "tiny"
    """What is trained: `tiny`, a model of open_clip such as ViT-B-32, a hub id (hf-hub:owner/name), or the folder of a saved encoder."""
    pretrained: str | None = None
    """Weights for a model of open_clip: one of its tags, which is downloaded, or a local .safetensors file; random ones if not given."""
    held_out: tuple[str, ...] = ()
    """Cities that are not trained on, whose pairs retrieval is measured on."""
    candidates: int = 1000
    """At most so many held-out pairs, evenly spaced."""
    true_kept: float = 0.98
    """Share of true sentences that the threshold on the agreement of image and sentence keeps, fitted on the held-out pairs."""
    steps: int = 600
    """Training steps; 0 only measures and saves the encoder as it is."""
    batch: int = 128
    """Pairs of a step, over all workers: the candidates of each other."""
    sentences: float = 0.0
    """Share of a step's texts of which one sentence stands for the whole. Without any the encoder does not learn what a single sentence
    means, and cannot be calibrated; with them retrieval by whole texts takes longer to learn."""
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    ema: float = 0.99
    """Of the moving average of the weights that is measured and saved."""
    validate_every: int = 100
    """Steps from one checkpoint and measurement of retrieval to the next."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    pairs_per_part: int = 256
    """Sites whose pairs are made together and kept in one file."""
    seed: int = 0
    workers: int = 1
    cpus_per_worker: float = 1
    threads: int = 1
    """Of a worker's computing library."""
    max_failures: int = 3
    """Lost workers after which the run is given up."""
    gpu: bool = False

    def __post_init__(self) -> None:
        at_least_one(self, "candidates", "batch", "validate_every", "keep", "pairs_per_part", "workers", "threads")
        if self.steps < 0:
            raise ValueError(f"steps: {self.steps}, expected at least 0")
        if not 0 <= self.sentences <= 1:
            raise ValueError(f"sentences: {self.sentences}, expected a share in [0, 1]")
        if not 0 < self.true_kept < 1:
            raise ValueError(f"true_kept: {self.true_kept}, expected a share in (0, 1)")
        if self.batch % self.workers or self.batch < 2:
            raise ValueError(f"batch: {self.batch}, expected a multiple of workers ({self.workers}), at least 2")
