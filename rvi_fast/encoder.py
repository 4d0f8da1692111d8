"""Where pickles of earlier versions look for `EncoderPosterior`."""

from .posteriors.encoder import EncoderPosterior

__all__ = ["EncoderPosterior"]
