"""`gaussian_log_likelihood` in C++."""

from __future__ import annotations

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
    converted,
    scale_kind,
)


def _likelihood_inputs(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The same, contiguous and in the dtypes of a kernel."""
    dtype = mean.dtype
    if dtype not in BOTH:  # half precision is computed in float32
        dtype = FLOAT32
        mean = mean.to(dtype)
    if x.dtype is not dtype and (dtype is FLOAT64 or x.dtype is FLOAT64):
        x = x.to(dtype) * (1.0 / 255.0) if x.dtype is torch.uint8 else x.to(dtype)
    x, mean, scale = x.contiguous(), mean.contiguous(), converted(dtype, scale)
    return x, mean, scale, None if mask is None else mask.contiguous()


@checked
def gaussian_log_likelihood_fwd(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> Tensor:
    """`reference.gaussian_log_likelihood_fwd`."""
    x, means, scales, mask = _likelihood_inputs(x, mean, scale, mask)
    dtype, (num_samples, batch, num_features) = means.dtype, means.shape
    log_prob = empty((num_samples, batch), dtype=dtype)
    _C.gaussian_log_likelihood_fwd(
        is_double=dtype is FLOAT64,
        threads=get_num_threads(),
        num_samples=num_samples,
        batch=batch,
        num_features=num_features,
        x_type=DATA_TYPES[x.dtype],
        scale_kind=scale_kind(scales),
        mask_kind=NO_MASK if mask is None else MASK_KINDS[mask.dtype],
        x=x.data_ptr(),
        mean=means.data_ptr(),
        scale=scales.data_ptr(),
        mask=address_of(mask),
        log_prob=log_prob.data_ptr(),
    )
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
    x, means, scales, mask = _likelihood_inputs(x, mean, scale, mask)
    dtype, (num_samples, batch, num_features) = means.dtype, means.shape
    grad = converted(dtype, grad_log_prob)
    grad_mean = empty(mean.shape if need_mean else (0,), dtype=dtype)
    grad_scale = empty(scale.shape if need_scale else (0,), dtype=dtype)
    _C.gaussian_log_likelihood_bwd(
        is_double=dtype is FLOAT64,
        threads=get_num_threads(),
        num_samples=num_samples,
        batch=batch,
        num_features=num_features,
        x_type=DATA_TYPES[x.dtype],
        scale_kind=scale_kind(scales),
        mask_kind=NO_MASK if mask is None else MASK_KINDS[mask.dtype],
        x=x.data_ptr(),
        mean=means.data_ptr(),
        scale=scales.data_ptr(),
        mask=address_of(mask),
        grad=grad.data_ptr(),
        grad_mean=grad_mean.data_ptr(),
        grad_scale=grad_scale.data_ptr(),
    )
    return converted(mean.dtype, grad_mean), converted(scale.dtype, grad_scale)
