"""Fine-tuning an LSDM: contexts for a model that was trained without, and what of it goes on learning."""

from __future__ import annotations

from dataclasses import replace

from raytraffic.forecaster import Forecaster
from raytraffic.models.lsdm.config import LsdmConfig, build
from raytraffic.nn.transformer import ZeroLinear

__all__ = ["add_contexts", "freeze"]


def add_contexts(
    forecaster: Forecaster, config: LsdmConfig, contexts: tuple[str, ...], poi_categories: tuple[str, ...]
) -> tuple[Forecaster, LsdmConfig]:
    """A forecaster that also looks at these contexts, with the weights it had; its answers are the same until it is trained.

    ValueError where a model that looks at an environment already is to make it of POI: what it learnt stands for another one.
    """
    missing = tuple(name for name in contexts if name not in config.contexts)
    if not missing:
        return forecaster, config
    if config.contexts:
        raise ValueError(f"contexts: {missing} for an LSDM that looks at {config.contexts}, expected one without contexts")
    poi = poi_categories if "poi" in missing else ()
    wider = replace(config, contexts=missing, poi_categories=poi)
    model = build(wider)
    model.load_state_dict(model.state_dict() | forecaster.state_dict())
    return model, wider


def freeze(forecaster: Forecaster) -> None:
    """Freezes attention, linear and MLP layers; adaptive conditioning, output and environment layers go on learning."""
    for name, module in forecaster.named_modules():
        learns = isinstance(module, ZeroLinear) or name in ("conditioner.poi", "conditioner.env_in")
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(learns)
