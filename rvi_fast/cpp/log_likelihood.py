"""`log_likelihood` in C++."""

from __future__ import annotations

from torch import Tensor, empty, get_num_threads, uint8

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
    x: Tensor, output: Tensor, scale: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The same, contiguous and in the dtypes of a kernel."""
    dtype = output.dtype
    if dtype not in BOTH:  # half precision is computed in float32
        dtype = FLOAT32
        output = output.to(dtype)
    if x.dtype is not dtype and (dtype is FLOAT64 or x.dtype is FLOAT64):
        x = x.to(dtype) * (1.0 / 255.0) if x.dtype is uint8 else x.to(dtype)
    scale = None if scale is None else converted(dtype, scale)
    return x.contiguous(), output.contiguous(), scale, None if mask is None else mask.contiguous()


@checked
def log_likelihood_fwd(
    x: Tensor, output: Tensor, scale: Tensor | None, mask: Tensor | None, law: str
) -> Tensor:
    """`reference.log_likelihood_fwd`."""
    if not output.is_cpu:  # tensors without memory
        return NotImplemented
    x, outputs, scales, mask = _likelihood_inputs(x, output, scale, mask)
    num_samples, batch, num_features = outputs.shape
    log_prob = empty((num_samples, batch), dtype=outputs.dtype)
    _C.log_likelihood_fwd(
        threads=get_num_threads(),
        num_samples=num_samples,
        batch=batch,
        num_features=num_features,
        law=law,
        x_type=DATA_TYPES[x.dtype],
        scale_kind=scale_kind(scales),
        mask_kind=NO_MASK if mask is None else MASK_KINDS[mask.dtype],
        x=x.data_ptr(),
        output=outputs.data_ptr(),
        scale=address_of(scales),
        mask=address_of(mask),
        log_prob=log_prob.data_ptr(),
    )
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
    if not output.is_cpu:  # tensors without memory
        return NotImplemented
    x, outputs, scales, mask = _likelihood_inputs(x, output, scale, mask)
    dtype, (num_samples, batch, num_features) = outputs.dtype, outputs.shape
    grad = converted(dtype, grad_log_prob)
    grad_output = empty(output.shape if need_output else (0,), dtype=dtype)
    grad_scale = empty(scale.shape if need_scale and scale is not None else (0,), dtype=dtype)
    _C.log_likelihood_bwd(
        threads=get_num_threads(),
        num_samples=num_samples,
        batch=batch,
        num_features=num_features,
        law=law,
        x_type=DATA_TYPES[x.dtype],
        scale_kind=scale_kind(scales),
        mask_kind=NO_MASK if mask is None else MASK_KINDS[mask.dtype],
        x=x.data_ptr(),
        output=outputs.data_ptr(),
        scale=address_of(scales),
        mask=address_of(mask),
        grad=grad.data_ptr(),
        grad_output=grad_output.data_ptr(),
        grad_scale=grad_scale.data_ptr(),
    )
    return (
        converted(output.dtype, grad_output),
        converted(output.dtype if scale is None else scale.dtype, grad_scale),
    )
