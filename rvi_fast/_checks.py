"""Argument checks. Every error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

DATA_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)


def shape_of(tensor: Tensor) -> str:
    """A shape as an error message shows it: [3, 4]."""
    return str(list(tensor.shape))


def check_tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value


def check_positive_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
    return int(value)


def check_count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"{name}: expected an integer >= 0, got {value!r}")
    return int(value)


def check_bool(name: str, value: Any) -> bool:
    # numpy's is none of Python's
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def check_seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"seed: expected an integer, got {value!r}")
    if not -(2**63) <= int(value) < 2**63:
        raise ValueError(f"seed: expected an integer of 64 bits, got {value!r}")
    return int(value)


def check_positive_float(name: str, value: Any) -> float:
    number = _number(name, value)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
    return number


def check_non_negative(name: str, value: Any) -> float:
    number = _number(name, value)
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
    return number


def check_between(name: str, value: Any, least: float, most: float) -> float:
    number = _number(name, value)
    if not least <= number <= most:
        raise ValueError(f"{name}: expected a number from {least:g} to {most:g}, got {value!r}")
    return number


def _number(name: str, value: Any) -> float:
    """Python's numbers and NumPy's, as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def plain(value: Any) -> Any:
    """NumPy's numbers, also those in a list, as Python's: what JSON can write."""
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return (
        float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value
    )


def check_index(index: Any, device: torch.device, name: str = "index") -> Tensor:
    """Type, shape and device; the op itself checks the values, where that costs no trace."""
    check_tensor(name, index)
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected dtype int32 or int64, got {index.dtype}")
    if index.dim() != 1:
        raise IndexError(f"{name}: expected shape [B], got {shape_of(index)}")
    check_same_device(name, index, device)
    return index


def check_row_numbers(index: Tensor, num_data: int) -> None:
    """Values of an index; reads them back from where they are."""
    if index.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < 0 or high >= num_data:
        raise IndexError(
            f"index: expected row numbers from 0 to {num_data - 1}, got {low if low < 0 else high}"
        )


def check_each_once(index: Tensor) -> None:
    """A row that stands twice would be stepped twice; reads the values back from where they are."""
    numbers, counts = index.unique(return_counts=True)
    if len(numbers) < len(index):
        row = int(numbers[counts.argmax()])
        raise ValueError(
            f"index: expected each row once, got row {row} twice; add its gradients up"
        )


def moment_dtypes(rows: torch.dtype) -> list[torch.dtype]:
    """What the moments of rows of a dtype may be."""
    return [torch.float32, torch.bfloat16] if rows == torch.float32 else [rows]


def check_moment_dtype(value: Any, rows: torch.dtype) -> torch.dtype:
    """The dtype of the moments of rows of a dtype; None is that of the rows."""
    if value is not None and not isinstance(value, torch.dtype):
        raise TypeError(f"moment_dtype: expected a torch.dtype or None, got {value!r}")
    allowed = moment_dtypes(rows)
    if value is not None and value not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise ValueError(f"moment_dtype: expected {wanted} for rows in {rows}, got {value}")
    return rows if value is None else value


def check_same_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device.type != device.type:
        raise ValueError(f"{name}: expected a tensor on {device.type}, got one on {tensor.device}")


def check_shape(name: str, tensor: Tensor, *expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) not in expected:
        wanted = " or ".join(str(list(shape)) for shape in expected)
        raise ValueError(f"{name}: expected shape {wanted}, got {shape_of(tensor)}")


def first_entry(marks: Tensor) -> tuple[int, int]:
    """Row and column of the first true entry of bool [N, D]."""
    flat = int(marks.reshape(-1).to(torch.uint8).argmax())
    return flat // marks.shape[1], flat % marks.shape[1]
