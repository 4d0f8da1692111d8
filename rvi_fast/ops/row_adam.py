"""`row_adam_catch_up` and `row_adam_step`: schemas and fakes; they write to their arguments."""

from __future__ import annotations

from .table import defined

_TABLES = "Tensor(a!) rows, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) row_step"


@defined(
    "row_adam_catch_up",
    f"({_TABLES}, Tensor index, Tensor clock, Tensor history, "
    "float beta1, float beta2, float eps, Tensor? key_index=None) -> ()",
)
def _(*args):
    return None


@defined(
    "row_adam_step",
    f"({_TABLES}, Tensor index, Tensor grad, Tensor(e!) clock, Tensor(f!) history, "
    "Tensor lr, float beta1, float beta2, float eps, float weight_decay, str semantics, "
    "bool repeats=False, Tensor? key_index=None) -> ()",
)
def _(*args):
    return None
