"""LEC-Diff's configuration, its presets and ablations, and how it is built."""

from __future__ import annotations

from dataclasses import dataclass, field

from raytraffic.autoregressive import AutoregressiveForecaster
from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import ForecasterConfig
from raytraffic.graph import Neighbourhood
from raytraffic.models.lec_diff.conditioner import LecDiffConditioner
from raytraffic.models.lec_diff.denoiser import LecDiffDenoiser
from raytraffic.models.lec_diff.recurrence import Cell
from raytraffic.nn.transformer import initialise
from raytraffic.poi_categories import UOMO_CATEGORIES
from raytraffic.scaling import Scaling

__all__ = ["CONTEXTS", "PRESETS", "LecDiffConfig", "build", "preset"]

#: The contexts a LEC-Diff can look at: environment vectors (the paper's), or POI counts where there are none.
CONTEXTS = ("env", "poi")


#: The project's own: residuals of a known level, v-prediction, a fast sampler of few steps; a slot is one number a service.
_BEST = ForecasterConfig(sampler=Sampler("dpm++", 8))


@dataclass(frozen=True, kw_only=True)
class LecDiffConfig:
    """Sizes of one LEC-Diff: `layers` recurrent cells, `hops` of propagation over the graph of a `neighbourhood`, `blocks` of the denoiser.

    The paper's ablations: without `environment` (Drop GEI) no context is looked at; without `graph` (Drop SGF) no other station.
    `env_features` is the width of environment vectors, 0 for none; POI counts are embedded in as many, or in `poi_features`.
    """

    hidden: int
    layers: int = 1
    hops: int = 2
    blocks: int = 3
    cell: Cell = "gru"
    environment: bool = True
    graph: bool = True
    neighbourhood: Neighbourhood = field(default_factory=Neighbourhood)
    services: int = 1
    contexts: tuple[str, ...] = ("poi",)
    poi_categories: tuple[str, ...] = UOMO_CATEGORIES
    window: int = 64
    env_features: int = 0
    poi_features: int = 8
    clock_features: int = 16
    forecaster: ForecasterConfig = _BEST

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "hops", "blocks", "services", "window", "poi_features", "clock_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least 1")
        if self.cell not in ("gru", "lstm"):
            raise ValueError(f"cell: {self.cell!r}, expected 'gru' or 'lstm'")
        unknown = sorted(set(self.contexts) - set(CONTEXTS))
        if unknown:
            raise ValueError(f"contexts: {unknown}, expected some of {sorted(CONTEXTS)}")
        if self.env_features < 0 or ("env" in self.contexts and not self.env_features):
            raise ValueError(f"env_features: {self.env_features}, expected the width of the environment vectors where contexts have env")

    @property
    def seen(self) -> tuple[str, ...]:
        """The contexts that are looked at: none without `environment`."""
        return self.contexts if self.environment else ()

    @property
    def site_features(self) -> int:
        """Features of the site embedding that the conditioner takes, 0 where it looks at none."""
        if not self.seen:
            return 0
        return self.env_features or self.poi_features


#: Recurrent cells and perceptrons of this width take the training's learning rate, narrower ones larger steps and wider ones smaller: with
#: Adam the rate falls as 1 / fan-in (docs/decisions/0021).
_RATE_WIDTH = 128.0
#: TimeGrad's: 100 linear levels, epsilon, ancestral sampling through all of them; one scale a city.
_PAPER = ForecasterConfig(
    scaling=Scaling(kind="global", prior="none"),
    schedule="linear",
    steps=100,
    prediction="epsilon",
    sampler=Sampler("ddpm", 100, clip=1.0),
)

#: `paper` has the paper's 21.8M parameters with the project's scaling and sampler, `faithful` the paper's letter as well.
PRESETS: dict[str, LecDiffConfig] = {
    "tiny": LecDiffConfig(hidden=32, blocks=2),
    "small": LecDiffConfig(hidden=64, blocks=3),
    "paper": LecDiffConfig(hidden=512, layers=2, blocks=9, window=144, contexts=("env",), env_features=512),
    "faithful": LecDiffConfig(hidden=512, layers=2, blocks=9, window=144, contexts=("env",), env_features=512, forecaster=_PAPER),
}


def preset(name: str) -> LecDiffConfig:
    """The configuration of a preset; ValueError lists the valid names."""
    if name not in PRESETS:
        raise ValueError(f"preset: {name!r}, expected one of {sorted(PRESETS)}")
    return PRESETS[name]


def build(config: LecDiffConfig) -> AutoregressiveForecaster:
    """A freshly initialised LEC-Diff with contexts and graph as its configuration says; randomness comes from torch's global generator."""
    conditioner, denoiser = LecDiffConditioner(config), LecDiffDenoiser(config)
    for part in (conditioner, denoiser):
        part.learning_rate_scale = min(4.0, _RATE_WIDTH / config.hidden)
    model = AutoregressiveForecaster(conditioner, denoiser, config.forecaster)
    initialise(model)
    return model
