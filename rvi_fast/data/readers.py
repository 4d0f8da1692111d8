"""Data sets and tables from files, and tables to files.

A file is foreign until proved sound: sizes that a header announces are compared with what the file
can hold before anything is allocated, nothing is ever unpickled, and whatever is wrong with a file
comes out as one error, `DataError`, which names the file and the reason.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import replacing
from .files import blaming, require
from .formats.csv import is_header, read_csv
from .formats.idx import read_idx
from .formats.npy import read_npy, read_npz
from .formats.parquet import read_parquet
from .sets import DATASETS, Dataset, load_named
from .tables import as_table

_IDX_NAME = re.compile(r"[.-]idx\d-ubyte(\.gz)?$")


def load_data(
    name: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None
) -> Dataset:
    """Loads a data set by name, or a table from a file.

    MNIST and Fashion-MNIST are looked for in `data_dir`, `$RVI_FAST_DATA` and the cache
    (`$RVI_FAST_CACHE`, else `$XDG_CACHE_HOME/rvi_fast`, else `~/.cache/rvi_fast`), then downloaded
    to the cache and checked by MD5. CMU-MOSI is looked for likewise and never downloaded.

    Args:
        name: "digits" (8x8, needs scikit-learn, no file), "artificial" (10,000 + 2,000 rows, made
            by `artificial`), "mnist", "fashion-mnist", "mosi", or the path of a table: .npy; .npz
            (the array `x`, or the only 2-D array); .csv (an empty cell, NA or nan is missing; a
            first line of names, none of them a number, is the header); .parquet; .idx?-ubyte, plain
            or .gz. uint8 arrays are pixels, and [N, H, W] of them images; all other numbers become
            float32.
        data_dir: the first directory to look in for a data set by name.

    Returns:
        A `Dataset`. Files have no test part and no labels.

    Raises:
        DataError: a file is missing, malformed, empty, not numeric, or holds an infinite number.
        ImportError: an optional package is missing; the message says which extra to install.

    >>> load_data("digits").train.shape
    (1797, 64)
    """
    if name in DATASETS:
        return load_named(str(name), data_dir)
    path = Path(name).expanduser()
    with blaming(path):
        if not os.path.isfile(path):
            raise ValueError(f"no such file, nor a data set (those are {', '.join(DATASETS)})")
        values, features = _read_file(path)
        table, image_shape = as_table(values, features)
    return Dataset(str(name), table, image_shape=image_shape, features=features)


def save_table(
    path: str | os.PathLike[str], array: np.ndarray, features: Sequence[str] | None = None
) -> None:
    """Writes an array to a file, whole or not at all.

    Args:
        path: ends in .npy, .npz (stored as `x`), .csv or .parquet; its directory exists.
        array: numbers, [N, D] for .csv and .parquet, any shape for the other two.
        features: D names, the header of .csv (none without them) and the columns of .parquet
            (feature_0, ... without them); the other two formats hold no names.

    Raises:
        ValueError: an unknown suffix, a missing directory, or arguments that do not fit together.
        ImportError: .parquet without the extra `tabular`.
    """
    path, array = Path(path), np.asarray(array)
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".npz", ".csv", ".parquet"):
        raise ValueError(f"path: expected .npy, .npz, .csv or .parquet, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"path: the directory {path.parent} does not exist")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"array: expected numbers, got dtype {array.dtype}")
    if suffix in (".csv", ".parquet") and array.ndim != 2:
        raise ValueError(f"array: expected [N, D] for {suffix}, got shape {list(array.shape)}")
    if features is not None and (array.ndim != 2 or len(features) != array.shape[1]):
        raise ValueError(f"features: got {len(features)} names for shape {list(array.shape)}")
    if suffix == ".csv" and features is not None and not is_header(features):
        raise ValueError(f"features: {features!r} would read back as numbers from .csv")
    with replacing(path) as file:
        if suffix == ".npy":
            np.save(file, array, allow_pickle=False)
        elif suffix == ".npz":
            np.savez(file, x=array)
        elif suffix == ".csv":
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text, lineterminator="\n")
            if features is not None:
                writer.writerow(features)
            # numpy scalars print as the shortest text that reads back as the same number
            writer.writerows(array.astype(np.uint8) if array.dtype == bool else array)
            text.detach()
        else:
            names = features or [f"feature_{column}" for column in range(array.shape[1])]
            frame = require("pandas", "tabular").DataFrame(array, columns=list(names))
            require("pyarrow", "tabular")
            frame.to_parquet(file, engine="pyarrow", index=False)


def _read_file(path: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    suffix = path.suffix.lower()
    if _IDX_NAME.search(path.name):
        return read_idx(path), None
    if suffix == ".npy":
        with path.open("rb") as file:
            return read_npy(file, path.stat().st_size), None
    if suffix == ".npz":
        (array,) = read_npz(path).values()
        return array, None
    if suffix == ".csv":
        return read_csv(path)
    if suffix == ".parquet":
        return read_parquet(path)
    raise ValueError("expected .npy, .npz, .csv, .parquet, .idx?-ubyte or .idx?-ubyte.gz")
