"""LSDM's configuration, its presets (the paper states no sizes), and how it is built."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster, ForecasterConfig
from raytraffic.models.lsdm.conditioner import LsdmConditioner
from raytraffic.models.lsdm.denoiser import LsdmDenoiser
from raytraffic.models.lsdm.scaling import IntermittentScaling
from raytraffic.nn.transformer import initialise
from raytraffic.poi_categories import UOMO_CATEGORIES
from raytraffic.scaling import Scaling

__all__ = ["CONTEXTS", "PRESETS", "LsdmConfig", "build", "preset"]

#: The contexts an LSDM can look at.
CONTEXTS = ("env", "poi")

Attention = Literal["2d", "time"]
Conditioning = Literal["adaln", "added"]


@dataclass(frozen=True, kw_only=True)
class LsdmConfig:
    """Sizes of one LSDM for `services` services in windows of `window` slots, the last of which is what one step ahead asks for; `patch`
    slots of a service are a token.

    `contexts` it looks at: `env` of `env_features` features, or `poi` of which stage 1 makes so many; none is the paper's "Non CON".
    `conditioning` says how they enter, `attention` "time" is "Non 2D-Attention". With `intermittent` zeros are set apart
    (raytraffic.models.lsdm.scaling). With `weights` (alpha, beta) `env` is [z_I (+) z_T], as windows of a store have it, and Eq. 9 fuses
    it; without, `env` is taken as it is. `next_place` is the paper's setting, where it is known where a user will be; else the
    environment of known hours counts alone.
    """

    depth: int
    hidden: int
    heads: int
    patch: int = 1
    attention: Attention = "2d"
    conditioning: Conditioning = "adaln"
    dropout: float = 0.0
    services: int = 10
    contexts: tuple[str, ...] = ("env",)
    poi_categories: tuple[str, ...] = ()
    env_features: int = 512
    weights: tuple[float, float] | None = None
    next_place: bool = False
    window: int = 49
    clock_features: int = 16
    intermittent: bool = True
    forecaster: ForecasterConfig = field(default_factory=ForecasterConfig)

    def __post_init__(self) -> None:
        for name, least in (("depth", 1), ("patch", 1), ("services", 1), ("window", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least {least}")
        if self.heads < 1 or self.hidden % self.heads or self.hidden % 2:
            raise ValueError(f"hidden: {self.hidden}, expected a multiple of 2 and of heads ({self.heads})")
        if self.attention not in get_args(Attention):
            raise ValueError(f"attention: {self.attention!r}, expected one of {get_args(Attention)}")
        if self.conditioning not in get_args(Conditioning):
            raise ValueError(f"conditioning: {self.conditioning!r}, expected one of {get_args(Conditioning)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout}, expected a share in [0, 1)")
        self._check_contexts()
        if self.intermittent and self.forecaster.scaling.kind == "global":
            raise ValueError("intermittent: True with scaling.kind 'global', expected False: the global scale has no share of zeros")

    def _check_contexts(self) -> None:
        unknown = sorted(set(self.contexts) - set(CONTEXTS))
        if unknown:
            raise ValueError(f"contexts: {unknown}, expected some of {sorted(CONTEXTS)}")
        if self.env_features < 0 or (self.contexts and self.env_features == 0):
            raise ValueError(f"env_features: {self.env_features} with contexts {self.contexts}, expected at least 1")
        if self.weights is not None and (self.contexts != ("env",) or self.env_features % 2):
            found = f"{self.weights} with contexts {self.contexts} and env_features {self.env_features}"
            raise ValueError(f"weights: {found}, expected contexts ('env',) of an even number of features: images' and texts'")
        if "poi" in self.contexts and not self.poi_categories:
            raise ValueError("poi_categories: (), expected the names of the categories where contexts has 'poi'")


#: The paper's letter: one scale a service, linear schedule of 1,000 steps, a network that predicts the sample, MSE and cosine (IV-B).
_PAPER = ForecasterConfig(
    scaling=Scaling(kind="global", prior="none"),
    schedule="linear",
    prediction="sample",
    cosine_weight=0.1,
    sampler=Sampler("ddpm", 50, clip=1.0),
)
#: The project's own: every user's own scale. Two days without any use of a service, and more of a window does not count on one.
_BEST = ForecasterConfig(scaling=Scaling(prior="none", dead_after=48), prediction="sample", sampler=Sampler("dpm++", 10))

#: `paper` and `faithful` see a week, as the paper's samples of 168 hours. The contexts of `tiny` are those of the tests' windows.
PRESETS: dict[str, LsdmConfig] = {
    "tiny": LsdmConfig(
        depth=1,
        hidden=16,
        heads=2,
        patch=3,
        services=1,
        contexts=("poi",),
        poi_categories=UOMO_CATEGORIES,
        env_features=8,
        window=64,
        forecaster=replace(_BEST, sampler=Sampler("dpm++", 10, rows=8)),
    ),
    "small": LsdmConfig(depth=2, hidden=48, heads=4, patch=5, forecaster=_BEST),
    "base": LsdmConfig(depth=4, hidden=128, heads=4, patch=5, forecaster=_BEST),
    "paper": LsdmConfig(depth=8, hidden=256, heads=8, window=168, forecaster=_BEST),
    "faithful": LsdmConfig(depth=8, hidden=256, heads=8, window=168, intermittent=False, forecaster=_PAPER),
    "faithful-small": LsdmConfig(depth=2, hidden=48, heads=4, patch=5, intermittent=False, forecaster=_PAPER),
}


def preset(name: str) -> LsdmConfig:
    """The configuration of a preset; ValueError lists the valid names."""
    if name not in PRESETS:
        raise ValueError(f"preset: {name!r}, expected one of {sorted(PRESETS)}")
    return PRESETS[name]


def build(config: LsdmConfig) -> Forecaster:
    """A freshly initialised LSDM; randomness comes from torch's global generator."""
    scaling = IntermittentScaling.like(config.forecaster.scaling) if config.intermittent else config.forecaster.scaling
    model = Forecaster(LsdmConditioner(config), LsdmDenoiser(config), replace(config.forecaster, scaling=scaling))
    initialise(model)
    return model
