"""Tables by way of pyarrow. Types, metadata and the index of a DataFrame stay as they were read."""

from __future__ import annotations

import decimal
import json
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np

from ..files import column_name, require
from .table import Column, Table, check_finite, left_out, not_a_number

_INDEX = "the index"


class ArrowTable(Table):
    """A table from a file that pyarrow reads.

    Args:
        table: the `pyarrow.Table`.
        modelled: numbers of the columns with numbers.
        values: [N, D].
        save: writes such a table to a file of its own format.
        suffixes: of that format.
    """

    def __init__(
        self,
        table: Any,
        modelled: np.ndarray,
        values: np.ndarray,
        save: Callable[[Any, IO[bytes]], None],
        suffixes: tuple[str, ...],
    ) -> None:
        self.table, self.modelled, self.values = table, modelled, values
        self.save, self.suffixes = save, suffixes
        self.features = tuple(table.column_names[column] for column in modelled)

    def rows(self, index: np.ndarray) -> ArrowTable:
        return self._like(self.table.take(index), self.values[index])

    def filled(self, values: np.ndarray, where: np.ndarray) -> ArrowTable:
        table = self.table
        changed = []
        for place, column in enumerate(self.modelled):
            own = where[:, place]
            if own.any():
                field = table.schema.field(int(column))
                filled = _fill(table.column(int(column)), values[:, place], own)
                if filled.type != field.type:
                    changed.append(field.name)
                table = table.set_column(int(column), field.with_type(filled.type), filled)
        table = table.replace_schema_metadata(_metadata(table.schema.metadata, changed))
        return self._like(table, np.where(where, values, self.values))

    def columns(self) -> list[Column]:
        modelled = {int(column): place for place, column in enumerate(self.modelled)}
        found = []
        for column, name in enumerate(self.table.column_names):
            data = self.table.column(column)
            kind = require("pyarrow", "tabular").types
            # floats as numpy's, whose text is the shortest; whole numbers are exact as Python's
            values = data.to_numpy() if kind.is_floating(data.type) else data.to_pylist()
            found.append(Column(name, values, column in modelled))
        return found

    def write(self, file: IO[bytes], suffix: str) -> None:
        self.save(self.table, file)

    def _like(self, table: Any, values: np.ndarray) -> ArrowTable:
        """Another table of the same columns."""
        like = ArrowTable(table, self.modelled, values, self.save, self.suffixes)
        like.carried, like.carried_names = self.carried, self.carried_names
        return like


def arrow() -> Any:
    """The module pyarrow, where pandas is there too.

    Raises:
        ImportError: one of them is missing; the message says which extra to install.
    """
    require("pandas", "tabular")
    return require("pyarrow", "tabular")


def table_of(
    table: Any,
    ignore: Sequence[str],
    also: Sequence[str],
    save: Callable[[Any, IO[bytes]], None],
    suffixes: tuple[str, ...],
) -> ArrowTable:
    """What a model sees of a `pyarrow.Table`.

    Args:
        table: the `pyarrow.Table`.
        ignore, also: as in `rvi_fast.data.read_table`.
        save, suffixes: as in `ArrowTable`.

    Raises:
        ValueError: it holds no number, or an infinite one; a column of `ignore` is not there.
    """
    names = table.column_names
    index = index_names(table.schema.metadata)
    reasons = left_out(ignore, also, names, len(names))
    texts: list[int] = []
    columns: list[np.ndarray] = []
    modelled: list[int] = []
    for number, name in enumerate(names):
        if number in reasons:
            continue
        if name in index:
            reasons[number] = _INDEX
        elif (values := _numbers(table.column(number))) is None:
            reasons[number] = "no number"
            texts.append(number)
        else:
            columns.append(values)
            modelled.append(number)
    if not modelled and not texts:
        raise ValueError(f"an empty table, shape {[table.num_rows, 0]}")
    values = np.stack(columns, axis=1) if columns else np.empty((table.num_rows, 0))
    found = ArrowTable(table, np.array(modelled, np.int64), values, save, suffixes)
    found.carried = tuple((column_name(n, names), reasons[n]) for n in sorted(reasons))
    found.carried_names = tuple(names[n] for n in sorted(reasons))
    if texts:
        found.text = _first_text(table, texts[0])
    if not values.size:
        raise ValueError(found.text or f"an empty table, shape {list(values.shape)}")
    check_finite(values, found.features)
    return found


