"""What training runs are: from scratch, fine-tuning, and the recipe of a checkpoint to share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raytraffic.config.conversion import at_least_one

__all__ = ["FinetuneConfig", "PretrainConfig", "SplitName", "TrainConfig"]


SplitName = Literal["published", "place", "time"]


@dataclass(frozen=True, kw_only=True)
class _FitConfig:
    store: str
    """The prepared store."""
    out: str
    """Run directory (or s3:// URL): config, metrics, checkpoints, best and last model."""
    split: SplitName = "time"
    """Which part of the store is trained on."""
    cities: tuple[str, ...] = ()
    """Only these cities; all of the store if none is named."""
    share: float = 1.0
    """Only this share of each city's training places (at least one), the same ones for the same seed; a few-shot study's knob."""
    days: float | None = None
    """Only so many last days of each training series; all if not given."""
    steps: int = 3000
    """Optimisation steps in all."""
    batch: int = 64
    """Windows a step over all workers."""
    micro_batch: int | None = None
    """Windows that a worker computes at once, where its share of the batch is too much for its memory; the result is the same."""
    learning_rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    weight_decay: float = 1e-2
    tasks: tuple[str, ...] = ("short", "long", "generation", "random", "horizon")
    """Tasks of the mask mixture."""
    weights: tuple[float, ...] = (1.0, 1.0, 1.0, 0.5, 0.5)
    """Their weights."""
    contexts: tuple[str, ...] = ("users",)
    """Contexts (users, poi) the model may look at, where the store has them. POI are fingerprints of a place: they help where
    the forecast places are trained on, and harm in new ones."""
    turn_tiles: bool = True
    """Train on tiles in all their symmetries."""
    silence_cells: float = 0.3
    """At most this share of a training window's cells is made to carry nothing."""
    jitter_levels: float = 0.8
    """Spread of the log-normal factors that training cells are multiplied by."""
    shift_rhythm: float = 0.08
    """Spread of the smooth courses in time that training windows are multiplied by, as weeks differ from one another."""
    forget_cities: float = 0.1
    """Share of training windows whose city's profile and reference are taken away, so that new cities are answered too."""
    drop_contexts: float = 0.5
    """Share of training windows from which a context is taken away, so that cities without it are answered too."""
    expect_users: float = 0.0
    """Share of training windows that come with a forecast of their users, as a caller may give one (contexts: users expected_users)."""
    window: int = 64
    """Time slots of a window."""
    seed: int = 0
    workers: int = 1
    min_workers: int | None = None
    """Go on with as few workers as this where the cluster has lost some, and with more as they come back; `workers` if not given."""
    cpus_per_worker: float = 1
    threads: int = 1
    """Torch threads of a worker."""
    gpu: bool = False
    """Train on GPUs, one a worker, in bfloat16."""
    shard: Literal["ddp", "fsdp"] = "ddp"
    """How the model is spread over workers."""
    recompute: bool = False
    """Compute the transformer's activations again in the backward pass instead of keeping them: less memory, a third more work."""
    validate_every: int = 250
    """Steps between validation, checkpoint and report."""
    validation_windows: int = 256
    """Windows a validation looks at, always the same ones."""
    keep: int = 2
    """Checkpoints kept besides the best."""
    max_failures: int = 3
    """Worker failures survived by restarting from the newest checkpoint."""

    def __post_init__(self) -> None:
        if len(self.tasks) != len(self.weights):
            raise ValueError(f"weights: {self.weights}, expected one a task of {self.tasks}")
        if min(self.weights, default=0) <= 0:
            raise ValueError(f"weights: {self.weights}, expected positive ones")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: {self.share}, expected a share of the training places in (0, 1]")
        if (self.expect_users > 0) != ("expected_users" in self.contexts):
            raise ValueError(f"expect_users: {self.expect_users} with contexts {self.contexts}, expected expected_users among them if > 0")
        for name in ("silence_cells", "jitter_levels", "shift_rhythm", "forget_cities", "drop_contexts", "expect_users"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number in [0, 1]")
        at_least_one(self, "steps", "batch", "workers", "threads", "validate_every", "validation_windows", "keep")
        if self.micro_batch is not None:
            at_least_one(self, "micro_batch")
        if self.days is not None and not self.days > 0:
            raise ValueError(f"days: {self.days}, expected a number > 0, or none")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(f"min_workers: {self.min_workers}, expected a number from 1 to workers ({self.workers})")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_FitConfig):
    """Pre-train a model on a prepared store; the same command again resumes where it was."""

    model: str = "uomo"
    preset: str = "small"
    options: tuple[str, ...] = ()
    """Settings in which the model differs from its preset, as path=value: entries=0 forecaster.prediction=epsilon token=[4,2,2]."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(_FitConfig):
    """Fine-tune a pre-trained model: context-aware alignment (UoMo 3.3), another city, a few shots; resumes like `train`."""

    checkpoint: str
    """The pre-trained model; a context it did not know is added to it and changes nothing at first."""
    steps: int = 500
    learning_rate: float = 3e-4
    warmup: int = 50
    ema: float = 0.99
    contexts: tuple[str, ...] = ("users", "poi")
    """Contexts (users, poi) the fine-tuned model looks at, besides those it knows."""
    drop_contexts: float = 0.1
    trainable: Literal["context", "all"] = "context"
    """What learns: the paper's choice (adaptive conditioning, output and context layers), or everything."""
    contrast: float = 0.05
    """Weight of the negative pairs of Eq. 11, times log(negatives + 1); 0 leaves them out."""
    negatives: int = 1
    """Negative pairs a window."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Make a checkpoint to share: prepare your cities and synthetic ones, train by place, calibrate, score, and write the model card."""

    data: tuple[str, ...]
    """The cities to learn from, each as kind:path?options like the sources of `prepare`."""
    out: str
    """Folder or s3:// URL of the store, the run, the evaluation and, below `model`, the checkpoint."""
    minutes: float = 60.0
    """Minutes of optimisation, on one CPU core or on the GPU of the machine the command runs on; all else comes on top."""
    licence: str = ""
    """The terms of the data, for the model card: weights derived from data inherit its terms."""
    preset: str = "auto"
    """The model's preset; auto is 5m on a GPU, and on a CPU the largest of 5m, small and tiny that gets enough steps."""
    synthetic: tuple[str, ...] = (
        "synthetic:synthetic-quarter?step=15&grid=8x12&days=7&tail=1.2&seed=1",
        "synthetic:synthetic-half?step=30&grid=12x12&days=7&noise=0.25&memory_hours=6&seed=2",
        "synthetic:synthetic-sparse?step=30&grid=12x12&days=7&dead_share=0.45&users=false&seed=3",
        "synthetic:synthetic-hour?step=60&grid=12x12&days=14&noise=0.5&spatial_range_cells=1&seed=4",
    )
    """Synthetic cities that are mixed in."""
    stride: int = 16
    """Every n-th window of a series is scored."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data: no source, expected at least one")
        if not self.minutes > 0:
            raise ValueError(f"minutes: {self.minutes}, expected a number > 0")
        for source in self.synthetic:
            if not source.startswith("synthetic:"):
                raise ValueError(f"synthetic: {source!r}, expected synthetic:NAME?options; measured cities belong to data")
        at_least_one(self, "stride")
