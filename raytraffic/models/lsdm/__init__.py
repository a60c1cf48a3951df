"""LSDM (Zhang et al.): service-level traffic of single users by a conditional diffusion transformer with 2-D attention."""

from raytraffic.models.lsdm.conditioner import LsdmConditioner
from raytraffic.models.lsdm.config import CONTEXTS, PRESETS, LsdmConfig, build, preset
from raytraffic.models.lsdm.cost import cost
from raytraffic.models.lsdm.denoiser import LsdmDenoiser
from raytraffic.models.lsdm.scaling import IntermittentScaling
from raytraffic.models.lsdm.tuning import add_contexts, freeze

__all__ = [
    "CONTEXTS",
    "PRESETS",
    "IntermittentScaling",
    "LsdmConditioner",
    "LsdmConfig",
    "LsdmDenoiser",
    "add_contexts",
    "build",
    "cost",
    "freeze",
    "preset",
]
