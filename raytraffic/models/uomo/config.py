"""UoMo's configuration, its presets (depth and width of the paper's Table 6, and sizes between), and how it is built."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from raytraffic.forecaster import Forecaster, ForecasterConfig
from raytraffic.models.uomo.conditioner import UomoConditioner
from raytraffic.models.uomo.denoiser import UomoDenoiser
from raytraffic.nn.transformer import initialise

__all__ = ["POI_CATEGORIES", "PRESETS", "UomoConfig", "build", "preset"]


#: The paper's Table 7.
POI_CATEGORIES = (
    "Shopping",
    "Enterprise",
    "Restaurant",
    "Local Living",
    "Transportation",
    "Public Health",
    "Automobile",
    "Physical facilities",
    "Accommodation",
    "Finance",
    "Government organs",
    "Education",
    "Business",
    "Public facilities",
    "scenic spot",
)


@dataclass(frozen=True, kw_only=True)
class UomoConfig:
    """Sizes of one UoMo: `token` = (t0, h0, v0) entries a token; `contexts` it looks at, POI by name; windows of `window` slots."""

    depth: int
    hidden: int
    heads: int
    token: tuple[int, int, int] = (4, 4, 4)
    services: int = 1
    contexts: tuple[str, ...] = ("users", "poi")
    poi_categories: tuple[str, ...] = POI_CATEGORIES
    window: int = 64
    poi_features: int = 8
    clock_features: int = 16
    forecaster: ForecasterConfig = field(default_factory=ForecasterConfig)

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.hidden % 4:
            raise ValueError(f"hidden: {self.hidden}, expected a multiple of 4 and of heads ({self.heads})")
        unknown = sorted(set(self.contexts) - {"users", "poi"})
        if unknown:
            raise ValueError(f"contexts: {unknown}, expected some of ['poi', 'users']")


#: name: (depth, hidden, heads). The names of 5m, 35m and 200m are the paper's; true parameter counts stand in docs/results.md.
PRESETS: dict[str, tuple[int, int, int]] = {
    "tiny": (2, 32, 2),
    "small": (4, 128, 4),
    "5m": (12, 128, 4),
    "10m": (14, 192, 6),
    "35m": (16, 256, 8),
    "60m": (17, 384, 8),
    "100m": (18, 512, 8),
    "150m": (19, 640, 10),
    "200m": (20, 768, 12),
}


def preset(name: str) -> UomoConfig:
    """The configuration of a preset; ValueError lists the valid names."""
    if name not in PRESETS:
        raise ValueError(f"preset: {name!r}, expected one of {sorted(PRESETS)}")
    depth, hidden, heads = PRESETS[name]
    config = UomoConfig(depth=depth, hidden=hidden, heads=heads)
    return config if name in ("tiny", "small") else replace(config, token=(4, 2, 2))


def build(config: UomoConfig) -> Forecaster:
    """A freshly initialised UoMo; randomness comes from torch's global generator."""
    model = Forecaster(UomoConditioner(config), UomoDenoiser(config), config.forecaster)
    initialise(model)
    return model
