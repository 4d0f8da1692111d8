"""Columns of categories as codes 0, 1, ... of their values, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..files import require

# values that a column of categories may have
MOST = 1000


def is_category(kind: Any) -> bool:
    """Whether a column of this pyarrow type can hold categories: texts, whole numbers, yes/no."""
    types = require("pyarrow", "tabular").types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_integer(kind)
        or types.is_boolean(kind)
    )


def values_of(name: str, columns: Iterable[Any]) -> tuple[Any, ...]:
    """All different values of a column, in rising order.

    Args:
        name: of the column, for errors.
        columns: its pieces.

    Raises:
        ValueError: there are more than 1,000, or less than two.
    """
    found: set[Any] = set()
    for column in columns:
        found.update(_plain(column).drop_null().unique().to_pylist())
        if len(found) > MOST:
            raise ValueError(
                f"categories: expected at most {MOST} values in column {name!r}, got more"
            )
    if len(found) < 2:
        raise ValueError(f"categories: expected two values or more in column {name!r}, got {found}")
    return tuple(sorted(found))


def codes_of(column: Any, values: tuple[Any, ...]) -> np.ndarray:
    """Float64 [n]: the place of each value among `values`, NaN for null.

    Raises:
        ValueError: another value, with the number of its row.
    """
    library = require("pyarrow", "tabular")
    compute = require("pyarrow.compute", "tabular")
    plain = _plain(column)
    places = compute.index_in(plain, value_set=library.array(values, plain.type))
    places = compute.if_else(plain.is_valid(), places, None)
    codes = places.cast(library.float64()).to_numpy()
    unknown = np.isnan(codes) & plain.is_valid().to_numpy()
    if unknown.any():
        row = int(unknown.argmax())
        raise ValueError(f"row {row}: {plain[row].as_py()!r} is none of the categories of training")
    return np.array(codes, np.float64)


def fill_categories(
    column: Any, values: tuple[Any, ...], codes: np.ndarray, where: np.ndarray
) -> Any:
    """A column of categories with others in some cells, in the type that it has.

    Args:
        column: of a type that `is_category`.
        values: what the codes stand for.
        codes: [n], rounded to the nearest one.
        where: bool [n], true = taken from `codes`.
    """
    library = require("pyarrow", "tabular")
    compute = require("pyarrow.compute", "tabular")
    if not where.any():
        return column
    kind, plain = column.type, _plain(column)
    known = library.array(values, plain.type)
    taken = np.rint(codes[where]).clip(0, len(values) - 1).astype(np.int64)
    filled = compute.replace_with_mask(
        plain, library.array(where), known.take(library.array(taken))
    )
    if not library.types.is_dictionary(kind):
        return filled
    # categories keep their order, and those that no cell has
    own = column.chunk(0).dictionary if column.num_chunks else known.slice(0, 0)
    more = [value for value in values if value not in set(own.to_pylist())]
    own = library.concat_arrays([own, library.array(more, own.type)])
    places = compute.index_in(filled, value_set=own).cast(kind.index_type).combine_chunks()
    return library.chunked_array(
        [library.DictionaryArray.from_arrays(places, own, ordered=kind.ordered)]
    )


def _plain(column: Any) -> Any:
    """A column without its dictionary."""
    types = require("pyarrow", "tabular").types
    return column.cast(column.type.value_type) if types.is_dictionary(column.type) else column
