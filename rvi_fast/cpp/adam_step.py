"""`adam_step` in C++."""

from __future__ import annotations

from torch import Tensor, get_num_threads

from .._op_checks import checked
from .extension import _C, BOTH, FLOAT64, converted


@checked
def adam_step(
    params: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grads: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """`reference.adam_step`."""
    dtype = params.dtype
    if dtype not in BOTH:
        return NotImplemented
    for table in (params, exp_avg, exp_avg_sq):
        if not table.is_contiguous():
            return NotImplemented
    grads, lr = converted(dtype, grads), converted(FLOAT64, lr)
    num_parts, size = grads.shape
    _C.adam_step(
        is_double=dtype is FLOAT64,
        threads=get_num_threads(),
        size=size,
        num_parts=num_parts,
        params=params.data_ptr(),
        exp_avg=exp_avg.data_ptr(),
        exp_avg_sq=exp_avg_sq.data_ptr(),
        grads=grads.data_ptr(),
        step=step.data_ptr(),
        lr=lr.data_ptr(),
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
    )
    return None
