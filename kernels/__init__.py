"""Triton kernels; `rvi_fast.kernels` when installed. Imported at the first use of a CUDA tensor.

An implementation of the ops: the functions of `rvi_fast.reference`, same names and signatures.
"""

from ._common import compiling, row_error
from .adam_step import adam_step
from .backward_to_rows import backward_to_rows, pieces_for
from .catch_up_and_select import catch_up_and_select
from .finish_step import finish_step
from .likelihood_rows import likelihood_features, likelihood_rows, pieces_of_features
from .linear_log_likelihood import linear_log_likelihood_bwd, linear_log_likelihood_fwd
from .log_likelihood import log_likelihood_bwd, log_likelihood_fwd
from .relay_decode import relay_decode
from .relay_sample import relay_sample_fwd
from .relay_sample_bwd import relay_sample_bwd
from .row_adam import row_adam_catch_up, row_adam_step
from .sum_gradients import sum_gradients

__all__ = [
    "adam_step",
    "backward_to_rows",
    "catch_up_and_select",
    "compiling",
    "finish_step",
    "likelihood_features",
    "likelihood_rows",
    "linear_log_likelihood_bwd",
    "linear_log_likelihood_fwd",
    "log_likelihood_bwd",
    "log_likelihood_fwd",
    "pieces_for",
    "pieces_of_features",
    "relay_decode",
    "relay_sample_bwd",
    "relay_sample_fwd",
    "row_adam_catch_up",
    "row_adam_step",
    "row_error",
    "sum_gradients",
]
