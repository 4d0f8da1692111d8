"""Triton kernels; `rvi_fast.kernels` when installed. Imported at the first use of a CUDA tensor.

An implementation of the ops: the functions of `rvi_fast.reference`, same names and signatures.
"""

from .adam_step import adam_step
from .gaussian_log_likelihood import gaussian_log_likelihood_bwd, gaussian_log_likelihood_fwd
from .row_adam import row_adam_catch_up, row_adam_step

__all__ = [
    "adam_step",
    "gaussian_log_likelihood_bwd",
    "gaussian_log_likelihood_fwd",
    "row_adam_catch_up",
    "row_adam_step",
]
