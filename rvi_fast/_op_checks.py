"""What each function of an op relies on, checked where a pointer to a tensor is made.

`checked` puts the checks in front of a function of an implementation: the reference, the C++ part and
the Triton launchers refuse the same arguments with the same words, whoever calls them. Row numbers are
values, and are looked at where that costs no pass of its own: by the C++ part, by the reference, and
in the kernels of a GPU, which leave out what lies outside the table.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor

from ._checks import DATA_DTYPES, check_tensor, moment_dtypes, shape_of
from ._devices import beside
from .layout import BITS_PER_WORD, RowLayout

SEMANTICS = ("dense", "lazy", "row")
# of the history of steps that dense rows catch up with, see `reference`
HISTORY_TERMS = 12
HISTORY_COLUMNS = 4 + HISTORY_TERMS

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int32, torch.int64)
_INT32, _INT64, _FLOAT64, _BOOL = (torch.int32,), (torch.int64,), (torch.float64,), (torch.bool,)

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R], name: str = "") -> Callable[P, R]:
    """The function with the checks of an op in front of it: that of its name if none is given.

    Raises:
        TypeError, ValueError, IndexError: names the argument, what was expected and what came.
    """
    check = CHECKS[name or function.__name__]

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            check(*args, **kwargs)
        except AttributeError:  # what is no tensor has no dtype
            given = inspect.signature(check).bind(*args, **kwargs).arguments
            for argument, value in given.items():
                expected = str(check.__annotations__[argument])
                if expected.startswith("Tensor") and not (value is None and "None" in expected):
                    check_tensor(argument, value)
            raise
        return function(*args, **kwargs)

    return run


@functools.lru_cache(maxsize=256)
def layout_of(
    latent_dim: int, groups: tuple[int, ...], kept: tuple[int, ...], form: str
) -> RowLayout:
    """The layout that the attributes of an op stand for."""
    return RowLayout(latent_dim, groups, kept, form)


# A call of a small batch takes some ten microseconds, so what nearly always holds is asked in one
# expression, and what is wrong is found out afterwards.


def _hold(
    name: str,
    tensor: Tensor,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    shape: tuple[int, ...],
) -> None:
    if tensor.dtype in dtypes and tensor.shape == shape and tensor.device == device:
        return
    _refuse(name, tensor, device, dtypes, shape)


def _hold_state(
    name: str,
    tensor: Tensor,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    shape: tuple[int, ...],
) -> None:
    """A tensor that lies where float64 state of what is on the device is kept."""
    if tensor.dtype in dtypes and tensor.shape == shape and tensor.device == device:
        return
    _hold(name, tensor, beside(device), dtypes, shape)


def _refuse(
    name: str,
    tensor: Tensor,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    *shapes: tuple[int, ...],
) -> NoReturn:
    check_tensor(name, tensor)
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tuple(tensor.shape) not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name}: expected shape {wanted}, got {shape_of(tensor)}")
    raise ValueError(f"{name}: expected a tensor on {device}, got one on {tensor.device}")


def _hold_dims(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], letters: str) -> None:
    """A tensor whose sizes the others are held to; `letters` names them, one for each dimension."""
    if tensor.dtype in dtypes and tensor.dim() == len(letters):
        return
    check_tensor(name, tensor)
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    raise ValueError(f"{name}: expected shape [{', '.join(letters)}], got {shape_of(tensor)}")


def _hold_one(
    name: str, tensor: Tensor, device: torch.device, dtypes: Sequence[torch.dtype]
) -> None:
    """A tensor of one element, whatever its dimensions."""
    if tensor.dtype in dtypes and tensor.numel() == 1 and tensor.device == device:
        return
    check_tensor(name, tensor)
    if tensor.dtype not in dtypes or tensor.numel() != 1:
        wanted = " or ".join(map(str, dtypes))
        raise TypeError(
            f"{name}: expected one element of {wanted}, got {tensor.dtype} {shape_of(tensor)}"
        )
    raise ValueError(f"{name}: expected a tensor on {device}, got one on {tensor.device}")


def _hold_one_of_state(
    name: str, tensor: Tensor, device: torch.device, dtypes: Sequence[torch.dtype]
) -> None:
    """The same of a tensor that lies where float64 state of what is on the device is kept."""
    if tensor.dtype in dtypes and tensor.numel() == 1 and tensor.device == device:
        return
    _hold_one(name, tensor, beside(device), dtypes)


def _hold_index(index: Tensor, device: torch.device) -> int:
    """The size of the batch."""
    shape = index.shape
    if index.dtype in _INTEGERS and len(shape) == 1 and index.device == device:
        return shape[0]
    check_tensor("index", index)
    if index.dtype not in _INTEGERS:
        raise TypeError(f"index: expected dtype int32 or int64, got {index.dtype}")
    if index.dim() != 1:
        raise IndexError(f"index: expected shape [B], got {shape_of(index)}")
    raise ValueError(f"index: expected a tensor on {device}, got one on {index.device}")


def _hold_own_memory(name: str, tensor: Tensor) -> None:
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    if any(stride == 0 and size > 1 for size, stride in strides):
        raise ValueError(
            f"{name}: expected memory of its own for each element, got an expanded one"
        )


def _hold_relay(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    groups: Sequence[int],
    kept: Sequence[int],
    form: str,
    noise_index: Tensor | None,
    num_samples: int,
) -> tuple[RowLayout, int]:
    """What both directions of `relay_sample` take; the layout and the size of the batch."""
    _hold_dims("rows", rows, _FLOATS, "NW")
    dtype, device = (rows.dtype,), rows.device
    _hold_dims("relays", relays, dtype, "KT")
    latent_dim = int(relays.shape[1])
    layout = layout_of(latent_dim, tuple(groups), tuple(kept), form)
    if rows.shape[1] != layout.width:
        raise ValueError(f"rows: expected shape [N, {layout.width}], got {shape_of(rows)}")
    _hold("relays", relays, device, dtype, (layout.num_relays, latent_dim))
    batch = _hold_index(index, device)
    _hold_one("seed", seed, device, _INT64)
    if noise is not None:
        _hold("noise", noise, device, _FLOATS, (num_samples, batch, latent_dim))
    if noise_index is not None:
        _hold("noise_index", noise_index, device, _INTEGERS, (batch,))
    return layout, batch


def _relay_sample_fwd(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    groups: Sequence[int],
    kept: Sequence[int],
    form: str,
    num_samples: int,
    noise_index: Tensor | None = None,
) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples: expected an integer >= 1, got {num_samples!r}")
    _hold_relay(rows, relays, index, seed, noise, groups, kept, form, noise_index, num_samples)


def _relay_sample_bwd(
    grad_z: Tensor,
    grad_kl: Tensor,
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    bits: Tensor,
    mean: Tensor | None,
    groups: Sequence[int],
    kept: Sequence[int],
    form: str,
    need_rows: bool,
    need_relays: bool,
    noise_index: Tensor | None = None,
) -> None:
    _hold_dims("grad_z", grad_z, _FLOATS, "SBT")
    num_samples = grad_z.shape[0]
    layout, batch = _hold_relay(
        rows, relays, index, seed, noise, groups, kept, form, noise_index, num_samples
    )
    device, latent_dim = rows.device, layout.latent_dim
    _hold("grad_z", grad_z, device, _FLOATS, (num_samples, batch, latent_dim))
    _hold("grad_kl", grad_kl, device, _FLOATS, (batch,))
    _hold("bits", bits, device, _INT32, (batch, layout.num_words))
    if mean is not None:
        _hold("mean", mean, device, _FLOATS, (batch, latent_dim))


def _hold_data(
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    device: torch.device,
    batch: int,
    num_features: int,
) -> None:
    _hold("x", x, device, DATA_DTYPES, (batch, num_features))
    shapes = ((), (1,), (num_features,), (batch, num_features))
    if not (scale.dtype in _FLOATS and scale.shape in shapes and scale.device == device):
        _refuse("scale", scale, device, _FLOATS, *shapes)
    if mask is None:
        return
    if isinstance(mask, Tensor) and mask.dtype == torch.int32:
        _hold("mask", mask, device, _INT32, (batch, -(-num_features // BITS_PER_WORD)))
    else:
        _hold("mask", mask, device, _BOOL, (batch, num_features))


def _gaussian_log_likelihood_fwd(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> None:
    _hold_dims("mean", mean, _FLOATS, "SBD")
    _, batch, num_features = mean.shape
    _hold_data(x, scale, mask, mean.device, batch, num_features)


def _gaussian_log_likelihood_bwd(
    grad_log_prob: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    need_mean: bool,
    need_scale: bool,
) -> None:
    _gaussian_log_likelihood_fwd(x, mean, scale, mask)
    _hold("grad_log_prob", grad_log_prob, mean.device, _FLOATS, (mean.shape[0], mean.shape[1]))


def _linear_gaussian_log_likelihood_fwd(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> None:
    _hold_dims("hidden", hidden, _FLOATS, "SBH")
    _hold_dims("x", x, DATA_DTYPES, "BD")
    _, batch, hidden_dim = hidden.shape
    device, num_features = hidden.device, x.shape[1]
    _hold("weight", weight, device, _FLOATS, (num_features, hidden_dim))
    if bias is not None:
        _hold("bias", bias, device, (weight.dtype,), (num_features,))
    _hold_data(x, scale, mask, device, batch, num_features)


def _linear_gaussian_log_likelihood_bwd(
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
) -> None:
    _linear_gaussian_log_likelihood_fwd(hidden, weight, bias, x, scale, mask)
    shape = (hidden.shape[0], hidden.shape[1])
    _hold("grad_log_prob", grad_log_prob, hidden.device, _FLOATS, shape)


def _refuse_betas(beta1: float, beta2: float) -> NoReturn:
    name, beta = ("beta2", beta2) if 0.0 <= beta1 < 1.0 else ("beta1", beta1)
    raise ValueError(f"{name}: expected a number in [0, 1), got {beta!r}")


def _row_adam_catch_up(
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
    _hold_dims("rows", rows, _FLOATS, "NW")
    device, dtype, shape = rows.device, rows.dtype, rows.shape
    moments = exp_avg.dtype
    if moments is not dtype or exp_avg_sq.dtype is not dtype:
        _hold_moments(dtype, exp_avg, exp_avg_sq)
    _hold("exp_avg", exp_avg, device, (moments,), shape)
    _hold("exp_avg_sq", exp_avg_sq, device, (moments,), shape)
    _hold("row_step", row_step, device, _INTEGERS, shape[:1])
    _hold_index(index, device)
    _hold_state("clock", clock, device, _INT64, (2,))
    sizes = history.shape
    if len(sizes) != 2 or sizes[1] != HISTORY_COLUMNS:
        _hold_dims("history", history, _FLOAT64, "MC")
    _hold_state("history", history, device, _FLOAT64, (sizes[0], HISTORY_COLUMNS))
    if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
        _refuse_betas(beta1, beta2)
    if not rows.is_contiguous():
        _hold_own_memory("rows", rows)
    if not exp_avg.is_contiguous():
        _hold_own_memory("exp_avg", exp_avg)
    if not exp_avg_sq.is_contiguous():
        _hold_own_memory("exp_avg_sq", exp_avg_sq)
    if not row_step.is_contiguous():
        _hold_own_memory("row_step", row_step)


def _hold_moments(dtype: torch.dtype, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
    for name, table, expected in (
        ("exp_avg", exp_avg, moment_dtypes(dtype)),
        ("exp_avg_sq", exp_avg_sq, [exp_avg.dtype]),
    ):
        if table.dtype not in expected:
            wanted = " or ".join(map(str, expected))
            raise TypeError(f"{name}: expected {wanted}, got {table.dtype}; rows are {dtype}")


def _row_adam_step(
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
    _row_adam_catch_up(
        rows, exp_avg, exp_avg_sq, row_step, index, clock, history, beta1, beta2, eps
    )
    if semantics not in SEMANTICS:
        raise ValueError(f"semantics: expected one of {', '.join(SEMANTICS)}, got {semantics!r}")
    device = rows.device
    _hold("grad", grad, device, _FLOATS, (index.shape[0], rows.shape[1]))
    _hold_one_of_state("lr", lr, device, _FLOATS)
    if not clock.is_contiguous():
        _hold_own_memory("clock", clock)
    if not history.is_contiguous():
        _hold_own_memory("history", history)


def _adam_step(
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
    _hold_dims("params", params, _FLOATS, "P")
    device, dtype, shape = params.device, (params.dtype,), params.shape
    _hold("exp_avg", exp_avg, device, dtype, shape)
    _hold("exp_avg_sq", exp_avg_sq, device, dtype, shape)
    sizes = grads.shape
    if len(sizes) != 2:
        _hold_dims("grads", grads, _FLOATS, "nP")
    _hold("grads", grads, device, _FLOATS, (sizes[0], shape[0]))
    _hold_one_of_state("step", step, device, _INT64)
    _hold_one_of_state("lr", lr, device, _FLOATS)
    if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
        _refuse_betas(beta1, beta2)
    if not params.is_contiguous():
        _hold_own_memory("params", params)
    if not exp_avg.is_contiguous():
        _hold_own_memory("exp_avg", exp_avg)
    if not exp_avg_sq.is_contiguous():
        _hold_own_memory("exp_avg_sq", exp_avg_sq)


CHECKS: dict[str, Callable[..., Any]] = {
    "relay_sample_fwd": _relay_sample_fwd,
    "relay_sample_bwd": _relay_sample_bwd,
    "gaussian_log_likelihood_fwd": _gaussian_log_likelihood_fwd,
    "gaussian_log_likelihood_bwd": _gaussian_log_likelihood_bwd,
    "linear_gaussian_log_likelihood_fwd": _linear_gaussian_log_likelihood_fwd,
    "linear_gaussian_log_likelihood_bwd": _linear_gaussian_log_likelihood_bwd,
    "row_adam_catch_up": _row_adam_catch_up,
    "row_adam_step": _row_adam_step,
    "adam_step": _adam_step,
}
