"""Where pickles of earlier versions look for `GaussianLikelihood`."""

from .likelihoods.gaussian import GaussianLikelihood

__all__ = ["GaussianLikelihood"]
