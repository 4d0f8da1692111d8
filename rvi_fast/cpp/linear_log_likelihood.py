"""`linear_gaussian_log_likelihood` in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, empty, get_num_threads

from .._op_checks import checked
from .extension import _C, DATA_TYPES, FLOAT32, FLOAT64, converted


def _linear_inputs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, list[Tensor | None], tuple[Any, ...]]:
    """The log-likelihood to fill, the inputs to keep alive, and what both directions pass on."""
    wide = hidden.dtype is FLOAT64 or weight.dtype is FLOAT64
    dtype = FLOAT64 if wide else FLOAT32
    if x.dtype is not dtype and (wide or x.dtype is FLOAT64):
        x = x.to(dtype) * (1.0 / 255.0) if x.dtype is torch.uint8 else x.to(dtype)
    hidden, weight, scale = (
        converted(dtype, hidden),
        converted(dtype, weight),
        converted(dtype, scale),
    )
    bias = None if bias is None else converted(dtype, bias)
    x, mask = x.contiguous(), None if mask is None else mask.contiguous()
    num_samples, batch, hidden_dim = hidden.shape
    log_prob = empty((num_samples, batch), dtype=dtype)
    constants = (
        wide,
        get_num_threads(),
        num_samples,
        batch,
        x.shape[1],
        DATA_TYPES[x.dtype],
        # the numbers of `ScaleKind` in csrc/rows.h
        0 if scale.dim() == 0 or scale.shape == (1,) else scale.dim(),
        # the numbers of `MaskKind`
        0 if mask is None else 1 if mask.dtype is torch.bool else 2,
        x.data_ptr(),
        scale.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        hidden_dim,
        hidden.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        log_prob.data_ptr(),
    )
    return log_prob, [hidden, weight, bias, x, scale, mask], constants


@checked
def linear_log_likelihood_fwd(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
) -> Tensor:
    """`reference.linear_log_likelihood_fwd`."""
    if law != "gaussian" or scale is None:
        return NotImplemented
    log_prob, _alive, constants = _linear_inputs(hidden, weight, bias, x, scale, mask)
    _C.linear_gaussian_log_likelihood_fwd(*constants)
    return log_prob


@checked
def linear_log_likelihood_bwd(
    grad_log_prob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
    need_hidden: bool,
    need_linear: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference.linear_log_likelihood_bwd`."""
    if law != "gaussian" or scale is None:
        return NotImplemented
    log_prob, _alive, constants = _linear_inputs(hidden, weight, bias, x, scale, mask)
    dtype = log_prob.dtype
    grad = converted(dtype, grad_log_prob)
    grad_hidden = empty(hidden.shape if need_hidden else (0,), dtype=dtype)
    grad_weight = empty(weight.shape if need_linear else (0,), dtype=dtype)
    grad_bias = empty(bias.shape if need_linear and bias is not None else (0,), dtype=dtype)
    grad_scale = empty(scale.shape if need_scale else (0,), dtype=dtype)
    _C.linear_gaussian_log_likelihood_bwd(
        *constants,
        grad.data_ptr(),
        need_hidden,
        grad_hidden.data_ptr(),
        need_linear,
        grad_weight.data_ptr(),
        grad_bias.data_ptr(),
        need_scale,
        grad_scale.data_ptr(),
    )
    return (
        log_prob,
        converted(hidden.dtype, grad_hidden),
        converted(weight.dtype, grad_weight),
        converted(weight.dtype if bias is None else bias.dtype, grad_bias),
        converted(scale.dtype, grad_scale),
    )
