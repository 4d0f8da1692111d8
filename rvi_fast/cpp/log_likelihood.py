"""`gaussian_log_likelihood` in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, empty, get_num_threads

from .._op_checks import checked
from .extension import (
    _C,
    BOTH,
    DATA_TYPES,
    FLOAT32,
    FLOAT64,
    MASK_KINDS,
    NO_MASK,
    address_of,
    scale_kind,
)


def _likelihood_inputs(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> tuple[list[Tensor | None], torch.dtype, dict[str, Any]]:
    """Tensors to keep alive, the dtype of the kernel, and the arguments both directions share."""
    dtype = mean.dtype
    if dtype not in BOTH:  # half precision is computed in float32
        dtype = FLOAT32
        mean = mean.to(dtype)
    if x.dtype is not dtype and (dtype is FLOAT64 or x.dtype is FLOAT64):
        x = x.to(dtype) * (1.0 / 255.0) if x.dtype is torch.uint8 else x.to(dtype)
    x, mean, scale = x.contiguous(), mean.contiguous(), scale.to(dtype).contiguous()
    num_samples, batch, num_features = mean.shape
    if mask is not None:
        mask = mask.contiguous()
    shared = {
        "is_double": dtype is FLOAT64,
        "threads": get_num_threads(),
        "num_samples": num_samples,
        "batch": batch,
        "num_features": num_features,
        "x_type": DATA_TYPES[x.dtype],
        "scale_kind": scale_kind(scale),
        "mask_kind": NO_MASK if mask is None else MASK_KINDS[mask.dtype],
        "x": x.data_ptr(),
        "mean": mean.data_ptr(),
        "scale": scale.data_ptr(),
        "mask": address_of(mask),
    }
    return [x, mean, scale, mask], dtype, shared


@checked
def gaussian_log_likelihood_fwd(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> Tensor:
    """`reference.gaussian_log_likelihood_fwd`."""
    _alive, dtype, shared = _likelihood_inputs(x, mean, scale, mask)
    log_prob = empty(mean.shape[:2], dtype=dtype)
    _C.gaussian_log_likelihood_fwd(**shared, log_prob=log_prob.data_ptr())
    return log_prob


@checked
def gaussian_log_likelihood_bwd(
    grad_log_prob: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    need_mean: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor]:
    """`reference.gaussian_log_likelihood_bwd`."""
    _alive, dtype, shared = _likelihood_inputs(x, mean, scale, mask)
    grad = grad_log_prob.to(dtype).contiguous()
    grad_mean = empty(mean.shape if need_mean else (0,), dtype=dtype)
    grad_scale = empty(scale.shape if need_scale else (0,), dtype=dtype)
    _C.gaussian_log_likelihood_bwd(
        **shared,
        grad=grad.data_ptr(),
        grad_mean=grad_mean.data_ptr(),
        grad_scale=grad_scale.data_ptr(),
    )
    return grad_mean.to(mean.dtype), grad_scale.to(scale.dtype)
