"""What evaluation and calibration of checkpoints are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raytraffic.config.conversion import at_least_one
from raytraffic.config.training import SplitName

__all__ = ["CalibrateConfig", "EvaluateConfig", "UomoTables"]


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
        at_least_one(self, "few_shot_steps", "finetune_steps")


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
        at_least_one(self, "draws", "steps", "stride", "batch", "workers")


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
        at_least_one(self, "windows", "draws", "steps", "batch", "workers")
