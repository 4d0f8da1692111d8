"""The ops in C++, for CPU tensors: the functions of `rvi_fast.reference`, same names and signatures.

Each is behind the checks of `_op_checks`, makes its inputs contiguous, allocates the results and passes
addresses to `rvi_fast._C` (`csrc/bindings`). What the kernels do not cover, such as tables in half
precision, is answered with `NotImplemented`, and `ops` lets the reference do it.
"""

from .adam_step import adam_step
from .extension import _C as _C
from .extension import cpu_path
from .linear_log_likelihood import linear_log_likelihood_bwd, linear_log_likelihood_fwd
from .log_likelihood import log_likelihood_bwd, log_likelihood_fwd
from .relay_sample import relay_sample_bwd, relay_sample_fwd
from .row_adam import row_adam_catch_up, row_adam_step

__all__ = [
    "adam_step",
    "cpu_path",
    "linear_log_likelihood_bwd",
    "linear_log_likelihood_fwd",
    "log_likelihood_bwd",
    "log_likelihood_fwd",
    "relay_sample_bwd",
    "relay_sample_fwd",
    "row_adam_catch_up",
    "row_adam_step",
]
