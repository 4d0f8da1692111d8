"""`row_adam_catch_up` and `row_adam_step` in C++."""

from __future__ import annotations

import torch
from torch import Tensor, get_num_threads

from .._op_checks import checked
from .extension import _C, FLOAT64, INT32, converted, row_numbers

# by the dtypes of rows and moments
_ROW_TYPES = {
    (torch.float32, torch.float32): _C.RowTypes.float32,
    (torch.float64, torch.float64): _C.RowTypes.float64,
    (torch.float32, torch.bfloat16): _C.RowTypes.float32_bfloat16,
}
_MODES = {"dense": _C.AdamMode.dense, "lazy": _C.AdamMode.lazy, "row": _C.AdamMode.row}


def _row_types(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    clock: Tensor,
    history: Tensor,
) -> _C.RowTypes | None:
    """The types of rows and moments; None where the kernels cannot work in place."""
    if row_step.dtype is not INT32 or not (
        rows.is_contiguous()
        and exp_avg.is_contiguous()
        and exp_avg_sq.is_contiguous()
        and row_step.is_contiguous()
        and clock.is_contiguous()
        and history.is_contiguous()
    ):
        return None
    return _ROW_TYPES.get((rows.dtype, exp_avg.dtype))


@checked
def row_adam_catch_up(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    index: Tensor,
    clock: Tensor,
    history: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    key_index: Tensor | None = None,
) -> None:
    """`reference.row_adam_catch_up`."""
    index = index.contiguous()
    types = _row_types(rows, exp_avg, exp_avg_sq, row_step, clock, history)
    if types is None:
        return NotImplemented
    numbers = row_numbers(index)
    keys = None if key_index is None else key_index.contiguous()
    _C.row_adam_catch_up(
        types=types,
        threads=get_num_threads(),
        num_data=rows.shape[0],
        width=rows.shape[1],
        rows=rows.data_ptr(),
        exp_avg=exp_avg.data_ptr(),
        exp_avg_sq=exp_avg_sq.data_ptr(),
        row_step=row_step.data_ptr(),
        index=numbers,
        key_index=numbers if keys is None else row_numbers(keys),
        clock=clock.data_ptr(),
        history=(history.data_ptr(), history.shape[0]),
        beta1=beta1,
        beta2=beta2,
        eps=eps,
    )
    return None


@checked
def row_adam_step(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    index: Tensor,
    grad: Tensor,
    clock: Tensor,
    history: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    semantics: str,
    repeats: bool = False,
    key_index: Tensor | None = None,
) -> None:
    """`reference.row_adam_step`."""
    index = index.contiguous()
    types = _row_types(rows, exp_avg, exp_avg_sq, row_step, clock, history)
    if types is None:
        return NotImplemented
    grad, lr = converted(rows.dtype, grad), converted(FLOAT64, lr)
    numbers = row_numbers(index)
    keys = None if key_index is None else key_index.contiguous()
    _C.row_adam_step(
        types=types,
        threads=get_num_threads(),
        num_data=rows.shape[0],
        width=rows.shape[1],
        rows=rows.data_ptr(),
        exp_avg=exp_avg.data_ptr(),
        exp_avg_sq=exp_avg_sq.data_ptr(),
        row_step=row_step.data_ptr(),
        index=numbers,
        key_index=numbers if keys is None else row_numbers(keys),
        clock=clock.data_ptr(),
        history=(history.data_ptr(), history.shape[0]),
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        grad=grad.data_ptr(),
        lr=lr.data_ptr(),
        weight_decay=weight_decay,
        mode=_MODES[semantics],
        repeats=repeats,
    )
    return None
