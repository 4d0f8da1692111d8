"""What each function of an op relies on, checked where a pointer to a tensor is made.

`checked` puts the checks in front of a function of an implementation: the reference, the C++ part and
the Triton launchers refuse the same arguments with the same words, whoever calls them. Row numbers are
values, and are looked at where that costs no pass of its own: by the C++ part, by the reference, and
in the kernels of a GPU, which leave out what lies outside the table.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from .._checks import check_tensor
from .adam_step import adam_step
from .linear_log_likelihood import linear_log_likelihood_bwd, linear_log_likelihood_fwd
from .log_likelihood import log_likelihood_bwd, log_likelihood_fwd
from .relay_sample import layout_of as layout_of
from .relay_sample import relay_sample_bwd, relay_sample_fwd
from .row_adam import HISTORY_COLUMNS as HISTORY_COLUMNS
from .row_adam import HISTORY_TERMS as HISTORY_TERMS
from .row_adam import row_adam_catch_up, row_adam_step

# of each function of an op, by its name
CHECKS: dict[str, Callable[..., Any]] = {
    check.__name__: check
    for check in (
        relay_sample_fwd,
        relay_sample_bwd,
        log_likelihood_fwd,
        log_likelihood_bwd,
        linear_log_likelihood_fwd,
        linear_log_likelihood_bwd,
        row_adam_catch_up,
        row_adam_step,
        adam_step,
    )
}

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R], name: str = "") -> Callable[P, R]:
    """The function with the checks of an op in front of it: that of its name if none is given.

    Raises:
        TypeError, ValueError, IndexError: names the argument, what was expected and what came.
    """
    check = CHECKS[name or function.__name__]

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            check(*args, **kwargs)
        except AttributeError:  # what is no tensor has no dtype
            given = inspect.signature(check).bind(*args, **kwargs).arguments
            for argument, value in given.items():
                expected = str(check.__annotations__[argument])
                if expected.startswith("Tensor") and not (value is None and "None" in expected):
                    check_tensor(argument, value)
            raise
        return function(*args, **kwargs)

    return run
