"""What preparation of data is, and the quickstart's whole line."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PrepareConfig", "QuickstartConfig"]


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
    """Rows and columns of a tile: of a grid, or with `group_stations` of so many stations."""
    group_stations: bool = False
    """Stations with places in groups of neighbours, as models of station graphs take them; else each station is a tile of its own."""
    window: int = 64
    """Time slots of the longest window that a model may be trained on or asked about."""
    seed: int = 0
    """Seed of the splits."""


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """The whole line on three synthetic cities: prepare, train, evaluate, forecast, report."""

    out: str = "runs/quickstart"
    """Folder of the store, the run, the evaluation and the forecast."""
    steps: int = 300
    """Training steps."""
    seed: int = 0
