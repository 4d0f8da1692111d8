"""The ops in C++, for CPU tensors: the functions of `rvi_fast.reference`, same names and signatures.

Each is behind the checks of `_op_checks`, makes its inputs contiguous, allocates the results and passes
addresses to `rvi_fast._C` (`csrc/bindings.cpp`). What the kernels do not cover, such as tables in half
precision, is answered with `NotImplemented`, and `ops` lets the reference do it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, empty, get_num_threads

from . import _C  # type: ignore[attr-defined]
from ._op_checks import checked, layout_of

# goes up with every change of a signature in csrc/bindings.cpp, which holds the same number
API = 8

if getattr(_C, "API", None) != API:
    raise ImportError(
        f"rvi_fast._C: expected API {API}, got {getattr(_C, 'API', None)} from {_C.__file__}: it was "
        "built for another version of rvi_fast and must be built again"
    )

_FLOAT32, _FLOAT64, _INT32, _INT64 = torch.float32, torch.float64, torch.int32, torch.int64
_BOTH = (_FLOAT32, _FLOAT64)
# the numbers of `DataType` in csrc/rows.h
_DATA_TYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.uint8: 4,
}
# dtypes of rows and moments: the element types of `Kernels` in csrc/rows.h
_ADAM_TYPES = {
    (torch.float32, torch.float32): 0,
    (torch.float64, torch.float64): 1,
    (torch.float32, torch.bfloat16): 2,
}


def cpu_path() -> str:
    """Which of the compiled paths runs: "avx512", "avx2" or "portable" (`RVI_FAST_CPU` forces one)."""
    path: str = _C.cpu_path()
    return path


def _in(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """Contiguous, in that dtype; `Tensor.to` takes microseconds to find that nothing is to be done."""
    return (tensor if tensor.dtype is dtype else tensor.to(dtype)).contiguous()


@lru_cache(maxsize=256)
def _layout(
    latent_dim: int, groups: tuple[int, ...], kept: tuple[int, ...], form: str
) -> tuple[Any, int, int]:
    """The layout as the kernels read it, its words of kept bits, and W."""
    layout = layout_of(latent_dim, groups, kept, form)
    parts = (layout.group_offsets, layout.deviation_offset, layout.log_std_offset, layout.width)
    native = _C.RowLayout(latent_dim, groups, kept, form, *parts)
    return native, layout.num_words, layout.width


@checked
def relay_sample_fwd(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    groups: list[int],
    kept: list[int],
    form: str,
    num_samples: int,
    noise_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.relay_sample_fwd`."""
    dtype = rows.dtype
    if dtype not in _BOTH:
        return NotImplemented
    latent_dim = relays.shape[1]
    native, words, _ = _layout(latent_dim, tuple(groups), tuple(kept), form)
    rows, relays, index = rows.contiguous(), relays.contiguous(), index.contiguous()
    if noise is not None:
        noise = _in(dtype, noise)
    keys = index if noise_index is None else noise_index.contiguous()
    batch = index.shape[0]
    z = relays.new_empty((num_samples, batch, latent_dim))
    kl = relays.new_empty(batch)
    bits = relays.new_empty((batch, words), dtype=_INT32)
    mean = relays.new_empty((batch, latent_dim))
    _C.relay_sample_fwd(
        native,
        dtype is _FLOAT64,
        get_num_threads(),
        rows.data_ptr(),
        rows.shape[0],
        relays.data_ptr(),
        index.data_ptr(),
        index.dtype is _INT64,
        batch,
        seed.data_ptr(),
        0 if noise is None else noise.data_ptr(),
        keys.data_ptr(),
        keys.dtype is _INT64,
        num_samples,
        z.data_ptr(),
        kl.data_ptr(),
        bits.data_ptr(),
        mean.data_ptr(),
    )
    return z, kl, bits, mean


