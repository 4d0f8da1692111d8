"""What every check asks of a tensor: dtype, shape, device, memory.

A call of a small batch takes some ten microseconds, so what nearly always holds is asked in one
expression, and what is wrong is found out afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from .._checks import check_tensor, shape_of
from .._devices import beside

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int32, torch.int64)
INT32, INT64, FLOAT64, BOOL = (torch.int32,), (torch.int64,), (torch.float64,), (torch.bool,)


def hold(
    name: str,
    tensor: Tensor,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    shape: tuple[int, ...],
) -> None:
    if tensor.dtype in dtypes and tensor.shape == shape and tensor.device == device:
        return
    refuse(name, tensor, device, dtypes, shape)


def hold_state(
    name: str,
    tensor: Tensor,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    shape: tuple[int, ...],
) -> None:
    """A tensor that lies where float64 state of what is on the device is kept."""
    if tensor.dtype in dtypes and tensor.shape == shape and tensor.device == device:
        return
    hold(name, tensor, beside(device), dtypes, shape)


def refuse(
    name: str,
    tensor: Tensor | None,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    *shapes: tuple[int, ...],
) -> NoReturn:
    tensor = check_tensor(name, tensor)
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tuple(tensor.shape) not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name}: expected shape {wanted}, got {shape_of(tensor)}")
    raise ValueError(f"{name}: expected a tensor on {device}, got one on {tensor.device}")


def hold_dims(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], letters: str) -> None:
    """A tensor whose sizes the others are held to; `letters` names them, one for each dimension."""
    if tensor.dtype in dtypes and tensor.dim() == len(letters):
        return
    check_tensor(name, tensor)
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    raise ValueError(f"{name}: expected shape [{', '.join(letters)}], got {shape_of(tensor)}")


def hold_one(
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


def hold_one_of_state(
    name: str, tensor: Tensor, device: torch.device, dtypes: Sequence[torch.dtype]
) -> None:
    """The same of a tensor that lies where float64 state of what is on the device is kept."""
    if tensor.dtype in dtypes and tensor.numel() == 1 and tensor.device == device:
        return
    hold_one(name, tensor, beside(device), dtypes)


def hold_index(index: Tensor, device: torch.device) -> int:
    """The size of the batch."""
    shape = index.shape
    if index.dtype in INTEGERS and len(shape) == 1 and index.device == device:
        return shape[0]
    check_tensor("index", index)
    if index.dtype not in INTEGERS:
        raise TypeError(f"index: expected dtype int32 or int64, got {index.dtype}")
    if index.dim() != 1:
        raise IndexError(f"index: expected shape [B], got {shape_of(index)}")
    raise ValueError(f"index: expected a tensor on {device}, got one on {index.device}")


def hold_own_memory(name: str, tensor: Tensor) -> None:
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    if any(stride == 0 and size > 1 for size, stride in strides):
        raise ValueError(
            f"{name}: expected memory of its own for each element, got an expanded one"
        )


def refuse_betas(beta1: float, beta2: float) -> NoReturn:
    name, beta = ("beta2", beta2) if 0.0 <= beta1 < 1.0 else ("beta1", beta1)
    raise ValueError(f"{name}: expected a number in [0, 1), got {beta!r}")
