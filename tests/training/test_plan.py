"""The plan of a study: every run once, known by what decides it, costed in advance, and its data nested."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytraffic import registry
from raytraffic.config import StudyConfig
from raytraffic.store import open_store
from raytraffic.training import initial_model, selected_windows
from raytraffic.training.study import PlannedRun, hours, plan
from tests.store.cities import prepared, tiled_city


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "store"
    cities = [
        [tiled_city(name, places=[f"p{i}" for i in range(8)], steps=120, seed=i)] for i, name in enumerate(("alpha", "beta", "gamma"))
    ]
    prepared(folder, *cities)
    return folder


def settings(store: Path, **changed: Any) -> StudyConfig:
    base = StudyConfig(store=str(store), out="out", sizes=("w16", "w32"), seeds=(0,), steps=(20,), training=("window=8", "batch=4"))
    return replace(base, **changed)


def addresses(config: StudyConfig) -> set[str]:
    return {run.address for run in plan(config)}


def test_every_combination_is_one_run_the_most_expensive_first(store: Path) -> None:
    runs = plan(settings(store, shares=(0.5, 1.0), seeds=(0, 1), steps=(20, 40)))
    found = {(run.config.preset, run.config.share, run.config.seed, run.config.steps) for run in runs}
    assert len(runs) == len(found) == len({run.address for run in runs}) == 16
    assert [run.flops for run in runs] == sorted((run.flops for run in runs), reverse=True)


@pytest.mark.parametrize("changed", [{"out": "elsewhere"}, {"cpus_per_run": 2.0}, {"attempts": 1}, {"metrics": ("out_loss",)}, {"seed": 5}])
def test_what_does_not_decide_a_row_leaves_its_address(store: Path, changed: dict[str, Any]) -> None:
    assert addresses(settings(store, **changed)) == addresses(settings(store))


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": (1,)},
        {"steps": (21,)},
        {"shares": (0.5,)},
        {"days": (1.0,)},
        {"cities": ("alpha",)},
        {"held_out": ("gamma",)},
        {"draws": 3},
        {"windows": 5},
        {"training": ("window=8", "batch=8")},
        {"training": ("window=8", "batch=4", 'options=["entries=0"]')},
    ],
)
def test_what_decides_a_row_changes_its_address(store: Path, changed: dict[str, Any]) -> None:
    assert not addresses(settings(store, **changed)) & addresses(settings(store))


def test_another_store_is_another_study(store: Path, tmp_path: Path) -> None:
    prepared(tmp_path, [tiled_city("alpha", places=("p0", "p1", "p2", "p3"), steps=121)])
    assert not addresses(settings(tmp_path)) & addresses(settings(store))


def trained(run: PlannedRun, store: Path) -> tuple[np.ndarray, np.ndarray]:
    """First and last training step of every row of the index."""
    chosen = initial_model(run.config, open_store(store))[1]
    ranges = selected_windows(run.config, open_store(store), chosen).assignment.train
    return ranges[:, 0], ranges[:, 1]


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"shares": (0.3,)}, {"shares": (0.7,)}),
        ({"days": (0.5,)}, {"days": (1.5,)}),
        ({"cities": ("alpha", "beta", "gamma"), "city_counts": (1,)}, {"cities": ("alpha", "beta", "gamma"), "city_counts": (2,)}),
    ],
)
def test_less_data_is_contained_in_more(store: Path, less: dict[str, Any], more: dict[str, Any]) -> None:
    small, large = (plan(settings(store, sizes=("w16",), **each))[0] for each in (less, more))
    (low, high), (from_, to) = trained(small, store), trained(large, store)
    used = low < high
    assert used.any() and (from_[used] <= low[used]).all() and (high[used] <= to[used]).all()
    assert small.data_tokens < large.data_tokens and small.windows < large.windows


def test_costs_are_those_of_the_model_that_is_built(store: Path) -> None:
    for run in plan(settings(store)):
        _, chosen, model = initial_model(run.config, open_store(store))
        assert run.cost.parameters == sum(parameter.numel() for parameter in model.parameters())
        hidden = (0.25 + 0.75 + 0.25 + 0.5 * 0.5 + 0.5 * 0.5) / 4  # by the default mixture, on average
        assert run.cost.training_flops == registry.model("uomo").cost(chosen, (4, 4), hidden).training_flops
        assert run.flops == 20 * 4 * run.cost.training_flops and run.tokens == 20 * 4 * 2


def test_a_budget_pays_for_fewer_steps_of_a_larger_size(store: Path) -> None:
    runs = plan(settings(store, flops=(1e9, 4e9), steps=(10_000,), training=("window=8", "batch=4", 'options=["entries=0"]')))
    for budget in (1e9, 4e9):
        mine = {run.config.preset: run for run in runs if budget * 0.8 < run.flops <= budget}
        assert set(mine) == {"w16", "w32"} and mine["w16"].config.steps > mine["w32"].config.steps


def test_a_centred_grid_leaves_out_sizes_that_lie_to_one_side(store: Path) -> None:
    sizes = tuple(f"w{width}" for width in (16, 24, 32, 40, 48, 56, 64, 80, 96))
    config = settings(store, sizes=sizes, flops=(3e9, 1.2e10), steps=(100_000,), training=("window=8", "batch=4", 'options=["entries=0"]'))
    centred = plan(replace(config, centred=3))
    assert len(centred) == 6 and {run.address for run in centred} < addresses(config)
    small, large = ({run.cost.parameters for run in centred if (run.flops > 4e9) == above} for above in (False, True))
    assert len(small) == len(large) == 3 and sum(small) < sum(large)


def test_a_budget_that_pays_for_nothing_is_refused(store: Path) -> None:
    with pytest.raises(ValueError, match="flops: 10 pays for no step of w16, expected at least"):
        plan(settings(store, flops=(10.0,)))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sizes": ("w16", "w16")}, "sizes: .*all different"),
        ({"sizes": ("huge",)}, "preset: 'huge'"),
        ({"cities": ("alpha",), "held_out": ("alpha",)}, "held_out: .*alpha"),
        ({"city_counts": (2,)}, "city_counts: .*named cities"),
        ({"centred": 5}, "centred: 5, expected 0 without budgets"),
        ({"cities": ("omega",)}, "cities: .*omega"),
        ({"tasks": ("medium",)}, "task: 'medium'"),
        ({"training": ("pace=3",)}, "training: 'pace', expected a setting"),
        ({"utilisation": 1.5}, "utilisation: 1.5"),
    ],
)
def test_mistakes_are_named(store: Path, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        plan(settings(store, **changed))


def test_predicted_hours(store: Path) -> None:
    run = plan(settings(store))[0]
    assert hours(run, "1e6", 0.5) == pytest.approx(run.flops / 0.5e6 / 3600)
    assert hours(run, "H100", 1.0) == pytest.approx(run.flops / 989e12 / 3600)
    with pytest.raises(ValueError, match="device: 'abacus', expected a known GPU"):
        hours(run, "abacus", 1.0)
