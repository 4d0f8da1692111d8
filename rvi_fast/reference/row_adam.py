"""`row_adam`: Adam for the rows of a batch, and the steps that the others have missed."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_each_once
from .._op_checks import checked
from ._common import as_factor, rows_at
from .history import check_steps, extend_history
from .moments import flushed, moment_words, to_bfloat16


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
    """Applies to rows `index` [B] (duplicates allowed) the steps they have missed, in place.

    s steps with zero gradient of dense Adam, with P the weight decay of those steps:

        theta <- P theta - P m sum_j w_j / (q_j sqrt(v) + eps),   m <- m b1^s,   v <- v b2^s

    The sum over the missed steps is taken from `history`: exact in the limits of sqrt(v) far above and
    far below eps, with a relative error of 1e-6 at most for betas (0.9, 0.999) elsewhere.

    bfloat16 moments are rounded by random bits keyed by `key_index` [B], equal for equal rows, or by
    `index`: so a row is the same in a part of a table as in the whole.
    """
    values = _caught_up(
        rows, exp_avg, exp_avg_sq, row_step, index, clock, history, beta1, beta2, eps, 0
    )
    keys = index if key_index is None else key_index
    _write(rows, exp_avg, exp_avg_sq, index, keys, clock, *values)
    row_step[index] = clock[0].to(row_step.device, row_step.dtype)


def _caught_up(
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
    more: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows `index` and their moments with the steps they have missed, in the dtype of the rows.

    The history has room for `more` steps.
    """
    own, last = rows_at(rows, index), row_step[index].to(clock.device, torch.int64)
    check_steps(index, last, clock, history, more)
    missed = (clock[0] - last).to(torch.float64)
    weight, inverse, log_decay, middle, *terms = history[last - clock[1]].unbind(-1)
    decay = torch.exp(history[clock[0] - clock[1], 2] - log_decay)

    def column(values: Tensor) -> Tensor:
        return as_factor(values, rows)[:, None]

    moment, square = exp_avg[index].to(rows.dtype), exp_avg_sq[index].to(rows.dtype)
    # what has missed nothing has no middle yet, and does not move
    denominator = column(torch.where(middle > 0, middle, 1.0)) * square.sqrt() + eps
    share = eps / denominator
    x = 2.0 * share - 1.0
    near = far = torch.zeros_like(x)  # Clenshaw's recurrence
    for term in terms[:0:-1]:
        near, far = column(decay * term) + 2.0 * x * near - far, near
    bend = column(decay * terms[0]) + x * near - far
    start, end = column(decay * middle * inverse), column(decay * weight)
    moved = start + share * (end - start - (1.0 - share) * bend)
    moved = moment / denominator * moved
    return (
        own * column(decay) - moved,
        flushed(moment * column(beta1**missed), exp_avg.dtype),
        flushed(square * column(beta2**missed), exp_avg.dtype),
    )


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
    """One Adam step for rows `index` [B] with gradients [B, W], in place.

    Each row stands once in the index, or with `repeats` more than once: its gradients are then added up
    in the order of the index.

    `clock[0]` counts up by one. semantics "dense" is torch's Adam on the whole table (rows not in the
    batch are caught up when next read), "lazy" is `SparseAdam`, "row" corrects the bias by the
    row's own visit count. `key_index` is that of `row_adam_catch_up`.
    """
    keys = index if key_index is None else key_index
    lr, grad = lr.to(torch.float64).reshape(()), grad.to(rows.dtype)
    if repeats and not index.is_meta:
        index, place = index.unique(return_inverse=True)
        grad = grad.new_zeros((len(index), rows.shape[1])).index_add_(0, place, grad)
        keys = keys.new_zeros(len(index)).index_copy_(0, place, keys)
    elif not index.is_meta:
        check_each_once(index)
    theta = rows_at(rows, index)
    moment, square = exp_avg[index].to(rows.dtype), exp_avg_sq[index].to(rows.dtype)
    if semantics == "dense":
        theta, moment, square = _caught_up(
            rows, exp_avg, exp_avg_sq, row_step, index, clock, history, beta1, beta2, eps, 1
        )
    clock[0] += 1
    count = clock[0].to(torch.float64)
    if semantics == "dense":
        row_step[index] = clock[0].to(row_step.device, row_step.dtype)
        extend_history(history, clock, lr, beta1, beta2, weight_decay)
    elif semantics == "row":
        row_step[index] += 1
        count = row_step[index].to(clock.device).to(torch.float64)[:, None]

    moment = flushed(moment + (grad - moment) * (1.0 - beta1), exp_avg.dtype)
    square = flushed(square * beta2 + grad * grad * (1.0 - beta2), exp_avg.dtype)
    step_size = as_factor(lr / (1.0 - beta1**count), rows)
    root_correction = as_factor((1.0 - beta2**count).sqrt(), rows)
    if semantics == "lazy":  # SparseAdam adds eps before it corrects the bias
        denominator = (square.sqrt() + eps) / root_correction
    else:
        denominator = square.sqrt() / root_correction + eps
    decay = as_factor(1.0 - lr * weight_decay, rows)
    theta = theta * decay - step_size * moment / denominator
    _write(rows, exp_avg, exp_avg_sq, index, keys, clock, theta, moment, square)


def _write(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    index: Tensor,
    keys: Tensor,
    clock: Tensor,
    theta: Tensor,
    moment: Tensor,
    square: Tensor,
) -> None:
    if exp_avg.dtype != rows.dtype:
        words = moment_words(keys, clock[0].to(keys.device), rows.shape[1])
        moment = to_bfloat16(moment, words >> 16)
        square = to_bfloat16(square, words & 0xFFFF)
    rows[index], exp_avg[index], exp_avg_sq[index] = theta, moment, square
