"""One writer an output folder: a lease that its holder renews, and that goes over to another when the holder is gone.

A lease saves work and spares confusion; it is not what keeps an output whole. Whatever is written under one is a function of its
inputs and appears in one piece, so that a holder who was only stopped, and wakes after another took over, damages nothing.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raytraffic.files import Location

__all__ = ["RENEWAL_S", "held"]

#: Seconds between two renewals; a holder who missed three of them is taken for gone.
RENEWAL_S = 5.0
_NAME = "lease.json"


@contextmanager
def held(folder: Location, renewal_s: float = RENEWAL_S) -> Iterator[None]:
    """Holds the lease of an output folder inside the `with`.

    Raises ValueError where another process holds it. Only the lease's own changes are looked at, never clocks of two machines: one
    that stands still for three renewals is taken over, and at once that of a process of this machine which no longer runs.
    """
    path = folder.child(_NAME)
    _await(path, renewal_s)
    me = {"holder": str(uuid.uuid4()), "host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "began": _began(os.getpid())}
    _write(path, me, 0)
    # Of two that found the same lease to be a dead one's, the later writer has it.
    time.sleep(0.05 if folder.scheme == "file" else 1.0)
    now = _read(path)
    if now is None or now["holder"] != me["holder"]:
        raise ValueError(_taken(path, now))
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, me, renewal_s, over), daemon=True, name="raytraffic-lease")
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        now = _read(path)
        if now is not None and now["holder"] == me["holder"]:
            path.delete()


def _await(path: Location, renewal_s: float) -> None:
    """Returns once nobody holds the lease; ValueError as soon as its holder shows life."""
    first = _read(path)
    if first is None or _gone(first):
        return
    # Where the system says nothing of processes (no /proc), a dead one of this machine is known like any other: by standing still.
    if first["host"] == socket.gethostname() and first["boot"] == _boot() != "":
        raise ValueError(_taken(path, first))
    until = time.monotonic() + 3 * renewal_s
    while time.monotonic() < until:
        time.sleep(min(renewal_s / 5, max(0.0, until - time.monotonic())))
        now = _read(path)
        if now is None:
            return
        if (now["holder"], now["renewed"]) != (first["holder"], first["renewed"]):
            raise ValueError(_taken(path, now))


def _renew(path: Location, me: dict[str, Any], renewal_s: float, over: threading.Event) -> None:
    count = 0
    while not over.wait(renewal_s):
        with suppress(OSError):  # a store that fails for a moment is asked again
            now = _read(path)
            if now is not None and now["holder"] != me["holder"]:
                return  # taken over while this process stood still: both write the same bytes
            count += 1
            _write(path, me, count)


def _write(path: Location, me: dict[str, Any], count: int) -> None:
    path.write_bytes(json.dumps({**me, "renewed": count}).encode())


def _read(path: Location) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}, expected a lease; delete the file if no forecast is running there") from error
    return dict(found)


def _taken(path: Location, holder: dict[str, Any] | None) -> str:
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return f"{path}: {who} writes to this folder now, expected no other; wait for it, or give another folder"


def _gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, since its last start, that no longer runs."""
    return bool(holder["host"] == socket.gethostname() and (holder["boot"] != _boot() or holder["began"] != _began(holder["pid"])))


def _boot() -> str:
    """What tells this start of the machine from others; empty where the system does not say."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _began(pid: int) -> str:
    """What tells a process from a later one with its number; empty where there is none, or the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
