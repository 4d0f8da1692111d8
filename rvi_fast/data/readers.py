"""Data sets and tables from files, and tables to files.

A file is foreign until proved sound: sizes that a header announces are compared with what the file
can hold before anything is allocated, nothing is ever unpickled, and whatever is wrong with a file
comes out as one error, `DataError`, which names the file and the reason.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import remove_partial, replacing
from . import formats  # noqa: F401  (registers them)
from .files import blaming
from .formats.registry import WRITERS, listed, reader_of, writable
from .formats.table import Column, Table, one_array, single_precision
from .sets import DATASETS, Dataset
from .sets.registry import LOADERS

SUFFIXES = writable()


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
    if name in LOADERS:
        return LOADERS[str(name)](str(name), data_dir)
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
        path: .npy; .npz (the array `x`, or the only 2-D array); .csv or .tsv; .parquet; .feather or
            .arrow; .idx?-ubyte, plain or .gz.

            In text, cells are separated by commas, semicolons, tabs or bars, which is guessed; beside
            another separator than the comma, decimal commas are recognised. An empty cell, NA, N/A,
            NaN, NULL, None, `?`, `-` and `.` in any case are missing; in a file of one column an empty
            line is, elsewhere it counts for nothing. Cells may be quoted, a line that begins with # is
            a comment. The encoding is UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

            In Parquet and Feather, columns of numbers, bools and decimals are taken, and categories of
            numbers; the index of a DataFrame is carried.
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
        ending, reader = reader_of(path)
        given = {"header": header, "ignore": ignore, "also": also}
        for option, expected in (
            ("header", "a text file"),
            ("ignore", "a file with named columns"),
        ):
            refused = given[option] is not None and given[option] != ()
            if refused and option not in reader.takes:
                raise ValueError(f"{option}: expected {expected}, got {ending}")
        return reader.read(path, **{option: given[option] for option in reader.takes})


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
        raise ValueError(f"path: expected {listed(suffixes)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"path: the directory {path.parent} does not exist")
    if path.is_dir():
        raise ValueError(f"path: expected a file, {path} is a directory")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"path: the directory {path.parent} cannot be written to")
    if suffixes is not None:
        WRITERS[path.suffix.lower()].check()
    remove_partial(path.parent, path.name)
    return path


def write_table(path: str | os.PathLike[str], table: Table) -> None:
    """Writes a table that was read, whole or not at all.

    In the format it was read from, what was not filled in is as it was. In another format numbers keep
    their values, .npy and .npz hold the columns of numbers alone.

    Args:
        path: ends in .npy, .npz (stored as `x`) or another of `SUFFIXES`; its directory exists.
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
    writer, columns = WRITERS[suffix], table.columns()
    written = one_array(columns) if writer.arrays else columns
    with replacing(path) as file:
        writer.write(file, suffix, written)


def save_table(
    path: str | os.PathLike[str], array: np.ndarray, features: Sequence[str] | None = None
) -> None:
    """Writes an array to a file, whole or not at all.

    Args:
        path: ends in .npy, .npz (stored as `x`) or another of `SUFFIXES`; its directory exists.
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
    writer = WRITERS[suffix]
    if not writer.arrays and array.ndim != 2:
        raise ValueError(f"array: expected [N, D] for {suffix}, got shape {list(array.shape)}")
    if features is not None and (array.ndim != 2 or len(features) != array.shape[1]):
        raise ValueError(f"features: got {len(features)} names for shape {list(array.shape)}")
    if features is not None and writer.names is not None and not writer.names(features):
        raise ValueError(f"features: {features!r} would read back as numbers from {suffix}")
    written: Any = array
    if not writer.arrays:
        names: Sequence[str | None] = features or [None] * array.shape[1]
        written = [Column(name, array[:, d], True) for d, name in enumerate(names)]
    with replacing(path) as file:
        writer.write(file, suffix, written)
