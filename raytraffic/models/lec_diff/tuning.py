"""Fine-tuning a LEC-Diff: contexts for a model that was trained without, and what of it goes on learning."""

from __future__ import annotations

from dataclasses import replace

from raytraffic.forecaster import Forecaster
from raytraffic.models.lec_diff.config import LecDiffConfig, build
from raytraffic.nn.transformer import ZeroLinear

__all__ = ["add_contexts", "freeze"]


def add_contexts(
    forecaster: Forecaster, config: LecDiffConfig, contexts: tuple[str, ...], poi_categories: tuple[str, ...]
) -> tuple[Forecaster, LecDiffConfig]:
    """A forecaster that also looks at these contexts, with the weights it had; its answers are the same until it is trained.

    ValueError where a model that looks at an environment already is to make it of something else: what it learnt stands for another one;
    and for environment vectors of a model whose configuration says no width (`env_features`) to take them in.
    """
    missing = tuple(name for name in contexts if name not in config.seen)
    if not missing:
        return forecaster, config
    if config.seen:
        raise ValueError(f"contexts: {missing} for a LEC-Diff that looks at {config.seen}, expected one without contexts")
    poi = poi_categories if "poi" in missing else config.poi_categories
    wider = replace(config, contexts=missing, poi_categories=poi, environment=True)
    model = build(wider)
    model.load_state_dict(model.state_dict() | forecaster.state_dict())
    return model, wider


def freeze(forecaster: Forecaster) -> None:
    """Freezes recurrence, graph and residual blocks; the environment's layers, the fusion's output and the denoiser's go on learning."""
    for name, module in forecaster.named_modules():
        learns = isinstance(module, ZeroLinear) or name in ("conditioner.poi_static", "conditioner.fusion.out")
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(learns)
