"""UoMo (Chai et al., KDD 2025): a masked diffusion transformer over mobile tokens of many cities."""

from raytraffic.models.uomo.conditioner import UomoConditioner
from raytraffic.models.uomo.config import PRESETS, UomoConfig, build, preset
from raytraffic.models.uomo.denoiser import UomoDenoiser

__all__ = ["PRESETS", "UomoConditioner", "UomoConfig", "UomoDenoiser", "build", "preset"]
