"""A model's CRPS against that of the exact law of synthetic cities: how much of what can be known it knows.

python benchmarks/synthetic_truth.py --checkpoint RUN/best --store STORE --sources "synthetic:..." [--json figures.json]

The law knows each cell's level and land use, which a forecaster must infer from the history; a ratio of 1 cannot be reached.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import tyro
from measure import write_figures

from raytraffic.baselines import rules_for
from raytraffic.checkpoint import load_forecaster
from raytraffic.diffusion.samplers import Sampler
from raytraffic.masks import LONG, SHORT, mask
from raytraffic.metrics.scoreboard import SCALED, Scoreboard
from raytraffic.sources.open import open_source
from raytraffic.sources.synthetic import GaussianLaw, SyntheticCities, law
from raytraffic.store import open_store
from raytraffic.types import Forecast, TrafficBatch
from raytraffic.windows import Windows, windows_for

LAW = "exact law"


def main(
    checkpoint: str, store: str, sources: tuple[str, ...], windows: int = 24, draws: int = 50, steps: int = 20, json: Path | None = None
) -> None:
    """Measure CRPS over that of the exact law, short- and long-term, on the test part of the time split.

    Args:
        checkpoint: A trained model.
        store: A store prepared from `sources` and nothing else.
        sources: Its sources, all of them `synthetic:`.
        windows: Windows a city and task.
        draws: Draws a window.
        steps: Sampler steps.
        json: Where the figures are written.
    """
    forecaster, name, config = load_forecaster(checkpoint)
    view = windows_for(open_store(store), "time", config)
    laws = _laws(sources)
    board = Scoreboard()
    for task in (SHORT, LONG):
        rows, starts = view.evaluation("test", task)
        for code, city in enumerate(view.store.index.cities):
            mine = np.flatnonzero(view.store.index.city[rows] == code)
            chosen = mine[np.linspace(0, len(mine) - 1, windows).round().astype(np.int64)]
            batch = mask(view.batch(view.cut(rows[chosen], starts[chosen])), task)
            answers = {name: forecaster.forecast(batch, Sampler("dpm++", steps), draws)}
            answers |= {rule.name: rule.forecast(batch, draws) for rule in rules_for(task)}
            answers[LAW] = exact(laws[city], view, batch, rows[chosen], starts[chosen], draws)
            for model, forecast in answers.items():
                board.update(batch, forecast, model=model, cities=[city] * len(chosen), split="time", task=task.name)
    write_figures(_figures(board, name), json)


def _laws(sources: tuple[str, ...]) -> dict[str, GaussianLaw]:
    laws: dict[str, GaussianLaw] = {}
    for spec in sources:
        source = open_source(spec)
        if not isinstance(source, SyntheticCities):
            raise ValueError(f"sources: {spec!r}, expected synthetic: sources")
        laws |= {city.name: law(city) for city in source.cities}
    return laws


def _figures(board: Scoreboard, name: str) -> dict[str, float]:
    scores = {(row["model"], row["city"], row["task"]): row for row in board.rows() if (row["unit"], row["population"]) == (SCALED, "live")}
    figures: dict[str, float] = {}
    print("| city, task | model / exact law | best rule / exact law | 80 % covers: model, law |\n|---|---|---|---|")
    for (model, city, task), row in scores.items():
        if model == name:
            truth = scores[LAW, city, task]
            rules = [other["crps"] for (rule, *where), other in scores.items() if where == [city, task] and rule not in (name, LAW)]
            ours, theirs = row["crps"] / truth["crps"], min(rules) / truth["crps"]
            figures |= {f"{city}_{task}_crps_over_law": ours, f"{city}_{task}_best_rule_over_law": theirs}
            print(f"| {city}, {task} | {ours:.3f} | {theirs:.3f} | {row['coverage80']:.2f}, {truth['coverage80']:.2f} |")
    return figures


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
    tyro.cli(main)
