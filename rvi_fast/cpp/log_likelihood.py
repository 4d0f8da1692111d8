"""`gaussian_log_likelihood` in C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, empty, get_num_threads

from .._op_checks import checked
from .extension import _C, BOTH, DATA_TYPES, FLOAT32, FLOAT64, converted


def _likelihood_inputs(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[Any, ...]]:
    """Contiguous tensors in the dtypes of a kernel, and the arguments both directions share."""
    dtype = mean.dtype
    if dtype not in BOTH:  # half precision is computed in float32
        dtype = FLOAT32
        mean = mean.to(dtype)
    if x.dtype is not dtype and (dtype is FLOAT64 or x.dtype is FLOAT64):
        x = x.to(dtype) * (1.0 / 255.0) if x.dtype is torch.uint8 else x.to(dtype)
    x, mean, scale = x.contiguous(), mean.contiguous(), converted(dtype, scale)
    num_samples, batch, num_features = mean.shape
    if mask is not None:
        mask = mask.contiguous()
    constants = (
        dtype is FLOAT64,
        get_num_threads(),
        num_samples,
        batch,
        num_features,
        DATA_TYPES[x.dtype],
        # the numbers of `ScaleKind` in csrc/rows.h
        0 if scale.dim() == 0 or scale.shape == (1,) else scale.dim(),
        # the numbers of `MaskKind`
        0 if mask is None else 1 if mask.dtype is torch.bool else 2,
        x.data_ptr(),
        mean.data_ptr(),
        scale.data_ptr(),
        0 if mask is None else mask.data_ptr(),
    )
    return x, mean, scale, mask, constants


@checked
def log_likelihood_fwd(
    x: Tensor, output: Tensor, scale: Tensor | None, mask: Tensor | None, law: str
) -> Tensor:
    """`reference.log_likelihood_fwd`."""
    if law != "gaussian" or scale is None:
        return NotImplemented
    *_alive, constants = inputs = _likelihood_inputs(x, output, scale, mask)
    log_prob = empty(output.shape[:2], dtype=inputs[1].dtype)
    _C.gaussian_log_likelihood_fwd(*constants, log_prob.data_ptr())
    return log_prob


@checked
def log_likelihood_bwd(
    grad_log_prob: Tensor,
    x: Tensor,
    output: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
    need_output: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor]:
    """`reference.log_likelihood_bwd`."""
    if law != "gaussian" or scale is None:
        return NotImplemented
    *_alive, constants = inputs = _likelihood_inputs(x, output, scale, mask)
    dtype = inputs[1].dtype
    grad = converted(dtype, grad_log_prob)
    grad_output = empty(output.shape if need_output else (0,), dtype=dtype)
    grad_scale = empty(scale.shape if need_scale else (0,), dtype=dtype)
    _C.gaussian_log_likelihood_bwd(
        *constants,
        grad.data_ptr(),
        need_output,
        grad_output.data_ptr(),
        need_scale,
        grad_scale.data_ptr(),
    )
    return converted(output.dtype, grad_output), converted(scale.dtype, grad_scale)
