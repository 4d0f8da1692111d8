"""pandas DataFrames of numeric columns as arrays; pandas itself is not imported."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_frame(value: Any) -> bool:
    """Whether a value is a pandas DataFrame."""
    return any(
        base.__name__ == "DataFrame" and base.__module__.partition(".")[0] == "pandas"
        for base in type(value).__mro__
    )


def unframed(name: str, value: Any) -> Any:
    """A DataFrame of numbers as an array [N, D], NaN for missing; anything else as it is.

    Args:
        name: of the argument, for errors.
        value: columns of numbers, pandas' own with missing entries among them, or of yes/no, which is
            1 and 0. All float32 stay float32, all bool without missing ones bool; else float64.

    Raises:
        TypeError: a column is of another kind; names it.
    """
    if not is_frame(value):
        return value
    kinds = [dtype.kind for dtype in value.dtypes]
    for column, dtype, kind in zip(value.columns, value.dtypes, kinds, strict=True):
        if kind not in "fiub":
            raise TypeError(
                f"{name}: expected numeric columns, got {column!r} of dtype {dtype}; "
                "rvi_fast.sklearn.RelayImputer takes categories and dates"
            )
    names = {str(dtype) for dtype in value.dtypes}
    if names in ({"bool"}, {"float32"}):
        return value.to_numpy()
    return value.to_numpy(dtype=np.float64, na_value=np.nan)


def columns_of(value: Any) -> tuple[str, ...] | None:
    """The names of the columns of a DataFrame; None for what is none."""
    return tuple(str(column) for column in value.columns) if is_frame(value) else None