@checked
def relay_sample_bwd(
    grad_z: Tensor,
    grad_kl: Tensor,
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    bits: Tensor,
    mean: Tensor | None,
    groups: list[int],
    kept: list[int],
    form: str,
    need_rows: bool,
    need_relays: bool,
    noise_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference.relay_sample_bwd`."""
    dtype = rows.dtype
    if dtype not in _BOTH or mean is None:
        return NotImplemented
    native, _, width = _layout(relays.shape[1], tuple(groups), tuple(kept), form)
    rows, relays, index = rows.contiguous(), relays.contiguous(), index.contiguous()
    bits, mean = bits.contiguous(), _in(dtype, mean)
    grad_z, grad_kl = _in(dtype, grad_z), _in(dtype, grad_kl)
    if noise is not None:
        noise = _in(dtype, noise)
    keys = index if noise_index is None else noise_index.contiguous()
    batch = index.shape[0]
    grad_batch = relays.new_empty((batch, width) if need_rows else 0)
    grad_relays = relays.new_empty(relays.shape if need_relays else 0)
    _C.relay_sample_bwd(
        native,
        dtype is _FLOAT64,
        get_num_threads(),
        rows.data_ptr(),
        rows.shape[0],
        relays.data_ptr(),
        index.data_ptr(),
        index.dtype is _INT64,
        batch,
        seed.data_ptr(),
        0 if noise is None else noise.data_ptr(),
        keys.data_ptr(),
        keys.dtype is _INT64,
        grad_z.shape[0],
        grad_z.data_ptr(),
        grad_kl.data_ptr(),
        bits.data_ptr(),
        mean.data_ptr(),
        need_rows,
        grad_batch.data_ptr(),
        need_relays,
        grad_relays.data_ptr(),
    )
    return grad_batch, grad_relays


def _likelihood_inputs(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[Any, ...]]:
    """Contiguous tensors in the dtypes of a kernel, and the arguments both directions share."""
    dtype = mean.dtype
    if dtype not in _BOTH:  # half precision is computed in float32
        dtype = _FLOAT32
        mean = mean.to(dtype)
    if x.dtype is not dtype and (dtype is _FLOAT64 or x.dtype is _FLOAT64):
        x = x.to(dtype) * (1.0 / 255.0) if x.dtype is torch.uint8 else x.to(dtype)
    x, mean, scale = x.contiguous(), mean.contiguous(), _in(dtype, scale)
    num_samples, batch, num_features = mean.shape
    if mask is not None:
        mask = mask.contiguous()
    constants = (
        dtype is _FLOAT64,
        get_num_threads(),
        num_samples,
        batch,
        num_features,
        _DATA_TYPES[x.dtype],
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
def gaussian_log_likelihood_fwd(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> Tensor:
    """`reference.gaussian_log_likelihood_fwd`."""
    *_alive, constants = inputs = _likelihood_inputs(x, mean, scale, mask)
    log_prob = empty(mean.shape[:2], dtype=inputs[1].dtype)
    _C.gaussian_log_likelihood_fwd(*constants, log_prob.data_ptr())
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
    *_alive, constants = inputs = _likelihood_inputs(x, mean, scale, mask)
    dtype = inputs[1].dtype
    grad = _in(dtype, grad_log_prob)
    grad_mean = empty(mean.shape if need_mean else (0,), dtype=dtype)
    grad_scale = empty(scale.shape if need_scale else (0,), dtype=dtype)
    _C.gaussian_log_likelihood_bwd(
        *constants,
        grad.data_ptr(),
        need_mean,
        grad_mean.data_ptr(),
        need_scale,
        grad_scale.data_ptr(),
    )
    return _in(mean.dtype, grad_mean), _in(scale.dtype, grad_scale)


def _linear_inputs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, list[Tensor | None], tuple[Any, ...]]:
    """The log-likelihood to fill, the inputs to keep alive, and what both directions pass on."""
    wide = hidden.dtype is _FLOAT64 or weight.dtype is _FLOAT64
    dtype = _FLOAT64 if wide else _FLOAT32
    if x.dtype is not dtype and (wide or x.dtype is _FLOAT64):
        x = x.to(dtype) * (1.0 / 255.0) if x.dtype is torch.uint8 else x.to(dtype)
    hidden, weight, scale = _in(dtype, hidden), _in(dtype, weight), _in(dtype, scale)
    bias = None if bias is None else _in(dtype, bias)
    x, mask = x.contiguous(), None if mask is None else mask.contiguous()
    num_samples, batch, hidden_dim = hidden.shape
    log_prob = empty((num_samples, batch), dtype=dtype)
    constants = (
        wide,
        get_num_threads(),
        num_samples,
        batch,
        x.shape[1],
        _DATA_TYPES[x.dtype],
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
def linear_gaussian_log_likelihood_fwd(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """`reference.linear_gaussian_log_likelihood_fwd`."""
    log_prob, _alive, constants = _linear_inputs(hidden, weight, bias, x, scale, mask)
    _C.linear_gaussian_log_likelihood_fwd(*constants)
    return log_prob


@checked
def linear_gaussian_log_likelihood_bwd(
    grad_log_prob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    need_hidden: bool,
    need_linear: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference.linear_gaussian_log_likelihood_bwd`."""
    log_prob, _alive, constants = _linear_inputs(hidden, weight, bias, x, scale, mask)
    dtype = log_prob.dtype
    grad = _in(dtype, grad_log_prob)
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
        _in(hidden.dtype, grad_hidden),
        _in(weight.dtype, grad_weight),
        _in(weight.dtype if bias is None else bias.dtype, grad_bias),
        _in(scale.dtype, grad_scale),
    )


def _adam_arguments(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    index: Tensor,
    clock: Tensor,
    history: Tensor,
) -> tuple[Any, ...] | None:
    """What both functions pass on; None where the kernels cannot work in place."""
    dtypes = rows.dtype, exp_avg.dtype
    if (
        dtypes not in _ADAM_TYPES
        or row_step.dtype is not _INT32
        or not (
            rows.is_contiguous()
            and exp_avg.is_contiguous()
            and exp_avg_sq.is_contiguous()
            and row_step.is_contiguous()
            and clock.is_contiguous()
            and history.is_contiguous()
        )
    ):
        return None
    num_data, width = rows.shape
    return (
        _ADAM_TYPES[dtypes],
        get_num_threads(),
        num_data,
        width,
        rows.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        row_step.data_ptr(),
        index.data_ptr(),
        index.dtype is _INT64,
        index.shape[0],
        clock.data_ptr(),
        history.data_ptr(),
        history.shape[0],
    )


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
) -> None:
    """`reference.row_adam_catch_up`."""
    index = index.contiguous()
    arguments = _adam_arguments(rows, exp_avg, exp_avg_sq, row_step, index, clock, history)
    if arguments is None:
        return NotImplemented
    _C.row_adam_catch_up(*arguments, beta1, beta2, eps)
    return None


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
) -> None:
    """`reference.row_adam_step`."""
    index = index.contiguous()
    arguments = _adam_arguments(rows, exp_avg, exp_avg_sq, row_step, index, clock, history)
    if arguments is None:
        return NotImplemented
    grad, lr = _in(rows.dtype, grad), _in(_FLOAT64, lr)
    _C.row_adam_step(
        *arguments, beta1, beta2, eps, grad.data_ptr(), lr.data_ptr(), weight_decay, semantics
    )
    return None


@checked
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
    """`reference.adam_step`."""
    dtype = params.dtype
    if dtype not in _BOTH:
        return NotImplemented
    for table in (params, exp_avg, exp_avg_sq):
        if not table.is_contiguous():
            return NotImplemented
    grads, lr = _in(dtype, grads), _in(_FLOAT64, lr)
    num_parts, size = grads.shape
    _C.adam_step(
        dtype is _FLOAT64,
        get_num_threads(),
        size,
        num_parts,
        params.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        grads.data_ptr(),
        step.data_ptr(),
        lr.data_ptr(),
        beta1,
        beta2,
        eps,
        weight_decay,
    )
    return None
