"""Which choices matter: the default mode with one choice changed at a time, each trained from scratch for the same number of steps.

"default" has learned marginals over a seasonal prior; the rows of other priors, and of the global scale, are without them and their noise.

python benchmarks/ablation.py --store STORE [--split place] [--steps 1500] [--rows default "no prior"] [--json figures.json]

Steps cost about the same in every row but those of other tokens; seconds are printed beside. Figures are `<row>_<city>_<task>_crps`,
the fair CRPS of hidden entries of all cells on the [0, 1] scale, on the validation part. Rows that are there already are not made again.
"""

from __future__ import annotations

import json as json_module
import time
from dataclasses import replace
from pathlib import Path

import tyro
from measure import write_figures
from rich.console import Console
from rich.table import Table

from raytraffic.config import EvaluateConfig, TrainConfig, to_json
from raytraffic.metrics.scoreboard import SCALED
from raytraffic.on_ray.evaluate import evaluate
from raytraffic.on_ray.train import train

_PLAIN = ("entries=0", "forecaster.noise.hours=0", "forecaster.noise.share=0")
_GLOBAL = (*_PLAIN, "forecaster.scaling.kind=global", "forecaster.scaling.prior=none")

#: row: (settings that differ from the preset's, fields that differ in the training's, in the evaluation's)
ROWS: dict[str, tuple[tuple[str, ...], dict[str, object], dict[str, object]]] = {
    "default": ((), {}, {}),
    "global scale": (_GLOBAL, {}, {}),
    "no prior": ((*_PLAIN, "forecaster.scaling.prior=none"), {}, {}),
    "Fourier prior": ((*_PLAIN, "forecaster.scaling.prior=fourier"), {}, {}),
    "seasonal prior": (_PLAIN, {}, {}),
    "white noise": (("forecaster.noise.hours=0", "forecaster.noise.share=0"), {}, {}),
    "epsilon target": (("forecaster.prediction=epsilon",), {}, {}),
    "sample target": (("forecaster.prediction=sample",), {}, {}),
    "linear schedule": (("forecaster.schedule=linear",), {}, {}),
    "min-SNR": (("forecaster.weighting=min_snr",), {}, {}),
    "no EMA": ((), {"ema": 0.0}, {}),
    "token 4x2x2": (("token=[4,2,2]",), {}, {}),
    "token 16x4x4": (("token=[16,4,4]",), {}, {}),
    "paper's masks": ((), {"tasks": ("short", "long", "generation", "random"), "weights": (1.0, 1.0, 1.0, 1.0)}, {}),
    "no augmentation": (
        (),
        {"turn_tiles": False, "silence_cells": 0.0, "jitter_levels": 0.0, "shift_rhythm": 0.0, "forget_cities": 0.0, "drop_contexts": 0.0},
        {},
    ),
    "without users": ((), {"contexts": ()}, {}),
    "with POI": ((), {"contexts": ("users", "poi")}, {}),
    "guidance 2": ((), {"contexts": ("users", "poi")}, {"guidance": 2.0}),
}


def main(
    store: str,
    split: str = "place",
    preset: str = "small",
    steps: int = 1500,
    stride: int = 12,
    draws: int = 20,
    rows: tuple[str, ...] = tuple(ROWS),
    out: Path = Path("runs/ablation"),
    json: Path | None = None,
) -> None:
    """Train and score the rows.

    Args:
        store: A prepared store.
        split: place or time.
        preset: The model whose choices are changed.
        steps: Training steps of a row.
        stride: Every n-th window is evaluated.
        draws: Draws of a forecast.
        rows: Which rows; all if not given.
        out: Where runs and evaluations are kept; a row that is there already is not trained again.
        json: Where the figures are written.
    """
    unknown = sorted(set(rows) - set(ROWS))
    if unknown:
        raise ValueError(f"rows: {unknown}, expected some of {list(ROWS)}")
    figures: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for row in rows:
        options, training, evaluation = ROWS[row]
        folder = out / row.replace(" ", "_")
        base = TrainConfig(store=store, out=str(folder), split=split, preset=preset, steps=steps, validate_every=steps, options=options)  # type: ignore[arg-type]
        began = time.monotonic()
        best = train(replace(base, **training))  # type: ignore[arg-type]
        seconds[row] = time.monotonic() - began
        scored = EvaluateConfig(
            checkpoint=f"{best}",
            store=store,
            out=str(folder / "evaluation"),
            splits=(split,),
            part="validation",  # choices are made on it; the test part is for what was chosen
            stride=stride,
            draws=draws,  # type: ignore[arg-type]
        )
        settings = folder / "evaluation" / "config.json"
        scored = replace(scored, **evaluation)  # type: ignore[arg-type]
        if not (settings.exists() and json_module.loads(settings.read_text()) == to_json(scored)):
            evaluate(scored)
        for found in json_module.loads((folder / "evaluation" / "scores.json").read_text()):
            if found["model"] == "uomo" and found["population"] == "all" and found["unit"] == SCALED:
                figures[f"{row.replace(' ', '_')}_{found['city']}_{found['task']}_crps"] = found["crps"]
    _show(figures, seconds)
    write_figures(figures, json)


def _show(figures: dict[str, float], seconds: dict[str, float]) -> None:
    """One line a row, CRPS in 1e-4."""
    columns = list(dict.fromkeys("_".join(name.rsplit("_", 3)[1:3]) for name in figures))
    table = Table("row", *columns, "seconds")
    for row, spent in seconds.items():
        name = row.replace(" ", "_")
        cells = [f"{1e4 * figures[f'{name}_{column}_crps']:.1f}" for column in columns]
        table.add_row(row, *cells, f"{spent:.0f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    tyro.cli(main)
