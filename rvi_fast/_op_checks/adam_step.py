"""What `adam_step` relies on."""

from __future__ import annotations

from torch import Tensor

from .holds import FLOATS, INT64, hold, hold_dims, hold_one_of_state, hold_own_memory, refuse_betas


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
    hold_dims("params", params, FLOATS, "P")
    device, dtype, shape = params.device, (params.dtype,), params.shape
    hold("exp_avg", exp_avg, device, dtype, shape)
    hold("exp_avg_sq", exp_avg_sq, device, dtype, shape)
    sizes = grads.shape
    if len(sizes) != 2:
        hold_dims("grads", grads, FLOATS, "nP")
    hold("grads", grads, device, FLOATS, (sizes[0], shape[0]))
    hold_one_of_state("step", step, device, INT64)
    hold_one_of_state("lr", lr, device, FLOATS)
    if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
        refuse_betas(beta1, beta2)
    if not params.is_contiguous():
        hold_own_memory("params", params)
    if not exp_avg.is_contiguous():
        hold_own_memory("exp_avg", exp_avg)
    if not exp_avg_sq.is_contiguous():
        hold_own_memory("exp_avg_sq", exp_avg_sq)
