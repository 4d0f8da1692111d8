"""What pictures take as tables: arrays, tensors and DataFrames, as float64 with NaN for missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._figures import literal
from ..data.frames import is_frame, unframed
from ..data.pixels import fractions, observed
from ..data.tables import as_tensor, unmasked


class Shown(NamedTuple):
    """A table as a picture needs it: float64 [N, D], NaN for missing; which is observed; names [D] as
    matplotlib takes them.
    """

    x: np.ndarray
    mask: np.ndarray
    names: list[str]


def shown(x: Any, mask: Any = None, names: Sequence[str] | None = None) -> Shown:
    """A table as `fit` takes it.

    Args:
        x: [N, D]; uint8 counts as x / 255.
        mask: bool [N, D], true = observed.
        names: of the columns; those of a DataFrame, or numbers from 0, if not given.

    Raises:
        ValueError, TypeError: x is no table, or mask or names do not fit.
    """
    if names is None and is_frame(x):
        names = [str(name) for name in x.columns]
    x, mask = unmasked(unframed("x", x), mask)
    values = array("x", x)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"x: expected shape [N, D] of at least one entry, got {list(values.shape)}"
        )
    known = observed(values)
    if mask is not None:
        given = array("mask", unframed("mask", mask))
        if given.dtype != np.bool_ or given.shape != values.shape:
            raise ValueError(
                f"mask: expected bool {list(values.shape)}, got {given.dtype} {list(given.shape)}"
            )
        known = known & given
    names = [str(number) for number in range(values.shape[1])] if names is None else list(names)
    if len(names) != values.shape[1]:
        raise ValueError(f"names: expected {values.shape[1]}, one a column, got {len(names)}")
    x = np.where(known, fractions(values, np.float64), np.nan)
    return Shown(x, known, [literal(str(name)) for name in names])


def array(name: str, value: Any) -> np.ndarray:
    """An array, a tensor or a DataFrame of numbers as an array."""
    return as_tensor(name, unframed(name, value)).cpu().numpy()


def spread(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [D] of what is observed, 1 where nothing differs."""
    count = np.maximum((~np.isnan(x)).sum(0), 1)
    mean = np.nansum(x, 0) / count
    std = np.sqrt(np.nansum((x - mean) ** 2, 0) / count)
    return mean, np.where(std > 0, std, 1.0)


def some(count: int, most: int) -> np.ndarray:
    """Up to `most` of so many rows, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
