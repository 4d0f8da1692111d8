"""Data sets and tables from files, and tables to files.

A file is foreign until proved sound: sizes that a header announces are compared with what the file
can hold before anything is allocated, nothing is ever unpickled, and whatever is wrong with a file
comes out as one error, `DataError`, which names the file and the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import remove_partial, replacing
from .files import blaming, require
from .formats import parquet
from .formats.csv import is_header, read_csv, write_columns
from .formats.idx import read_idx
from .formats.npy import read_npy, read_npz
from .formats.table import ArrayTable, Column, Table, single_precision, write_array
from .sets import DATASETS, Dataset, load_named

SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".parquet")

_IDX_NAME = re.compile(r"[.-]idx\d-ubyte(\.gz)?$")


def load_data(
    name: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    header: bool | None = None,
    ignore: Sequence[str] = (),
) -> Dataset:
    """Loads a data set by name, or a table from a file.

    MNIST and Fashion-MNIST are looked for in `data_dir`, `$RVI_FAST_DATA` and the cache
    (`$RVI_FAST_CACHE`, else `$XDG_CACHE_HOME/rvi_fast`, else `~/.cache/rvi_fast`), then downloaded
    to the cache and checked by MD5. CMU-MOSI is looked for likewise and never downloaded.

    Args:
        name: "digits" (8x8, needs scikit-learn, no file), "artificial" (10,000 + 2,000 rows, made
            by `artificial`), "mnist", "fashion-mnist", "mosi", or the path of a table, see
            `read_table`. uint8 arrays are pixels, and [N, H, W] of them images; all other numbers
            become float32.
        data_dir: the first directory to look in for a data set by name.
        header: of a text file: whether its first line holds names; None guesses.
        ignore: columns of a file to leave out, by name or number from 0.

    Returns:
        A `Dataset`. Files have no test part and no labels.

    Raises:
        DataError: a file is missing, malformed, empty, holds an infinite number or, outside `ignore`,
            text.
        ImportError: an optional package is missing; the message says which extra to install.

    >>> load_data("digits").train.shape
    (1797, 64)
    """
    if name in DATASETS:
        return load_named(str(name), data_dir)
    table = read_table(name, header=header, ignore=ignore)
    if table.text is not None:
        with blaming(Path(name)):
            raise ValueError(f"{table.text}; leave the column out with ignore, or --ignore")
    return Dataset(
        str(name),
        single_precision(table.values),
        image_shape=table.image_shape,
        features=table.features,
    )


def read_table(
    path: str | os.PathLike[str],
    *,
    header: bool | None = None,
    ignore: Sequence[str] = (),
    also: Sequence[str] = (),
) -> Table:
    """Reads a table as it stands in a file, to be filled in and written with nothing else changed.

    A column without any number (names, dates) is carried: it is not among the table's `values` and
    comes out as it came in. Text among numbers is an error.

    Args:
        path: .npy; .npz (the array `x`, or the only 2-D array); .csv or .tsv; .parquet; .idx?-ubyte,
            plain or .gz.

            In text, cells are separated by commas, semicolons, tabs or bars, which is guessed; beside
            another separator than the comma, decimal commas are recognised. An empty cell, NA, N/A,
            NaN, NULL, None, `?`, `-` and `.` in any case are missing; in a file of one column an empty
            line is, elsewhere it counts for nothing. Cells may be quoted, a line that begins with # is
            a comment. The encoding is UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

            In Parquet, columns of numbers, bools and decimals are taken, and categories of numbers; the
            index of a DataFrame is carried.
        header: of a text file: whether its first line holds names. None takes it for names where it
            holds some text and no number.
        ignore: columns to carry, by name or, where none has that name, by number from 0.
        also: further columns to carry where the table has them.

    Raises:
        DataError: the file is missing, malformed, empty, holds an infinite number or, among numbers,
            text; with row and column.
        ImportError: an optional package is missing; the message says which extra to install.
    """
    path = Path(path)
    with blaming(path):
        path = path.expanduser()
        if not os.path.isfile(path):
            raise ValueError(f"no such file, nor a data set (those are {', '.join(DATASETS)})")
        suffix = path.suffix.lower()
        if suffix in (".csv", ".tsv"):
            return read_csv(path, header, ignore, also)
        if header is not None:
            raise ValueError(f"header: expected a text file, got {suffix}")
        if suffix == ".parquet":
            return parquet.read_parquet(path, ignore, also)
        if ignore:
            raise ValueError(f"ignore: expected a file with named columns, got {suffix}")
        return ArrayTable(_read_array(path))


def check_target(path: str | os.PathLike[str], suffixes: Sequence[str] | None = SUFFIXES) -> Path:
    """Refuses, before any work, a file that `save_table` or `write_table` could not write.

    What killed processes have left of it is removed.

    Raises:
        ValueError: an unknown suffix; a missing directory, or one that cannot be written to; a directory
            in its place.
        ImportError: .parquet without the extra `tabular`.
    """
    path = Path(path)
    if suffixes is not None and path.suffix.lower() not in suffixes:
        expected = ", ".join(suffixes[:-1]) + f" or {suffixes[-1]}" if suffixes[1:] else suffixes[0]
        raise ValueError(f"path: expected {expected}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"path: the directory {path.parent} does not exist")
    if path.is_dir():
        raise ValueError(f"path: expected a file, {path} is a directory")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"path: the directory {path.parent} cannot be written to")
    if suffixes is not None and path.suffix.lower() == ".parquet":
        for module in ("pandas", "pyarrow"):
            require(module, "tabular")
    remove_partial(path.parent, path.name)
    return path


def write_table(path: str | os.PathLike[str], table: Table) -> None:
    """Writes a table that was read, whole or not at all.

    In the format it was read from, what was not filled in is as it was. In another format numbers keep
    their values, .npy and .npz hold the columns of numbers alone.

    Args:
        path: ends in .npy, .npz (stored as `x`), .csv, .tsv or .parquet; its directory exists.
        table: from `read_table`, perhaps `filled`.

    Raises:
        ValueError: as `check_target`; numbers that one array cannot hold without changing some.
        ImportError: .parquet without the extra `tabular`.
    """
    path = check_target(path)
    suffix = path.suffix.lower()
    if suffix in table.suffixes:
        with replacing(path) as file:
            table.write(file, suffix)
        return
    columns = table.columns()
    array = one_array(columns) if suffix in (".npy", ".npz") else None
    with replacing(path) as file:
        if array is not None:
            write_array(file, suffix, array)
        elif suffix == ".parquet":
            parquet.write_columns(file, columns)
        else:
            write_columns(file, columns, "\t" if suffix == ".tsv" else ",")


def one_array(columns: Sequence[Column]) -> np.ndarray:
    """The columns of numbers of a table as one array [N, D], none of the whole numbers changed.

    Args:
        columns: what `Table.columns()` gives; those that are carried are left out.

    Returns:
        [N, D] in the dtype that holds all of them, NaN for missing.

    Raises:
        ValueError: a whole number that this dtype cannot hold, one beyond 2^53 beside fractions.
    """
    parts = []
    for column in columns:
        if column.modelled:
            values = column.values
            if not isinstance(values, np.ndarray):
                whole = all(isinstance(value, int) for value in values)
                values = np.array(
                    [np.nan if value is None else value for value in values],
                    None if whole else np.float64,
                )
            parts.append(values)
    array = np.stack(parts, axis=1)
    for column, values in zip((c for c in columns if c.modelled), array.T, strict=True):
        for before, after in zip(column.values, values.tolist(), strict=True):
            # a decimal is rounded to a float64, a whole number must not be
            if isinstance(before, int | np.integer) and before != after:
                raise ValueError(f"path: column {column.name!r}: {before} would become {after}")
    return array


def save_table(
    path: str | os.PathLike[str], array: np.ndarray, features: Sequence[str] | None = None
) -> None:
    """Writes an array to a file, whole or not at all.

    Args:
        path: ends in .npy, .npz (stored as `x`), .csv, .tsv or .parquet; its directory exists.
        array: numbers, [N, D] for text and .parquet, any shape for the other two.
        features: D names, the header of text (none without them) and the columns of .parquet
            (feature_0, ... without them); the other two formats hold no names.

    Raises:
        ValueError: an unknown suffix, a missing directory, or arguments that do not fit together.
        ImportError: .parquet without the extra `tabular`.
    """
    path, array = check_target(path), np.asarray(array)
    suffix = path.suffix.lower()
    if array.dtype.kind not in "biuf":
        raise ValueError(f"array: expected numbers, got dtype {array.dtype}")
    if suffix not in (".npy", ".npz") and array.ndim != 2:
        raise ValueError(f"array: expected [N, D] for {suffix}, got shape {list(array.shape)}")
    if features is not None and (array.ndim != 2 or len(features) != array.shape[1]):
        raise ValueError(f"features: got {len(features)} names for shape {list(array.shape)}")
    if suffix in (".csv", ".tsv") and features is not None and not is_header(features):
        raise ValueError(f"features: {features!r} would read back as numbers from {suffix}")
    if suffix in (".npy", ".npz"):
        with replacing(path) as file:
            write_array(file, suffix, array)
        return
    names: Sequence[str | None] = features or [None] * array.shape[1]
    columns = [Column(name, array[:, d], True) for d, name in enumerate(names)]
    with replacing(path) as file:
        if suffix == ".parquet":
            parquet.write_columns(file, columns)
        else:
            write_columns(file, columns, "\t" if suffix == ".tsv" else ",")


def _read_array(path: Path) -> np.ndarray:
    suffix = path.suffix.lower()
    if _IDX_NAME.search(path.name):
        return read_idx(path)
    if suffix == ".npy":
        with path.open("rb") as file:
            return read_npy(file, path.stat().st_size)
    if suffix == ".npz":
        (array,) = read_npz(path).values()
        return array
    raise ValueError("expected .npy, .npz, .csv, .tsv, .parquet, .idx?-ubyte or .idx?-ubyte.gz")
