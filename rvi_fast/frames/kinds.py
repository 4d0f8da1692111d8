"""What the columns of a DataFrame hold: numbers, yes/no, classes, dates, or what no model takes."""

from __future__ import annotations

import datetime
import numbers
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

KINDS = ("number", "integer", "boolean", "category", "date", "duration", "text")
# text of more distinct values is free text, and integers without a gap are row numbers from so many on
_CLASSES, _IDS = 50, 20
# a class is seen so often, on average
_SEEN = 2


def recognise(frame: Any, kinds: Mapping[Hashable, str] | None = None) -> dict[Hashable, str]:
    """The kind of each column, from its dtype and, of objects and strings, from what stands in it.

    "number" and "integer": of numeric dtypes, and objects that are all numbers; "boolean": of boolean
    dtypes, and objects that are all True or False; "date" and "duration": datetimes and timedeltas;
    "category": of categorical dtypes, and strings of at most 50 values, each seen twice on average;
    "text": all other strings and objects, integers that are all there and different without a gap, as
    row numbers are, and columns that hold nothing. What is text is no part of a model.

    Args:
        frame: a `pandas.DataFrame`.
        kinds: column -> kind, for columns that are to be something else.

    Raises:
        TypeError: no DataFrame.
        ValueError: two columns of one name; a kind or a column in `kinds` that there is not.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"age": [31, 44, 31], "smokes": [True, None, False]})
        >>> recognise(frame)
        {'age': 'integer', 'smokes': 'boolean'}
    """
    check_frame(frame)
    given = dict(kinds or {})
    unknown = [name for name in given if name not in frame.columns]
    if unknown:
        raise ValueError(
            f"kinds: expected columns of the table, {', '.join(map(repr, frame.columns))}, got "
            f"{unknown[0]!r}"
        )
    for name, kind in given.items():
        if kind not in KINDS:
            raise ValueError(
                f"kinds: expected one of {', '.join(KINDS)}, got {kind!r} for {name!r}"
            )
    return {name: given.get(name) or kind_of(frame[name]) for name in frame.columns}


def check_frame(frame: Any) -> None:
    """Refuses what is no DataFrame, and columns that their names do not tell apart."""
    import pandas

    if not isinstance(frame, pandas.DataFrame):
        raise TypeError(f"frame: expected a pandas DataFrame, got {type(frame).__name__}")
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise ValueError(f"columns: expected different names, got {twice[0]!r} more than once")


def kind_of(series: Any) -> str:
    """The kind of one column, see `recognise`."""
    from pandas.api import types

    dtype = series.dtype
    if types.is_bool_dtype(dtype) and not isinstance(dtype, _categorical()):
        return "boolean"
    if isinstance(dtype, _categorical()):
        return "category" if series.notna().any() else "text"
    if types.is_datetime64_any_dtype(dtype):
        return "date" if series.notna().any() else "text"
    if types.is_timedelta64_dtype(dtype):
        return "duration" if series.notna().any() else "text"
    if types.is_integer_dtype(dtype):
        return "text" if _numbered(series) else "integer"
    if types.is_float_dtype(dtype):
        return "number"
    values = series[series.notna()]
    if not len(values):
        return "text"
    if types.is_object_dtype(dtype):
        return _kind_of_objects(series, values)
    return _kind_of_strings(values)


def _kind_of_objects(series: Any, values: Any) -> str:
    """Of Python objects, and those of them that are not missing."""
    found = {type(value) for value in values}
    if found <= {bool, np.bool_}:
        return "boolean"
    if all(issubclass(kind, numbers.Real) and kind is not bool for kind in found):
        whole = all(issubclass(kind, numbers.Integral) for kind in found)
        return ("text" if _numbered(series) else "integer") if whole else "number"
    if all(issubclass(kind, datetime.date | np.datetime64) for kind in found):
        return "date"
    if all(issubclass(kind, datetime.timedelta | np.timedelta64) for kind in found):
        return "duration"
    if all(issubclass(kind, Hashable) for kind in found):
        return _kind_of_strings(values)
    return "text"


def _kind_of_strings(values: Any) -> str:
    distinct = values.nunique()
    return "category" if distinct <= _CLASSES and len(values) >= _SEEN * distinct else "text"


def _numbered(series: Any) -> bool:
    """Whether integers are all different and without a gap, as row numbers are."""
    if len(series) < _IDS or series.isna().any() or not series.is_unique:
        return False
    return int(series.max()) - int(series.min()) + 1 == len(series)


def _categorical() -> Any:
    import pandas

    return pandas.CategoricalDtype
