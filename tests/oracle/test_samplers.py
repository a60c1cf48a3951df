"""Samplers against what is known exactly: a conditional Gaussian, the order of convergence, and diffusers on the same noise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from raytraffic.diffusion.process import Process
from raytraffic.diffusion.samplers import Sampler
from raytraffic.diffusion.schedule import Schedule
from raytraffic.randomness import normal

LINEAR, COSINE = Schedule("linear", 1000), Schedule("cosine", 1000)


def conditional_gaussian() -> tuple[Tensor, Tensor]:
    """Mean and covariance of four hidden entries given two known ones, of a stationary AR(1) window of six."""
    index = torch.arange(6, dtype=torch.float64)
    covariance = 0.8 ** (index[:, None] - index[None]).abs()
    known, hidden = [0, 5], [1, 2, 3, 4]
    gain = covariance[hidden][:, known] @ torch.linalg.inv(covariance[known][:, known])
    mean = gain @ torch.tensor([1.5, -0.5], dtype=torch.float64)
    return mean, covariance[hidden][:, hidden] - gain @ covariance[known][:, hidden]


def exact(schedule: Schedule, mean: Tensor, covariance: Tensor):
    """E[x | x_k] under N(mean, covariance): what a perfectly trained network answers."""

    def estimate(x: Tensor, k: int) -> Tensor:
        bar = float(schedule.alpha_bar[k])
        noisy = bar * covariance + (1 - bar) * torch.eye(len(mean), dtype=torch.float64)
        gain = math.sqrt(bar) * covariance @ torch.linalg.inv(noisy)
        return mean + (x - math.sqrt(bar) * mean) @ gain.T

    return estimate


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize(("method", "steps"), [("ddpm", 500), ("ddim", 200), ("dpm++", 50)])
def test_recovers_the_conditional_gaussian(schedule: Schedule, method: str, steps: int) -> None:
    mean, covariance = conditional_gaussian()
    seeds = torch.arange(40_000)
    draws = Sampler(method, steps).run(exact(schedule, mean, covariance), lambda i: normal(seeds, i, (4,)).double(), schedule)
    # 40,000 draws: standard errors are 0.0025 (mean) and about 0.003 (covariance); the rest is discretisation.
    torch.testing.assert_close(draws.mean(0), mean, atol=0.012, rtol=0)
    torch.testing.assert_close(draws.T.cov(), covariance, atol=0.02, rtol=0)


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("dpm++", 2)])
def test_order_of_convergence(method: str, order: int) -> None:
    """Halving the step of an ODE sampler divides the error by 2^order; measured far from the clean end's first-order step."""
    mean, covariance = conditional_gaussian()
    covariance = 0.3 * covariance
    x = normal(torch.arange(256), 0, (4,)).double()
    fine = Schedule("cosine", 20_000)

    def end(steps: int) -> Tensor:
        return Sampler(method, steps).run(exact(fine, mean, covariance), lambda _: x, fine)

    truth = end(5_000)
    errors = [float((end(steps) - truth).norm()) for steps in (20, 40, 80)]
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(measured) > order - 0.35, (errors, measured)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
@pytest.mark.parametrize("method", ["ddim", "dpm++"])
@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_agrees_with_diffusers(schedule: Schedule, method: str, prediction: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of this test (extra dev)")
    steps = 20
    kinds = {"epsilon": "epsilon", "sample": "sample", "v": "v_prediction"}
    betas = 1 - schedule.alpha_bar / torch.cat((torch.ones(1, dtype=torch.float64), schedule.alpha_bar[:-1]))
    common = {
        "num_train_timesteps": 1000,
        "trained_betas": betas.numpy(),
        "prediction_type": kinds[prediction],
        "timestep_spacing": "trailing",
    }
    if method == "ddim":
        theirs = diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
    else:
        theirs = diffusers.DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero")
    theirs.set_timesteps(steps)
    x0 = normal(torch.arange(32), 0, (4,))
    mixer = normal(torch.arange(4), 1, (4,)) / 4

    def network(x: Tensor, k: int) -> Tensor:
        return torch.tanh(x @ mixer + k / 1000)

    process = Process(schedule, prediction)
    x = x0.clone()
    for k in theirs.timesteps:
        x = theirs.step(network(x, int(k)), k, x).prev_sample
    ours = Sampler(method, steps).run(
        lambda x, k: process.to_sample(network(x, k), x, torch.full((len(x),), k)), lambda _: x0.clone(), schedule
    )
    assert Sampler(method, steps).levels(schedule) == theirs.timesteps.tolist()
    # Both run in float32, diffusers from float32 tables; epsilon divides by alpha ~ 1e-2 ... 1e-5 at the noisy end.
    torch.testing.assert_close(ours, x, rtol=2e-3, atol=2e-3 * float(x.abs().max()))


def test_ddpm_is_the_textbook_posterior() -> None:
    """One full-resolution step equals mu = (sqrt(bar_s) beta x0 + sqrt(alpha) (1 - bar_s) x_t) / (1 - bar_t), variance beta_tilde."""
    bar = LINEAR.alpha_bar
    t = 600
    beta = 1 - bar[t] / bar[t - 1]
    x_t, m, eps = 0.7, 0.3, -1.1
    textbook = (bar[t - 1].sqrt() * beta * m + (1 - beta).sqrt() * (1 - bar[t - 1]) * x_t) / (1 - bar[t])
    textbook = textbook + (beta * (1 - bar[t - 1]) / (1 - bar[t])).sqrt() * eps
    tau = 1 - (bar[t] * (1 - bar[t - 1])) / (bar[t - 1] * (1 - bar[t]))
    ours = bar[t - 1].sqrt() * m + ((1 - bar[t - 1]) * (1 - tau) / (1 - bar[t])).sqrt() * (x_t - bar[t].sqrt() * m)
    ours = ours + ((1 - bar[t - 1]) * tau).sqrt() * eps
    torch.testing.assert_close(ours, textbook)


def test_schedules_against_hand_computed_values() -> None:
    assert float(LINEAR.alpha_bar[0]) == pytest.approx(1 - 1e-4)
    assert float(LINEAR.alpha_bar[1]) == pytest.approx((1 - 1e-4) * (1 - 1e-4 - (0.02 - 1e-4) / 999))
    release = Schedule("linear", 200)  # the UoMo release: betas 0.0005 ... 0.1, alpha_bar_T = 3.0e-5
    assert float(release.alpha_bar[0]) == pytest.approx(1 - 0.0005)
    assert float(release.alpha_bar[-1]) == pytest.approx(3.0e-5, rel=0.02)
    edge = [math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (0, 0.5)]
    assert float(COSINE.alpha_bar[499]) == pytest.approx(edge[1] / edge[0], rel=1e-9)
    assert float(COSINE.level(torch.tensor(999))) == 1.0


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
def test_predictions_are_inverted_exactly(prediction: str) -> None:
    process = Process(COSINE, prediction)
    x, eps = normal(torch.arange(8), 0, (3,)), normal(torch.arange(8), 1, (3,))
    k = torch.tensor([0, 10, 100, 300, 500, 700, 900, 950])
    x_k = process.noised(x, eps, k)
    torch.testing.assert_close(process.to_sample(process.target(x, eps, k), x_k, k), x, rtol=1e-3, atol=1e-3)


def test_min_snr_weights_mean_the_same_on_the_sample() -> None:
    """A unit error of the sample costs min(snr, 5) whatever the network predicts."""
    k = torch.tensor([5, 200, 600, 900])
    alpha, sigma = COSINE.alpha_sigma(k)
    snr = (alpha / sigma) ** 2
    error_of = {"sample": torch.ones(4), "epsilon": alpha / sigma, "v": 1 / sigma}  # of the target, per unit error of the sample
    for prediction, error in error_of.items():
        cost = Process(COSINE, prediction, "min_snr").weight(k) * error**2
        torch.testing.assert_close(cost, snr.clamp(max=5.0), rtol=1e-4, atol=1e-6)
