"""What a fleet forecast costs: stations x draws -> device-hours, hours on the clock and money, from a throughput that was measured.

`python -m raytraffic.sizing --draws-per-second 2800 --price-per-hour 0.05` prints the table of docs/operations.md. The work is counted
in draws of one station over one window with one sampler step each, because that is what the network computes:

    history        = max(window - horizon, window // 2)                                     (raytraffic.forecasting)
    windows        = 1 + ceil(max(history + horizon - window, 0) / (window // 2))           (raytraffic.rollout)
    device-seconds = stations * draws * windows * (steps / measured steps) / (draws a second)
    wall-hours     = device-hours / devices + start minutes / 60
    cost           = price an hour of a device * devices * wall-hours
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tyro

__all__ = ["Device", "Fleet", "Size", "SizingConfig", "main", "size", "table"]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What is forecast each time: so many stations, draws, hours ahead and sampler steps."""

    stations: int
    draws: int = 20
    """Draws a station."""
    hours: float = 24.0
    """How far ahead."""
    step_minutes: int = 60
    """Granularity of the traffic; a day has 96 slots of 15 minutes and 24 of 60."""
    steps: int = 10
    """Sampler steps."""
    window: int = 64
    """Time slots of the model's window; longer horizons are rolled out by half a window at a time."""

    def __post_init__(self) -> None:
        for name in ("stations", "draws", "step_minutes", "steps"):
            _at_least(self, name, 1)
        _at_least(self, "window", 2)
        _positive(self, "hours")
        slots = self.hours * 60 / self.step_minutes
        if slots < 1 or slots != int(slots):
            raise ValueError(f"hours: {self.hours}, expected a whole number of {self.step_minutes}-minute slots")

    @property
    def windows(self) -> int:
        """Windows the sampler computes for one draw of one station."""
        horizon = round(self.hours * 60 / self.step_minutes)
        history = max(self.window - horizon, self.window // 2)
        return 1 + math.ceil(max(history + horizon - self.window, 0) / (self.window // 2))


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one device (a GPU, or a CPU core) was measured to do, and its price."""

    draws_per_second: float
    """Draws of one station over one window a second, measured on one device."""
    price_per_hour: float
    """Price of one device for an hour, in any currency."""
    measured_steps: int = 10
    """Sampler steps of that measurement."""

    def __post_init__(self) -> None:
        _positive(self, "draws_per_second")
        _at_least(self, "price_per_hour", 0)
        _at_least(self, "measured_steps", 1)


@dataclass(frozen=True)
class Size:
    """What one forecast of a fleet takes."""

    device_hours: float
    """Hours of computing, summed over devices."""
    wall_hours: float
    """Hours on the clock, the start of the devices included."""
    cost: float
    """In the currency of the price."""


def size(fleet: Fleet, device: Device, *, devices: int = 1, start_minutes: float = 0.0) -> Size:
    """What one forecast of `fleet` takes on `devices` devices, each paid `start_minutes` longer; ValueError names a bad number."""
    if devices < 1:
        raise ValueError(f"devices: {devices}, expected at least 1")
    if not (math.isfinite(start_minutes) and start_minutes >= 0):
        raise ValueError(f"start_minutes: {start_minutes}, expected a number of at least 0")
    work = fleet.stations * fleet.draws * fleet.windows * fleet.steps / device.measured_steps
    device_hours = work / device.draws_per_second / 3600
    wall_hours = device_hours / devices + start_minutes / 60
    return Size(device_hours, wall_hours, device.price_per_hour * devices * wall_hours)


@dataclass(frozen=True, kw_only=True)
class SizingConfig:
    """Print a Markdown table of what fleet forecasts take, from a throughput that you measured."""

    draws_per_second: float
    """Draws of one station over one window a second, measured on one device (docs/operations.md says how)."""
    price_per_hour: float
    """Price of one device for an hour, in any currency."""
    measured_steps: int = 10
    """Sampler steps of that measurement."""
    stations: tuple[int, ...] = (1_000, 10_000, 50_000)
    """Sizes of the fleet."""
    draws: tuple[int, ...] = (20, 100)
    """Draws a station."""
    hours: float = 24.0
    """How far ahead."""
    step_minutes: int = 60
    """Granularity of the traffic."""
    steps: int = 10
    """Sampler steps."""
    window: int = 64
    """Time slots of the model's window."""
    devices: int = 1
    """Devices that share the work."""
    start_minutes: float = 0.0
    """Minutes a device is paid for before it computes: launch, installation, loading."""

    def __post_init__(self) -> None:
        for name in ("stations", "draws"):
            if not getattr(self, name):
                raise ValueError(f"{name}: none given, expected at least one number")


def table(config: SizingConfig) -> str:
    """The Markdown table of `config`, one row a size of the fleet and number of draws; ValueError names a bad number."""
    device = Device(draws_per_second=config.draws_per_second, price_per_hour=config.price_per_hour, measured_steps=config.measured_steps)
    rows = ["| stations | draws | windows a draw | device-hours | hours on the clock | cost |", "|---:|---:|---:|---:|---:|---:|"]
    for stations in config.stations:
        for draws in config.draws:
            fleet = Fleet(
                stations=stations,
                draws=draws,
                hours=config.hours,
                step_minutes=config.step_minutes,
                steps=config.steps,
                window=config.window,
            )
            found = size(fleet, device, devices=config.devices, start_minutes=config.start_minutes)
            numbers = f"{found.device_hours:,.3f} | {found.wall_hours:,.3f} | {found.cost:,.2f}"
            rows.append(f"| {stations:,} | {draws:,} | {fleet.windows} | {numbers} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table that the command line asks for; returns 0, or 2 for a mistake in what was asked for."""
    try:
        config = tyro.cli(SizingConfig, prog="python -m raytraffic.sizing", args=arguments)
        print(table(config))
    except ValueError as error:
        print(f"raytraffic.sizing: {error}", file=sys.stderr)
        return 2
    return 0


def _at_least(value: Any, name: str, least: float) -> None:
    number = getattr(value, name)
    if not (math.isfinite(number) and number >= least):
        raise ValueError(f"{name}: {number}, expected a number of at least {least}")


def _positive(value: Any, name: str) -> None:
    number = getattr(value, name)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}: {number}, expected a number > 0")


if __name__ == "__main__":
    sys.exit(main())
