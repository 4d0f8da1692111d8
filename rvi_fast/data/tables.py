"""Tables a chunk of rows at a time, in float64, and what is refused in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_CHUNK = 1 << 20  # entries held in float64 at a time

Table = np.ndarray | torch.Tensor


def row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows that together are a table of this shape [N, D]."""
    step = max(1, _CHUNK // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def observed_chunks(x: np.ndarray, mask: np.ndarray | None) -> Iterator[np.ndarray]:
    """Chunks of rows in float64, NaN where an entry is not observed."""
    for rows in row_chunks(x.shape):
        values = x[rows].astype(np.float64)
        if mask is not None:
            refuse(mask[rows] & np.isnan(values), rows, "NaN where the mask is True")
            values[~mask[rows]] = np.nan
        refuse(np.isinf(values), rows, "infinite")
        yield values


def refuse(wrong: np.ndarray, rows: slice, reason: str) -> None:
    """Raises a ValueError that names the first wrong entry, if there is one."""
    if wrong.any():
        row, column = divmod(int(wrong.argmax()), wrong.shape[1])
        raise ValueError(f"x: {reason} in row {rows.start + row}, column {column}")


def check_mask(x: Table, mask: Table | None) -> None:
    """Raises where a mask is not bool or has another shape than its table."""
    if mask is None:
        return
    if mask.shape != x.shape:
        raise ValueError(f"mask: expected x's shape {list(x.shape)}, got {list(mask.shape)}")
    if str(mask.dtype).removeprefix("torch.") != "bool":
        raise TypeError(f"mask: expected bool, got {mask.dtype}")


def unmasked(x: Any, mask: Any) -> tuple[Any, Any]:
    """The data of a masked array, and which of them are observed: neither masked nor NaN.

    Args:
        x: what is no masked array comes back as it is, with its mask.
        mask: a further mask, bool of its shape, true = observed; NaN counts as it says.

    Raises:
        ValueError, TypeError: the mask is none.
    """
    if not isinstance(x, np.ma.MaskedArray):
        return x, mask
    values, observed = np.ma.getdata(x), ~np.ma.getmaskarray(x)
    if mask is not None:
        given = as_tensor("mask", mask).cpu().numpy()
        if given.dtype != np.bool_:
            raise TypeError(f"mask: expected dtype bool (true = observed), got {given.dtype}")
        if given.shape != values.shape:
            raise ValueError(f"mask: expected shape {list(values.shape)}, got {list(given.shape)}")
        return values, observed & given
    if values.dtype.kind == "f" and values.ndim == 2:
        # NaN beside the masked entries is missing too
        for part in row_chunks(values.shape):
            observed[part] &= ~np.isnan(values[part])
    return values, observed


def as_tensor(name: str, value: Any) -> torch.Tensor:
    """An array or a tensor as a dense tensor, whatever its strides and byte order are.

    Args:
        name: of the argument, for errors.
        value: what was passed.

    Raises:
        TypeError: it is none of these, of another kind of numbers, sparse, or masked.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected a tensor or a plain numpy array, got a masked array; only x can be one, "
            "whose masked entries are missing"
        )
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fub" or value.dtype.itemsize > 8:
            raise TypeError(f"{name}: expected floating point, uint8 or bool, got {value.dtype}")
        # torch takes neither negative strides nor foreign byte orders
        native = value.astype(value.dtype.newbyteorder("="), order="C", copy=False)
        return torch.from_numpy(native if native.flags.writeable else native.copy())
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got {value.layout}")
        return value.detach()
    hint = f"; pass {name}.to_numpy()" if hasattr(value, "to_numpy") else ""
    raise TypeError(f"{name}: expected a tensor or a numpy array, got {type(value).__name__}{hint}")
