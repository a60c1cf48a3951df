"""The planner's benchmark runs and writes the figures it promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_benchmarks import figures_of


@pytest.mark.slow
def test_planner(tmp_path: Path) -> None:
    figures = figures_of("planner.py", tmp_path)
    for route in ("sleep", "deployment"):
        load = (f"{route}_{what}_1" for what in ("p50_ms", "p99_ms", "per_s", "solver_share", "solver_busy"))
        beside = (f"forecast_beside_{route}_ratio{end}" for end in ("", "_low", "_high"))
        assert figures.keys() >= {*load, *beside, f"forecast_p50_ms_alone_{route}", f"forecast_p50_ms_beside_{route}", f"{route}_body_mb"}
        assert figures[f"{route}_p50_ms_1"] <= figures[f"{route}_p99_ms_1"]
        # One client alone: the solver works while it waits and at no other time.
        assert figures[f"{route}_solver_busy_1"] <= figures[f"{route}_solver_share_1"] <= 1
