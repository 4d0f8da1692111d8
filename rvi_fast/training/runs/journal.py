"""What a resumed run needs to take tables in files back to its last checkpoint.

Tables as large as a disk are not copied into checkpoints: the files are the checkpoint, and a journal
remembers what has changed since. Before a block of rows is written to for the first time after a
checkpoint, its rows, moments and steps are copied into a file of the journal, and that file is on disk
under its name before the first write. A checkpoint

    1. waits until the tables are on disk,
    2. is written, by a rename, with its own token and that of the journal so far,
    3. begins a journal of its own token, and removes the one so far.

Where training goes on while 1 and 2 are done, the journal of 3 is begun before them, and a block is
copied into both before it is written to, until the one so far is removed: what 1 puts on disk may be
newer than the checkpoint then, in blocks that its journal holds.

Whatever a kill leaves, the newest checkpoint H finds one of three states. A journal of H: every block
that differs from H is in it, whole, and copying the blocks back gives H (again, if that was
interrupted: nothing is removed by it). No journal of H, but one of the checkpoint before: the kill came
between 2 and 3, nothing has been written since 1, and the tables are H as they are. Neither: something
else has written to the tables since, and the resume is refused. That something is another `fit`, which
discards the journal before it begins. What a program writes to `rows` by itself, and damage, are
noticed by the checksums of the tables, which H holds: they are compared block by block as the run goes
on, with what the journal has taken back. A block in the journal has a checksum of its own.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...files import read_bytes, replacing, sync_directory
from ...memory.room import InsufficientMemory, free_disk
from ...posteriors.selection import UNDO
from .checkpoints import CheckpointError, latest_epoch, load_checkpoint, remove_directory

_END = struct.Struct("<QI")


class Journal:
    """The journal of tables in one directory.

    Args:
        directory: where the tables lie.
        tables: [N, ...] by name, on the CPU.
        block_rows: rows in a block.
    """

    def __init__(self, directory: Path, tables: Mapping[str, Tensor], block_rows: int) -> None:
        self.directory, self.tables, self.block_rows = directory, tables, block_rows
        self.num_data = len(next(iter(tables.values())))
        # that of the checkpoint which is being written
        self.pending = ""
        self._check_room()
        # tokens of the journals that are written to, the one so far first, and blocks that each holds
        self._open: tuple[tuple[str, Tensor], ...] = (("", self._none()),)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def token(self) -> str:
        """That of the checkpoint which this takes the tables back to."""
        return self._open[0][0]

    def settle(self, run_dir: Path) -> None:
        """After a checkpoint could not be written: goes on with the journal that serves the newest.

        That is a new one where the checkpoint had its name when something failed.

        Raises:
            CheckpointError: it cannot be begun. What is written to the tables from here on would be
                taken for a part of the newest checkpoint, so nothing is.
        """
        if latest_epoch(run_dir) is None:
            return
        try:
            newest = load_checkpoint(run_dir).metadata.get("journal", {}).get("token")
            if newest == self.pending != self.token:
                self.saved()
            else:
                self._open = self._open[:1]
                discard(self.directory, but=self._folder(self.token))
        except (OSError, CheckpointError) as error:
            self._closed = True
            raise CheckpointError(run_dir, f"no journal could be begun: {error}") from error

    def begin(self, token: str) -> None:
        """The tables are now, and on disk, what the checkpoint of that token says."""
        self._make(token)
        self._open = ((token, self._none()),)
        discard(self.directory, but=self._folder(token))

    def fork(self) -> None:
        """The tables are what the pending checkpoint says, and go on before it is written."""
        self._make(self.pending)
        with self._lock:
            self._open = (*self._open[:1], (self.pending, self._none()))

    def saved(self) -> None:
        """The pending checkpoint has its name."""
        if self._open[-1][0] != self.pending:
            self.begin(self.pending)
            return
        with self._lock:
            self._open = self._open[1:]
        discard(self.directory, but=self._folder(self.token))

    def go_on_from(self, checkpoint: Path, token: str, previous: str) -> None:
        """Goes on with the journal of a checkpoint; `roll_back` is to follow.

        Raises:
            CheckpointError: the tables have been changed by something else.
        """
        self._open = ((token, self._none()),)
        if found_journal(self.directory, checkpoint, token, previous) is None:
            self.begin(token)

    def roll_back(self, before: int | None = None) -> None:
        """Takes the tables back to the beginning of the journal.

        Args:
            before: rows that the tables had then, if fewer: blocks in the journal can end there.

        Raises:
            CheckpointError: a file of the journal is damaged; once it is mended, this can be called
                again.
        """
        folder, kept = self._folder(self.token), self._open[0][1]
        for path in sorted(folder.glob("*.bin")):
            block = int(path.stem) if path.stem.isdecimal() else len(kept)
            if block >= len(kept):
                raise CheckpointError(path, f"is of none of the {len(kept)} blocks")
            parts = self._parts(block)
            size = sum(len(part) for part in parts)
            if before is not None and path.stat().st_size < size:
                parts = self._parts(block, before)
                size = sum(len(part) for part in parts)
            content = read_block(path, block, size)
            start = 0
            for part in parts:
                part[:] = content[start : start + len(part)]
                start += len(part)
            kept[block] = True
        discard(self.directory, but=folder)

    def before_write(self, index: Tensor) -> None:
        """Keeps the blocks of rows `index` [B] as they are now, unless that has been done."""
        blocks = index // self.block_rows
        if self._closed or not all(bool(kept[blocks].all()) for _, kept in self._open):
            for block in blocks.unique().tolist():
                self.keep(block)

    def keep(self, block: int) -> None:
        """Keeps a block as it is now, unless that has been done."""
        with self._lock:
            if self._closed:
                raise CheckpointError(self.directory, "nothing is written: the journal has failed")
            for token, kept in self._open:
                if kept[block]:
                    continue
                # what a kill leaves of a block goes with the journal
                with replacing(block_path(self._folder(token), block), sweep=False) as file:
                    parts = self._parts(block)
                    for part in parts:
                        file.write(part)
                    file.write(_end(block, parts))
                kept[block] = True

    def lacks_room(self) -> str | None:
        """Why the disk may be too small for two journals, in words; None where it is not."""
        size, room = sum(table.nbytes for table in self.tables.values()), free_disk(self.directory)
        if room is None or size <= room:
            return None
        return f"a second journal in {self.directory} needs up to {size} bytes, {room} are free"

    def _check_room(self) -> None:
        size = sum(table.nbytes for table in self.tables.values())
        held = sum(path.stat().st_size for path in self.directory.glob(f"{UNDO}*/*.bin"))
        room = free_disk(self.directory)
        if room is not None and size - held > room:
            raise InsufficientMemory(
                f"run_dir: the journal of the tables in {self.directory} needs up to {size - held} "
                f"bytes ({size / 1e9:.1f} GB) more, its disk has {room} ({room / 1e9:.1f} GB) free; "
                "make room, lower num_data, groups or latent_dim, or train without run_dir"
            )

    def _none(self) -> Tensor:
        """No block."""
        return torch.zeros(-(-self.num_data // self.block_rows), dtype=torch.bool, device="cpu")

    def _make(self, token: str) -> None:
        """A journal that is empty, on disk."""
        self._folder(token).mkdir(exist_ok=True)
        sync_directory(self.directory)

    def _folder(self, token: str) -> Path:
        return self.directory / f"{UNDO}{token}"

    def _parts(self, block: int, end: int | None = None) -> list[memoryview]:
        stop = (block + 1) * self.block_rows
        rows = slice(block * self.block_rows, stop if end is None else min(stop, end))
        return [t[rows].reshape(-1).view(torch.uint8).numpy().data for t in self.tables.values()]


def found_journal(directory: Path, checkpoint: Path, token: str, previous: str) -> Path | None:
    """The journal that takes tables back to a checkpoint; None where they are as it has left them.

    Args:
        directory: where the tables lie.
        checkpoint: for errors.
        token, previous: of the checkpoint, and of the one before.

    Raises:
        CheckpointError: the tables have been changed by something else.
    """
    own = directory / f"{UNDO}{token}"
    if own.is_dir():
        return own
    if not (directory / f"{UNDO}{previous}").is_dir():
        reason = f"cannot be resumed: the tables in {directory} have been changed since"
        raise CheckpointError(checkpoint, reason)
    return None


def block_path(journal: Path, block: int) -> Path:
    """The file of a block in a journal, if that holds it."""
    return journal / f"{block:09d}.bin"


def read_block(path: Path, block: int, size: int) -> memoryview:
    """What a file of a journal holds of a block: so many bytes, the tables one after the other.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        content = memoryview(read_bytes(path, size + _END.size))
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    # those of 0.1.0 end with the block
    if len(content) not in (size, size + _END.size):
        raise CheckpointError(path, f"has {len(content)} bytes, not those of a block")
    if len(content) > size and bytes(content[size:]) != _end(block, [content[:size]]):
        raise CheckpointError(path, "is damaged: it does not match its own checksum")
    return content[:size]


def _end(block: int, parts: Iterable[memoryview]) -> bytes:
    """What follows a block in its file: its number, and the CRC-32 of that and of the block."""
    crc = zlib.crc32(block.to_bytes(8, "little"))
    for part in parts:
        crc = zlib.crc32(part, crc)
    return _END.pack(block, crc)


def discard(directory: Path, but: Path | None = None) -> None:
    """Removes journals: they take nothing back from now on."""
    for path in sorted(directory.glob(f"{UNDO}*")):
        if path != but:
            remove_directory(path)
    for path in sorted(directory.glob(f".deleting-{UNDO}*")):
        remove_directory(path)
