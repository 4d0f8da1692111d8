"""DataFrames of all kinds of columns as what an estimator learns from."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any

import numpy as np

from ..frames import FrameEncoder, recognise
from .tables import is_nan

# what needs no more than numbers
_PLAIN = {"number", "integer"}


def encoder_of(estimator: Any, X: Any) -> FrameEncoder | None:
    """What makes numbers of X's columns; None where X is numbers, and needs none.

    Args:
        estimator: with `categorical_features`, `likelihood`, `missing_values` and `standardize`.
        X: what `fit` is given.

    Raises:
        ValueError, TypeError: `categorical_features` names what X has not, or other parameters say of
            columns what their kinds say already.
    """
    named = estimator.categorical_features
    by_dtype = isinstance(named, str)
    if by_dtype and named != "from_dtype":
        raise ValueError(
            f"categorical_features: expected 'from_dtype', None, or columns, got {named!r}"
        )
    pandas = sys.modules.get("pandas")  # whoever has a DataFrame has imported it
    if pandas is None or not isinstance(X, pandas.DataFrame) or not len(X.columns):
        if not by_dtype and named is not None:
            raise TypeError(
                "categorical_features: expected a pandas DataFrame beside columns; of an array "
                "likelihood= says what each column is"
            )
        return None
    if not X.columns.is_unique or named is None:  # what checks numbers says what is wrong
        return None
    kinds = dict.fromkeys(_chosen(named, X), "category") if not by_dtype else {}
    found = recognise(X, kinds)
    plain = set(found.values()) <= _PLAIN or all(_is_number(X[name]) for name in X.columns)
    if plain and not kinds:
        return None
    if estimator.likelihood != "gaussian":
        raise ValueError(
            "likelihood: expected 'gaussian' beside a DataFrame with columns that are no numbers, whose "
            f"kinds say their laws, got {estimator.likelihood!r}"
        )
    if not is_nan(estimator.missing_values):
        raise ValueError(
            "missing_values: expected NaN beside a DataFrame with columns that are no numbers, got "
            f"{estimator.missing_values!r}"
        )
    return FrameEncoder(kinds).fit(X)


def encoded(encoder: FrameEncoder, X: Any) -> Any:
    """X as a DataFrame of float64 with the same names, NaN for missing and for text."""
    import pandas

    if not isinstance(X, pandas.DataFrame):
        raise TypeError(f"X: expected a pandas DataFrame, as fit was given, got {type(X).__name__}")
    return pandas.DataFrame(encoder.encode(X)[0], index=X.index, columns=list(encoder.kinds_))


def framed(
    encoder: FrameEncoder,
    X: Any,
    filled: np.ndarray,
    kept: np.ndarray,
    holes: np.ndarray | None = None,
    names: Any = (),
) -> Any:
    """X with its missing entries filled in, without the columns that are not kept.

    Args:
        filled: [N, D] in the encoder's units.
        kept: of its columns, bool [D].
        holes: columns to be appended.
        names: of all columns then.
    """
    import pandas

    result = encoder.decode(np.where(encoder.modelled, filled, np.nan), X)
    result = result[[name for name, own in zip(encoder.kinds_, kept, strict=True) if own]]
    if holes is None:
        return result
    more = pandas.DataFrame(holes, index=result.index, columns=names[result.shape[1] :])
    return pandas.concat([result, more], axis=1)


def holes_of(encoder: FrameEncoder | None, X: Any, shown: np.ndarray) -> np.ndarray:
    """X with NaN where an entry is missing: `shown`, or of a DataFrame that is no numbers zeros."""
    if encoder is None:
        return shown
    return np.where(X[list(encoder.kinds_)].isna().to_numpy(bool), np.nan, 0.0)


def ordered_of(encoder: FrameEncoder | None, num_features: int) -> np.ndarray:
    """Which columns are neither yes/no nor classes of a DataFrame, bool [D]."""
    if encoder is None:
        return np.ones(num_features, bool)
    return np.array([kind not in ("boolean", "category") for kind in encoder.kinds_.values()])


def numbers_of(encoder: FrameEncoder | None, num_features: int) -> np.ndarray:
    """Which columns are numbers in the table that was given, bool [D]."""
    if encoder is None:
        return np.ones(num_features, bool)
    return np.array([kind in _PLAIN for kind in encoder.kinds_.values()])


def whole_of(encoder: FrameEncoder | None, num_features: int) -> np.ndarray:
    """Which columns are filled in with whole numbers of their units, bool [D]."""
    if encoder is None:
        return np.zeros(num_features, bool)
    whole = ("integer", "date", "duration")
    return np.array([kind in whole for kind in encoder.kinds_.values()], bool)


def days_of(encoder: FrameEncoder | None, num_features: int) -> np.ndarray:
    """Of dates and durations the days that the encoder's unit has, 1 of other columns: [D]."""
    return np.ones(num_features) if encoder is None else encoder.days


def text_of(encoder: FrameEncoder | None, num_features: int) -> np.ndarray:
    """Which columns are text, bool [D]."""
    return np.zeros(num_features, bool) if encoder is None else ~encoder.modelled


def _chosen(named: Any, X: Any) -> list[Hashable]:
    """The columns that names, places or a mask stand for."""
    chosen = np.asarray(named)
    if chosen.dtype == bool:
        if chosen.shape != (len(X.columns),):
            raise ValueError(
                f"categorical_features: expected {len(X.columns)} of True and False, got "
                f"{list(chosen.shape)}"
            )
        return list(X.columns[chosen])
    found: list[Hashable] = []
    for own in named:
        if own in X.columns:
            found.append(own)
        elif isinstance(own, int | np.integer) and -len(X.columns) <= own < len(X.columns):
            found.append(X.columns[own])
        else:
            raise ValueError(f"categorical_features: expected columns of X, got {own!r}")
    return found


def _is_number(series: Any) -> bool:
    """Whether an estimator of numbers takes a column as it is: row numbers are numbers as well."""
    from pandas.api import types

    numeric = types.is_numeric_dtype(series.dtype) and not types.is_bool_dtype(series.dtype)
    return numeric or (series.dtype == object and not series.notna().any())
