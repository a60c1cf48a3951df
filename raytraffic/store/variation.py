r"""How the cells of a city vary about its mean week, measured on its training part for raytraffic.kriging.

With r = asinh(x / m) - asinh(p), m the cell's mean level under the profile p, mu_s the mean of a cell's r at slot s of the day:

modes         leading eigenvectors of the covariance over cells of mu (smoothed over half an hour to either side), each times the
              root of its eigenvalue: how whole days of cells differ
persistence   variances of white noise and of Ornstein-Uhlenbeck processes with fixed time constants that together fit the
              autocovariance of r - mu up to two days (non-negative least squares, near lags first)

Cells weigh as the root of their level: between counting cells and counting their traffic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from raytraffic.kriging import HOURS, MODES

__all__ = ["Variation"]

_SMOOTH_MINUTES = 30
_LAG_HOURS = 48
_LEAST_PROFILE = 0.02
_DIGITS = 6

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


class Variation:
    """Sums over the training series of one city with slots of `step_minutes` and the mean week `profile` (7, slots)."""

    def __init__(self, step_minutes: int, profile: _Floats) -> None:
        self.step_minutes = step_minutes
        self.profile = np.maximum(profile, _LEAST_PROFILE)
        slots = profile.shape[1]
        lags = _LAG_HOURS * 60 // step_minutes
        self.covariance, self.weight = np.zeros((slots, slots)), 0.0
        self.product, self.pairs = np.zeros(lags), np.zeros(lags)

    def add(self, traffic: NDArray, slot: _Ints, weekday: _Ints) -> None:
        """One series: traffic (c, t, s) and the slot of day and weekday of each step (t,)."""
        for service in traffic:
            self._add(service.astype(np.float64), slot, self.profile[weekday, slot][:, None])

    def _add(self, traffic: _Floats, slot: _Ints, profile: _Floats) -> None:
        """One service, (t, s)."""
        present = np.isfinite(traffic)
        level = np.where(present, traffic, 0.0).sum(0) / np.maximum(np.where(present, profile, 0.0).sum(0), _LEAST_PROFILE)
        live = level > 0
        if not live.any():
            return
        traffic, present, level = traffic[:, live], present[:, live], level[live]
        residual = np.where(present, np.arcsinh(traffic / level) - np.arcsinh(profile), 0.0)
        total, count = (np.zeros((len(self.covariance), len(level))) for _ in range(2))
        np.add.at(total, slot, residual)
        np.add.at(count, slot, present.astype(np.float64))
        day = total / np.maximum(count, 1)
        weight = np.sqrt(level)
        self.covariance += (day * weight) @ day.T
        self.weight += float(weight.sum())
        days = present.sum(0) / len(self.covariance)
        lasting = days >= 2
        if lasting.any():
            # A mean over n days follows them: what is left of their variance is the share (n - 1) / n.
            share = weight[lasting] * days[lasting] / (days[lasting] - 1)
            left = np.where(present, residual - day[slot], 0.0)[:, lasting]
            self.product += _lagged(left, len(self.product)) @ share
            self.pairs += _lagged(present[:, lasting].astype(np.float64), len(self.pairs)) @ weight[lasting]

    def modes(self) -> _Floats:
        """(slots, MODES); zero where nothing was added."""
        slots = len(self.covariance)
        reach = _SMOOTH_MINUTES // self.step_minutes
        smooth = np.mean([np.roll(np.eye(slots), shift, axis=0) for shift in range(-reach, reach + 1)], axis=0)
        value, vector = np.linalg.eigh(smooth @ self.covariance @ smooth.T / max(self.weight, 1e-300))
        count = min(MODES, slots)
        leading = vector[:, ::-1][:, :count] * np.sqrt(np.maximum(value[::-1][:count], 0.0))
        # An eigenvector's sign is arbitrary: its largest entry is made positive.
        leading *= np.sign(leading[np.abs(leading).argmax(0), np.arange(count)] + 1e-300)
        return np.round(np.pad(leading, ((0, 0), (0, MODES - count))), _DIGITS) + 0.0

    def persistence(self) -> _Floats:
        """(1 + len(HOURS),) variances; NaN where no cell was measured for two days."""
        if not self.pairs[0]:
            return np.full(1 + len(HOURS), np.nan)
        there = self.pairs > 0
        hours = np.arange(len(self.pairs))[there] * self.step_minutes / 60
        shapes = np.stack([(hours == 0).astype(np.float64), *(np.exp(-hours / constant) for constant in HOURS)], axis=1)
        weight = np.where(hours == 0, 3.0, 1.0) / (1 + hours / 4)
        found, _ = nnls(shapes * weight[:, None], self.product[there] / self.pairs[there] * weight)
        return np.round(found, _DIGITS)


def _lagged(series: _Floats, lags: int) -> _Floats:
    """(lags, s): sums over t of series[t] * series[t + lag], of series (t, s) by the fast Fourier transform."""
    spectrum = np.fft.rfft(series, n=2 * max(len(series), lags), axis=0)
    return np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[:lags].round(9)
