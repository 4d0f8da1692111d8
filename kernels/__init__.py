"""Triton kernels; `rvi_fast.kernels` when installed. Imported at the first use of a CUDA tensor.

An implementation of the ops: the functions of `rvi_fast.reference`, same names and signatures.
"""

from ._common import row_error
from .adam_step import adam_step
from .catch_up_and_select import catch_up_and_select
from .linear_log_likelihood import linear_log_likelihood_bwd, linear_log_likelihood_fwd
from .log_likelihood import log_likelihood_bwd, log_likelihood_fwd
from .relay_decode import relay_decode
from .relay_sample import relay_sample_fwd
from .relay_sample_bwd import relay_sample_bwd
from .row_adam import row_adam_catch_up, row_adam_step

__all__ = [
    "adam_step",
    "catch_up_and_select",
    "linear_log_likelihood_bwd",
    "linear_log_likelihood_fwd",
    "log_likelihood_bwd",
    "log_likelihood_fwd",
    "relay_decode",
    "relay_sample_bwd",
    "relay_sample_fwd",
    "row_adam_catch_up",
    "row_adam_step",
    "row_error",
]
