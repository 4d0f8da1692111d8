"""Contracts of the ops: what every implementation is held to, one of your own included.

An implementation is a namespace with the functions of `rvi_fast.ops`, same names and signatures; one
that answers `NotImplemented` leaves the call to the reference.
Subclass a contract in a test file and pytest does the rest:

    import my_kernels
    from rvi_fast import testing

    class TestMyKernels(testing.RelaySampleContract):
        implementations = (testing.Implementation("mine", my_kernels, device="cuda"),)

Accuracy is judged against `rvi_fast.reference` in float64: `rvi_fast.testing.compare` says how.
"""

from .adam_step import AdamStepCase, AdamStepContract
from .backward_to_rows import BackwardToRowsCase, BackwardToRowsContract
from .catch_up_and_select import CatchUpAndSelectCase, CatchUpAndSelectContract
from .compare import (
    FLOOR_ULPS,
    YARDSTICK,
    assert_as_accurate,
    assert_bit_equal,
    assert_close,
    assert_same_selection,
    largest_error,
)
from .contract import Inputs, OpContract

# signatures of the ops, for tests of what a contract does not ask
from .contract import _arguments as _arguments
from .contract import _each_tensor as _each_tensor
from .finish_step import FinishStepCase, FinishStepContract
from .inputs import (
    Implementation,
    cotangents,
    expanded,
    installed,
    make_tables,
    poisoned_memory,
    strided,
    training_step,
    transposed,
)
from .likelihood_rows import LikelihoodRowsCase, LikelihoodRowsContract
from .linear_log_likelihood import (
    LinearLogLikelihoodCase,
    LinearLogLikelihoodContract,
)
from .log_likelihood import LogLikelihoodCase, LogLikelihoodContract
from .low_rank import low_rank_table
from .relay_decode import RelayDecodeCase, RelayDecodeContract
from .relay_sample import RelaySampleCase, RelaySampleContract
from .row_adam import RowAdamCase, RowAdamContract
from .sum_gradients import SumGradientsContract

__all__ = [
    "FLOOR_ULPS",
    "YARDSTICK",
    "AdamStepCase",
    "AdamStepContract",
    "BackwardToRowsCase",
    "BackwardToRowsContract",
    "CatchUpAndSelectCase",
    "CatchUpAndSelectContract",
    "FinishStepCase",
    "FinishStepContract",
    "Implementation",
    "Inputs",
    "LikelihoodRowsCase",
    "LikelihoodRowsContract",
    "LinearLogLikelihoodCase",
    "LinearLogLikelihoodContract",
    "LogLikelihoodCase",
    "LogLikelihoodContract",
    "OpContract",
    "RelayDecodeCase",
    "RelayDecodeContract",
    "RelaySampleCase",
    "RelaySampleContract",
    "RowAdamCase",
    "RowAdamContract",
    "SumGradientsContract",
    "assert_as_accurate",
    "assert_bit_equal",
    "assert_close",
    "assert_same_selection",
    "cotangents",
    "expanded",
    "installed",
    "largest_error",
    "low_rank_table",
    "make_tables",
    "poisoned_memory",
    "strided",
    "training_step",
    "transposed",
]
