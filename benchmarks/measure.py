"""What every benchmark shares: alternated fresh processes, their peak memory, medians with spread, and the JSON of figures."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import psutil

from raytraffic.files import Location
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity
from raytraffic.store import Layout, Store, open_store, prepare_store

__all__ = ["PeakMemory", "alternate", "in_fresh_process", "spread", "synthetic_store", "write_figures"]

T = TypeVar("T")


class PeakMemory:
    """The most memory a process and all below it held at one moment, sampled every `every` seconds.

    Proportional set sizes are summed, so that a page which several processes share (Ray's object store) counts once.
    """

    def __init__(self, every: float = 0.5) -> None:
        self.every = every
        self.bytes = 0
        #: Bytes at the peak by process title.
        self.parts: dict[str, int] = {}

    def sample(self, pid: int) -> None:
        """Looks once; processes that end meanwhile, or belong to others, count nothing."""
        found = []
        try:
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            try:
                memory = process.memory_full_info()
                found.append((process, getattr(memory, "pss", memory.uss)))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        total = sum(size for _, size in found)
        if total > self.bytes:
            self.bytes, self.parts = total, {}
            for process, size in found:
                title = _title(process)
                self.parts[title] = self.parts.get(title, 0) + size

    @property
    def mb(self) -> float:
        """The peak in megabytes (1e6 bytes)."""
        return self.bytes / 1e6

    def __str__(self) -> str:
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:6]
        return f"{self.mb:.0f} MB: " + ", ".join(f"{title} {size / 1e6:.0f}" for title, size in largest)


def _title(process: psutil.Process) -> str:
    """What a process calls itself, without its path: `python`, `raylet`, `ray::MapBatches(_Share)`."""
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        words = []
    return os.path.basename(words[0].split(" ")[0]) if words else "ended"


def in_fresh_process(function: Callable[..., T], *arguments: Any, peak: PeakMemory | None = None) -> T:
    """What `function` (of a module's top level) returns in a new interpreter, whose memory `peak` watches.

    A cluster that RAY_ADDRESS names is not joined: every measurement has a Ray of its own. Raises RuntimeError when the
    process ends without an answer.
    """
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_answer, args=(sender, function, arguments))
    child.start()
    sender.close()
    while not receiver.poll(None if peak is None else peak.every):
        if peak is not None and child.pid is not None:
            peak.sample(child.pid)
    try:
        answer: T = receiver.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"{function.__name__}: its process ended with exit code {child.exitcode}, expected an answer") from None
    child.join()
    return answer


def _answer(sender: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.environ.pop("RAY_ADDRESS", None)
    sender.send(function(*arguments))


def alternate(variants: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """What each variant returned, repeat by repeat; the order turns round every time, so that a steady drift of the machine cancels."""
    results: dict[str, list[T]] = {name: [] for name in variants}
    for repeat in range(repeats):
        for name in list(variants)[:: -1 if repeat % 2 else 1]:
            results[name].append(variants[name]())
            print(f"repeat {repeat + 1} of {repeats}: {name} done", flush=True)
    return results


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """The median of repeated measurements as figure `name`, with the least and the greatest as `name_low` and `name_high`."""
    return {name: statistics.median(values), f"{name}_low": min(values), f"{name}_high": max(values)}


def write_figures(figures: Mapping[str, float], path: Path | None) -> None:
    """Prints the figures and, where a path is given, writes them there as one flat JSON object.

    Raises ValueError naming a figure that is no finite number: such a run measured nothing.
    """
    for name, value in figures.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: {value}, expected a finite number")
        print(f"{name:<32} {value:.6g}")
    if path is not None:
        Location.of(path).write_bytes((json.dumps(dict(figures), indent=1) + "\n").encode())


def synthetic_store(folder: Path, grid: tuple[int, int], days: int) -> Store:
    """A store of three synthetic cities (15, 30 and 60 minutes) of one grid, prepared in this process."""
    source = SyntheticCities([SyntheticCity(name=f"city-{step}", grid=grid, days=days, step_minutes=step) for step in (15, 30, 60)])
    prepare_store((source.read(name) for name in source.names()), Location.of(folder), Layout())
    return open_store(folder)
