"""Admission: a request is refused at once when what waits already would make it late, so that those that are let in are answered soon.

Work is counted in rows (windows x draws) times sampler steps. The rate at which it is done is measured while the server is busy: work
finished over the time in which any was unfinished, forgotten exponentially.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

__all__ = ["Admission", "Busy"]

_MEMORY_S = 20.0


class Busy(Exception):  # noqa: N818 - it is an answer, not a fault
    """The queue is full; `retry_after_s` says when it should not be."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"busy, try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


@dataclass
class Admission:
    """Lets work in while what waits takes at most `most_wait_s`, or nothing waits at all; also at most `most_requests` at a time."""

    most_wait_s: float
    most_requests: int
    now: Callable[[], float] = monotonic
    waiting: float = field(default=0.0, init=False)
    requests: int = field(default=0, init=False)
    _done: float = field(default=0.0, init=False)
    _busy: float = field(default=0.0, init=False)
    _since: float = field(default=0.0, init=False)

    def rate(self) -> float | None:
        """Work a second, or None before any was done."""
        self._pass()
        return self._done / self._busy if self._busy > 0 and self._done > 0 else None

    def wait_s(self) -> float:
        """How long what waits will take; 0 while no rate is known."""
        rate = self.rate()
        return 0.0 if rate is None else self.waiting / rate

    def check(self) -> None:
        """Busy when no further request may enter; cheap, so that it can be asked before a body is read."""
        wait = self.wait_s()
        if self.requests >= self.most_requests or (self.requests > 0 and wait > self.most_wait_s):
            raise Busy(max(wait - self.most_wait_s, 0.5))

    def enter(self, work: float) -> None:
        """Takes work in; Busy where `check` says so."""
        self.check()
        self._pass()
        self.requests += 1
        self.waiting += work

    def progress(self, work: float) -> None:
        """Some of the work that was taken in is done."""
        self._pass()
        self.waiting = max(self.waiting - work, 0.0)
        self._done += work

    def leave(self, undone: float = 0.0) -> None:
        """A request has gone, and with it what was not done of its work."""
        self._pass()
        self.requests -= 1
        self.waiting = max(self.waiting - undone, 0.0) if self.requests else 0.0

    def _pass(self) -> None:
        """Time goes by: it counts as busy while requests are there, and the past fades with busy time."""
        now = self.now()
        spent = now - self._since if self.requests else 0.0
        self._since = now
        fade = 0.5 ** (spent / _MEMORY_S)
        self._done *= fade
        self._busy = self._busy * fade + spent
