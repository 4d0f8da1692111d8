"""Arrays to tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .files import column_name


def as_table(
    array: np.ndarray, features: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[int, int] | None]:
    """A contiguous [N, D] table, uint8 or float32 without inf, and the image shape, if any."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"expected numbers, got dtype {array.dtype}")
    if array.ndim != 2 and not (array.ndim == 3 and array.dtype == np.uint8):
        raise ValueError(f"expected [N, D], or uint8 [N, H, W], got shape {list(array.shape)}")
    if array.size == 0:
        raise ValueError(f"an empty table, shape {list(array.shape)}")
    image_shape = (array.shape[1], array.shape[2]) if array.ndim == 3 else None
    array = array.reshape(len(array), -1)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array), image_shape
    with np.errstate(over="ignore"):
        table = array.astype(np.float32, order="C", copy=False)
    infinite = np.isinf(table)
    if infinite.any():
        row, column = divmod(int(infinite.argmax()), table.shape[1])
        raise ValueError(f"row {row}, column {column_name(column, features)}: infinite as float32")
    return table, image_shape
