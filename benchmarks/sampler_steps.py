r"""Error of the samplers against their number of steps on an exact conditional Gaussian, and their agreement with diffusers.

The law is that of four hidden entries of a stationary AR(1) window of six whose ends are known. A perfect network answers
E[x | x_k] = mean + alpha C (alpha^2 C + sigma^2 I)^{-1} (x_k - alpha mean), which is affine, so a sampler is an affine map of all the
noise it is given, out = f(0) + sum_i A_i eps_i, and its law N(f(0), sum_i A_i A_i^T) is read off unit vectors: no Monte Carlo.

    python benchmarks/sampler_steps.py --json figures.json [--quick]
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from measure import write_figures
from torch import Tensor

from raytraffic.diffusion.samplers import Estimate, Sampler
from raytraffic.diffusion.schedule import Schedule
from raytraffic.randomness import normal

METHODS = {"ddpm": "ddpm", "ddim": "ddim", "dpmpp": "dpm++"}
STEPS = (1, 2, 4, 8, 10, 20, 50, 100, 200, 1000)
QUICK_STEPS = (1, 10, 20)


def main(json: Path | None = None, quick: bool = False) -> None:
    """Print the error-versus-steps tables of the cosine and the linear schedule.

    Args:
        json: Where the figures are written; the names of the linear schedule's begin with `linear_`.
        quick: Few steps and the cosine schedule only.
    """
    mean, covariance = conditional_gaussian()
    figures: dict[str, float] = {}
    for kind, prefix in (("cosine", ""), ("linear", "linear_"))[: 1 if quick else 2]:
        schedule = Schedule(kind, 1000)
        estimate = exact(schedule, mean, covariance)
        errors = _errors(estimate, schedule, mean, covariance, QUICK_STEPS if quick else STEPS)
        print(_markdown(kind, errors), flush=True)
        figures |= {f"{prefix}{method}_{what}_error_{steps}": error for (method, what, steps), error in errors.items()}
        for method in ("ddim", "dpmpp"):
            figures[f"{prefix}{method}_diffusers_difference"] = diffusers_difference(estimate, schedule, method, len(mean))
    write_figures(figures, json)


def conditional_gaussian() -> tuple[Tensor, Tensor]:
    """Mean (4,) and covariance (4, 4) of the hidden entries."""
    index = torch.arange(6, dtype=torch.float64)
    joint = 0.8 ** (index[:, None] - index).abs()
    hidden, known = [1, 2, 3, 4], [0, 5]
    gain = joint[hidden][:, known] @ torch.linalg.inv(joint[known][:, known])
    return gain @ torch.tensor([1.5, -0.5], dtype=torch.float64), joint[hidden][:, hidden] - gain @ joint[known][:, hidden]


def exact(schedule: Schedule, mean: Tensor, covariance: Tensor) -> Estimate:
    """E[x | x_k], what a perfect network answers."""

    def estimate(x: Tensor, k: int) -> Tensor:
        bar = float(schedule.alpha_bar[k])
        noisy = bar * covariance + (1 - bar) * torch.eye(len(mean), dtype=torch.float64)
        return mean + (x.double() - math.sqrt(bar) * mean) @ torch.linalg.solve(noisy, math.sqrt(bar) * covariance)

    return estimate


def law_of(sampler: Sampler, estimate: Estimate, schedule: Schedule, size: int) -> tuple[Tensor, Tensor]:
    """Mean (size,) and covariance (size, size) of the sampler's draws, exactly."""
    inputs = sampler.steps if sampler.method == "ddpm" else 1
    units = torch.zeros(1 + inputs * size, inputs, size, dtype=torch.float64)
    units[1:] = torch.eye(inputs * size, dtype=torch.float64).unflatten(1, (inputs, size))
    pushed = sampler.run(estimate, lambda i: units[:, i], schedule)
    columns = pushed[1:] - pushed[0]
    return pushed[0], columns.T @ columns


def _errors(
    estimate: Estimate, schedule: Schedule, mean: Tensor, covariance: Tensor, counts: tuple[int, ...]
) -> dict[tuple[str, str, int], float]:
    """Relative errors of mean (Euclidean norm) and covariance (Frobenius norm) by method, quantity and steps."""
    errors = {}
    for name, method in METHODS.items():
        for steps in counts:
            got_mean, got_covariance = law_of(Sampler(method, steps), estimate, schedule, len(mean))
            errors[name, "mean", steps] = float((got_mean - mean).norm() / mean.norm())
            errors[name, "cov", steps] = float((got_covariance - covariance).norm() / covariance.norm())
    return errors


def _markdown(kind: str, errors: dict[tuple[str, str, int], float]) -> str:
    """A table with a row a number of steps."""
    heads = [f"{method} {what}" for method in METHODS.values() for what in ("mean", "covariance")]
    lines = [f"\nRelative error, {kind} schedule", "", f"| steps | {' | '.join(heads)} |", "|---:" * (len(heads) + 1) + "|"]
    for steps in dict.fromkeys(steps for *_, steps in errors):
        cells = [f"{errors[name, what, steps]:.1e}" for name in METHODS for what in ("mean", "cov")]
        lines.append(f"| {steps} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def diffusers_difference(estimate: Estimate, schedule: Schedule, name: str, size: int, steps: int = 20) -> float:
    """The greatest absolute difference between our draws and those of diffusers from the same noise (its tables are float32)."""
    bar = schedule.alpha_bar
    common = {
        "num_train_timesteps": schedule.steps,
        "trained_betas": (1 - bar / torch.cat((torch.ones(1, dtype=bar.dtype), bar[:-1]))).numpy(),
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    theirs: Any  # the two schedulers share no base that has what is used of them
    if name == "ddim":
        theirs = DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
    else:
        theirs = DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero")
    theirs.set_timesteps(steps)
    noise = normal(torch.arange(1000), 0, (size,)).double()
    x = noise
    for k in theirs.timesteps:
        x = theirs.step(estimate(x, int(k)), k, x).prev_sample
    ours = Sampler(METHODS[name], steps).run(estimate, lambda _: noise, schedule)
    return float((ours - x).abs().max())


if __name__ == "__main__":
    tyro.cli(main)
