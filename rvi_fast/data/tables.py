"""Tables a chunk of rows at a time, in float64, and what is refused in them."""

from __future__ import annotations

from collections.abc import Iterator

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