def from_columns(columns: Sequence[Column]) -> Any:
    """The columns of any table as a `pyarrow.Table`: feature_0, ... where they have no names."""
    library = arrow()
    arrays, names = [], []
    for number, column in enumerate(columns):
        values = column.values
        if isinstance(values, np.ndarray):
            # a missing number is null, as pandas writes it
            arrays.append(library.array(np.ascontiguousarray(values), from_pandas=True))
        else:
            try:
                arrays.append(library.array(values))
            except library.ArrowInvalid as error:  # whole numbers beyond 2^53 beside fractions
                raise ValueError(f"path: column {column.name!r}: {error}") from error
        names.append(f"feature_{number}" if column.name is None else column.name)
    return library.table(arrays, names=names)


def _numbers(column: Any) -> np.ndarray | None:
    """Float64 [N] with NaN for null; None where the type is none of numbers."""
    library = arrow()
    types, kind = library.types, column.type
    if types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if types.is_null(kind):
        return np.full(len(column), np.nan)
    if types.is_floating(kind):
        return np.array(column.to_numpy(), np.float64)
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_decimal(kind):
        # not safe: a large whole number is rounded for the model alone
        return np.array(column.cast(library.float64(), safe=False).to_numpy(), np.float64)
    return None


def _fill(column: Any, values: np.ndarray, where: np.ndarray) -> Any:
    """The column with some entries filled in, in its own type where that can hold them.

    Whole numbers and bools become float64, as in `rvi_fast.data.tables.fill`.
    """
    library = arrow()
    compute = require("pyarrow.compute", "tabular")
    types, kind = library.types, column.type
    if types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    fills: Any = values
    if types.is_null(kind) or types.is_boolean(kind):
        column, kind = column.cast(library.float64()), library.float64()
    elif types.is_integer(kind):
        whole = bool((values[where] == np.rint(values[where])).all())
        kept = compute.if_else(library.array(where), library.scalar(None, kind), column)
        try:
            if not whole:
                column, kind = kept.cast(library.float64()), library.float64()
        except library.ArrowInvalid:  # float64 would change one of the others
            pass
    if types.is_integer(kind):
        bounds = np.iinfo(kind.to_pandas_dtype())
        low, high = int(bounds.min), int(bounds.max)
        fills = [
            min(max(round(float(v)), low), high) if w else None
            for v, w in zip(values, where, strict=True)
        ]
    elif types.is_decimal(kind):
        step = decimal.Decimal(1).scaleb(-kind.scale)
        with decimal.localcontext(prec=76):
            fills = [
                decimal.Decimal(float(v)).quantize(step) if w else None
                for v, w in zip(values, where, strict=True)
            ]
        try:
            library.array(fills, kind)
        except library.ArrowInvalid:  # more digits than those that were observed
            kind = library.decimal256(76, kind.scale)
            column = column.cast(kind)
    else:
        fills = values.astype(kind.to_pandas_dtype())
    return compute.if_else(library.array(where), library.array(fills, kind), column)


def index_names(metadata: dict[bytes, bytes] | None) -> set[str]:
    """Names of the columns that hold the index of a DataFrame."""
    if not metadata or b"pandas" not in metadata:
        return set()
    columns = json.loads(metadata[b"pandas"]).get("index_columns", [])
    return {column for column in columns if isinstance(column, str)}


def _metadata(
    metadata: dict[bytes, bytes] | None, changed: Sequence[str]
) -> dict[bytes, bytes] | None:
    """What pandas wrote about the types of its columns, put right for those that have another."""
    if not metadata or b"pandas" not in metadata or not changed:
        return metadata
    described = json.loads(metadata[b"pandas"])
    for column in described.get("columns", []):
        if column.get("field_name") in changed:
            column |= {"pandas_type": "float64", "numpy_type": "float64", "metadata": None}
    return {**metadata, b"pandas": json.dumps(described).encode()}


def _first_text(table: Any, column: int) -> str:
    values = table.column(column)
    row = next((row for row, value in enumerate(values) if value.is_valid), 0)
    shown = values[row].as_py() if len(values) else ""
    return not_a_number(f"row {row}", column, table.column_names, shown)
