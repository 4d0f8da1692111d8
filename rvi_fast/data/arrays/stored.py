"""An array in a file, whichever package reads it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...files import StrPath
from ..files import DataError, blaming
from ..parquet.mapped import map_table
from . import hdf5, zarr_store

# numbers and rows of a piece, about
_ROWS, _NUMBERS = 1 << 16, 1 << 23
_PLACE = re.compile(r"(.+?\.(h5|hdf5|zarr))(?::(.*))?", re.IGNORECASE | re.DOTALL)
# names in a message
_SHOWN = 20


def stored_place(place: StrPath) -> tuple[Path, str | None, Any] | None:
    """File, name within it or None, and what reads it; None for what is neither HDF5 nor zarr.

    Args:
        place: "file.h5", "file.h5:/group/x", "store.zarr", "store.zarr:/x", or a directory that is a
            zarr store by what lies in it.
    """
    match = _PLACE.fullmatch(str(place))
    if match is not None:
        name = None if match[3] is None else f"/{match[3].strip('/')}"
        reader = zarr_store if match[2].lower() == "zarr" else hdf5
        return Path(match[1]).expanduser(), name, reader
    path = Path(place).expanduser()
    return (path, None, zarr_store) if zarr_store.is_store(path) else None


class StoredArray:
    """An array of numbers [N, D] in an HDF5 file or a zarr store, of which some rows are read at a time.

    NaN is missing. uint8 are pixels, and [N, H, W] of them images; all other numbers are taken as
    floats. Nothing is unpickled, and no other file is read that the file names.

    Args:
        place: the file, "table.h5" or "table.hdf5", or the store, "table.zarr" (of format 2 or 3), with
            the name of the array within it after a colon, "table.h5:/group/x". Without a name the only
            array that is a table.
        ignore: numbers from 0 of columns that a model is not to take, as numbers or text.

    Attributes:
        path: the file or the store.
        name: of the array in it.
        num_rows: N.
        features: numbers from 0, as text, of the columns that a model takes.
        carried: number of each other column, and why it is none of them.
        dtype: of the array.

    Raises:
        DataError: there is no such file or array, it is damaged, or no table of numbers; or there are
            several, with the list of them.
        ValueError: `place` names no such file; `ignore` names no columns.
        ImportError: h5py or zarr is missing; the message says which extra to install.

    Example:
        >>> import tempfile, h5py, numpy as np, rvi_fast
        >>> directory = tempfile.TemporaryDirectory()
        >>> with h5py.File(f"{directory.name}/table.h5", "w") as file:
        ...     file["group/x"] = np.arange(6.0).reshape(3, 2)
        >>> table = rvi_fast.data.StoredArray(f"{directory.name}/table.h5:/group/x")
        >>> table.num_rows, table.features
        (3, ('0', '1'))
        >>> table.mapped(f"{directory.name}/cache")[1].tolist()
        [2.0, 3.0]
        >>> directory.cleanup()
    """

    def __init__(self, place: StrPath, *, ignore: Sequence[str | int] = ()) -> None:
        found = stored_place(place)
        if found is None:
            raise ValueError(f"place: expected a file .h5, .hdf5 or .zarr, got {str(place)!r}")
        self.path, name, reader = found
        # a module, which other processes cannot be given
        self._zarr = reader is zarr_store
        with blaming(self.path):
            if not self.path.exists():
                raise ValueError("no such file")
            arrays = self._reader.find(self.path)
            self.name = _chosen(arrays, name, self.path.name)
            self._array = arrays[self.name]
            if reason := self._reader.refused(self._array):
                raise ValueError(f"{self.name} {reason}")
        shape = tuple(map(int, self._array.shape))
        self.num_rows, self.dtype = shape[0], np.dtype(self._array.dtype)
        self.num_columns = int(np.prod(shape[1:]))
        left = [str(column) for column in ignore]
        names = [str(column) for column in range(self.num_columns)]
        for column in left:
            if column not in names:
                raise ValueError(
                    f"ignore: expected columns from 0 to {len(names) - 1}, got {column!r}"
                )
        self.features = tuple(column for column in names if column not in left)
        self.carried = tuple((column, "left out") for column in names if column in left)
        self._taken = np.array([int(column) for column in self.features], np.int64)
        if not len(self._taken):
            raise ValueError("ignore: expected some columns left, got all of them")

    @property
    def _reader(self) -> Any:
        return zarr_store if self._zarr else hdf5

    @property
    def pixels(self) -> bool:
        """Whether the numbers are pixels, uint8."""
        return bool(self.dtype == np.uint8)

    @property
    def piece_rows(self) -> int:
        """Rows of a piece."""
        size = max(1, min(_ROWS, _NUMBERS // self.num_columns))
        with blaming(self.path):
            held = self._reader.rows_of_chunk(self._opened())
        # of pieces from chunk to chunk each is read once
        return max(size // held, 1) * held if held * self.num_columns <= 8 * _NUMBERS else size

    def close(self) -> None:
        """Closes the file; to read more of it opens it again."""
        if (array := self.__dict__.pop("_array", None)) is not None:
            self._reader.close(array)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_array"}

    def _opened(self) -> Any:
        if "_array" not in self.__dict__:
            array = self._reader.find(self.path)[self.name]
            if reason := self._reader.refused(array):
                raise ValueError(f"{self.name} {reason}")
            rows, columns = int(array.shape[0]), int(np.prod(array.shape[1:]))
            found = (rows, columns, np.dtype(array.dtype))
            if found != (self.num_rows, self.num_columns, self.dtype):
                raise ValueError(f"{self.name} has changed since it was opened first")
            self._array = array
        return self._array

    def fingerprint(self) -> str:
        """SHA-256 of the array's name, shape and type, and of sizes and times of change of its files."""
        with blaming(self.path):
            stamp = self._reader.stamp(self.path, self._opened())
        described = [self.name, self.num_rows, self.features, self.dtype.str, stamp]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def pieces(self, rows: range | None = None) -> Iterator[range]:
        """Rows in pieces, of whole chunks of the file where those are not too large.

        Args:
            rows: which ones; all if not given.
        """
        rows = range(self.num_rows) if rows is None else rows
        size, start = self.piece_rows, rows.start
        while start < rows.stop:
            stop = min(start - start % size + size, rows.stop)
            yield range(start, stop)
            start = stop

    def read(self, rows: range) -> np.ndarray:
        """All columns of some rows [n, C], in the dtype of the array.

        Raises:
            DataError: they cannot be read.
        """
        with blaming(Path(f"{self.path}: {self.name}, from row {rows.start} on")):
            return np.asarray(self._opened()[rows.start : rows.stop]).reshape(len(rows), -1)

    def chunks(self, rows: range | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """The rows of `pieces`, one piece after the other.

        Yields:
            Number of the first row, and all columns of the rows, as `read` gives them.
        """
        return ((piece.start, self.read(piece)) for piece in self.pieces(rows))

    def numbers(self, first: int, block: np.ndarray) -> np.ndarray:
        """The features of some rows [n, D], float64 with NaN for missing, or uint8.

        Args:
            first: number of the first row.
            block: the rows, as `chunks` gives them.

        Raises:
            DataError: a number that is infinite in float32, with row and column.
        """
        values = block[:, self._taken]
        if self.pixels:
            return values
        values = values.astype(np.float64)
        with np.errstate(over="ignore"):
            wrong = np.isinf(values.astype(np.float32))
        if wrong.any():
            row, column = divmod(int(wrong.argmax()), values.shape[1])
            raise DataError(
                f"{self.path}: {self.name}: row {first + row}, column {self.features[column]}: infinite "
                "as float32"
            )
        return values

    def filled(self, block: np.ndarray, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Some rows with entries of the features filled in; all others keep their bits.

        Args:
            block: the rows, as `chunks` gives them.
            values: [n, D].
            where: bool [n, D], true = taken from `values`.
        """
        block = block.copy()
        rows, columns = where.nonzero()
        block[rows, self._taken[columns]] = values[where]
        return block

    def mapped(
        self, cache: StrPath, *, rows: range | None = None, progress: bool = False
    ) -> np.memmap[Any, Any]:
        """The numbers as a memory map [n, D] float32, or uint8, which `fit` takes as x.

        They are written once, some rows at a time, to a file in `cache`, which is whole or not there;
        where the array has not changed since, that file is opened. Files of arrays that have changed
        stay until somebody removes them.

        Args:
            cache: a directory, made where it is missing. It needs 4 n D bytes, or n D for uint8.
            rows: those that are asked for, for instance `training.distributed.rows_of_rank(num_rows)`
                in one of several processes; all if not given.
            progress: show a bar while the numbers are written.

        Raises:
            DataError: a number that is infinite in float32, with row and column; a damaged file.
            ValueError: `rows` are no part of the table.
        """
        rows = range(self.num_rows) if rows is None else rows
        if rows.step != 1 or not 0 <= rows.start < rows.stop <= self.num_rows:
            raise ValueError(f"rows: expected a part of range(0, {self.num_rows}), got {rows}")
        part = "" if len(rows) == self.num_rows else f"-{rows.start}-{rows.stop}"
        path = Path(cache) / f"array-{self.fingerprint()[:24]}{part}.npy"
        kind = "|u1" if self.pixels else "<f4"

        def numbers() -> Iterator[np.ndarray]:
            return (self.numbers(first, block).astype(kind) for first, block in self.chunks(rows))

        shape = (len(rows), len(self.features))
        return map_table(path, shape, numbers, kind=kind, progress=progress)


def _chosen(arrays: dict[str, Any], name: str | None, file: str) -> str:
    """The array that is asked for, or the only one."""
    tables = {label: array for label, array in arrays.items() if _is_table(array)}
    shown = [f"{label} {list(a.shape)} {a.dtype}" for label, a in list(arrays.items())[:_SHOWN]]
    listed = ", ".join(shown) or "no array"
    if name is None:
        if len(tables) != 1:
            raise ValueError(
                f"expected the name of an array, as in {file}:/name, or a single table of numbers; it "
                f"has {listed}"
            )
        return next(iter(tables))
    if name not in arrays:
        raise ValueError(f"expected an array that is there, got {name}; it has {listed}")
    if name not in tables:
        raise ValueError(
            f"expected numbers [N, D], or uint8 [N, H, W], got {name} {list(arrays[name].shape)} "
            f"{arrays[name].dtype}"
        )
    return name


def _is_table(array: Any) -> bool:
    kind, ndim = np.dtype(array.dtype), len(array.shape)
    shaped = ndim == 2 or (ndim == 3 and kind == np.uint8)
    return kind.kind in "biuf" and shaped and 0 not in array.shape


def write_stored(
    place: StrPath, shape: tuple[int, int], dtype: np.dtype, parts: Iterable[np.ndarray]
) -> None:
    """Writes an array to an HDF5 file, which is replaced, or a zarr store: whole or not at all.

    Args:
        place: as for `StoredArray`; without a name /x in HDF5, and the array itself in zarr.
        shape, dtype: of the array.
        parts: its rows, some at a time.
    """
    found = stored_place(place)
    if found is None:
        raise ValueError(f"place: expected a file .h5, .hdf5 or .zarr, got {str(place)!r}")
    path, name, writer = found
    default = "/" if writer is zarr_store else "/x"
    with blaming(path):
        writer.write(path, name or default, shape, np.dtype(dtype), parts)
