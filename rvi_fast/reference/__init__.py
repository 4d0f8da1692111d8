"""The definition of every op, in plain torch: what the C++ and Triton kernels are compared with.

For each op there are up to three functions. `<op>` is the formula as one would write it on paper,
differentiable by autograd. `<op>_fwd` and `<op>_bwd` have the signatures that every backend shares
(see `ops`); the backward is written by hand. Sums and products are at least float32; float64
inputs are computed in float64 throughout.

Letters: N datapoints, B batch, K relay vectors, T latent dimensions, G groups, S samples, D
features, W elements in a packed row (`RowLayout`).
"""

from __future__ import annotations

from .._op_checks import HISTORY_COLUMNS, HISTORY_TERMS
from .adam_step import adam_step
from .bits import pack_bits, unpack_bits
from .history import WINDOW_TOLERANCE, row_adam_window, widened_history
from .linear_log_likelihood import (
    linear_gaussian_log_likelihood,
    linear_log_likelihood,
    linear_log_likelihood_bwd,
    linear_log_likelihood_fwd,
    linear_output,
)
from .log_likelihood import (
    PIXEL_SCALE,
    gaussian_log_likelihood,
    grad_x,
    log_likelihood,
    log_likelihood_bwd,
    log_likelihood_fwd,
)
from .moments import MOMENT_SEED, moment_words, to_bfloat16
from .noise import normal_noise, philox
from .relay_sample import (
    LOG_STD_LIMIT,
    group_weights,
    posterior_mean,
    relay_sample,
    relay_sample_bwd,
    relay_sample_fwd,
    select,
    selected,
)
from .row_adam import row_adam_catch_up, row_adam_step

__all__ = [
    "HISTORY_COLUMNS",
    "HISTORY_TERMS",
    "LOG_STD_LIMIT",
    "MOMENT_SEED",
    "PIXEL_SCALE",
    "WINDOW_TOLERANCE",
    "adam_step",
    "gaussian_log_likelihood",
    "grad_x",
    "group_weights",
    "linear_gaussian_log_likelihood",
    "linear_log_likelihood",
    "linear_log_likelihood_bwd",
    "linear_log_likelihood_fwd",
    "linear_output",
    "log_likelihood",
    "log_likelihood_bwd",
    "log_likelihood_fwd",
    "moment_words",
    "normal_noise",
    "pack_bits",
    "philox",
    "posterior_mean",
    "relay_sample",
    "relay_sample_bwd",
    "relay_sample_fwd",
    "row_adam_catch_up",
    "row_adam_step",
    "row_adam_window",
    "select",
    "selected",
    "to_bfloat16",
    "unpack_bits",
    "widened_history",
]
