"""Progress of long work: a bar on a terminal, and one line of name=value an event where the output is a log."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from raytraffic.files import Location
from raytraffic.training_log import read_metrics

__all__ = ["Stage", "follow"]

_LINES = 10


class Stage:
    """One stretch of work of `total` pieces: `with Stage("evaluate", 120) as stage: stage.advance(4, "long")`."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done = title, total, done
        self._shown = -1
        self._console = Console()
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> Stage:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, pieces: int, note: str = "") -> None:
        """So many more pieces are done."""
        self.reach(self.done + pieces, note)

    def reach(self, done: int, note: str = "") -> None:
        """So many pieces are done in all; a log gets a line at every tenth of the way."""
        self.done = done
        self._bar.update(self._task, completed=done, note=note)
        tenth = _LINES * done // max(1, self.total)
        if not self._console.is_terminal and tenth > self._shown:
            self._shown = tenth
            now = datetime.now(UTC).isoformat(timespec="seconds")
            print(f"{now} event=progress stage={json.dumps(self.title)} done={done} total={self.total} note={json.dumps(note)}", flush=True)


@contextmanager
def follow(out: Location, steps: int, every: float = 1.0) -> Iterator[None]:
    """Shows the training run in `out`, which goes on in other processes, from the metrics table it writes, until the `with` ends."""
    finished = threading.Event()

    def watch() -> None:
        with Stage("train", steps) as stage:
            while True:
                over = finished.wait(every)
                rows = read_metrics(out)
                if rows:
                    losses = [row["validation_loss"] for row in rows if row["validation_loss"] is not None]
                    note = f"loss {rows[-1]['loss']:.3f}" + (f", validation {losses[-1]:.3f}" if losses else "")
                    stage.reach(int(rows[-1]["step"]), note)
                if over:
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
