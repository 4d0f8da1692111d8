"""Pixels, which are bytes that count as x / 255, and which entries of a table are observed.

What looks at pixels from outside divides by 255, which rounds once: 51 is the float next to 0.2. The
ops multiply by 1 / 255 in their own dtype (`reference.PIXEL_SCALE` and its like in the kernels), which
in 126 of the 256 cases gives the float beside that in float32. The two are never compared bit by bit.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch

Table = TypeVar("Table", np.ndarray, torch.Tensor)


def is_pixels(x: np.ndarray | torch.Tensor) -> bool:
    """Whether entries are pixels: of dtype uint8."""
    return x.dtype in (np.uint8, torch.uint8)


def fractions(x: Table, dtype: Any) -> Table:
    """Entries as a model of that dtype takes them: pixels in [0, 1], all others as they are.

    >>> fractions(np.array([0, 51, 255], np.uint8), np.float64).tolist()
    [0.0, 0.2, 1.0]
    """
    values = x.to(dtype) if isinstance(x, torch.Tensor) else x.astype(dtype, copy=False)
    return values / 255 if is_pixels(x) else values


def pixels(values: np.ndarray) -> np.ndarray:
    """Numbers, 0 for black and 1 for white, as the nearest of 0 to 255, in their own dtype."""
    return np.clip(np.rint(values * 255), 0, 255)


def observed(x: Table, mask: Table | None = None) -> Table:
    """Which entries are known, bool in the shape of x: all pixels, numbers that are not NaN.

    Args:
        x: numbers or pixels, with NaN for missing.
        mask: bool in x's shape, True = observed; an entry has to be both.
    """
    if isinstance(x, torch.Tensor):
        known = torch.ones_like(x, dtype=torch.bool) if is_pixels(x) else ~torch.isnan(x)
    else:
        known = np.ones(x.shape, bool) if is_pixels(x) else ~np.isnan(x)
    return known if mask is None else known & mask
