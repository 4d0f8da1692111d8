"""Columns of pyarrow as numbers, and numbers back into columns whose type stays as it is."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np

from ..files import require


def is_number(kind: Any) -> bool:
    """Whether a model can take a column of this pyarrow type as numbers."""
    types = require("pyarrow", "tabular").types
    return bool(
        types.is_floating(kind)
        or types.is_integer(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
    )


def numbers_of(column: Any) -> np.ndarray:
    """A pyarrow column of numbers as float64 [n], NaN for null; large whole numbers are rounded."""
    library = require("pyarrow", "tabular")
    if not library.types.is_floating(column.type):
        column = column.cast(library.float64(), safe=False)
    return np.array(column.to_numpy(), np.float64)


def fill(column: Any, values: np.ndarray, where: np.ndarray) -> Any:
    """A column with other numbers in some cells, all in the type that it has.

    A column of whole numbers takes the nearest, one of decimals the nearest of its digits, each within
    what the type can hold; one of bools takes true from 0.5 on.

    Args:
        column: of a type that `is_number`.
        values: [n] finite where they are taken.
        where: bool [n], true = taken from `values`; all other cells keep their bits.
    """
    library = require("pyarrow", "tabular")
    compute = require("pyarrow.compute", "tabular")
    if not where.any():
        return column
    types, kind, taken = library.types, column.type, values[where].astype(np.float64)
    new: Any
    if types.is_boolean(kind):
        new = taken >= 0.5
    elif types.is_integer(kind):
        new = _whole(taken, np.dtype(kind.to_pandas_dtype()))
    elif types.is_decimal(kind):
        new = _decimals(taken, kind.precision, kind.scale)
    else:
        dtype = np.dtype(kind.to_pandas_dtype())
        new = taken.clip(np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
    return compute.replace_with_mask(column, library.array(where), library.array(new, kind))


def _whole(numbers: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    bounds = np.iinfo(dtype)
    # the largest float64 that an int64 can hold is less than its bound
    high = float(bounds.max)
    high = high if int(high) <= bounds.max else float(np.nextafter(high, 0))
    return np.rint(numbers).clip(float(bounds.min), high).astype(dtype)


def _decimals(numbers: np.ndarray, precision: int, scale: int) -> list[decimal.Decimal]:
    step = decimal.Decimal(1).scaleb(-scale)
    with decimal.localcontext(prec=76):
        most = decimal.Decimal(10) ** (precision - scale) - step
        return [
            min(max(decimal.Decimal(number).quantize(step), -most), most)
            for number in numbers.tolist()
        ]
