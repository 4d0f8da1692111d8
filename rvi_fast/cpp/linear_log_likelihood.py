"""`linear_log_likelihood` in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, empty, get_num_threads

from .._op_checks import checked
from .extension import (
    _C,
    DATA_TYPES,
    FLOAT32,
    FLOAT64,
    MASK_KINDS,
    NO_MASK,
    address_of,
    converted,
    scale_kind,
)


def _linear_inputs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
) -> tuple[Tensor, list[Tensor | None], dict[str, Any]]:
    """The log-likelihood to fill, the inputs to keep alive, and what both directions pass on."""
    wide = hidden.dtype is FLOAT64 or weight.dtype is FLOAT64
    dtype = FLOAT64 if wide else FLOAT32
    if x.dtype is not dtype and (wide or x.dtype is FLOAT64):
        x = x.to(dtype) * (1.0 / 255.0) if x.dtype is torch.uint8 else x.to(dtype)
    hidden, weight = converted(dtype, hidden), converted(dtype, weight)
    bias = None if bias is None else converted(dtype, bias)
    scale = None if scale is None else converted(dtype, scale)
    x, mask = x.contiguous(), None if mask is None else mask.contiguous()
    num_samples, batch, hidden_dim = hidden.shape
    log_prob = empty((num_samples, batch), dtype=dtype)
    shared = {
        "threads": get_num_threads(),
        "num_samples": num_samples,
        "batch": batch,
        "num_features": x.shape[1],
        "law": law,
        "x_type": DATA_TYPES[x.dtype],
        "scale_kind": scale_kind(scale),
        "mask_kind": NO_MASK if mask is None else MASK_KINDS[mask.dtype],
        "x": x.data_ptr(),
        "scale": address_of(scale),
        "mask": address_of(mask),
        "hidden_dim": hidden_dim,
        "hidden": hidden.data_ptr(),
        "weight": weight.data_ptr(),
        "bias": address_of(bias),
        "log_prob": log_prob.data_ptr(),
    }
    return log_prob, [hidden, weight, bias, x, scale, mask], shared


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
    if not hidden.is_cpu:  # tensors without memory
        return NotImplemented
    log_prob, _alive, shared = _linear_inputs(hidden, weight, bias, x, scale, mask, law)
    _C.linear_log_likelihood_fwd(**shared)
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
    if not hidden.is_cpu:  # tensors without memory
        return NotImplemented
    log_prob, _alive, shared = _linear_inputs(hidden, weight, bias, x, scale, mask, law)
    dtype = log_prob.dtype
    grad = converted(dtype, grad_log_prob)
    grad_hidden = empty(hidden.shape if need_hidden else (0,), dtype=dtype)
    grad_weight = empty(weight.shape if need_linear else (0,), dtype=dtype)
    grad_bias = empty(bias.shape if need_linear and bias is not None else (0,), dtype=dtype)
    grad_scale = empty(scale.shape if need_scale and scale is not None else (0,), dtype=dtype)
    _C.linear_log_likelihood_bwd(
        **shared,
        grad=grad.data_ptr(),
        grad_hidden=grad_hidden.data_ptr(),
        grad_weight=grad_weight.data_ptr(),
        grad_bias=grad_bias.data_ptr(),
        grad_scale=grad_scale.data_ptr(),
    )
    return (
        log_prob,
        converted(hidden.dtype, grad_hidden),
        converted(weight.dtype, grad_weight),
        converted(weight.dtype if bias is None else bias.dtype, grad_bias),
        converted(dtype if scale is None else scale.dtype, grad_scale),
    )
