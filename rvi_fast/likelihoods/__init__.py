"""Laws of the data given what a decoder puts out."""

from .gaussian import GaussianLikelihood

__all__ = ["GaussianLikelihood"]
