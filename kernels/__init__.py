"""Triton kernels; `rvi_fast.kernels` when installed. Imported at the first use of a CUDA tensor.

An implementation of the ops: the functions of `rvi_fast.reference`, same names and signatures.
"""

from .linear_gaussian_log_likelihood import (
    linear_gaussian_log_likelihood_bwd,
    linear_gaussian_log_likelihood_fwd,
)

__all__ = ["linear_gaussian_log_likelihood_bwd", "linear_gaussian_log_likelihood_fwd"]
