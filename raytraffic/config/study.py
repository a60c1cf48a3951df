"""What a scaling-law study is."""

from __future__ import annotations

from dataclasses import dataclass

from raytraffic.config.conversion import at_least_one
from raytraffic.config.training import SplitName

__all__ = ["StudyConfig"]


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Plan and run a scaling-law study: sizes x data x budgets x seeds, fitted and reported; finished runs are reused."""

    store: str
    """The prepared store."""
    out: str
    """Folder or s3:// URL of the runs (by content, so that a larger study reuses them), the table of runs and the report."""
    model: str = "uomo"
    sizes: tuple[str, ...] = ("w16", "w24", "w32", "w48", "w64")
    """Presets of the model, or widths of its family as w40."""
    shares: tuple[float, ...] = (1.0,)
    """Data by sites: these shares of each city's training places, the smaller contained in the larger."""
    days: tuple[float, ...] = ()
    """Data by days: so many last days of each training series; all if none is given."""
    cities: tuple[str, ...] = ()
    """The cities that are trained on, in the order in which they are added; all but the held-out ones if none is named."""
    city_counts: tuple[int, ...] = ()
    """Data by cities: the first so many of `cities`; all of them if none is given."""
    held_out: tuple[str, ...] = ()
    """Cities that are never trained on and scored apart (domain `out`)."""
    steps: tuple[int, ...] = (600,)
    """Budgets in optimisation steps, or with `flops` the most that a run may take."""
    flops: tuple[float, ...] = ()
    """Budgets in training FLOPs: every size gets the steps that each of them pays for."""
    centred: int = 0
    """Of each budget in FLOPs, only so many sizes, about as many smaller as larger than the best one expected; all if 0."""
    seeds: tuple[int, ...] = (0, 1)
    """Each draws weights, order of the data, noise and, of a share, the places anew."""
    split: SplitName = "place"
    training: tuple[str, ...] = ()
    """Settings in which all runs differ from `train`, as name=value: batch=32 learning_rate=2e-3 options=["entries=0"]."""
    tasks: tuple[str, ...] = ("short", "long", "generation")
    """Tasks that are scored."""
    windows: int = 64
    """Windows of the test part that are scored a task and domain."""
    draws: int = 16
    sampler_steps: int = 10
    metrics: tuple[str, ...] = ("in_loss", "out_loss")
    """The held-out figures that laws are fitted to, columns of the table: in_loss, in_short_crps, out_long_rmse, ..."""
    cpus_per_run: float = 1
    """CPUs a run reserves; as many runs go at once as the cluster has."""
    workers: int = 1
    """Workers of one run; more than one train through Ray Train."""
    gpu: bool = False
    attempts: int = 3
    """Times a run is tried before it is reported as failed."""
    dry_run: bool = False
    """Print the plan only."""
    device: str | None = None
    """The device that hours and cost are predicted for: H200, H100, A100, A10G, L40S or L4, or its peak in FLOPs a second as a number."""
    utilisation: float = 0.4
    """Share of it that training reaches."""
    price_per_hour: float = 0.0
    """Price of one device for an hour, in any currency."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        for name in ("sizes", "shares", "steps", "seeds", "tasks", "metrics"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: {values}, expected one or more, all different")
        if both := sorted(set(self.cities) & set(self.held_out)):
            raise ValueError(f"held_out: {both}, expected cities that are not trained on")
        if self.city_counts and not (self.cities and 1 <= min(self.city_counts) <= max(self.city_counts) <= len(self.cities)):
            raise ValueError(f"city_counts: {self.city_counts}, expected numbers from 1 to that of the named cities ({len(self.cities)})")
        if self.flops and (len(self.steps) > 1 or min(self.flops) <= 0):
            raise ValueError(f"flops: {self.flops} with steps {self.steps}, expected positive budgets and at most one limit of steps")
        if self.centred and not self.flops:
            raise ValueError(f"centred: {self.centred}, expected 0 without budgets in flops")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation: {self.utilisation}, expected a share in (0, 1]")
        at_least_one(self, "windows", "draws", "sampler_steps", "workers", "attempts")
