"""What forecasts are: of a fleet into files, and of whoever asks over HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from raytraffic.config.conversion import at_least_one

__all__ = ["ForecastConfig", "ServeConfig"]


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
    expected_users: str | None = None
    """Table (CSV or Parquet: unique_id, ds, expected_users, and city where there are several) of your own forecast of the users in slots
    that are forecast, for models that were trained with one (contexts: expected_users); nothing is expected of slots without a row."""
    hop: int | None = None
    """Slots that are drawn together, each knowing the draws before: 1 for models that were trained one step ahead (--tasks next)."""
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
        at_least_one(self, "draws", "steps", "batch", "tiles_per_shard", "workers")
        if self.hop is not None:
            at_least_one(self, "hop")


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
