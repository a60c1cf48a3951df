"""The benchmarks run and write the figures they promise; `--quick` figures mean nothing, so no time and no ratio is asserted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
#: A throw-away cluster on the loopback interface.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(BENCHMARKS.parent),
    "OMP_NUM_THREADS": "1",
}


def figures_of(script: str, folder: Path, *options: str, may_be_none: tuple[str, ...] = ()) -> dict[str, float]:
    """The figures of a quick run, all of them finite and positive but those that count what may not have happened."""
    path = folder / "figures.json"
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--json", str(path), *options]
    run = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    figures = json.loads(path.read_text())
    assert [file.name for file in folder.iterdir()] == ["figures.json"]
    sure = {name: value for name, value in figures.items() if name not in may_be_none}
    assert not {name: value for name, value in sure.items() if not (isinstance(value, float) and math.isfinite(value) and value > 0)}
    return figures


def test_sampler_steps(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers is the oracle of this benchmark (extra dev)")
    figures = figures_of("sampler_steps.py", tmp_path)
    # Exact numbers, not measurements: more steps and the higher order are better, and diffusers (float32 tables) agrees.
    assert figures["dpmpp_cov_error_20"] < figures["ddim_cov_error_20"] < figures["ddpm_cov_error_20"] < 0.25
    for method in ("ddpm", "ddim", "dpmpp"):
        assert figures[f"{method}_cov_error_20"] < figures[f"{method}_cov_error_10"] < figures[f"{method}_cov_error_1"]
        assert figures[f"{method}_mean_error_20"] < 1e-4
    assert max(figures["ddim_diffusers_difference"], figures["dpmpp_diffusers_difference"]) < 1e-4


@pytest.mark.slow
def test_input_pipeline(tmp_path: Path) -> None:
    figures = figures_of("input_pipeline.py", tmp_path)
    assert figures.keys() >= {"windows_per_s", "store_bytes_ratio", "peak_mb_1x", "peak_mb_10x", "memory_ratio_10x"}
    assert figures["store_bytes_ratio"] < 1.2  # deterministic: the target itself


@pytest.mark.slow
def test_accuracy(tmp_path: Path, shared_data: Path) -> None:
    figures = figures_of("accuracy.py", tmp_path, "--data", str(shared_data / "uomo"), "--draws", "9", "--steps", "2", "--stride", "100")
    names = [f"{city}_{task}" for city in ("nanchang", "nanjing", "shandong") for task in ("short", "long", "generation")]
    assert figures.keys() >= {f"{name}_{what}" for name in names for what in ("crps_ratio", "rmse_ratio", "coverage80")}


@pytest.mark.slow
def test_train_overhead(tmp_path: Path) -> None:
    """It also compares the losses of both loops and fails when they do different work."""
    figures = figures_of("train_overhead.py", tmp_path)
    assert figures.keys() >= {"plain_step_ms", "ray_step_ms", "step_ratio", "data_wait_share"}


@pytest.mark.slow
def test_serve_load(tmp_path: Path) -> None:
    """At three times the capacity some are refused, all of them told when to come back, and nothing else fails."""
    figures = figures_of("serve_load.py", tmp_path, may_be_none=("other_5xx",))
    names = [f"{what}_{stations}_1" for what in ("rps", "p50_ms", "p99_ms") for stations in (1, 16, 256)]
    overload = ("capacity_rps", "overload_goodput_ratio", "overload_reject_median_ms", "overload_p99_ratio", "overload_memory_ratio")
    assert figures.keys() >= {*names, *overload, "graph_overhead_256", "direct_256_s", "served_256_s"}
    assert all(figures[f"p50_ms_{stations}_1"] <= figures[f"p99_ms_{stations}_1"] for stations in (1, 16, 256))
    assert figures["overload_rejected_share"] < 1 and figures["retry_after_share"] == 1 and figures["other_5xx"] == 0


@pytest.mark.slow
def test_serve_faults(tmp_path: Path) -> None:
    """A killed sampler costs no request that is asked for once more."""
    failed = ("sampler_kill_failed", "sampler_kill_first_failed")
    figures = figures_of("serve_faults.py", tmp_path, may_be_none=failed)
    assert figures.keys() == {*failed, "sampler_kill_requests", "sampler_kill_gap_s"}
    assert 0 == figures["sampler_kill_failed"] <= figures["sampler_kill_first_failed"] < figures["sampler_kill_requests"]
    assert figures["sampler_kill_gap_s"] < 60


@pytest.mark.slow
def test_a_mistake_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "train_overhead.py"), "--steps", "30", "--json", str(path)]
    run = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert run.returncode != 0 and "steps: 30, expected a multiple of 25" in run.stderr
    assert not path.exists()


@pytest.mark.slow
def test_fleet(tmp_path: Path) -> None:
    figures = figures_of("fleet.py", tmp_path)
    assert figures.keys() >= {"stations_per_s", "end_to_end_ratio", "memory_ratio_2x", "peak_mb_driver", "peak_mb_all"}
    assert figures["stations"] == 64


@pytest.mark.slow
def test_preparation(tmp_path: Path) -> None:
    figures = figures_of("preparation.py", tmp_path)
    assert figures.keys() >= {"cities_per_s_1_cpu", "cities_per_s_2_cpus", "scaling_2_cpus", "peak_mb_2_cpus"}


@pytest.mark.slow
def test_study_overhead(tmp_path: Path) -> None:
    figures = figures_of("study_overhead.py", tmp_path)
    assert figures.keys() == {"overhead_1_cpus", "loops_1_cpus_s", "overhead_2_cpus", "loops_2_cpus_s", "task_s", "ray_train_s"}


@pytest.mark.slow
def test_decisions(tmp_path: Path) -> None:
    assert figures_of("decisions.py", tmp_path, may_be_none=tuple(f"deployment_{name}_gap" for name in ("plain", "types", "cvar")))


def test_scaling_fits(tmp_path: Path) -> None:
    """Exact numbers again but for the coverage, of which a quick run has three trials."""
    grids = [f"{law}_{grid}" for law in ("chinchilla", "asymmetric") for grid in ("narrow", "wide", "wide_drifting")]
    biases = tuple(f"{grid}_{what}" for grid in grids for what in ("exponent_bias", "approach_3_exponent_bias"))
    figures = figures_of("scaling_fits.py", tmp_path, may_be_none=biases)
    assert max(figures["chinchilla_error"], figures["chinchilla_replicated_error"]) < 1e-9
    assert figures["asymmetric_wide_optimum_ratio"] > 1.2


@pytest.mark.slow
def test_contrast(tmp_path: Path) -> None:
    recalls = [f"{way}_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)]
    about = ("vegetation", "water", "bare_soil", "built_up", "paved", "poi_total", "poi_category")
    dropped = [f"{whose}_dropped{suffix}" for whose in ("others", "false") for suffix in ("", *(f"_{name}" for name in about))]
    figures = figures_of("contrast.py", tmp_path, may_be_none=(*recalls, "over_chance", "calibrated", *dropped))
    assert figures.keys() >= {"true_kept", "others_dropped", *(f"true_kept_{name}" for name in about)}


@pytest.mark.slow
def test_landscape(tmp_path: Path) -> None:
    """Land tells of traffic even in few cells; what a single pixel seems to tell of them is chance."""
    asked = ("evening", "rush_hour", "mix_residential", "mix_business", "mix_leisure", "mix_transport", "poi", "level")
    figures = figures_of("landscape.py", tmp_path, may_be_none=tuple(f"{seen}r2_{name}" for seen in ("", "pixel_") for name in asked))
    assert figures.keys() >= {*(f"r2_{name}" for name in asked), "tiles_per_cpu_s", "counting_s"}


@pytest.mark.slow
def test_embedding(tmp_path: Path) -> None:
    figures = figures_of("embedding.py", tmp_path, may_be_none=("second_run_computed",))
    assert figures["second_run_computed"] == 0 and figures["same_index"] == 1


@pytest.mark.slow
def test_lsdm(tmp_path: Path) -> None:
    rows = (
        "same_hour_yesterday",
        "same_hour_mean_of_history",
        "ridge_blend",
        "lsdm_no_condition",
        "lsdm",
        "lsdm_no_2_d_attention",
        "lsdm_condition_added_directly",
        "lsdm_place_of_the_hour_unknown",
    )
    gains = ("r2_gain_env_on", "r2_gain_env_history", "r2_gain_env_off", "r2_gain_2d_coupled", "r2_gain_2d_uncoupled")
    any_sign = (*gains, *(f"{row}_{metric}" for row in rows for metric in ("r2", "r2_debiased")))
    figures = figures_of("lsdm.py", tmp_path, may_be_none=any_sign)
    assert figures.keys() >= {*gains, "mse_step_1", "mse_step_10", "mse_step_20", "mse_step_30"}


@pytest.mark.slow
def test_lec_diff(tmp_path: Path) -> None:
    models = ("lec_diff", "drop_gei", "drop_sgf")
    covers = tuple(
        f"effects-{effects}_{task}_{model}_coverage{level}"
        for effects in ("on", "off")
        for task in ("short", "long")
        for model in (*models, "profile_+_gaussian", "same_slot_yesterday")
        for level in (50, 90)
    )
    figures = figures_of("lec_diff.py", tmp_path, "--only", "city", may_be_none=covers)
    assert figures.keys() >= {"effects-on_short_lec_diff_crps", "effects-off_long_lec_diff_crps"}


@pytest.mark.slow
def test_lec_diff_nodes(tmp_path: Path) -> None:
    figures = figures_of("lec_diff_nodes.py", tmp_path)
    assert figures.keys() >= {"growth_exponent", "us_per_node_draw_80", "training_peak_mb_80", "sampling_peak_mb_80", "idle_peak_mb"}


@pytest.mark.slow
def test_stouter(tmp_path: Path) -> None:
    figures = figures_of("stouter.py", tmp_path)
    assert figures.keys() >= {"law_both_stouter_crps", "law_both_without_time_crps_ratio", "throughput_20_steps_station_weeks_per_s"}
