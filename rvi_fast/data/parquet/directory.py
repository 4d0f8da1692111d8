"""A directory of Parquet files as one table, of which some rows at a time are in memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...files import StrPath
from ..files import DataError, blaming, require
from ..formats.arrow import index_names
from .categories import codes_of, fill_categories, is_category, values_of
from .columns import fill, is_number, numbers_of
from .mapped import map_table

# rows and numbers of a chunk
_ROWS, _NUMBERS = 1 << 16, 1 << 23
# bytes that are read of a column at once
_BUFFER = 1 << 17


@dataclass(frozen=True)
class ParquetFile:
    """A file of a `ParquetDirectory`.

    Args:
        name: relative to the directory, with slashes.
        num_rows: how many rows it has.
        size: in bytes.
        mtime_ns: when it was changed.
    """

    name: str
    num_rows: int
    size: int
    mtime_ns: int


class ParquetDirectory:
    """All Parquet files of a directory as one table [N, D], of which the footers have been read.

    The files are those that end in .parquet, in directories below too, in the order of their names; what
    begins with a dot or an underscore is passed over, as pyarrow.dataset does. Their rows follow each
    other. A number that is null or NaN is missing. A model takes columns of floats, whole numbers, bools
    and decimals, which every file must have; the others (keys, texts, dates, the index of a DataFrame)
    are carried along, and so are categories, unless `categories` names them.

    Args:
        path: the directory.
        columns: names of the columns that a model is to take, in the order that it is to see; all
            columns of numbers if not given.
        ignore: names of columns of numbers to carry along as well, where `columns` is not given.
        categories: names of columns of texts, whole numbers or bools, perhaps dictionary-encoded, that a
            model is to take as codes 0, 1, ... of their values in rising order, as the likelihood
            ("categorical", k) has them. All files are read to find these, 1,000 at most; or a mapping
            from names to the values, those of `categories` in training.

    Attributes:
        path: the directory.
        files: the `ParquetFile` of each.
        num_rows: N.
        features: names of the D columns.
        categories: the values of each column of categories.
        carried: name of each other column of the first file, and why it is none of them.

    Raises:
        DataError: there are no such files, one of them cannot be read, or it lacks a column of numbers
            that is asked for or that the first one has.
        ValueError: `columns` or `ignore` name what is not there, or a column of other things.
        ImportError: pyarrow is missing; the message says which extra to install.

    Example:
        >>> import tempfile, numpy as np, rvi_fast
        >>> directory = tempfile.TemporaryDirectory()
        >>> for part in range(2):
        ...     x = np.full((3, 2), float(part), np.float32)
        ...     rvi_fast.data.save_table(f"{directory.name}/{part}.parquet", x, ["a", "b"])
        >>> table = rvi_fast.data.ParquetDirectory(directory.name)
        >>> table.num_rows, table.features
        (6, ('a', 'b'))
        >>> table.mapped(f"{directory.name}/cache")[4].tolist()
        [1.0, 1.0]
        >>> directory.cleanup()
    """

    def __init__(
        self,
        path: StrPath,
        columns: Sequence[str] | None = None,
        *,
        ignore: Sequence[str] = (),
        categories: Sequence[str] | Mapping[str, Sequence[Any]] = (),
    ) -> None:
        self.path = Path(path).expanduser()
        if isinstance(categories, str):
            raise TypeError(f"categories: expected a sequence of names, got {categories!r}")
        names = list(_names(self.path))
        if not names:
            raise DataError(f"{self.path}: expected a directory with .parquet files, found none")
        footers = [(name, *self._footer(name)) for name in names]
        self.features, self.carried = _chosen(footers[0][2], columns, ignore, tuple(categories))
        self.categories: dict[str, tuple[Any, ...]] = dict.fromkeys(categories, ())
        self._kinds: list[list[str]] = []
        self.files: list[ParquetFile] = []
        for name, num_rows, schema in footers:
            with blaming(self.path / name):
                self._kinds.append(self._check(schema, whole=columns is None, ignore=ignore))
            found = os.stat(self.path / name)
            self.files.append(ParquetFile(name, num_rows, found.st_size, found.st_mtime_ns))
        self.num_rows = sum(file.num_rows for file in self.files)
        if not self.num_rows:
            raise DataError(f"{self.path}: expected rows, its files have none")
        for name in self.categories:
            given = categories[name] if isinstance(categories, Mapping) else None
            self.categories[name] = self._values(name) if given is None else tuple(given)

    def fingerprint(self) -> str:
        """SHA-256 of names, sizes and times of change of the files, and of names and types of columns.

        It tells of files that were written anew. One that was changed without another size or time is
        taken for the same.
        """
        parts = [[file.name, file.num_rows, file.size, file.mtime_ns] for file in self.files]
        described = [list(self.features), self._kinds, parts, self.categories]
        # a table without categories is named as it was
        described = described if self.categories else described[:3]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def mapped(
        self, cache: StrPath, *, rows: range | None = None, progress: bool = False
    ) -> np.memmap[Any, Any]:
        """The numbers as a memory map [n, D] float32 with NaN for missing, which `fit` takes as x.

        They are written once, some rows at a time, to a file in `cache`, which is whole or not there;
        where the files have not changed since, that file is opened. Its name is made of the fingerprint
        of this table, so that files of tables that have changed stay until somebody removes them.

        Args:
            cache: a directory, made where it is missing. It needs 4 n D bytes.
            rows: those that are asked for, for instance `training.distributed.rows_of_rank(num_rows)`
                in one of several processes; all if not given. Row groups without any are not read.
            progress: show a bar while the numbers are written.

        Raises:
            DataError: a number that is infinite in float32, with file, row and column; a damaged file.
            ValueError: `rows` are no part of the table.
        """
        rows = range(self.num_rows) if rows is None else rows
        if rows.step != 1 or not 0 <= rows.start < rows.stop <= self.num_rows:
            raise ValueError(f"rows: expected a part of range(0, {self.num_rows}), got {rows}")
        key = self.fingerprint()[:24]
        part = "" if len(rows) == self.num_rows else f"-{rows.start}-{rows.stop}"
        path = Path(cache) / f"parquet-{key}{part}.npy"
        shape = (len(rows), len(self.features))
        return map_table(path, shape, lambda: self._numbers(rows), progress=progress)

    def chunks(
        self, name: str, *, only: Sequence[str] | None = None, rows: range | None = None
    ) -> Iterator[tuple[int, Any]]:
        """A file as pieces of its row groups, of at most 65,536 rows and 8 million numbers.

        Args:
            name: of one of `files`.
            only: names of the columns that are read; all if not given.
            rows: of the file; all if not given. Row groups without any are not read.

        Yields:
            Number of the first row, and the rows as a `pyarrow.Table`.
        """
        library = require("pyarrow", "tabular")
        size = max(1, min(_ROWS, _NUMBERS // max(1, len(self.features))))
        with blaming(self.path / name), self._open(name) as file:
            first = 0
            for group in range(file.num_row_groups):
                stop = first + file.metadata.row_group(group).num_rows
                if rows is None or (first < rows.stop and rows.start < stop):
                    at = first
                    for batch in file.iter_batches(size, row_groups=[group], columns=only):
                        table = library.Table.from_batches([batch])
                        begin = 0 if rows is None else max(rows.start - at, 0)
                        end = len(table) if rows is None else rows.stop - at
                        table = table.slice(begin, max(end - begin, 0))
                        if len(table):
                            yield at + begin, table
                        at += len(batch)
                first = stop

    def numbers(self, name: str, first: int, table: Any) -> np.ndarray:
        """The features of some rows of a file, float64 [n, D] with NaN for missing, codes of categories.

        Args:
            name: of the file.
            first: number of the first row.
            table: the rows, as `chunks` gives them.

        Raises:
            DataError: a number that is infinite in float32, or a value that is none of the categories,
                with row and column.
        """
        values = np.empty((len(table), len(self.features)))
        for place, feature in enumerate(self.features):
            column = table.column(feature)
            if feature in self.categories:
                where = f"{self.path / name}, from row {first} on, column {feature!r}"
                with blaming(Path(where)):
                    values[:, place] = codes_of(column, self.categories[feature])
            else:
                values[:, place] = numbers_of(column)
        with np.errstate(over="ignore"):
            wrong = np.isinf(values.astype(np.float32))
        if wrong.any():
            row, column = divmod(int(wrong.argmax()), values.shape[1])
            raise DataError(
                f"{self.path / name}: row {first + row}, column {self.features[column]!r}: "
                f"infinite as float32"
            )
        return values

    def filled(self, feature: str, column: Any, values: np.ndarray, where: np.ndarray) -> Any:
        """A column of the table with some cells filled in, all in the type that it has.

        Args:
            feature: its name.
            column: some of its rows, as `chunks` gives them.
            values: [n], numbers or codes.
            where: bool [n], true = taken from `values`; all other cells keep their bits.
        """
        if feature in self.categories:
            return fill_categories(column, self.categories[feature], values, where)
        return fill(column, values, where)

    def _values(self, name: str) -> tuple[Any, ...]:
        """All categories of a column."""
        parts = (table for file in self.files for _, table in self.chunks(file.name, only=[name]))
        with blaming(self.path):
            return values_of(name, (table.column(name) for table in parts))

    def _numbers(self, rows: range) -> Iterator[np.ndarray]:
        """Float32 pieces of the table that together are these rows."""
        first = 0
        for file in self.files:
            own = range(rows.start - first, rows.stop - first)
            if own.start < file.num_rows and own.stop > 0:
                for at, table in self.chunks(file.name, only=self.features, rows=own):
                    yield self.numbers(file.name, at, table).astype(np.float32)
            first += file.num_rows

    def _open(self, name: str) -> Any:
        # without a buffer a column of a row group is read as a whole
        parquet = require("pyarrow.parquet", "tabular")
        return parquet.ParquetFile(self.path / name, buffer_size=_BUFFER, pre_buffer=False)

    def _footer(self, name: str) -> tuple[int, Any]:
        """Rows and schema of a file."""
        with blaming(self.path / name), self._open(name) as file:
            return file.metadata.num_rows, file.schema_arrow

    def _check(self, schema: Any, *, whole: bool, ignore: Sequence[str]) -> list[str]:
        """Refuses a file whose columns of numbers are others; the types of the features."""
        for feature in self.features:
            places = schema.get_all_field_indices(feature)
            fits, what = is_number, "numbers"
            if feature in self.categories:
                fits, what = is_category, "texts, whole numbers or bools"
            if len(places) != 1 or not fits(schema.field(places[0]).type):
                got = [str(schema.field(place).type) for place in places]
                raise ValueError(
                    f"expected one column {feature!r} of {what}, got {' and '.join(got) or 'none'}"
                )
        if whole:
            more = set(_numeric(schema)) - set(self.features) - set(ignore)
            if more:
                raise ValueError(
                    f"column {min(more)!r} is none of the numbers of {self.files[0].name}; say with "
                    "columns which ones a model is to take"
                )
        return [str(schema.field(feature).type) for feature in self.features]


def _names(path: Path) -> Iterator[str]:
    """The Parquet files of a directory, relative to it, in the order of their names."""
    for file in sorted(path.glob("**/*.parquet")):
        parts = file.relative_to(path).parts
        if file.is_file() and not any(part.startswith((".", "_")) for part in parts):
            yield "/".join(parts)


def _numeric(schema: Any) -> list[str]:
    index = index_names(schema.metadata)
    return [field.name for field in schema if is_number(field.type) and field.name not in index]


def _chosen(
    schema: Any,
    columns: Sequence[str] | None,
    ignore: Sequence[str],
    categories: Sequence[str],
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Names of the features, and of all other columns with the reason why they are none."""
    for option, given in (
        ("columns", columns or ()),
        ("ignore", ignore),
        ("categories", categories),
    ):
        if isinstance(given, str):
            raise TypeError(f"{option}: expected a sequence of names, got {given!r}")
        for name in given:
            if name not in schema.names:
                known = ", ".join(map(repr, schema.names[:20]))
                raise ValueError(f"{option}: expected columns of the table ({known}), got {name!r}")
    if columns is not None and ignore:
        raise ValueError("ignore: expected none beside columns, which leave out all others")
    numeric = _numeric(schema)
    taken = [name for name in schema.names if name in numeric or name in categories]
    features = [name for name in taken if name not in ignore] if columns is None else list(columns)
    for name in features:
        kind = schema.field(schema.names.index(name)).type
        if not (is_number(kind) or name in categories) or features.count(name) > 1:
            raise ValueError(
                f"columns: expected columns of numbers, each once, got {name!r}: {kind}"
            )
    for name in categories:
        if name not in features:
            raise ValueError(f"categories: expected names that columns has too, got {name!r}")
    if not features:
        raise ValueError(f"columns: expected columns of numbers, the table has {schema.names[:20]}")
    carried = []
    for name in schema.names:
        if name not in features:
            reason = "left out" if name in numeric else "no number"
            carried.append((name, reason))
    return tuple(features), tuple(carried)
