"""Latent-variable models: a posterior, a decoder and a likelihood."""

from .builders import BUILDERS, build, rvi, vad, vae
from .latent import LatentModel, Objective, alone

__all__ = ["BUILDERS", "LatentModel", "Objective", "alone", "build", "rvi", "vad", "vae"]
