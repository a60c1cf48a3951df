"""What a run is: one frozen dataclass a verb, and strict conversion of any frozen dataclass to JSON and back."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pydantic

__all__ = [
    "CalibrateConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "ForecastConfig",
    "PrepareConfig",
    "PretrainConfig",
    "QuickstartConfig",
    "SplitName",
    "TrainConfig",
    "UomoTables",
    "from_json",
    "to_json",
    "with_options",
]

T = TypeVar("T")
SplitName = Literal["published", "place", "time"]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn traffic sources into a prepared store of tokenised traffic."""

    sources: tuple[str, ...]
    """Where traffic comes from, each as kind:path?options, e.g. series:data/uomo, table:traffic.csv, synthetic:east?grid=8x8."""
    out: str
    """Folder or s3:// URL of the store."""
    token: tuple[int, int, int] = (4, 4, 4)
    """Base token: time slots, rows, columns."""
    tile: tuple[int, int] = (4, 4)
    """Rows and columns of a tile of a grid."""
    seed: int = 0
    """Seed of the splits."""


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
    steps: int = 3000
    """Optimisation steps in all."""
    batch: int = 64
    """Windows a step over all workers."""
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
    validate_every: int = 250
    """Steps between validation, checkpoint and report."""
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
        _at_least_one(self, "steps", "batch", "workers", "threads", "validate_every", "keep")
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
class UomoTables:
    """What the suite `uomo-tables` makes besides Tables 1-3 and Figure 4; a part that lacks its input is left out, and the page says so."""

    unseen: str | None = None
    """Store of cities that the checkpoint never saw, for Table 4 and Figures 5 and 6: forecast at once, and fine-tuned on few places."""
    unseen_split: SplitName = "time"
    """The split of that store."""
    shares: tuple[float, ...] = (0.05, 0.1)
    """Shares of each unseen city's training places that are fine-tuned on, one at least."""
    few_shot_steps: int = 200
    """Fine-tuning steps on each share."""
    plain: str | None = None
    """Checkpoint pre-trained without contexts (train --contexts), for Table 5: fine-tuned with users, with POI and with both."""
    finetune_steps: int = 500
    """Fine-tuning steps of each of these."""
    sizes: tuple[str, ...] = ()
    """Checkpoints of other sizes, each as name=folder, for Figure 7; those of name@data=folder are joined by a line of their own a `data`,
    e.g. 5m@10%=runs/5m-tenth/best."""
    cities: tuple[str, ...] = ()
    """The cities of Figure 4; the store's first two if none is named."""

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares) or len(set(self.shares)) < len(self.shares):
            raise ValueError(f"uomo_tables.shares: {self.shares}, expected different shares of the training places in (0, 1]")
        names = [size.partition("=")[0] for size in self.sizes]
        if not all(all(size.partition("=")) for size in self.sizes) or len(set(names)) < len(names):
            raise ValueError(f"uomo_tables.sizes: {self.sizes}, expected name=folder of a checkpoint each, of different names")
        _at_least_one(self, "few_shot_steps", "finetune_steps")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a checkpoint beside the simple rules, per task, city and split, and write tables, JSON and a report."""

    checkpoint: str
    store: str
    out: str
    splits: tuple[SplitName, ...] = ("time",)
    part: Literal["test", "validation"] = "test"
    tasks: tuple[str, ...] = ("short", "long", "generation")
    draws: int = 20
    steps: int = 10
    """Sampler steps."""
    method: Literal["dpm++", "ddim", "ddpm"] = "dpm++"
    guidance: float = 1.0
    """Classifier-free guidance on context; 1 is none."""
    stride: int = 1
    """Every n-th window of a series."""
    beside: tuple[str, ...] = ()
    """Other checkpoints scored in the same tables, each as name=folder."""
    fitted: tuple[Literal["ridge", "lightgbm"], ...] = ()
    """Baselines that are fitted on the training part first and get rows of their own; lightgbm (short and long only) needs the
    extra `baselines` and about a minute a city and task."""
    expect_users: bool = False
    """Give models the true users of hidden slots as the caller's forecast (contexts: expected_users): the most such a forecast is worth."""
    share: float = 1.0
    """Share of the training places that the model's city statistics (profile, reference) are measured on, as it was given in
    training; 0 forecasts cities as if nothing had ever been measured there. Scores keep their scale."""
    batch: int = 16
    """Windows a forecast call."""
    seed: int = 0
    workers: int = 2
    """Forecasting actors."""
    gpu: bool = False
    suite: Literal["none", "uomo-tables"] = "none"
    """The tables and pictures of a paper, resumable: `uomo-tables` makes Tables 1-5 and Figures 4-7 of UoMo as suite.html and suite.md."""
    uomo_tables: UomoTables = field(default_factory=UomoTables)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: {self.share}, expected a share of the training places in [0, 1]")
        for other in self.beside:
            if not all(other.partition("=")):
                raise ValueError(f"beside: {other!r}, expected name=folder of a checkpoint")
        if self.suite == "none" and self.uomo_tables != UomoTables():
            raise ValueError("suite: 'none', expected 'uomo-tables' where options of uomo_tables are given")
        _at_least_one(self, "draws", "steps", "stride", "batch", "workers")


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Fit split conformal factors on a split's validation places and save them with the checkpoint, whose forecasts then use them."""

    checkpoint: str
    store: str
    split: SplitName = "time"
    tasks: tuple[str, ...] = ("short", "long")
    """The tasks that will be served, in equal parts."""
    level: float = 0.8
    """The central interval whose coverage is promised."""
    windows: int = 256
    """At most so many windows a task, evenly spaced over the validation part."""
    draws: int = 32
    steps: int = 10
    """Sampler steps."""
    method: Literal["dpm++", "ddim", "ddpm"] = "dpm++"
    batch: int = 16
    """Windows a forecast call."""
    seed: int = 0
    workers: int = 2
    """Forecasting actors."""
    gpu: bool = False

    def __post_init__(self) -> None:
        _at_least_one(self, "windows", "draws", "steps", "batch", "workers")


@dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """Forecast every site of a store or table from its last measurements (or an issue time) into Parquet."""

    checkpoint: str
    out: str
    """Folder or s3:// URL the forecast shards and their manifest are written to."""
    store: str | None = None
    """A prepared store, or"""
    table: str | None = None
    """a source as in `prepare`, e.g. table:traffic.parquet?sites=sites.csv."""
    hours: float = 24.0
    """How far to forecast; cities of 15, 30 and 60 minutes mix in one run."""
    issue: str | None = None
    """First forecast instant (ISO, local time); the end of each series if not given."""
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    draws: int = 20
    keep_draws: bool = False
    """Also write the draws themselves."""
    steps: int = 10
    """Sampler steps."""
    batch: int = 16
    """Tiles that are computed together; their forecasts are the same in any batch."""
    tiles_per_shard: int = 64
    """Tiles of one output file, which is what a crash can cost."""
    retry_failed: bool = False
    """Make shards again that stand but hold failed stations."""
    seed: int = 0
    workers: int = 2
    """At most so many processes (GPUs with --gpu)."""
    gpu: bool = False

    def __post_init__(self) -> None:
        _at_least_one(self, "draws", "steps", "batch", "tiles_per_shard", "workers")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve checkpoints over HTTP on this machine (clusters: serve_configs/*.yaml), until interrupted."""

    checkpoints: tuple[str, ...]
    """The served models, each as name=folder; the first is the default."""
    store: str | None = None
    """A prepared store whose cities' profiles and levels are used where a request names one."""
    host: str = "127.0.0.1"
    """Address to listen on; others than this machine's own need a token."""
    port: int = 8000
    token_file: str | None = None
    """File with the bearer token; else RAYTRAFFIC_SERVE_TOKEN_FILE or RAYTRAFFIC_SERVE_TOKEN of the environment."""

    def __post_init__(self) -> None:
        names = [checkpoint.partition("=")[0] for checkpoint in self.checkpoints]
        if not names or not all(all(one.partition("=")) for one in self.checkpoints) or len(set(names)) < len(names):
            raise ValueError(f"checkpoints: {self.checkpoints}, expected one name=folder or more, of different names")


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
        _at_least_one(self, "stride")


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """The whole line on three synthetic cities: prepare, train, evaluate, forecast, report."""

    out: str = "runs/quickstart"
    """Folder of the store, the run, the evaluation and the forecast."""
    steps: int = 300
    """Training steps."""
    seed: int = 0


def _at_least_one(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: {getattr(config, name)}, expected at least 1")


def to_json(value: Any) -> Any:
    """A frozen dataclass (nested ones too) as JSON-able dictionaries, lists and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], data: Any, name: str) -> T:
    """The dataclass `kind` of JSON data; ValueError naming `name`, the field, its value and what was expected.

    Unknown fields are refused, so that a misspelt setting is never silently dropped.
    """
    try:
        value = pydantic.TypeAdapter(kind).validate_python(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([name, *(str(part) for part in first["loc"])])
        raise ValueError(f"{where}: {first['input']!r}, expected: {first['msg']}") from None
    unknown = _unknown(data, to_json(value), name)
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown field, expected one of the fields of {kind.__name__}")
    return value


def with_options(value: T, options: tuple[str, ...], name: str) -> T:
    """The dataclass `value` with some settings changed, each a path=value (JSON, or a bare text); ValueError names what is wrong."""
    data = to_json(value)
    for option in options:
        path, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"{name}: {option!r}, expected path=value")
        *parents, last = path.split(".")
        inside = data
        for parent in parents:
            inside = inside.get(parent) if isinstance(inside, dict) else None
        if not isinstance(inside, dict) or last not in inside:
            raise ValueError(f"{name}: {path!r}, expected a setting of {type(value).__name__}, as {sorted(data)}")
        try:
            inside[last] = json.loads(text)
        except ValueError:
            inside[last] = text
    return from_json(type(value), data, name)


def _unknown(data: Any, known: Any, name: str) -> list[str]:
    if not (isinstance(data, dict) and isinstance(known, dict)):
        return []
    found = [f"{name}.{key}" for key in data if key not in known]
    return found + [inner for key in data if key in known for inner in _unknown(data[key], known[key], f"{name}.{key}")]
