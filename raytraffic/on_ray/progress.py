"""Progress of a run that goes on in other processes, read from the metrics table it writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from raytraffic.files import Location
from raytraffic.training_log import read_metrics

__all__ = ["bar", "follow"]


def bar() -> Progress:
    """The progress bar every verb shows."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


@contextmanager
def follow(out: Location, steps: int, every: float = 1.0) -> Iterator[None]:
    """Shows the run in `out` as a bar until the `with` ends."""
    finished = threading.Event()

    def watch() -> None:
        with bar() as progress:
            task = progress.add_task("train", total=steps, note="starting workers")
            while True:
                over = finished.wait(every)
                rows = read_metrics(out)
                if rows:
                    losses = [row["validation_loss"] for row in rows if row["validation_loss"] is not None]
                    note = f"loss {rows[-1]['loss']:.3f}" + (f", validation {losses[-1]:.3f}" if losses else "")
                    progress.update(task, completed=rows[-1]["step"], note=note)
                if over:
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
