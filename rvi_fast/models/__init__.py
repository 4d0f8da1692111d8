"""Latent-variable models: a posterior, a decoder and a likelihood."""

from .builders import BUILDERS, build, rvi, vad, vae
from .convolutional import ConvDecoder
from .latent import LatentModel, Objective, alone

__all__ = [
    "BUILDERS",
    "ConvDecoder",
    "LatentModel",
    "Objective",
    "alone",
    "build",
    "rvi",
    "vad",
    "vae",
]
