"""The public functions over the ops: documentation, argument checks, call."""

from .log_likelihood import (
    bernoulli_log_likelihood,
    gaussian_log_likelihood,
    laplace_log_likelihood,
    linear_bernoulli_log_likelihood,
    linear_gaussian_log_likelihood,
    linear_laplace_log_likelihood,
    pack_mask,
)
from .relay_sample import RelaySample, relay_sample

__all__ = [
    "RelaySample",
    "bernoulli_log_likelihood",
    "gaussian_log_likelihood",
    "laplace_log_likelihood",
    "linear_bernoulli_log_likelihood",
    "linear_gaussian_log_likelihood",
    "linear_laplace_log_likelihood",
    "pack_mask",
    "relay_sample",
]
