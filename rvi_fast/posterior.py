"""Where pickles of earlier versions look for `RelayPosterior`."""

from .posteriors.relay import RelayPosterior

__all__ = ["RelayPosterior"]
