"""Scaling-law fits on a table of runs: numpy, scipy and pyarrow only, so that a table can be studied where nothing else is installed."""

from __future__ import annotations

from raytraffic.study.bootstrap import Bootstrap, Interval, bootstrap_parametric_law, bootstrap_power_law
from raytraffic.study.extrapolation import Extrapolation, HeldOut, extrapolate
from raytraffic.study.isoflop import Difference, GridPoint, IsoFlop, Parabola, centred_grid, difference, fit_isoflop
from raytraffic.study.laws import (
    CHINCHILLA,
    CHINCHILLA_REPLICATED,
    Optimum,
    ParametricLaw,
    PowerLaw,
    fit_parametric_law,
    fit_power_law,
    flops_per_parameter_token,
)
from raytraffic.study.regions import DataAmount, Flag, beyond_data, data_limited, not_converged, over_fitted
from raytraffic.study.table import DOMAINS, SCHEMA, TASK_METRICS, TASKS, Points, finished, points, read_runs, write_runs
from raytraffic.study.variable_projection import EXPONENTS

__all__ = [
    "CHINCHILLA",
    "CHINCHILLA_REPLICATED",
    "DOMAINS",
    "EXPONENTS",
    "SCHEMA",
    "TASKS",
    "TASK_METRICS",
    "Bootstrap",
    "DataAmount",
    "Difference",
    "Extrapolation",
    "Flag",
    "GridPoint",
    "HeldOut",
    "Interval",
    "IsoFlop",
    "Optimum",
    "Parabola",
    "ParametricLaw",
    "Points",
    "PowerLaw",
    "beyond_data",
    "bootstrap_parametric_law",
    "bootstrap_power_law",
    "centred_grid",
    "data_limited",
    "difference",
    "extrapolate",
    "finished",
    "fit_isoflop",
    "fit_parametric_law",
    "fit_power_law",
    "flops_per_parameter_token",
    "not_converged",
    "over_fitted",
    "points",
    "read_runs",
    "write_runs",
]
