"""An array that is being written, beside its place: its rows, which of them are there, who writes them.

.NAME.filling.npy     the whole array; bytes of rows that are not done may be any
.NAME.filling.jsonl   data, model and options; then a line for each piece, written when that is on disk
.NAME.filling.lock    locked by the process that writes, or has others write
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ...files import (
    amending,
    append_line,
    durable,
    lock,
    naming,
    open_own,
    read_lines,
    rewrite_lines,
    write_all,
)
from ..runs.directory import RunDirectoryInUse


class RowFile(NamedTuple):
    """A .npy file of an array, whose rows processes write wherever they are.

    Attributes:
        path: the file.
        shape, dtype: of the array.
    """

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype

    @property
    def _header(self) -> bytes:
        content = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(content, {**described, "shape": self.shape})
        return content.getvalue()

    @property
    def _width(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    def make(self) -> None:
        """Makes the file, on disk with its whole length."""
        header = self._header
        with durable(self.path) as file:
            file.write(header)
            file.truncate(len(header) + self.shape[0] * self._width)

    def there(self) -> bool:
        """Whether `make` has made it."""
        header = self._header
        with suppress(FileNotFoundError), naming(self.path), open_own(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            whole = size == len(header) + self.shape[0] * self._width
            return whole and file.read(len(header)) == header
        return False

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file for `write`; past the with block what was written is on disk."""
        with amending(self.path) as file:
            yield file

    def write(self, file: IO[bytes], first: int, rows: np.ndarray) -> None:
        """Writes rows [n, C] from row `first` on into the file that `open` gives."""
        content = np.ascontiguousarray(rows, self.dtype).reshape(-1).view(np.uint8)
        file.seek(len(self._header) + first * self._width)
        write_all(file, content.data)

    def mapped(self) -> np.memmap[Any, Any]:
        """The array, for reading."""
        return np.load(self.path, mmap_mode="r")


class Outputs:
    """What is done of an array: of the same job, or else nothing.

    Args:
        place: the file or store to be, which this process holds (`held`).
        shape, dtype: of the array.
        job: what is done, as JSON gives it back.

    Attributes:
        file: the rows.
        filled: how many entries were filled in, by the first row of each piece that is done.

    Raises:
        ValueError: the list of pieces is damaged.
    """

    def __init__(
        self, place: Path, shape: tuple[int, int], dtype: np.dtype, job: dict[str, Any]
    ) -> None:
        self.file = RowFile(_beside(place, "npy"), shape, dtype)
        self._list, self.filled = _beside(place, "jsonl"), dict[int, int]()
        try:
            lines = read_lines(self._list)
        except ValueError as error:
            raise ValueError(f"out: {self._list}: {error}; remove it to begin anew") from error
        if lines[:1] == [job] and self.file.there():
            self.filled = {line["first"]: line["filled"] for line in lines[1:] if "first" in line}
            return
        # in this order: a list never tells of rows of another file
        self._list.unlink(missing_ok=True)
        self.file.path.unlink(missing_ok=True)
        self.file.make()
        rewrite_lines(self._list, [job])

    def add(self, rows: range, filled: int) -> None:
        """Notes that the rows of a piece are on disk."""
        append_line(self._list, {"first": rows.start, "rows": len(rows), "filled": filled})
        self.filled[rows.start] = filled

    def remove(self) -> None:
        """Removes what lies beside the array, once that has its place."""
        self.file.path.unlink(missing_ok=True)
        self._list.unlink(missing_ok=True)


@contextmanager
def held(place: Path) -> Iterator[None]:
    """Holds a place for this process: within it no other one writes there.

    Raises:
        RunDirectoryInUse: another process holds it, or another call in this one.
    """
    path, there = _beside(place, "lock"), False
    while not there:
        with open_own(path, create=True) as guard:
            try:
                with naming(path):
                    lock(guard)
            except (BlockingIOError, PermissionError) as error:
                raise RunDirectoryInUse(f"{place} is being written by another process") from error
            # who held it until now may have removed the file, and another process made a new one
            if there := _is_at(guard, path):
                try:
                    yield
                finally:
                    if os.name != "nt":  # which removes no open file
                        path.unlink(missing_ok=True)
    if os.name == "nt":
        with suppress(OSError):  # another one has opened it
            path.unlink()


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _beside(place: Path, ending: str) -> Path:
    return place.with_name(f".{place.name}.filling.{ending}")
