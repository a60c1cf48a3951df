"""What a notebook user holds: a Forecaster that is loaded from a checkpoint and forecasts a data frame."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from raytraffic import forecaster as core
from raytraffic.checkpoint import load_forecaster, save_forecaster
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.forecasting import ForecastRequest, forecast_table, issue_windows
from raytraffic.sources.table import Columns, LongTable
from raytraffic.store import Layout, open_store, prepare_store
from raytraffic.windows import windows_for

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Forecaster"]


class Forecaster(core.Forecaster):
    """A core Forecaster that knows its name and configuration: `Forecaster.from_pretrained(path).predict_df(df, horizon=48)`."""

    def __init__(self, conditioner: nn.Module, denoiser: nn.Module, config: core.ForecasterConfig, model: str, model_config: Any) -> None:
        super().__init__(conditioner, denoiser, config)
        self.model = model
        self.model_config = model_config

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Forecaster:
        """The model saved in a folder or under an s3:// URL; ValueError names what does not fit."""
        loaded, model, model_config = load_forecaster(path)
        return cls(loaded.conditioner, loaded.denoiser, loaded.config, model, model_config).eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Saves model.safetensors, config.json and a model card into a folder or under an s3:// URL."""
        save_forecaster(path, self.state_dict(), self.model, self.model_config, {})

    def predict_df(
        self,
        traffic: Any,
        horizon: int,
        quantile_levels: Sequence[float] = (0.1, 0.5, 0.9),
        *,
        sites: Any = None,
        users: Any = None,
        poi: Any = None,
        columns: Columns | None = None,
        step_minutes: int | None = None,
        cell_metres: float | None = None,
        draws: int = 20,
        steps: int = 10,
        seed: int = 0,
        keep_draws: bool = False,
    ) -> pd.DataFrame:
        """Forecasts `horizon` slots after the end of a long table (pandas, polars or arrow; `unique_id, ds, y` by default).

        Returns one row a (unique_id, slot) with mean and one column a quantile level. Context tables and column names are those of
        `raytraffic.sources.table.LongTable`; with `cell_metres` stations are summed into grid cells. Runs in this process.
        Raises ValueError for bad input, naming the column, the value and what was expected.
        """
        request = ForecastRequest(
            horizon=horizon,
            quantiles=tuple(sorted(quantile_levels)),
            draws=draws,
            keep_draws=keep_draws,
            seed=seed,
            sampler=Sampler("dpm++", steps),
        )
        table = LongTable(
            traffic, sites=sites, users=users, poi=poi, columns=columns or Columns(), step_minutes=step_minutes, cell_metres=cell_metres
        )
        with tempfile.TemporaryDirectory() as folder:
            prepare_store([table.read(name) for name in table.names()], Location.of(folder), Layout())
            windows = windows_for(open_store(folder), "all", self.model_config)
            rows, starts = issue_windows(windows, request, None, int(windows.store.index.step_minutes[0]))
            frame: pd.DataFrame = forecast_table(self, windows, rows, starts, request).to_pandas()
        services = frame["service"].nunique()
        return frame.drop(columns=["city"] + (["service"] if services == 1 else []))
