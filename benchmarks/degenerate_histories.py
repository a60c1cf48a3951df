"""What a model answers where the history says little or nothing: one row a history, a day of 30-minute slots ahead or a whole window.

python benchmarks/degenerate_histories.py --checkpoint RUN/best [--draws 200] [--json figures.json]

The city has a plain daily profile and a reference of 1000. `mean`, `q10`, `q90` are averages over the hidden slots of the cell asked for.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import tyro
from measure import write_figures
from rich.console import Console
from rich.table import Table
from torch import Tensor

from raytraffic.checkpoint import load_forecaster
from raytraffic.types import Space, TrafficBatch

_STEP, _SLOTS, _KNOWN = 30, 64, 16


def histories() -> dict[str, Tensor]:
    """name: the known slots (16,) of the cell asked for; NaN was never measured."""
    day = profile()[:_KNOWN]
    flat = torch.full((_KNOWN,), 100.0)
    spike = 100 * day
    spike[7] = 1e6
    gaps = 100 * day
    gaps[::2] = torch.nan
    one = torch.full((_KNOWN,), torch.nan)
    one[-1] = 100.0
    return {
        "as the profile": 100 * day,
        "all zero": torch.zeros(_KNOWN),
        "constant": flat,
        "all missing": torch.full((_KNOWN,), torch.nan),
        "one known slot": one,
        "every second slot missing": gaps,
        "one spike of 10,000 times": spike,
        "tiny (1e-9)": 1e-9 * day,
        "huge (1e12)": 1e12 * day,
    }


def profile() -> Tensor:
    """(64,) mean 1 over a day."""
    return 1 + 0.8 * torch.sin(2 * math.pi * (torch.arange(_SLOTS) * _STEP / 1440 - 0.25))


def batch_of(history: Tensor) -> TrafficBatch:
    """One window of a 4 x 4 tile whose other cells are ordinary; the last 48 slots of the first cell are asked for."""
    scale = torch.exp(torch.linspace(-1, 1, 16)) * 100
    traffic = (scale * profile()[:, None])[None, None].clone()
    traffic[0, 0, :, 0] = torch.nan
    traffic[0, 0, :_KNOWN, 0] = history
    known = torch.isfinite(traffic)
    known[:, :, _KNOWN:] = False
    slot = torch.arange(_SLOTS)
    return TrafficBatch(
        traffic=traffic,
        known=known,
        clock=torch.stack((slot * _STEP % 1440 // _STEP, slot * _STEP // 1440), dim=-1)[None],
        step_minutes=torch.tensor([_STEP]),
        key=torch.tensor([1]),
        space=Space(grid=(4, 4)),
        context={"profile": profile()[None], "reference": torch.tensor([[1000.0]])},
    )


def main(checkpoint: str, draws: int = 200, json: Path | None = None) -> None:
    """Forecast degenerate histories.

    Args:
        checkpoint: A trained model of one service.
        draws: Draws of a forecast.
        json: Where the figures are written.
    """
    forecaster, _, _ = load_forecaster(checkpoint)
    figures: dict[str, float] = {}
    table = Table("history of the cell", "mean", "q10", "q90", "draws that are 0", "finite")
    for name, history in histories().items():
        batch = batch_of(history)
        forecast = forecaster.forecast(batch, draws=draws)
        asked = forecast.draws[0, :, 0, _KNOWN:, 0]
        low, high = forecast.quantile([0.1, 0.9])[0, :, 0, _KNOWN:, 0].mean(dim=1).tolist()
        values = (float(asked.mean()), low, high, float((asked == 0).float().mean()))
        table.add_row(name, *(f"{value:.4g}" for value in values), str(bool(torch.isfinite(asked).all())))
        key = name.split(" (")[0].replace(" ", "_").replace(",", "")
        figures |= {f"{key}_{what}": value for what, value in zip(("mean", "q10", "q90", "zero_share"), values, strict=True)}
    Console(width=140).print(table)
    write_figures(figures, json)


if __name__ == "__main__":
    tyro.cli(main)
