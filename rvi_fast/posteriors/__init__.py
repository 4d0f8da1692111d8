"""Posteriors of the latents: owned by each datapoint, or computed by an encoder."""

from .base import Posterior
from .encoder import EncoderPosterior
from .relay import RelayPosterior
from .rowless import RowlessPosterior

__all__ = ["EncoderPosterior", "Posterior", "RelayPosterior", "RowlessPosterior"]
