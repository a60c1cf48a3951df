"""Embedding of sites on a cluster: sites a second with one and two actors, memory as the sites grow, and what a second run does.

python benchmarks/embedding.py [--sites 10000] [--pixels 64] [--json figures.json] [--quick]

Synthetic cities, rendered as they are read; the tiny encoder with random weights, whose speed is that of trained ones; the template
describer. Every run is `raytraffic embed` in a process with a Ray of its own; its seconds count from the start of that Ray to the
index, rendering included. `peak_mb_*` is the most memory all its processes held together, `memory_ratio_4x` that of all sites over
that of a quarter of them with two actors. `second_run_computed` counts the vectors that the same command computes again.
"""

from __future__ import annotations

import json as json_
import tempfile
import time
from pathlib import Path

import tyro
from measure import PeakMemory, in_fresh_process, write_figures

from raytraffic.config.environment import EmbedConfig, ScenesConfig
from raytraffic.environment.encoder import ImageTextEncoder

CITIES = 4


def main(sites: int = 10_000, pixels: int = 64, json: Path | None = None, quick: bool = False) -> None:
    """Measure embedding.

    Args:
        sites: Sites in all, rounded down to four square synthetic cities.
        pixels: Of an image along a side.
        json: Where the figures are written.
        quick: Few sites: shows that it runs, measures nothing.
    """
    side = 4 if quick else int((sites / CITIES) ** 0.5)
    cities = tuple(f"synthetic:city-{number}?grid={side}x{side}" for number in range(CITIES))
    figures = {"sites": float(CITIES * side * side)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ImageTextEncoder.create("tiny").save(folder / "encoder")

        def run(out: str, sites: tuple[str, ...], workers: int) -> tuple[dict[str, float], PeakMemory]:
            config = EmbedConfig(
                encoder=str(folder / "encoder"),
                out=str(folder / out),
                scenes=ScenesConfig(sites=sites, pixels=pixels),
                sites_per_shard=8 if quick else 256,
                workers=workers,
            )
            peak = PeakMemory()
            wall = in_fresh_process(_embed, config, peak=peak)
            told = json_.loads((folder / out / "summary.json").read_bytes())
            print(f"{out}, {workers} actors: {wall:.1f} s in all, {told}, {peak}", flush=True)
            return told, peak

        quarter = run("quarter", cities[:1], 2)[1]
        for workers in (1, 2):
            told, peak = run(f"by-{workers}", cities, workers)
            assert told["computed"] == told["sites"] == figures["sites"], told
            figures |= {f"sites_per_s_{workers}": told["sites"] / told["seconds"], f"peak_mb_{workers}": peak.mb}
        again, _ = run("by-2", cities, 2)
        same = [(folder / out / "sites.parquet").read_bytes() for out in ("by-1", "by-2")]
    figures |= {
        "speed_ratio_2": figures["sites_per_s_2"] / figures["sites_per_s_1"],
        "memory_ratio_4x": figures["peak_mb_2"] / quarter.mb,
        "second_run_computed": float(again["computed"]),
        "second_run_seconds": again["seconds"],
        "same_index": float(same[0] == same[1]),
    }
    write_figures(figures, json)


def _embed(config: EmbedConfig) -> float:
    """Seconds from the import of Ray on."""
    began = time.monotonic()
    from raytraffic.on_ray.embed import embed

    embed(config)
    return time.monotonic() - began


if __name__ == "__main__":
    tyro.cli(main)
