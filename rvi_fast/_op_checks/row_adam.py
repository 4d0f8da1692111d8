"""What `row_adam` relies on."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import moment_dtypes
from .holds import (
    FLOAT64,
    FLOATS,
    INT64,
    INTEGERS,
    hold,
    hold_dims,
    hold_index,
    hold_one_of_state,
    hold_own_memory,
    hold_state,
    refuse_betas,
)

SEMANTICS = ("dense", "lazy", "row")
# of the history of steps that dense rows catch up with, see `reference`
HISTORY_TERMS = 12
HISTORY_COLUMNS = 4 + HISTORY_TERMS


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
    dtype, shape, sizes = rows.dtype, rows.shape, history.shape
    if not (
        rows.is_cpu
        and exp_avg.is_cpu
        and exp_avg_sq.is_cpu
        and row_step.is_cpu
        and index.is_cpu
        and clock.is_cpu
        and history.is_cpu
        and dtype is exp_avg.dtype
        and dtype is exp_avg_sq.dtype
        and dtype in FLOATS
        and row_step.dtype in INTEGERS
        and index.dtype in INTEGERS
        and clock.dtype in INT64
        and history.dtype in FLOAT64
        and len(shape) == 2
        and exp_avg.shape == shape
        and exp_avg_sq.shape == shape
        and row_step.shape == (shape[0],)
        and index.dim() == 1
        and clock.shape == (2,)
        and len(sizes) == 2
        and sizes[1] == HISTORY_COLUMNS
        and 0.0 <= beta1 < 1.0
        and 0.0 <= beta2 < 1.0
        and rows.is_contiguous()
        and exp_avg.is_contiguous()
        and exp_avg_sq.is_contiguous()
        and row_step.is_contiguous()
    ):
        hold_row_adam(rows, exp_avg, exp_avg_sq, row_step, index, clock, history, beta1, beta2)
    if key_index is not None:
        hold("key_index", key_index, rows.device, INTEGERS, (index.shape[0],))


def hold_row_adam(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    index: Tensor,
    clock: Tensor,
    history: Tensor,
    beta1: float,
    beta2: float,
) -> None:
    """One by one: what is not on the CPU, has other moments or is wrong."""
    hold_dims("rows", rows, FLOATS, "NW")
    device, dtype, shape = rows.device, rows.dtype, rows.shape
    moments = exp_avg.dtype
    if moments is not dtype or exp_avg_sq.dtype is not dtype:
        hold_moments(dtype, exp_avg, exp_avg_sq)
    hold("exp_avg", exp_avg, device, (moments,), shape)
    hold("exp_avg_sq", exp_avg_sq, device, (moments,), shape)
    hold("row_step", row_step, device, INTEGERS, shape[:1])
    hold_index(index, device)
    hold_state("clock", clock, device, INT64, (2,))
    sizes = history.shape
    if len(sizes) != 2 or sizes[1] != HISTORY_COLUMNS:
        hold_dims("history", history, FLOAT64, "MC")
    hold_state("history", history, device, FLOAT64, (sizes[0], HISTORY_COLUMNS))
    if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
        refuse_betas(beta1, beta2)
    if not rows.is_contiguous():
        hold_own_memory("rows", rows)
    if not exp_avg.is_contiguous():
        hold_own_memory("exp_avg", exp_avg)
    if not exp_avg_sq.is_contiguous():
        hold_own_memory("exp_avg_sq", exp_avg_sq)
    if not row_step.is_contiguous():
        hold_own_memory("row_step", row_step)


def hold_moments(dtype: torch.dtype, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
    for name, table, expected in (
        ("exp_avg", exp_avg, moment_dtypes(dtype)),
        ("exp_avg_sq", exp_avg_sq, [exp_avg.dtype]),
    ):
        if table.dtype not in expected:
            wanted = " or ".join(map(str, expected))
            raise TypeError(f"{name}: expected {wanted}, got {table.dtype}; rows are {dtype}")


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
    state = (rows, exp_avg, exp_avg_sq, row_step, index, clock, history)
    row_adam_catch_up(*state, beta1, beta2, eps, key_index)
    if semantics not in SEMANTICS:
        raise ValueError(f"semantics: expected one of {', '.join(SEMANTICS)}, got {semantics!r}")
    device = rows.device
    hold("grad", grad, device, FLOATS, (index.shape[0], rows.shape[1]))
    hold_one_of_state("lr", lr, device, FLOATS)
    if not clock.is_contiguous():
        hold_own_memory("clock", clock)
    if not history.is_contiguous():
        hold_own_memory("history", history)
