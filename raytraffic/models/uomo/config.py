"""UoMo's configuration, its presets (a family through the paper's Table 6, and models beside it), and how it is built."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from raytraffic.diffusion.noise import Noise
from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster, ForecasterConfig
from raytraffic.models.uomo.conditioner import UomoConditioner
from raytraffic.models.uomo.denoiser import UomoDenoiser
from raytraffic.models.uomo.family import NAMED, NARROW, STEP, depth, heads, width_of
from raytraffic.nn.transfer import transfer
from raytraffic.nn.transformer import initialise
from raytraffic.poi_categories import UOMO_CATEGORIES
from raytraffic.scaling import Scaling

__all__ = ["CONTEXTS", "PRESETS", "UomoConfig", "build", "preset"]


#: The contexts a UoMo can look at.
CONTEXTS = ("users", "expected_users", "poi")


@dataclass(frozen=True, kw_only=True)
class UomoConfig:
    """Sizes of one UoMo: `token` = (t0, h0, v0) entries a token; `contexts` it looks at, POI by name; windows of `window` slots.

    `entries` is the width of the network of learned marginals, 0 for none. With `base_hidden` initialisation, learning rates and attention
    are scaled (raytraffic.nn.transfer) so that a learning rate that was found at that width of the family holds at this one.
    """

    depth: int
    hidden: int
    heads: int
    token: tuple[int, int, int] = (4, 4, 4)
    entries: int = 0
    dropout: float = 0.0
    services: int = 1
    contexts: tuple[str, ...] = ("users", "poi")
    poi_categories: tuple[str, ...] = UOMO_CATEGORIES
    window: int = 64
    poi_features: int = 8
    clock_features: int = 16
    base_hidden: int | None = None
    forecaster: ForecasterConfig = field(default_factory=ForecasterConfig)

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.hidden % 4:
            raise ValueError(f"hidden: {self.hidden}, expected a multiple of 4 and of heads ({self.heads})")
        if self.base_hidden is not None and (self.base_hidden < STEP or self.base_hidden % STEP):
            raise ValueError(f"base_hidden: {self.base_hidden}, expected a multiple of {STEP}, or null for no transfer over widths")
        if self.entries < 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"entries, dropout: {self.entries}, {self.dropout}, expected entries >= 0 and a dropout in [0, 1)")
        if self.entries and self.forecaster.scaling.kind == "global":
            raise ValueError(f"entries: {self.entries} with scaling.kind 'global', expected 0: learned marginals refine a known level")
        unknown = sorted(set(self.contexts) - set(CONTEXTS))
        if unknown:
            raise ValueError(f"contexts: {unknown}, expected some of {sorted(CONTEXTS)}")
        if "expected_users" in self.contexts and "users" not in self.contexts:
            raise ValueError(f"contexts: {self.contexts}, expected users where there are expected_users: both are one kind of token")


#: The paper's letter: one scale a city to [-1, 1], linear schedule of 1,000 steps, epsilon target, no prior.
_PAPER = ForecasterConfig(
    scaling=Scaling(kind="global", prior="none"), schedule="linear", prediction="epsilon", sampler=Sampler("ddim", 50, clip=1.0)
)
#: The public release: 200 steps, and a network that predicts the clean sample.
_RELEASE = replace(_PAPER, steps=200, prediction="sample", sampler=Sampler("ddpm", 200, clip=1.0))


#: The project's own: residuals of a known level, learned marginals, noise that is correlated as forecast errors are.
_BEST = ForecasterConfig(noise=Noise(hours=2.0, share=0.9))


def _size(width: int) -> UomoConfig:
    """The member of the family of a width."""
    return UomoConfig(depth=depth(width), hidden=width, heads=heads(width), token=(4, 2, 2), entries=192, forecaster=_BEST)


#: The family, and models beside it. The paper does not state its token size: `faithful` takes that of the family, `release` the public
#: code's 1 x 1 x 1.
PRESETS: dict[str, UomoConfig] = {
    "tiny": UomoConfig(depth=2, hidden=32, heads=2, entries=32, forecaster=_BEST),
    "small": UomoConfig(depth=4, hidden=128, heads=4, entries=192, forecaster=_BEST),
    **{f"w{width}": _size(width) for width in NARROW},
    **{name: _size(width) for name, width in NAMED.items()},
    "faithful": UomoConfig(depth=4, hidden=128, heads=4, token=(4, 2, 2), forecaster=_PAPER),
    "faithful-35m": UomoConfig(depth=16, hidden=256, heads=8, token=(4, 2, 2), forecaster=_PAPER),
    "release": UomoConfig(depth=8, hidden=512, heads=8, token=(1, 1, 1), dropout=0.1, forecaster=_RELEASE),
}


def preset(name: str) -> UomoConfig:
    """The configuration of a preset, or of any width of the family by a name as w40; ValueError lists the valid names."""
    if name in PRESETS:
        return PRESETS[name]
    width = width_of(name)
    if width is None:
        raise ValueError(f"preset: {name!r}, expected one of {sorted(PRESETS)}, or a width of the family as w40")
    return _size(width)


def build(config: UomoConfig) -> Forecaster:
    """A freshly initialised UoMo; randomness comes from torch's global generator."""
    model = _assembled(config)
    initialise(model)
    if config.base_hidden is not None:
        with torch.device("meta"):
            base = _assembled(replace(config, hidden=config.base_hidden, heads=heads(config.base_hidden)))
        transfer(model, base)
    return model


def _assembled(config: UomoConfig) -> Forecaster:
    return Forecaster(UomoConditioner(config), UomoDenoiser(config), config.forecaster)
