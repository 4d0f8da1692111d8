"""What several definitions share: the dtype they compute in, and rows by their numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import check_row_numbers


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def as_factor(state: Tensor, table: Tensor) -> Tensor:
    """float64 state as what multiplies a table: in its dtype, then on its device."""
    return state.to(table.dtype).to(table.device)


def rows_at(rows: Tensor, index: Tensor) -> Tensor:
    """Rows `index`, each of which must be in the table: torch would count a negative one from its end.

    Within a transform of torch.func the numbers are those of all the calls that it stands for. In a
    trace of the compiler there are none to look at.
    """
    if not torch.compiler.is_compiling():
        values = index
        while torch._C._functorch.is_functorch_wrapped_tensor(values):
            values = torch._C._functorch.get_unwrapped(values)
        if type(values) is Tensor and not values.is_meta:
            check_row_numbers(values, rows.shape[0])
    return rows[index]


def those_there(index: Tensor, *numbers: Tensor | None) -> tuple[Any, ...]:
    """Which of `index` are rows, bool [B]; of it, and of other numbers [B], those that are."""
    there = index != -1
    return there, *(None if given is None else given[there] for given in (index, *numbers))


def spread(values: Tensor, there: Tensor) -> Tensor:
    """Values of the rows that are there, and 0 for the others."""
    found = values.new_zeros((len(there), *values.shape[1:]))
    found[there] = values
    return found
