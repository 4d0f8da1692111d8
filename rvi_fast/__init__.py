"""Relay Variational Inference for torch.

Every datapoint owns its posterior: mean = relay + deviation, where the relay is a sparse
combination of a few vectors shared by all datapoints. No encoder; missing entries are left out of
the likelihood.
"""

from . import data, likelihoods, models, optim, plot
from ._info import info
from ._version import __version__
from .data import elastic
from .functional import (
    RelaySample,
    bernoulli_log_likelihood,
    gaussian_log_likelihood,
    laplace_log_likelihood,
    linear_bernoulli_log_likelihood,
    linear_gaussian_log_likelihood,
    linear_laplace_log_likelihood,
    pack_mask,
    relay_sample,
)
from .layout import RowLayout
from .likelihoods.gaussian import GaussianLikelihood
from .posteriors.encoder import EncoderPosterior
from .posteriors.relay import RelayPosterior
from .training import (
    EarlyStopping,
    History,
    MemoryEstimate,
    estimate_memory,
    fit,
    fit_many,
    impute,
    infer,
    load,
)

__all__ = [
    "EarlyStopping",
    "EncoderPosterior",
    "GaussianLikelihood",
    "History",
    "MemoryEstimate",
    "RelayPosterior",
    "RelaySample",
    "RowLayout",
    "__version__",
    "bernoulli_log_likelihood",
    "data",
    "elastic",
    "estimate_memory",
    "fit",
    "fit_many",
    "gaussian_log_likelihood",
    "impute",
    "infer",
    "info",
    "laplace_log_likelihood",
    "likelihoods",
    "linear_bernoulli_log_likelihood",
    "linear_gaussian_log_likelihood",
    "linear_laplace_log_likelihood",
    "load",
    "models",
    "optim",
    "pack_mask",
    "plot",
    "relay_sample",
]
