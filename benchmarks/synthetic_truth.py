"""A model's CRPS against that of the exact law of synthetic cities: how much of what can be known it knows.

The law knows each cell's level and land use, which a forecaster must infer from the history; a ratio of 1 cannot be reached.
`--checkpoint` and `--store` are a trained model and a store that was prepared from `--sources` (all `synthetic:`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from raytraffic.baselines import rules_for
from raytraffic.checkpoint import load_forecaster
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.masks import LONG, SHORT, mask
from raytraffic.metrics.scoreboard import SCALED, Scoreboard
from raytraffic.sources.open import open_source
from raytraffic.sources.synthetic import GaussianLaw, SyntheticCities, law
from raytraffic.store import open_store
from raytraffic.types import Forecast, TrafficBatch
from raytraffic.windows import Windows, windows_for

TASKS = (SHORT, LONG)


def main() -> None:
    """Prints the table and writes the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--sources", nargs="+", required=True)
    parser.add_argument("--windows", type=int, default=24, help="windows a city and task")
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    forecaster, name, config = load_forecaster(options.checkpoint)
    windows = windows_for(open_store(options.store), "time", config)
    laws: dict[str, GaussianLaw] = {}
    for spec in options.sources:
        source = open_source(spec)
        if not isinstance(source, SyntheticCities):
            raise SystemExit(f"--sources: {spec!r}, expected synthetic: sources")
        laws |= {city.name: law(city) for city in source.cities}
    board = Scoreboard()
    index = windows.store.index
    for task in TASKS:
        rows, starts = windows.evaluation("test", task)
        for code, city in enumerate(index.cities):
            mine = np.flatnonzero(index.city[rows] == code)
            chosen = mine[np.linspace(0, len(mine) - 1, options.windows).round().astype(np.int64)]
            columns = windows.cut(rows[chosen], starts[chosen])
            batch = mask(windows.batch(columns), task)
            answers = {name: forecaster.forecast(batch, Sampler("dpm++", 20), options.draws)}
            answers |= {rule.name: rule.forecast(batch, options.draws) for rule in rules_for(task)}
            answers["exact law"] = exact(laws[city], windows, batch, rows[chosen], starts[chosen], options.draws)
            for model, forecast in answers.items():
                board.update(batch, forecast, model=model, cities=[city] * len(chosen), split="time", task=task.name)
    scores = {(row["model"], row["city"], row["task"]): row for row in board.rows() if (row["unit"], row["population"]) == (SCALED, "live")}
    figures = {}
    print("| city, task | model / exact law | best rule / exact law | coverage of 80 %: model, law |\n|---|---|---|---|")
    for (model, city, task), row in scores.items():
        if model != name:
            continue
        truth = scores["exact law", city, task]
        rule = min(r["crps"] for (m, c, t), r in scores.items() if (c, t) == (city, task) and m not in (name, "exact law"))
        figures[f"{city}_{task}_crps_over_law"] = row["crps"] / truth["crps"]
        figures[f"{city}_{task}_best_rule_over_law"] = rule / truth["crps"]
        covers = f"{row['coverage80']:.2f}, {truth['coverage80']:.2f}"
        print(f"| {city}, {task} | {row['crps'] / truth['crps']:.3f} | {rule / truth['crps']:.3f} | {covers} |")
    if options.json:
        Location.of(options.json).write_bytes(json.dumps(figures, indent=1).encode())


def exact(truth: GaussianLaw, windows: Windows, batch: TrafficBatch, rows: np.ndarray, starts: np.ndarray, draws: int) -> Forecast:
    """Draws from the exact conditional law of each window."""
    grid = truth.city.grid
    tile = windows.store.layout.tile
    out = []
    for i, (row, start) in enumerate(zip(rows.tolist(), starts.tolist(), strict=True)):
        place = windows.store.index.places[windows.store.index.place[row]][1]
        top, left = int(place[1:4]) * tile[0], int(place[5:8]) * tile[1]
        cells = (np.arange(top, top + tile[0])[:, None] * grid[1] + np.arange(left, left + tile[1])).ravel()
        window = truth.window(slice(start, start + windows.window), cells)
        law_given = window.condition(batch.known[i, 0].numpy(), batch.traffic[i, 0].numpy())
        out.append(law_given.sample(draws, np.random.Generator(np.random.Philox(key=i))))
    values = torch.from_numpy(np.stack(out)).float()[:, :, None]
    return Forecast(draws=torch.where(batch.known[:, None], batch.traffic[:, None], values), known=batch.known)


if __name__ == "__main__":
    main()
