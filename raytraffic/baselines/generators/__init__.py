"""Generators that STOUTER is measured against, behind one protocol: traffic of stations and times that were never measured."""

from raytraffic.baselines.generators.convolutional_vae import ConvolutionalVae, fit_vae
from raytraffic.baselines.generators.diffwave import DiffWave, fit_diffwave
from raytraffic.baselines.generators.resampling import Resampling, fit_resampling
from raytraffic.baselines.generators.rows import Fitting, Generator
from raytraffic.baselines.generators.tcn_gan import TcnGan, fit_tcn_gan

__all__ = [
    "ConvolutionalVae",
    "DiffWave",
    "Fitting",
    "Generator",
    "Resampling",
    "TcnGan",
    "fit_diffwave",
    "fit_resampling",
    "fit_tcn_gan",
    "fit_vae",
]
