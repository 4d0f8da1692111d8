"""Latent-variable models: a posterior, a decoder and a likelihood."""

from .builders import BUILDERS, build, rvi, vad, vae
from .latent import LatentModel, Objective, alone
from .linear_gaussian import LinearGaussian, ppca

__all__ = [
    "BUILDERS",
    "LatentModel",
    "LinearGaussian",
    "Objective",
    "alone",
    "build",
    "ppca",
    "rvi",
    "vad",
    "vae",
]
