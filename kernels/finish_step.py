"""The end of a training step in one launch: Adam of what all rows share, the rows' clock, the objective.

Math:
    With g the sum of a block's pieces, in the order of the pieces, that of `adam_step` with the
    learning rate and the weight decay of the block's group; of `row_adam_step`, what counts the clock up
    and extends the history; and
        result = (kl_weight kl - log_prob, kl, log_prob), means over the batch

Shapes:
    params, exp_avg, exp_avg_sq [P] float32; grads [n, P] float32; parts and group int32
    [P / SHARED_BLOCK]; step int64 [1] or [G]; lr and weight_decay [G] and row_lr float64; clock [2]
    int64; history [steps, HISTORY_COLUMNS] float64; log_prob [p, B] and kl [B] float32; kl_weight of
    one element; result [3] float32, or [R, 3] with position int64 [1].

Saved:
    Nothing.

Traffic:
    24 P bytes of the parameters and moments, 4 P for each piece that a block has, 4 (p + 1) B of what is
    averaged.

Limits:
    Pieces are added up in an order that depends on n alone, means in one that depends on p and B. One
    program counts the clock up, and nobody else reads it; one makes the means, and it alone reads the
    position; those of the parameters count themselves as in `adam_step`. What stands in `grads` beyond
    the pieces of a block is never used; what no tensor covers of a block is stepped like the rest.

Source:
    `rvi_fast.reference.fused_step.finish_step`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._adam import bias_corrections, count_program, logarithm, stepped
from ._common import launch
from .pieces import SHARED_BLOCK
from .row_adam import count_step, window_of
from .sum_gradients import columns_of, gradient

# programs that have no parameters: the first two, which take longest
OTHERS = tl.constexpr(2)
# numbers that the program of the means reads at a time
AVERAGED = 4096


@triton.jit
def _sum_of(ptr, count, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, count, BLOCK):
        total += tl.load(ptr + start + lanes, mask=start + lanes < count, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _write_means(
    log_prob_ptr,
    kl_ptr,
    kl_weight_ptr,
    result_ptr,
    position_ptr,
    num_pieces,
    batch,
    RING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if RING > 0:
        position = tl.load(position_ptr)
        result_ptr += 3 * position
    log_prob = _sum_of(log_prob_ptr, num_pieces.to(tl.int64) * batch, BLOCK) / batch
    kl = _sum_of(kl_ptr, batch.to(tl.int64), BLOCK) / batch
    kl_weight = tl.load(kl_weight_ptr).to(tl.float32)
    tl.store(result_ptr, kl_weight * kl - log_prob)
    tl.store(result_ptr + 1, kl)
    tl.store(result_ptr + 2, log_prob)
    if RING > 0:
        tl.store(position_ptr, tl.where(position + 1 < RING, position + 1, 0))


@triton.jit(do_not_specialize=["window", "num_pieces", "batch"])
def _finish_step_kernel(
    params_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    grads_ptr,
    parts_ptr,
    group_ptr,
    step_ptr,
    lr_ptr,
    size,
    log_beta1: tl.float64,
    log_beta2: tl.float64,
    beta2,
    rest1,
    rest2,
    eps,
    clock_ptr,
    history_ptr,
    row_lr_ptr,
    window,
    row_log_beta1: tl.float64,
    row_log_beta2: tl.float64,
    row_weight_decay: tl.float64,
    log_prob_ptr,
    kl_ptr,
    kl_weight_ptr,
    result_ptr,
    position_ptr,
    num_pieces,
    batch,
    weight_decay_ptr,
    COUNTS: tl.constexpr,
    DECAYS: tl.constexpr,
    RING: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    program = tl.program_id(0)
    if program == 0:
        count_step(
            clock_ptr,
            history_ptr,
            row_lr_ptr,
            window,
            tl.full((), row_log_beta1, tl.float64),
            tl.full((), row_log_beta2, tl.float64),
            tl.full((), row_weight_decay, tl.float64),
            True,
            BLOCK_M,
        )
    elif program == 1:
        _write_means(
            log_prob_ptr,
            kl_ptr,
            kl_weight_ptr,
            result_ptr,
            position_ptr,
            num_pieces,
            batch,
            RING,
            BLOCK_R,
        )
    else:
        step, before = count_program(step_ptr)
        corrections = bias_corrections(step, log_beta1, log_beta2)
        columns = (program - OTHERS).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        valid = columns < size
        parts = tl.load(parts_ptr + columns // BLOCK, mask=valid, other=0)
        group = tl.load(group_ptr + columns // BLOCK, mask=valid, other=0)
        lr = tl.load(lr_ptr + group, mask=valid, other=0.0)
        decay = 1.0
        if DECAYS:
            own = tl.load(weight_decay_ptr + group, mask=valid, other=0.0)
            decay = (1.0 - lr * own).to(tl.float32)
        grad = gradient(grads_ptr, columns, valid, parts, size, BLOCK, BLOCK_N, BLOCK_P)
        param, moment, square = stepped(
            tl.load(params_ptr + columns, mask=valid, other=0.0),
            tl.load(exp_avg_ptr + columns, mask=valid, other=0.0),
            tl.load(exp_avg_sq_ptr + columns, mask=valid, other=0.0),
            grad,
            lr,
            decay,
            corrections,
            beta2,
            rest1,
            rest2,
            eps,
        )
        tl.store(params_ptr + columns, param, mask=valid)
        tl.store(exp_avg_ptr + columns, moment, mask=valid)
        tl.store(exp_avg_sq_ptr + columns, square, mask=valid)
        last = before == tl.num_programs(0) - OTHERS - 1
        for i in tl.static_range(COUNTS):
            tl.store(step_ptr + i, step, mask=last)


def finish_step(
    params: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grads: Tensor,
    parts: Tensor,
    group: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    clock: Tensor,
    history: Tensor,
    row_lr: Tensor,
    row_beta1: float,
    row_beta2: float,
    row_weight_decay: float,
    log_prob: Tensor,
    kl: Tensor,
    kl_weight: Tensor,
    result: Tensor,
    position: Tensor | None = None,
    weight_decay: Tensor | None = None,
) -> None:
    """`reference.fused_step.finish_step`."""
    num_parts, size = grads.shape
    block_n, block_p = columns_of(num_parts)
    # a program also where there is nothing to update: the step counts
    programs = max(1, triton.cdiv(size, block_p))
    launch(_finish_step_kernel, (OTHERS.value + programs,))(
        params_ptr=params,
        exp_avg_ptr=exp_avg,
        exp_avg_sq_ptr=exp_avg_sq,
        grads_ptr=grads,
        parts_ptr=parts,
        group_ptr=group,
        step_ptr=step,
        lr_ptr=lr,
        size=size,
        log_beta1=logarithm(beta1),
        log_beta2=logarithm(beta2),
        beta2=beta2,
        rest1=1.0 - beta1,
        rest2=1.0 - beta2,
        eps=eps,
        clock_ptr=clock,
        history_ptr=history,
        row_lr_ptr=row_lr,
        window=window_of(row_beta1, row_beta2),
        row_log_beta1=logarithm(row_beta1),
        row_log_beta2=logarithm(row_beta2),
        row_weight_decay=float(row_weight_decay),
        log_prob_ptr=log_prob,
        kl_ptr=kl,
        kl_weight_ptr=kl_weight,
        result_ptr=result,
        position_ptr=step if position is None else position,
        num_pieces=len(log_prob),
        batch=len(kl),
        weight_decay_ptr=lr if weight_decay is None else weight_decay,
        COUNTS=len(step),
        DECAYS=weight_decay is not None,
        RING=0 if position is None else len(result),
        BLOCK=SHARED_BLOCK,
        BLOCK_N=block_n,
        BLOCK_P=block_p,
        BLOCK_M=256,
        BLOCK_R=AVERAGED,
        num_warps=4,
        enable_fp_fusion=True,
    )
