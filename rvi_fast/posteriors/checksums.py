"""Checksums of tables in files: what a disk has changed is noticed before it is used.

Each table is divided into pieces of some rows, about a megabyte, and each piece has a CRC-32: whatever
single bit, or run of up to 32 bits, is another one is noticed, and of all else all but one in 2^32.
A piece is at rest or in use. At rest its bytes are those of its sum; it is checked as it is taken into
use or read, and summed up as it is put to rest again.

The file `checksums.json` beside the tables says what their sums are, and is sealed with its own
SHA-256. It is there while nothing writes to the tables: it is removed before the first write and
written again when the writer is done. So a table without it was being written to when a process ended,
or is of version 0.1.0: nothing is known of it, which a warning says. A resumed run knows better: its
checkpoint holds the sums, and its journal what has changed since.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..files import (
    CheckpointError,
    CheckpointWarning,
    read_bytes,
    sealed,
    sync_directory,
    unsealed,
    write_bytes,
)

NAME = "checksums.json"
# bytes of a piece of the widest table, at most: what one row that is read alone costs
_PIECE = 1 << 20
# in the place of a sum
UNKNOWN = -1
# how the file says so
_LACKING = "-" * 8
# the signature of a file that is not there
_ABSENT = ()


class Checksums:
    """The sums of the tables in one directory.

    Args:
        directory: where `NAME.bin` of each table lies.
        num_data: N, rows of each table.
        row_bytes: of the widest table.
    """

    def __init__(self, directory: Path, num_data: int, row_bytes: int) -> None:
        self.directory, self.num_data = directory, num_data
        self._path = directory / NAME
        self._bytes: dict[str, memoryview] = {}
        self._lock = threading.RLock()
        # whether sums here are those that count, and else what they were read from
        self._writing = False
        self._read_from: tuple[int, ...] | None = None
        self._warned = self._suspended = False
        self._divide(max(1, _PIECE // row_bytes))

    def add(self, name: str, table: Tensor, *, new: bool) -> None:
        """Another table [N, ...], mapped from its file.

        Args:
            name: of the file, without its suffix.
            table: what is mapped.
            new: it holds zeros and has taken the place of another, if there was one; `begin` first.
        """
        self._bytes[name] = table.reshape(-1).view(torch.uint8).numpy().data
        sums = [UNKNOWN] * self._pieces
        if new:
            last = self._pieces - 1
            sums = [zlib.crc32(bytes(len(self._content(name, 0))))] * self._pieces
            sums[last] = zlib.crc32(bytes(len(self._content(name, last))))
        self._sums[name] = sums
        self._read_from = None

    # what a reader and a writer of rows call

    def before_read(self, start: int, stop: int) -> None:
        """Rows [start, stop) are read next.

        Raises:
            CheckpointError: they are damaged; names the file and the rows.
        """
        self._read(self._pieces_of(start, stop))

    def before_rows_read(self, index: Tensor) -> None:
        """Rows `index` [B] are read next; raises as `before_read`."""
        self._read(self._pieces_with(index).tolist())

    def before_write(self, index: Tensor | None = None) -> None:
        """Rows `index` [B], or all rows, are written to next; raises as `before_read`."""
        if index is not None and bool(self._in_use[self._piece_numbers(index)].all()):
            return
        with self._lock:
            self.begin()
            pieces = range(self._pieces) if index is None else self._pieces_with(index).tolist()
            for piece in pieces:
                if not self._in_use[piece]:
                    self._check(piece)
                    self._in_use[piece] = True

    def forget(self, name: str) -> None:
        """All of a table is about to be written to, or has been, whatever it held."""
        with self._lock:
            self.begin()
            self._sums[name] = [UNKNOWN] * self._pieces
            self.before_write()

    def enter(self, start: int, stop: int) -> None:
        """Rows [start, stop) are worked on until they `leave`; raises as `before_read`."""
        with self._lock:
            self.begin()
            for piece in self._pieces_of(start, stop):
                if not self._in_use[piece]:
                    self._check(piece)
                self._users[piece] += 1
                self._in_use[piece] = True

    def leave(self, start: int, stop: int) -> None:
        """They are as they stay; pieces that no other rows hold are summed up."""
        with self._lock:
            for piece in self._pieces_of(start, stop):
                self._users[piece] -= 1
                if not self._users[piece]:
                    self._rest(piece)

    def extent(self, start: int, stop: int) -> tuple[int, int]:
        """The rows that share a checksum with rows [start, stop): first, and where they end."""
        pieces = self._pieces_of(start, stop)
        if not pieces:
            return start, stop
        return self._rows_of(pieces[0])[0], self._rows_of(pieces[-1])[1]

    def release(self, start: int, stop: int) -> None:
        """Rows up to `stop` are not needed for a while: puts to rest the pieces that end there."""
        with self._lock:
            for piece in self._pieces_of(start, stop):
                if self._rows_of(piece)[1] <= stop:
                    self._checked[piece] = False
                    if self._in_use[piece] and not self._users[piece]:
                        self._rest(piece)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Within it nothing is checked: rows are named, and not read."""
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    # the sums of all

    def begin(self) -> None:
        """The tables are about to be written to; returns when the disk knows."""
        with self._lock:
            if not self._writing:
                if self._bytes:
                    self._refresh()
                self._remove()

    def settle(self) -> dict[str, Tensor]:
        """Puts everything to rest; the sums, int64 by table and number of the piece."""
        with self._lock:
            self._users = [0] * self._pieces
            for piece in self._in_use.nonzero()[:, 0].tolist():
                self._rest(piece)
            for name, sums in self._sums.items():
                for piece, held in enumerate(sums):
                    if held == UNKNOWN:
                        sums[piece] = zlib.crc32(self._content(name, piece))
            numbers = {"piece_rows": self.piece_rows, **self._sums}
            return {name: torch.tensor(held, device="cpu") for name, held in numbers.items()}

    def adopt(self, held: Mapping[str, Tensor] | None, source: Path) -> None:
        """The tables are, or will be taken back to, what they were when `settle` returned this.

        Args:
            held: from a checkpoint; None where it has none, as those of 0.1.0.
            source: the checkpoint, for errors.
        """
        with self._lock:
            self._remove()
            if held is None:
                self._divide(self.piece_rows)
                self._warn(f"{source} has no checksums of {self.directory}")
                return
            sums = {name: tensor.tolist() for name, tensor in held.items() if name != "piece_rows"}
            self._take(int(held.get("piece_rows", 0)), sums, source)

    def write(self) -> None:
        """The writer is done: all is put to rest, and the file written.

        A disk that does not take it is a `CheckpointWarning`: the tables are as good as without.
        """
        with self._lock:
            if not self._writing:
                return
            self.settle()
            self._store()

    def watch(self, table: Tensor) -> None:
        """Has `notice` see what is written to the rows in this process without a word, by version."""
        self._seen, self._watched = [_version(table)], table
        # at the end of the process too
        weakref.finalize(self, _remove_if_written, table, self._seen, self._path)

    def retire(self) -> None:
        """Others take the place of the tables: what has been written to these no longer counts."""
        self._seen[0] = _version(self._watched)

    def notice(self) -> None:
        """Takes what was written to the rows without a word as meant."""
        version = _version(self._watched)
        if version != self._seen[0]:
            self._seen[0] = version
            self.forget("rows")

    # one piece

    def _read(self, pieces: Iterable[int]) -> None:
        if self._suspended:
            return
        with self._lock:
            self._refresh()
            for piece in pieces:
                if not (self._in_use[piece] or self._checked[piece]):
                    self._check(piece)

    def _check(self, piece: int) -> None:
        for name, sums in self._sums.items():
            held = sums[piece]
            if held != UNKNOWN and held != zlib.crc32(self._content(name, piece)):
                first, stop = self._rows_of(piece)
                if self._writing:  # it must not be forgotten that there is damage
                    self._store()
                raise CheckpointError(
                    self.directory / f"{name}.bin",
                    f"rows {first} to {stop - 1} do not match their checksum: they are damaged, or "
                    "another program has written to them; where that was meant, and no run is to be "
                    f"resumed from them, remove {NAME}",
                )
        self._checked[piece] = True

    def _rest(self, piece: int) -> None:
        for name, sums in self._sums.items():
            sums[piece] = zlib.crc32(self._content(name, piece))
        self._in_use[piece] = False
        self._checked[piece] = False

    def _content(self, name: str, piece: int) -> memoryview:
        content, (start, stop) = self._bytes[name], self._rows_of(piece)
        width = len(content) // self.num_data
        return content[start * width : stop * width]

    def _rows_of(self, piece: int) -> tuple[int, int]:
        start = piece * self.piece_rows
        return start, min(start + self.piece_rows, self.num_data)

    def _pieces_of(self, start: int, stop: int) -> range:
        return range(start // self.piece_rows, -(-min(stop, self.num_data) // self.piece_rows))

    def _piece_numbers(self, index: Tensor) -> Tensor:
        # a row that is out of range is for the op to report
        return (index.cpu() // self.piece_rows).clamp_(0, self._pieces - 1)

    def _pieces_with(self, index: Tensor) -> Tensor:
        return self._piece_numbers(index).unique()

    # the file

    def _divide(self, piece_rows: int) -> None:
        """Nothing is known of pieces of so many rows."""
        self.piece_rows, self._pieces = piece_rows, -(-self.num_data // piece_rows)
        self._sums = {name: [UNKNOWN] * self._pieces for name in self._bytes}
        self._checked = [False] * self._pieces
        # blocks at work on a piece; one without may be in use by rows that are written one by one
        self._users = [0] * self._pieces
        self._in_use = torch.zeros(self._pieces, dtype=torch.bool, device="cpu")

    def _take(self, piece_rows: int, sums: Mapping[str, list[int]], source: Path) -> None:
        pieces = -(-self.num_data // piece_rows) if piece_rows > 0 else 0
        for name in self._bytes:
            if name not in sums or len(sums[name]) != pieces:
                raise CheckpointError(source, f"has no checksums of {name} for {self.directory}")
        self._divide(piece_rows)
        for name in self._bytes:
            self._sums[name] = [*sums[name]]

    def _refresh(self) -> None:
        """Reads the file, if it is another one than last time: somebody else may have written it."""
        if self._writing:
            return
        found = _signature(self._path)
        if found is None:
            if self._read_from != _ABSENT:
                self._divide(self.piece_rows)
            found = _ABSENT
            self._warn(f"{self.directory} has no {NAME}")
        elif found != self._read_from:
            try:
                value = unsealed(read_bytes(self._path))
                if value["format"] != 1:
                    raise ValueError(f"has format {value['format']!r}, this version reads 1")
                sums = {name: _from_hex(text) for name, text in value["tables"].items()}
                piece_rows = int(value["piece_rows"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"is damaged: it {error}; without it the tables are used as they are"
                raise CheckpointError(self._path, reason) from error
            self._take(piece_rows, sums, self._path)
            if any(UNKNOWN in sums for sums in self._sums.values()):
                self._warn(f"{self._path} lacks the checksums of some rows")
        self._read_from = found

    def _store(self) -> None:
        """Writes the file, without the sums of what is in use."""
        used = self._in_use.tolist()
        tables = {
            name: "".join(
                _LACKING if at_work else _hex(held)
                for held, at_work in zip(sums, used, strict=True)
            )
            for name, sums in self._sums.items()
        }
        value = {"format": 1, "piece_rows": self.piece_rows, "tables": tables}
        try:
            write_bytes(self._path, sealed(value))
        except OSError as error:
            message = f"the checksums of the tables could not be written: {error}"
            warnings.warn(message, CheckpointWarning, stacklevel=4)
            return
        self._writing, self._read_from = False, _signature(self._path)
        self._seen[0] = _version(self._watched)

    def _remove(self) -> None:
        if _signature(self._path) is not None:
            self._path.unlink(missing_ok=True)
            sync_directory(self.directory)
        self._writing, self._read_from = True, None

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            message = (
                f"{what}, as if 0.1.0 had written it or a program had ended while it wrote: damage up "
                "to now is not noticed"
            )
            warnings.warn(message, CheckpointWarning, stacklevel=4)


def _signature(path: Path) -> tuple[int, ...] | None:
    """Changes whenever the file is written anew; None where there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _hex(held: int) -> str:
    return _LACKING if held == UNKNOWN else f"{held:08x}"


def _from_hex(text: str) -> list[int]:
    parts = [text[start : start + 8] for start in range(0, len(text), 8)]
    return [UNKNOWN if part == _LACKING else int(part, 16) for part in parts]


def _version(table: Tensor) -> int:
    return 0 if table.is_inference() else table._version


def _remove_if_written(table: Tensor, seen: Iterable[int], path: Path) -> None:
    if [_version(table)] != seen:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
