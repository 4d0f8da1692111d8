"""Latent-variable models: a posterior, a decoder and a likelihood."""

from .builders import BUILDERS, build, rvi, vad, vae
from .convolutional import ConvDecoder
from .latent import LatentModel, Objective, alone
from .linear_gaussian import LinearGaussian, ppca
from .skip import Skip

__all__ = [
    "BUILDERS",
    "ConvDecoder",
    "LatentModel",
    "LinearGaussian",
    "Objective",
    "Skip",
    "alone",
    "build",
    "ppca",
    "rvi",
    "vad",
    "vae",
]
