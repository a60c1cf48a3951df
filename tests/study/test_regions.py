"""Judgements on runs by curves and tables whose answer is plain, and the extrapolation check against planted laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raytraffic.study import (
    CHINCHILLA,
    SCHEMA,
    DataAmount,
    Flag,
    Points,
    beyond_data,
    data_limited,
    extrapolate,
    not_converged,
    over_fitted,
)

STEPS = np.arange(10, 101, 10)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"run": f"r{i}", "status": "done", **row} for i, row in enumerate(rows)], schema=SCHEMA)


def run_with(loss: np.ndarray, passes: float = 1.0) -> pa.Table:
    best = int(STEPS[: len(loss)][loss.argmin()])
    curve = {"curve_step": STEPS[: len(loss)].tolist(), "curve_loss": loss.tolist()}
    return table([{"steps": int(STEPS[len(loss) - 1]), "best_step": best, "passes": passes, **curve}])


def only(flags: list[Flag]) -> Flag:
    assert [each.run for each in flags] == ["r0"]
    return flags[0]


def test_a_loss_that_still_falls_is_not_converged() -> None:
    flag = only(not_converged(run_with(3.0 - 0.01 * STEPS)))
    # a straight line: the last quarter brings half of what the half before it brought; 0.25 of a loss of 2
    assert flag.flagged is True
    assert flag.reason == "best at its last step; the last quarter brought 12.5% of the loss, 50% of what the half before brought"
    assert only(not_converged(run_with(1 + STEPS**-0.5))).flagged is True


@pytest.mark.parametrize(
    "loss",
    [
        1 + np.exp(-STEPS / 10),  # flat long before the end
        1 + 20 * np.exp(-STEPS / 15),  # its last tenth of a loss is 3 % of what the half before brought
        1 + 1e-3 * STEPS[::-1] / 100,  # falls by less than anyone would see
        1 + (STEPS - 50.0) ** 2 / 1e4,  # best in its middle
    ],
)
def test_a_loss_that_settled_is_converged(loss: np.ndarray) -> None:
    assert only(not_converged(run_with(loss))).flagged is False


def test_a_short_curve_cannot_tell() -> None:
    flag = only(not_converged(run_with(np.array([3.0, 2.0, 1.0]))))
    assert flag.flagged is None
    assert "3 evaluations" in flag.reason
    assert only(over_fitted(run_with(np.array([3.0, 2.0, 1.0])))).flagged is None


def test_over_fitting_needs_an_early_minimum_a_rise_and_many_passes() -> None:
    dip = 1 + (STEPS - 50.0) ** 2 / 1e4
    flag = only(over_fitted(run_with(dip, passes=20.0)))
    assert flag.flagged is True
    assert flag.reason == "lowest at step 50 of 100, 25.0% higher at the end, after 20.0 passes over its data"
    assert only(over_fitted(run_with(dip, passes=2.0))).flagged is False
    assert only(over_fitted(run_with(1 + (dip - 1) / 100, passes=20.0))).flagged is False
    assert only(over_fitted(run_with(dip[::-1] * np.linspace(2, 1, 10), passes=20.0))).flagged is False


def test_a_curve_that_runs_backwards_is_refused() -> None:
    row = {"steps": 20, "best_step": 20, "curve_step": [20, 10], "curve_loss": [1.0, 2.0]}
    with pytest.raises(ValueError, match=r"^curve_step: 2 steps for 2 losses in run 'r0', expected rising steps"):
        not_converged(table([row]))


def cells(losses: dict[tuple[int, int], list[float]], tokens: int = 100) -> list[dict[str, Any]]:
    """Rows of (data, parameters): the losses of the seeds."""
    return [
        {"data_tokens": data, "parameters": size, "tokens": tokens, "seed": seed, "validation_loss": loss}
        for (data, size), each in losses.items()
        for seed, loss in enumerate(each)
    ]


SATURATING = {
    (100, 10): [3.00, 3.01],
    (100, 20): [2.50, 2.51],
    (100, 40): [2.50, 2.49],  # within the seeds' spread
    (100, 80): [2.60, 2.61],
    (900, 10): [2.80, 2.81],
    (900, 20): [2.30, 2.31],
    (900, 40): [2.00, 2.01],
    (900, 80): [1.80, 1.81],
}


def test_more_parameters_stop_helping_where_the_data_is_small() -> None:
    small, large = data_limited(table(cells(SATURATING)))
    assert (small.data_tokens, small.parameters, small.largest_helpful, small.limited) == (100, (10, 20, 40, 80), 20, True)
    assert small.loss[0] == pytest.approx(3.005, rel=1e-5)
    assert small.reason.startswith("beyond 20 parameters up to 80 the loss fell by 0.40% at most; seeds spread by ")
    assert (large.largest_helpful, large.limited) == (80, False)
    assert large.reason == "the largest size trained, 80 parameters, still helped"
    flags = beyond_data(table(cells(SATURATING)))
    assert [each.flagged for each in flags] == [False] * 4 + [True] * 4 + [False] * 8


def test_what_counts_as_help_follows_the_seeds_spread() -> None:
    def of(spread: float) -> DataAmount:
        return data_limited(table(cells({(1, 10): [3 - spread, 3 + spread], (1, 20): [2.9 - spread, 2.9 + spread]})))[0]

    assert of(0.001).largest_helpful == 20
    assert of(0.2).largest_helpful == 10


def test_a_size_that_only_makes_good_the_harm_of_another_does_not_help() -> None:
    (found,) = data_limited(table(cells({(1, 10): [2.0, 2.01], (1, 20): [2.5, 2.51], (1, 40): [2.2, 2.21]})))
    assert found.largest_helpful == 10
    assert "the loss fell by 0.00% at most" in found.reason


def test_one_seed_is_judged_by_the_least_gain_and_says_so() -> None:
    (found,) = data_limited(table(cells({(1, 10): [2.0], (1, 20): [1.999], (1, 40): [1.9985]})))
    assert found.largest_helpful == 10
    assert "no configuration has two seeds" in found.reason
    (one,) = data_limited(table(cells({(1, 10): [2.0]})))
    assert (one.limited, one.reason) == (False, "one size was trained")


def test_a_size_is_judged_by_its_best_budget() -> None:
    rows = cells({(1, 10): [2.0, 2.01], (1, 20): [1.5, 1.51]}) + cells({(1, 10): [2.2, 2.21], (1, 20): [2.6, 2.61]}, tokens=10_000)
    (found,) = data_limited(table(rows))
    assert found.loss == pytest.approx((2.005, 1.505), rel=1e-4)
    assert found.largest_helpful == 20


def test_failed_runs_are_not_judged_and_a_figure_can_be_chosen() -> None:
    rows = [{**row, "out_short_crps": row["validation_loss"] / 2} for row in cells(SATURATING)]
    rows[3]["status"] = "failed"
    found = data_limited(table(rows), metric="out_short_crps")
    assert found[0].loss[1] == pytest.approx(1.25)
    assert len(beyond_data(table(rows))) == 15


def grid(noise: float, seed: int = 0) -> Points:
    n, d = (np.repeat(each.ravel(), 2) for each in np.meshgrid(np.geomspace(5e6, 2e8, 7), np.geomspace(2e8, 2e10, 4)))
    loss = CHINCHILLA.predict(n, d) * np.exp(noise * np.random.default_rng(seed).normal(size=len(n)))
    return Points(parameters=n, data=d, tokens=d, flops=6 * n * d, loss=loss, seed=np.tile([0.0, 1.0], len(n) // 2))


def test_a_law_without_noise_foretells_held_out_runs_exactly() -> None:
    check = extrapolate(grid(0.0), most_parameters=7e7, resamples=100)
    assert check.fitted_runs == 40
    assert [each.parameters for each in check.held_out] == pytest.approx(np.repeat(np.geomspace(5e6, 2e8, 7)[5:], 4))
    assert check.mean_error_percent < 1e-6


def test_an_error_is_that_of_the_foretold_loss_and_has_an_interval() -> None:
    points = grid(0.005)
    check = extrapolate(points, most_flops=5e18, resamples=200)
    assert check.fitted_runs == int((points.flops <= 5e18).sum())
    for each in check.held_out:
        assert each.error_percent.estimate == pytest.approx(100 * (each.foretold.estimate - each.measured) / each.measured)
        assert each.foretold.low < each.foretold.estimate < each.foretold.high
        assert each.covered == (each.error_percent.low <= 0 <= each.error_percent.high)
        assert each.foretold.estimate == pytest.approx(float(check.law.predict(each.parameters, each.tokens)))


def test_a_law_that_breaks_is_found_out() -> None:
    points = grid(0.002)
    points.loss[points.parameters > 7e7] *= 1.2
    check = extrapolate(points, most_parameters=7e7, resamples=200)
    assert not any(each.covered for each in check.held_out)
    assert all(each.error_percent.high < 0 for each in check.held_out)


def test_a_check_without_held_out_runs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^most_parameters: inf, most_flops: 1e\+30, expected a limit that holds out a run"):
        extrapolate(grid(0.0), most_flops=1e30)
