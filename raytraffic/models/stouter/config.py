"""STOUTER's configuration, its presets, and how it is built."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from raytraffic.diffusion.noise import Noise
from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster, ForecasterConfig
from raytraffic.models.stouter.conditioner import StouterConditioner
from raytraffic.models.stouter.denoiser import StuNet
from raytraffic.nn.transformer import initialise
from raytraffic.poi_categories import UOMO_CATEGORIES
from raytraffic.scaling import Scaling

__all__ = ["CONTEXTS", "PRESETS", "StouterConfig", "add_contexts", "build", "freeze", "preset"]

#: The contexts a STOUTER can look at.
CONTEXTS = ("poi",)


@dataclass(frozen=True, kw_only=True)
class StouterConfig:
    """Sizes of one STOUTER: `channels` of the U-Net by level, residual `blocks` a level, `embedding` the width of F_t and F_s, `hidden`
    that of the diffusion step's embedding; windows of `window` slots, any other length too.

    `temporal_graph` False leaves out F_t, and contexts without "poi" F_s; `station_graph` False leaves out the edges between stations.
    `own_features` adds a station's own POI to what its neighbourhood says. `node_minutes` is the length of a slot of the temporal graph.
    """

    channels: tuple[int, ...]
    blocks: int = 1
    embedding: int = 16
    hidden: int = 64
    node_minutes: int = 60
    temporal_graph: bool = True
    station_graph: bool = True
    own_features: bool = True
    services: int = 1
    contexts: tuple[str, ...] = CONTEXTS
    poi_categories: tuple[str, ...] = UOMO_CATEGORIES
    window: int = 168
    forecaster: ForecasterConfig = field(default_factory=ForecasterConfig)

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels: {self.channels}, expected one or more levels of at least one channel")
        for name in ("blocks", "hidden", "services", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least 1")
        if self.embedding < 4 or self.embedding % 4:
            raise ValueError(f"embedding: {self.embedding}, expected a multiple of 4")
        if self.node_minutes not in (15, 30, 60):
            raise ValueError(f"node_minutes: {self.node_minutes}, expected 15, 30 or 60")
        unknown = sorted(set(self.contexts) - set(CONTEXTS))
        if unknown:
            raise ValueError(f"contexts: {unknown}, expected some of {sorted(CONTEXTS)}")

    @property
    def env_features(self) -> int:
        """Features of the site embedding F_s, 0 for none."""
        return self.embedding if "poi" in self.contexts else 0


#: What the poster suggests: one scale a city, the DDPM of 1,000 linear steps that predicts the noise.
_PAPER = ForecasterConfig(
    scaling=Scaling(kind="global", prior="none"), schedule="linear", prediction="epsilon", sampler=Sampler("ddim", 200, clip=1.0, rows=8)
)
#: The project's own: residuals of a known level, and noise that is correlated as what is unknown is. A row holds all stations of a window.
_BEST = ForecasterConfig(noise=Noise(hours=2.0, share=0.9), sampler=Sampler(rows=8))

PRESETS: dict[str, StouterConfig] = {
    "tiny": StouterConfig(channels=(16, 32), embedding=8, hidden=32, forecaster=_BEST),
    "small": StouterConfig(channels=(32, 48, 64), forecaster=_BEST),
    "base": StouterConfig(channels=(64, 128, 256), blocks=2, embedding=32, hidden=128, forecaster=_BEST),
    "paper": StouterConfig(channels=(64, 128, 256), blocks=2, embedding=32, hidden=128, own_features=False, forecaster=_PAPER),
}


def preset(name: str) -> StouterConfig:
    """The configuration of a preset; ValueError lists the valid names."""
    if name not in PRESETS:
        raise ValueError(f"preset: {name!r}, expected one of {sorted(PRESETS)}")
    return PRESETS[name]


def build(config: StouterConfig) -> Forecaster:
    """A freshly initialised STOUTER, whose graphs are not pre-trained; randomness comes from torch's global generator."""
    model = Forecaster(StouterConditioner(config), StuNet(config), config.forecaster)
    initialise(model)
    return model


def add_contexts(
    forecaster: Forecaster, config: StouterConfig, contexts: tuple[str, ...], poi_categories: tuple[str, ...]
) -> tuple[Forecaster, StouterConfig]:
    """A forecaster that also has F_s of these POI, with the weights it had; its answers are the same until it is trained."""
    missing = tuple(name for name in contexts if name not in config.contexts)
    if not missing:
        return forecaster, config
    wider = replace(config, contexts=(*config.contexts, *missing), poi_categories=poi_categories)
    model = build(wider)
    model.load_state_dict(model.state_dict() | forecaster.state_dict())
    return model, wider


def freeze(forecaster: Forecaster) -> None:
    """Leaves the feature fusion and the output trainable, and freezes the U-Net between them."""
    for name, parameter in forecaster.named_parameters():
        parameter.requires_grad_(name.startswith(("denoiser.fusions.", "denoiser.output.")))
