"""Adam for the parameters that all rows share, in one launch.

Math:
    With g the sum of the gradient's parts and n the steps taken, this one included:
        m <- m + (1 - b1) (g - m),   v <- b2 v + (1 - b2) g^2
        theta <- (1 - lr weight_decay) theta - lr / (1 - b1^n) m / (sqrt(v / (1 - b2^n)) + eps)

Shapes:
    params, exp_avg, exp_avg_sq [P] float32; grads [n, P], parts of the gradient to be added up; step
    int64, one element; lr float64, one element.

Saved:
    Nothing.

Traffic:
    24 P bytes of the parameters and moments, read and written, and 4 n P of the gradient.

Limits:
    The parts are added up in an order that depends on n alone. A program learns the step from the
    exchange that also counts programs, in the upper half of `step`: so the last one knows that all have
    read it, and writes the new step. Up to 2^31 steps. Moments below the least normal number become 0.
    Other dtypes are left to the reference.

Source:
    `rvi_fast.reference.adam_step`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._op_checks import checked
from ._adam import bias_corrections, count_program, logarithm, stepped
from ._common import launch

# elements of a tile of the gradient's parts: 8 for each of 128 threads
TILE, MAX_BLOCK_N = 1024, 16


@triton.jit(do_not_specialize=["num_parts"])
def _adam_step_kernel(
    params_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    grads_ptr,
    step_ptr,
    lr_ptr,
    num_parts,
    size,
    log_beta1: tl.float64,
    log_beta2: tl.float64,
    beta2,
    rest1,
    rest2,
    eps,
    weight_decay: tl.float64,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    step, before = count_program(step_ptr)
    lr = tl.load(lr_ptr)
    corrections = bias_corrections(step, log_beta1, log_beta2)
    decay = (1.0 - lr * weight_decay).to(tl.float32)

    columns = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = columns < size
    parts = tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_P), dtype=tl.float32)
    for _ in range(0, num_parts, BLOCK_N):
        inside = (parts < num_parts) & valid[None, :]
        offsets = parts * size + columns[None, :]
        total += tl.load(grads_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        parts += BLOCK_N
    grad = tl.sum(total, axis=0)

    param = tl.load(params_ptr + columns, mask=valid, other=0.0)
    moment = tl.load(exp_avg_ptr + columns, mask=valid, other=0.0)
    square = tl.load(exp_avg_sq_ptr + columns, mask=valid, other=0.0)
    param, moment, square = stepped(
        param, moment, square, grad, lr, decay, corrections, beta2, rest1, rest2, eps
    )
    tl.store(params_ptr + columns, param, mask=valid)
    tl.store(exp_avg_ptr + columns, moment, mask=valid)
    tl.store(exp_avg_sq_ptr + columns, square, mask=valid)

    tl.store(step_ptr, step, mask=before == tl.num_programs(0) - 1)


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
    tables = (params, exp_avg, exp_avg_sq)
    if any(t.dtype != torch.float32 or not t.is_contiguous() for t in tables):
        return NotImplemented
    num_parts, size = grads.shape
    block_n = min(MAX_BLOCK_N, triton.next_power_of_2(max(1, num_parts)))
    # a program also where there is nothing to update: the step counts
    launch(_adam_step_kernel, (max(1, triton.cdiv(size, TILE // block_n)),))(
        params_ptr=params,
        exp_avg_ptr=exp_avg,
        exp_avg_sq_ptr=exp_avg_sq,
        grads_ptr=grads.contiguous(),
        step_ptr=step,
        lr_ptr=lr.to(torch.float64),
        num_parts=num_parts,
        size=size,
        log_beta1=logarithm(beta1),
        log_beta2=logarithm(beta2),
        beta2=beta2,
        rest1=1.0 - beta1,
        rest2=1.0 - beta2,
        eps=eps,
        weight_decay=float(weight_decay),
        BLOCK_N=block_n,
        BLOCK_P=TILE // block_n,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return None
