"""Where the tables of a posterior lie: in memory of a device, of the host, or in files mapped into it.

Mapped tables are files in one directory, shared maps of which torch and the kernels see as tensors. The
system writes dirty pages back when it likes; what `sync` has returned from is on disk.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._devices import device_row, kinds_of_devices
from ..files import CheckpointError, StrPath, sealed, write_bytes
from ..memory import pages
from .checksums import Checksums
from .description import DESCRIPTION, read_description
from .disk import reserve, reserve_more
from .selection import copy_rows, finish_selection, replacing_rows, sweep_selection

_FORMAT = 1
# of a posterior and its optimiser
_NAMES = ("rows", "row_step", "exp_avg", "exp_avg_sq")


class Tables:
    """Tables in the memory of a device; every row of each belongs to one datapoint."""

    def make(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """A table of zeros."""
        return torch.zeros(tuple(shape), dtype=dtype, device=device)

    def staged(self, device: torch.device) -> bool:
        """Whether what works on that device works on copies of the rows."""
        return False

    def before_read(self, index: Tensor | None) -> None:
        """Rows `index` [B], or all rows, are read next."""

    def before_rows(self, start: int, stop: int) -> None:
        """Rows [start, stop) are read next."""

    def before_write(self, index: Tensor) -> None:
        """Rows `index` [B] are written to next."""

    def before_rewrite(self) -> None:
        """The packed rows are about to be replaced by others, all of them."""

    def notice_writes(self) -> None:
        """What has been written to `rows` so far, by whom so ever, was meant."""

    def unread(self) -> AbstractContextManager[None]:
        """Within it rows are named and not read."""
        return nullcontext()

    def seal(self) -> None:
        """What wrote to the tables is done."""

    def enter(self, start: int, stop: int) -> None:
        """Rows [start, stop) of all tables are worked on until they `leave`."""

    def leave(self, start: int, stop: int) -> None:
        """They have been worked on."""

    def prefetch(self, start: int, stop: int) -> None:
        """Rows [start, stop) of all tables will be needed soon."""

    def release(self, start: int, stop: int) -> None:
        """Rows [start, stop) of all tables are not needed for a while."""

    def sync(self) -> None:
        """Returns when everything is on disk that belongs there."""


class HostTables(Tables):
    """Tables in the memory of the host, whichever device works on them."""

    def staged(self, device: torch.device) -> bool:
        return device.type != "cpu"


class MappedTables(HostTables):
    """Tables in the files of a directory, with checksums that are compared as rows are read.

    What `fit`, a `RowAdam` or a method of the posterior writes gets its checksums; so does what this
    process writes to `rows` itself while no `RowAdam` drives them.

    Args:
        directory: created where it is missing.

    Raises:
        CheckpointError: a method finds a file damaged; names it and the rows.
        InsufficientMemory: the disk has no room; asked for when a table is made, and reserved then, so
            that a full disk is an error and not the end of the process.
    """

    def __init__(self, directory: StrPath) -> None:
        self.directory = Path(directory).absolute()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"storage: expected a directory, got {directory}: a file") from error
        self._tables: dict[str, Tensor] = {}
        self._keep = False
        self._drawn: dict[str, str] = {}
        # whether a program ended while the tables grew: what files have at their ends is of no table
        self._grew = False
        # there as soon as there are rows, the first table
        self.checksums: Checksums

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within it `make` opens the tables that are there as they are."""
        self._keep = True
        try:
            yield
        finally:
            self._keep = False

    def make(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        path, size = self.directory / f"{name}.bin", dtype.itemsize
        for length in shape:
            size *= length
        if self._keep:
            held = path.stat().st_size if path.is_file() else None
            if self._grew and held is not None and held > size:
                os.truncate(path, size)
            elif held != size:
                reason = "is missing" if held is None else f"has {held} bytes"
                raise CheckpointError(
                    path, f"{reason}, a table {list(shape)} of {dtype} has {size} bytes"
                )
        else:
            if self._tables:
                self.checksums.notice()
                self.checksums.begin()
            # a new file: whoever still reads the one before keeps its map of it
            path.unlink(missing_ok=True)
            reserve(path, size)
        flat = torch.from_file(str(path), shared=True, size=size // dtype.itemsize, dtype=dtype)
        self._tables[name] = table = flat.view(tuple(shape))
        if name == "rows":
            self.checksums = Checksums(self.directory, shape[0], size // shape[0])
            self.checksums.watch(table)
            if not self._keep:
                self.checksums.begin()
        self.checksums.add(name, table, new=not self._keep)
        return table

    def holds(self, description: dict[str, Any]) -> bool:
        """Whether the directory holds finished rows of a posterior of this description.

        Raises:
            ValueError: it holds those of another.
            CheckpointError: what it says is damaged.
        """
        finish_selection(self.directory)
        sweep_selection(self.directory)
        found = read_description(self.directory, description)
        if found is None:
            return False
        self._drawn, self._grew = found.pop("drawn", {}), found.pop("grows", False)
        whole = found.get("table_size", 0)
        if whole < description.get("table_size", 0):
            # the same rows of a table that has got more of them since
            found["table_size"] = description["table_size"]
        if found != {"format": _FORMAT, **description}:
            raise ValueError(
                f"storage: {self.directory} holds the tables of another posterior: {found}, expected "
                f"{description}"
            )
        return True

    def skip_drawing(self, generator: torch.Generator) -> None:
        """Leaves a generator as if the rows had been drawn from it, if it stands where it stood then.

        A program that is killed and started again makes the same model, whether or not it had come
        as far as to fill the rows.
        """
        if self._drawn.get("before") == _digest(generator.get_state()):
            after = bytearray.fromhex(self._drawn["after"])
            generator.set_state(torch.frombuffer(after, dtype=torch.uint8))

    def finish(
        self,
        description: dict[str, Any],
        before: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Says that the rows have been filled: a directory without this is begun again.

        Args:
            description: of what, see `holds`.
            before: state of the generator when the rows were drawn; None where it was torch's.
            generator: what they were drawn from.
        """
        self.sync()
        if before is not None and generator is not None:
            after = generator.get_state().numpy().tobytes().hex()
            self._drawn = {"before": _digest(before), "after": after}
        self.seal()
        self._describe(description)

    def _describe(self, description: dict[str, Any], **more: Any) -> None:
        entries = {"format": _FORMAT, **description, "drawn": self._drawn, **more}
        write_bytes(self.directory / DESCRIPTION, sealed(entries))

    def table(self, name: str) -> Tensor:
        """A table as it is mapped now."""
        return self._tables[name]

    def grow(self, description: dict[str, Any], added: int) -> None:
        """Adds rows of zeros to the ends of all tables in the directory, where they are.

        What was mapped before stays mapped, and shows the rows of before; see `table`. A program that
        ends meanwhile leaves tables as they were.

        Args:
            description: of what they are of, see `holds`.
            added: how many rows.

        Raises:
            InsufficientMemory: the disk has no room; nothing is changed then.
        """
        before = int(description["num_data"])
        paths = [path for name in _NAMES if (path := self.directory / f"{name}.bin").is_file()]
        # each has been checked as it was read; they are summed up anew
        self.before_read(None)
        self.checksums.begin()
        self._describe(description, grows=True)
        reserve_more(paths, added, before)
        for name, table in self._tables.items():
            shape = (before + added, *table.shape[1:])
            path, size = self.directory / f"{name}.bin", math.prod(shape)
            flat = torch.from_file(str(path), shared=True, size=size, dtype=table.dtype)
            self._tables[name] = flat.view(shape)
        rows = self._tables["rows"]
        self.checksums = Checksums(self.directory, len(rows), rows[0].nbytes)
        self.checksums.begin()
        for name, table in self._tables.items():
            self.checksums.add(name, table, new=False)
        self._describe({**description, "num_data": before + added})

    def select(
        self, kept: Tensor, description: dict[str, Any], storage: StrPath | None
    ) -> MappedTables:
        """Tables of some rows, in the place of these or in another directory, which leaves these alone.

        A program that ends meanwhile leaves all rows, or those that are kept; in another directory
        those, or what is begun again.

        Args:
            kept: numbers of the rows, int64 [n].
            description: of what the new tables are of, see `holds`.
            storage: the other directory.

        Raises:
            CheckpointError: a row is damaged.
            InsufficientMemory: the disk has no room; nothing is changed then.
        """
        other = None if storage is None else MappedTables(storage)
        if other is not None and other.directory.resolve() != self.directory.resolve():
            if (other.directory / DESCRIPTION).exists():
                raise ValueError(f"storage: expected a directory without tables, got {storage}")
            copy_rows(self, self._tables, kept, other)
            other._drawn = self._drawn
            other.finish(description)
            self.seal()
            return other
        with replacing_rows(self.directory) as writing:
            new = MappedTables(writing)
            copy_rows(self, self._tables, kept, new)
            new._drawn = self._drawn
            new.finish(description)
            self.checksums.retire()
        placed = MappedTables(self.directory)
        placed.holds(description)
        with placed.kept():
            for name, table in self._tables.items():
                placed.make(name, (len(kept), *table.shape[1:]), table.dtype, table.device)
        return placed

    def before_read(self, index: Tensor | None) -> None:
        if torch.compiler.is_compiling():
            return
        if index is None:
            self.checksums.before_read(0, self.checksums.num_data)
        else:
            self.checksums.before_rows_read(index)

    def before_rows(self, start: int, stop: int) -> None:
        self.checksums.before_read(start, stop)

    def before_write(self, index: Tensor) -> None:
        self.checksums.before_write(index)

    def before_rewrite(self) -> None:
        self.checksums.forget("rows")

    def notice_writes(self) -> None:
        if not torch.compiler.is_compiling():
            self.checksums.notice()

    def unread(self) -> AbstractContextManager[None]:
        return self.checksums.suspended()

    def seal(self) -> None:
        self.checksums.write()

    def enter(self, start: int, stop: int) -> None:
        self.checksums.enter(start, stop)
        self._forget_around(start, stop)

    def leave(self, start: int, stop: int) -> None:
        self.checksums.leave(start, stop)
        self._forget_around(start, stop)

    def _forget_around(self, start: int, stop: int) -> None:
        """Lets go of what was read of other blocks, whose rows share a checksum with these."""
        first, last = self.checksums.extent(start, stop)
        for table in self._tables.values():
            for rows in ((first, start), (stop, last)):
                pages.forget_pages(*pages.bytes_of_rows(table, *rows))

    def prefetch(self, start: int, stop: int) -> None:
        for table in self._tables.values():
            address, length = pages.pages_of_rows(table, start, stop)
            # faults in a step cost more than here; systems before Linux 5.14 read ahead only
            if sys.platform != "linux" or pages.call(
                "madvise", address, length, pages.POPULATE_WRITE
            ):
                pages.call("madvise", address, length, pages.WILLNEED)

    def release(self, start: int, stop: int) -> None:
        self.checksums.release(start, stop)
        for name, table in self._tables.items():
            address, length = pages.pages_of_rows(table, start, stop)
            # the map lets go of pages at once, the system when they are on disk: to wait for that here
            # would hold up the block to come. In this order: beside writes of pages that are still
            # mapped steps were measured to take a fifth longer
            pages.call("madvise", address, length, pages.DONTNEED)
            pages.start_writing(self.directory / f"{name}.bin", address - table.data_ptr(), length)

    def sync(self) -> None:
        for name, table in self._tables.items():
            if error := pages.call(
                "msync", *pages.pages_of_rows(table, 0, len(table)), pages.MS_SYNC
            ):
                raise OSError(error, os.strerror(error), str(self.directory / f"{name}.bin"))


def rows_in(directory: StrPath) -> int | None:
    """Rows of the finished tables in a directory of a whole posterior; None where there are none.

    Raises:
        CheckpointError: what the directory says of them is damaged.
    """
    finish_selection(Path(directory))
    found = read_description(Path(directory), {"num_data": 0, "layout": [], "dtype": ""})
    return None if found is None else int(found["num_data"])


def shard_directory(directory: StrPath, rows: range) -> Path:
    """Where files of a shard lie, within the directory of the whole table."""
    return Path(directory) / f"rows-{rows.start}-{rows.stop}"


def open_tables(
    storage: StrPath, device: torch.device | str | None, shard: range | None = None
) -> Tables:
    """The tables that `RelayPosterior(storage=..., shard=...)` asks for."""
    if storage != "device":
        wanted = torch.get_default_device() if device is None else torch.device(device)
        if not device_row(wanted.type).hosts:
            raise ValueError(
                f"storage: expected 'device' for a posterior on {wanted}, got {os.fspath(storage)!r}: "
                f"tables outside device memory serve {kinds_of_devices(hosts=True)}"
            )
    if storage == "device":
        return Tables()
    if storage == "host":
        return HostTables()
    return MappedTables(storage if shard is None else shard_directory(storage, shard))


def _digest(state: Tensor) -> str:
    return hashlib.sha256(state.numpy().data).hexdigest()
