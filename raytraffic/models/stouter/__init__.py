"""STOUTER (Xu et al., MobiCom 2025): a U-Net diffusion that generates weeks of traffic, steered by pre-trained graph embeddings."""

from raytraffic.models.stouter.conditioner import StouterConditioner
from raytraffic.models.stouter.config import CONTEXTS, PRESETS, StouterConfig, add_contexts, build, freeze, preset
from raytraffic.models.stouter.cost import cost
from raytraffic.models.stouter.denoiser import StuNet
from raytraffic.models.stouter.pretraining import pretrain_graphs

__all__ = [
    "CONTEXTS",
    "PRESETS",
    "StouterConditioner",
    "StouterConfig",
    "StuNet",
    "add_contexts",
    "build",
    "cost",
    "freeze",
    "preset",
    "pretrain_graphs",
]
