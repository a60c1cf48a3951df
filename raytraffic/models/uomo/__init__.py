"""UoMo (Chai et al., KDD 2025): a masked diffusion transformer over mobile tokens of many cities."""

from raytraffic.models.uomo.alignment import AlignedForecaster, Alignment, add_contexts, align, freeze
from raytraffic.models.uomo.conditioner import UomoConditioner
from raytraffic.models.uomo.config import CONTEXTS, PRESETS, UomoConfig, build, preset
from raytraffic.models.uomo.cost import cost
from raytraffic.models.uomo.denoiser import UomoDenoiser

__all__ = [
    "CONTEXTS",
    "PRESETS",
    "AlignedForecaster",
    "Alignment",
    "UomoConditioner",
    "UomoConfig",
    "UomoDenoiser",
    "add_contexts",
    "align",
    "build",
    "cost",
    "freeze",
    "preset",
]
