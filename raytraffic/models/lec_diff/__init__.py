"""LEC-Diff (Xiao et al.): an autoregressive diffusion conditioned on recurrent state, environment and the graph of stations."""

from raytraffic.models.lec_diff.conditioner import LecDiffConditioner
from raytraffic.models.lec_diff.config import CONTEXTS, PRESETS, LecDiffConfig, build, preset
from raytraffic.models.lec_diff.cost import cost
from raytraffic.models.lec_diff.denoiser import LecDiffDenoiser
from raytraffic.models.lec_diff.tuning import add_contexts, freeze

__all__ = [
    "CONTEXTS",
    "PRESETS",
    "LecDiffConditioner",
    "LecDiffConfig",
    "LecDiffDenoiser",
    "add_contexts",
    "build",
    "cost",
    "freeze",
    "preset",
]
