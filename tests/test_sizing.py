"""The sizing table: its arithmetic by hand, its windows as the rollout really cuts them, and the copy of it in docs/operations.md."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.forecasting import ForecastRequest
from raytraffic.rollout import in_windows
from raytraffic.sizing import Device, Fleet, SizingConfig, main, size, table
from raytraffic.types import Forecast
from tests.batches import seasonal_batch

REPOSITORY = Path(__file__).resolve().parent.parent
CORE = Device(draws_per_second=1000.0, price_per_hour=0.5)


def test_one_window_by_hand() -> None:
    # 36,000 stations x 100 draws x 1 window at 1,000 a second: 3,600 s
    found = size(Fleet(stations=36_000, draws=100), CORE)
    assert (found.device_hours, found.wall_hours, found.cost) == (1.0, 1.0, 0.5)


def test_a_day_of_quarters_of_an_hour_takes_three_windows() -> None:
    # 96 slots: the first window gives 32, each later one 32 more
    fleet = Fleet(stations=36_000, draws=100, step_minutes=15)
    assert fleet.windows == 3
    assert size(fleet, CORE).device_hours == 3.0


def test_steps_scale_from_those_of_the_measurement() -> None:
    device = dataclasses.replace(CORE, measured_steps=5)
    assert size(Fleet(stations=36_000, draws=100, steps=20), device).device_hours == 4.0


def test_devices_share_the_work_and_each_is_paid_while_it_starts() -> None:
    # an hour over four devices: 15 minutes, and 6 before that; 4 x 21 minutes at 0.5 an hour
    found = size(Fleet(stations=36_000, draws=100), CORE, devices=4, start_minutes=6)
    assert found.device_hours == 1.0
    assert found.wall_hours == pytest.approx(0.35)
    assert found.cost == pytest.approx(0.7)


@pytest.mark.parametrize("horizon", [1, 3, 4, 5, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("window", [8, 9])
def test_windows_are_those_of_the_rollout(horizon: int, window: int) -> None:
    history = ForecastRequest(horizon=horizon).history(window)
    batch = seasonal_batch(windows=1, steps=(60,), t=history + horizon)
    known = batch.known.clone()
    known[:, :, history:] = False
    pieces, counted = in_windows(dataclasses.replace(batch, known=known), window, draws=2), 0
    try:
        piece, draws = next(pieces)
        while True:
            counted += 1
            answer = torch.ones(len(piece.key), draws, *piece.shape[1:])
            piece, draws = pieces.send(Forecast(draws=answer, known=piece.known))
    except StopIteration:
        pass
    assert Fleet(stations=1, hours=horizon, step_minutes=60, window=window).windows == counted


numbers = st.integers(1, 10**6)


@given(numbers, numbers, st.integers(1, 500), st.integers(1, 100), st.floats(1e-3, 1e6), st.floats(0, 1e3))
def test_more_of_anything_never_costs_less(stations: int, draws: int, hours: int, steps: int, rate: float, price: float) -> None:
    fleet = Fleet(stations=stations, draws=draws, hours=hours, steps=steps)
    device = Device(draws_per_second=rate, price_per_hour=price)
    found = size(fleet, device)
    for more in ({"stations": stations + 1}, {"draws": draws + 1}, {"hours": hours + 1}, {"steps": steps + 1}):
        larger = size(dataclasses.replace(fleet, **more), device)
        assert larger.device_hours >= found.device_hours
        assert larger.cost >= found.cost
    assert size(fleet, dataclasses.replace(device, draws_per_second=2 * rate)).device_hours < found.device_hours
    assert size(fleet, device, devices=3).wall_hours < found.wall_hours
    assert size(fleet, device, devices=3).cost == pytest.approx(found.cost)  # sharing costs nothing but each device's start


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("stations", 0, "at least 1"),
        ("draws", -3, "at least 1"),
        ("steps", 0, "at least 1"),
        ("window", 1, "at least 2"),
        ("hours", 0.0, "> 0"),
        ("hours", 1.3, "a whole number of 60-minute slots"),
        ("hours", float("nan"), "> 0"),
    ],
)
def test_a_bad_fleet_is_refused_by_name(field: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: {re.escape(str(value))}, expected .*{expected}"):
        dataclasses.replace(Fleet(stations=10), **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("draws_per_second", 0.0, "> 0"),
        ("draws_per_second", float("inf"), "> 0"),
        ("price_per_hour", -1.0, "at least 0"),
        ("measured_steps", 0, "at least 1"),
    ],
)
def test_a_bad_device_is_refused_by_name(field: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: {value}, expected .*{expected}"):
        dataclasses.replace(CORE, **{field: value})


@pytest.mark.parametrize(("devices", "start", "named"), [(0, 0.0, "devices: 0"), (1, -1.0, "start_minutes: -1.0")])
def test_bad_devices_and_starts_are_refused_by_name(devices: int, start: float, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}, expected"):
        size(Fleet(stations=10), CORE, devices=devices, start_minutes=start)


def test_a_row_for_each_fleet_and_number_of_draws() -> None:
    rows = table(SizingConfig(draws_per_second=1000, price_per_hour=0.5, stations=(36_000, 72_000), draws=(100,))).splitlines()
    assert rows[2:] == ["| 36,000 | 100 | 1 | 1.000 | 1.000 | 0.50 |", "| 72,000 | 100 | 1 | 2.000 | 2.000 | 1.00 |"]


def test_a_mistake_on_the_command_line_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--draws-per-second", "0", "--price-per-hour", "1"]) == 2
    assert capsys.readouterr().err == "raytraffic.sizing: draws_per_second: 0.0, expected a number > 0\n"


def test_the_table_of_the_operations_page_is_what_its_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    found = re.search(r"```bash\npython -m raytraffic\.sizing ([^`]+?)\n```\n\n((?:\|.*\n)+)", page)
    assert found is not None
    assert main(shlex.split(found.group(1).replace("\\\n", " "))) == 0
    assert capsys.readouterr().out == found.group(2)


def test_sizing_needs_neither_ray_nor_torch() -> None:
    program = "import sys, raytraffic.sizing; print([name for name in ('ray', 'torch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout == "[]\n"
