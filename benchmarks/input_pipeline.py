"""The input pipeline: windows a second delivered to a train worker, bytes of store per byte of series, memory for 1x and 10x the data.

python benchmarks/input_pipeline.py --json figures.json [--quick] [--repeats 3] [--store PREPARED]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import tyro
from measure import PeakMemory, alternate, in_fresh_process, spread, synthetic_store, write_figures

from raytraffic.store import Store, open_store
from raytraffic.windows import Columns, Share, Windows, local_batches

BATCH = 64
#: 1x and 10x the tiles of three cities over the same days.
GRIDS = {"1x": (16, 16), "10x": (40, 64)}
QUICK_GRIDS = {"1x": (4, 4), "10x": (8, 20)}


def main(json: Path | None = None, quick: bool = False, repeats: int = 3, store: Path | None = None) -> None:
    """Measure the input pipeline.

    Args:
        json: Where the figures are written.
        quick: Tiny sizes, one repeat: shows that it runs, measures nothing.
        repeats: Repeats of every variant.
        store: A prepared store whose size is compared with its series as well.
    """
    if quick:
        repeats = 1
    with tempfile.TemporaryDirectory() as name:
        folders = {size: Path(name, size) for size in GRIDS}
        for size, grid in (QUICK_GRIDS if quick else GRIDS).items():
            synthetic_store(folders[size], grid, days=7 if quick else 28)
        figures = {"store_bytes_ratio": _store_bytes_ratio(open_store(folders["10x"]))}
        if store is not None:
            figures["given_store_bytes_ratio"] = _store_bytes_ratio(open_store(store))
        figures |= _speed(folders["10x"], steps=20 if quick else 3000, repeats=repeats)
        figures |= _memory(folders, step_seconds=0.0 if quick else 0.01, repeats=repeats)
    write_figures(figures, json)


def _store_bytes_ratio(store: Store) -> float:
    """Bytes of everything in a store's folder per byte of the float32 series in it."""
    return sum(file.stat().st_size for file in Path(store.location.path).rglob("*") if file.is_file()) / store.series_bytes


def _speed(folder: Path, steps: int, repeats: int) -> dict[str, float]:
    """Windows a second through Ray Data, and cut in the same process without it, side by side."""
    variants = {name: partial(in_fresh_process, windows_per_second, folder, name, steps) for name in ("ray", "plain")}
    rates = alternate(variants, repeats)
    shares = [ray / plain for ray, plain in zip(rates["ray"], rates["plain"], strict=True)]
    return spread("windows_per_s", rates["ray"]) | spread("plain_windows_per_s", rates["plain"]) | spread("ray_to_plain_ratio", shares)


def _memory(folders: dict[str, Path], step_seconds: float, repeats: int) -> dict[str, float]:
    """Peak memory of a whole pass over 1x and 10x the data, and what dominates it."""

    def peak(folder: Path) -> PeakMemory:
        memory = PeakMemory(every=0.5)
        in_fresh_process(one_pass, folder, step_seconds, peak=memory)
        return memory

    peaks = alternate({size: partial(peak, folder) for size, folder in folders.items()}, repeats)
    for size, repeated in peaks.items():
        print(f"{size}: peak {repeated[-1]}")
    ratios = [large.mb / small.mb for small, large in zip(peaks["1x"], peaks["10x"], strict=True)]
    medians = {f"peak_mb_{size}": statistics.median(memory.mb for memory in repeated) for size, repeated in peaks.items()}
    return medians | spread("memory_ratio_10x", ratios)


def windows_per_second(folder: Path, variant: str, steps: int) -> float:
    """Windows delivered a second after the first batch."""
    windows = _windows(folder)
    batches = (_through_ray if variant == "ray" else local_batches)(_share(windows, steps))
    next(batches)
    start = time.perf_counter()
    delivered = sum(len(columns["key"]) for columns in batches)
    return delivered / (time.perf_counter() - start)


def one_pass(folder: Path, step_seconds: float) -> int:
    """Streams every training window once to a consumer that is slower than the cutting, as a trainer is; the number of windows.

    So whatever may run ahead of the consumer does.
    """
    windows = _windows(folder)
    delivered = 0
    for columns in _through_ray(_share(windows, -(-windows.training(seed=0).samples_per_pass // BATCH))):
        delivered += len(columns["key"])
        time.sleep(step_seconds)
    return delivered


def _windows(folder: Path) -> Windows:
    """What `raytraffic train` reads by default: the time split, without POI."""
    return Windows(open_store(folder), "time", poi_categories=())


def _through_ray(share: Share) -> Iterator[Columns]:
    """The batches of the only worker of a training run."""
    from raytraffic.on_ray.cluster import connect
    from raytraffic.on_ray.data import training_batches

    connect()
    return training_batches(share)


def _share(windows: Windows, steps: int) -> Share:
    """What the only worker of a run of so many steps takes."""
    return Share(windows, windows.training(seed=0), BATCH, 0, 1, 0, steps)


if __name__ == "__main__":
    tyro.cli(main)
