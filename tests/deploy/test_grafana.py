"""Every figure a dashboard asks for is one the code tells, under the name Ray exports it by."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytraffic.on_ray.forecast import _COUNTED
from raytraffic.on_ray.train_metrics import _TEXTS

ROOT = Path(__file__).resolve().parent.parent.parent
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
#: How Ray 2.60 exports a kind of metric: `ray_` before its name and one of these after it.
SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}


def told() -> set[str]:
    """The names under which this project's metrics are exported."""
    names = {f"ray_raytraffic_train_{name}" for name in _TEXTS} | {f"ray_raytraffic_fleet_{name}_total" for name in _COUNTED}
    for kind, name in _made():
        names |= {f"ray_{name}{suffix}" for suffix in SUFFIXES[kind]}
    return names


def _made() -> Iterator[tuple[str, str]]:
    """Kind and name of every metric that is made under a plain name."""
    for path in sorted((ROOT / "raytraffic").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SUFFIXES and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and str(name.value).startswith("raytraffic_"):
                    yield node.func.id, str(name.value)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_asks_for_what_is_told(path: Path) -> None:
    board = json.loads(path.read_bytes())
    asked = set(re.findall(r"\bray_raytraffic_\w+", " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])))
    assert asked and asked <= told(), sorted(asked - told())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)) and board["uid"] and board["title"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(places) == len(set(places))


def test_every_training_and_fleet_metric_is_shown_somewhere() -> None:
    text = "".join(path.read_text() for path in DASHBOARDS)
    mine = {name for name in told() if "_train_" in name or "_fleet_" in name}
    assert all(name in text for name in mine), sorted(name for name in mine if name not in text)
