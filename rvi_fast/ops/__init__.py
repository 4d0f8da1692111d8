"""All ops: their schemas, which implementation serves which device, fakes and autograd.

An implementation is a namespace with the functions of `SCHEMAS`, same names and signatures;
`rvi_fast.reference` is the first and defines what the others must return.
"""

# importing an op's file defines it
from . import adam_step, row_adam
from .linear_log_likelihood import linear_log_likelihood
from .log_likelihood import log_likelihood
from .relay_sample import relay_sample
from .table import SCHEMAS, FallbackWarning, check_rows_read, implementation, ops, unused

__all__ = [
    "SCHEMAS",
    "FallbackWarning",
    "adam_step",
    "check_rows_read",
    "implementation",
    "linear_log_likelihood",
    "log_likelihood",
    "ops",
    "relay_sample",
    "row_adam",
    "unused",
]
