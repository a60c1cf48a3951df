"""What a training run writes about itself: a metrics table (Parquet), TensorBoard events, and where it stands."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from raytraffic.files import Location

__all__ = ["TrainingLog", "optimisation_seconds", "read_metrics"]

_COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "windows_per_second", "data_wait_share", "validation_loss", "wall")
_SCHEMA = pa.schema([(name, pa.int64() if name == "step" else pa.float64()) for name in _COLUMNS])


class TrainingLog:
    """The metrics of a run from step `done` on; rows of later steps, written before a crash, are replaced.

    With `out` None (every rank but the first) nothing is kept or written.
    """

    def __init__(self, out: Location | None, done: int) -> None:
        self.out = out
        self.rows = [row for row in read_metrics(out) if row["step"] <= done] if out is not None else []
        self.folder = tempfile.TemporaryDirectory() if out is not None else None
        self.writer = None
        if self.folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.folder.name, filename_suffix=f".from-{done}")

    def add(self, *, step: int, **figures: float) -> None:
        """One row; the table is rewritten whole, so a reader always finds a valid file."""
        if self.out is None or self.writer is None:
            return
        self.rows.append({"step": step, "wall": time.time(), **figures})
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self._write()

    def validated(self, step: int, loss: float) -> None:
        """Adds the validation loss to the row of a step and copies the TensorBoard events into the run directory."""
        if self.out is None or self.writer is None or self.folder is None:
            return
        self.rows[-1]["validation_loss"] = loss
        self.writer.add_scalar("validation_loss", loss, step)
        self.writer.flush()
        for path in sorted(Path(self.folder.name).iterdir()):
            self.out.child("tensorboard", path.name).write_bytes(path.read_bytes())
        self._write()

    def _write(self) -> None:
        assert self.out is not None
        columns = {name: [row.get(name) for row in self.rows] for name in _COLUMNS}
        self.out.child("metrics.parquet").write_table(pa.table(columns, schema=_SCHEMA))


def read_metrics(out: Location) -> list[dict[str, float]]:
    """The rows of a run's metrics table so far; none before the first was written."""
    path = out.child("metrics.parquet")
    return path.read_table().to_pylist() if path.exists() else []


def optimisation_seconds(rows: Sequence[dict[str, float]], batch: int) -> float:
    """The seconds that the steps of a metrics table took, validation and checkpoints left out."""
    steps = pairwise([0.0, *(row["step"] for row in rows)])
    return sum((step - before) * batch / row["windows_per_second"] for (before, step), row in zip(steps, rows, strict=True))
