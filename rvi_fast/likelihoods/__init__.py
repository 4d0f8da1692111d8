"""Laws of the data given what a decoder puts out."""

from .base import LAWS, Elementwise, Likelihood, make
from .bernoulli import Bernoulli
from .gaussian import Gaussian, GaussianLikelihood

__all__ = [
    "LAWS",
    "Bernoulli",
    "Elementwise",
    "Gaussian",
    "GaussianLikelihood",
    "Likelihood",
    "make",
]
