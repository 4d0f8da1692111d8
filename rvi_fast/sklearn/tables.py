"""What users pass as X, as numbers and what is missing among them."""

from __future__ import annotations

import numbers
import sys
from typing import Any

import numpy as np

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn 1.4 and 1.5

    def validate_data(
        estimator: Any, X: Any, *, ensure_all_finite: bool | str, **options: Any
    ) -> Any:
        """As the function of 1.6."""
        return estimator._validate_data(X, force_all_finite=ensure_all_finite, **options)


def is_nan(value: Any) -> bool:
    """Whether a marker of missing entries is NaN."""
    return isinstance(value, numbers.Real) and bool(np.isnan(float(value)))


def checked_table(
    estimator: Any, X: Any, missing_values: Any, *, reset: bool
) -> tuple[np.ndarray, np.ndarray]:
    """X as checked numbers [N, D], and which of them are missing, bool [N, D].

    Missing are entries that equal `missing_values`; where that is NaN also None and pandas' NA; and
    whatever a NumPy masked array masks, wherever its data say. What stands in the table where an
    entry is missing means nothing.

    Args:
        estimator: its names and number of features are set or compared.
        X: array, masked array, DataFrame or nested list.
        missing_values: a number or NaN.
        reset: whether this is `fit`.
    """
    if not isinstance(missing_values, numbers.Real) or isinstance(missing_values, bool):
        raise ValueError(f"missing_values: expected a number or NaN, got {missing_values!r}")
    nan = is_nan(missing_values)
    if isinstance(X, list | tuple):
        # an array made of masked rows would show what they mask; None in a list is no NaN
        masked = any(isinstance(row, np.ma.MaskedArray) for row in X)
        X = np.ma.stack(X) if masked else np.asarray(X)
    hidden = None
    if isinstance(X, np.ma.MaskedArray):
        hidden, X = np.ma.getmaskarray(X), X.filled(0)
    x = validate_data(
        estimator,
        _without_na(X) if nan else X,
        reset=reset,
        dtype="numeric",
        ensure_all_finite="allow-nan" if nan else True,
    )
    missing = np.isnan(x) if nan else x == missing_values
    return x, missing if hidden is None else missing | hidden


def holed(x: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """A copy of x with NaN for missing, float32 if x is and float64 if not."""
    holes = x.astype(kept_dtype(x.dtype))
    holes[missing] = np.nan
    return holes


def kept_dtype(dtype: np.dtype) -> type[np.floating]:
    """float32 if that is the data's dtype and float64 if not."""
    return np.float32 if dtype == np.float32 else np.float64


def _without_na(X: Any) -> Any:
    """X with NaN for None and pandas' NA, which are no numbers, in arrays and columns of objects."""
    pandas = sys.modules.get("pandas")  # whoever has such an entry has imported it
    if pandas is None:
        return X
    if isinstance(X, np.ndarray) and X.dtype == object:
        return np.where(pandas.isna(X), np.nan, X)
    objects = np.dtype(object)
    if isinstance(X, pandas.DataFrame) and any(dtype == objects for dtype in X.dtypes):
        return X.where(X.notna(), np.nan)
    return X


def constants_of(x: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """The one value [D] of each column that has no other, 0 for a column that is never observed.

    NaN for all others. Also for a column that is observed once, what is left to find is known.
    """
    constants = np.full(x.shape[1], np.nan)
    for column in range(x.shape[1]):
        values = x[~missing[:, column], column]
        if not len(values) or values.min() == values.max():
            constants[column] = values[0] if len(values) else 0.0
    return constants


def bounds_of(min_value: Any, max_value: Any, num_features: int) -> tuple[np.ndarray, np.ndarray]:
    """`min_value` and `max_value`, numbers or one for each feature, as [D] float64 each."""
    bounds = []
    for name, given, nothing in (
        ("min_value", min_value, -np.inf),
        ("max_value", max_value, np.inf),
    ):
        try:
            bound = np.asarray(nothing if given is None else given, np.float64)
        except (TypeError, ValueError):
            bound = np.array(np.nan)
        if bound.shape not in ((), (1,), (num_features,)) or np.isnan(bound).any():
            raise ValueError(f"{name}: expected a number or {num_features} numbers, got {given!r}")
        bounds.append(np.broadcast_to(bound, num_features))
    low, high = bounds
    if (low >= high).any():
        column = int((low >= high).argmax())
        raise ValueError(
            f"min_value: expected less than max_value, got {low[column]} and {high[column]} for "
            f"feature {column}"
        )
    return low, high
