"""The report of a training run tells its losses, its data and its files, and is the same for the same run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from raytraffic.files import Location
from raytraffic.report.training import training_report

CITIES = {"east<b>": {"periods": {"all": {"steps": 96}, "later": {"steps": 48}}, "step_minutes": 30, "has_users": True}}
SETTINGS = {"model": "uomo", "preset": "tiny", "batch": 8, "split": "time", "seed": 7}


def rows(validation: list[float | None]) -> list[dict[str, float]]:
    """A row every 25 steps."""
    base = {"loss": 2.0, "learning_rate": 1e-3, "gradient_norm": 0.5, "windows_per_second": 80.0, "data_wait_share": 0.01, "wall": 0.0}
    return [{**base, "step": 25 * (i + 1), "validation_loss": value} for i, value in enumerate(validation)]  # type: ignore[dict-item]


def page(folder: Path, validation: list[float | None]) -> str:
    """The report as text."""
    return Path(
        str(training_report(rows(validation), SETTINGS, CITIES, Location.of(folder / "report.html"), parameters=1234567))
    ).read_text()


def test_it_tells_what_the_run_was(tmp_path: Path) -> None:
    text = page(tmp_path, [1.9, None, 1.7, 1.8])
    assert "uomo tiny, 1,234,567 parameters, trained for 100 steps of 8 windows on the training part of the time split." in text
    assert "Lowest validation loss: 1.7000 at step 75." in text and "80 windows a second; 1.0% of the time" in text
    assert "east&lt;b&gt;" in text and "east<b>" not in text and "<td>3.0</td>" in text
    assert text.count("data:image/svg+xml") == 3 and "<script" not in text
    assert page(tmp_path, [1.9, None, 1.7, 1.8]) == text


@pytest.mark.parametrize("validation", [[None, None], [math.nan, math.nan]])
def test_a_run_without_validation_says_so(tmp_path: Path, validation: list[float | None]) -> None:
    assert "There was no validation part: the last model is the best one." in page(tmp_path, validation)


def test_a_run_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report\.html: no row of metrics"):
        training_report([], SETTINGS, CITIES, Location.of(tmp_path / "report.html"), parameters=1)
