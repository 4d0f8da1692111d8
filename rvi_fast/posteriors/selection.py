"""How some rows of tables in files take the place of all of them, whatever ends the program meanwhile.

They are written to a directory within that of the tables, `.selecting`, as tables of their own with
a description and checksums. Once that is on disk it is renamed to `selected`, which decides it: before,
the tables are as they were; from then on, they are those that were selected, and whoever opens them
moves what is still there to its place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..files import lock, open_own, sync_directory
from ..memory import pages
from .checksums import NAME
from .description import DESCRIPTION

if TYPE_CHECKING:
    from .tables import MappedTables

# journals of runs, which take rows back to what they were
UNDO = "undo-"
_WRITING, _SELECTED = ".selecting", "selected"
# of whoever is at work in it
_LOCK = "lock"
# in the order in which they are moved
_FILES = ("rows.bin", "row_step.bin", "exp_avg.bin", "exp_avg_sq.bin", NAME, DESCRIPTION)
# rows in memory at once, about
_CHUNK = 1024
# rows read from anywhere at once: with each, systems map up to some hundred KB around it
_READ = 256


def copy_rows(
    source: MappedTables, tables: Mapping[str, Tensor], kept: Tensor, target: MappedTables
) -> None:
    """Writes some rows of tables to others, which are made, with their checksums.

    Args:
        source: where the tables lie.
        tables: [N, ...] by name, all that `source` has mapped, the rows first.
        kept: numbers of the rows, int64 [n].
        target: has none yet.

    Raises:
        CheckpointError: a row of `source`, kept or not, is damaged.
        InsufficientMemory: the disk has no room.
    """
    count = len(tables["rows"])
    for start in range(0, count, _CHUNK):
        source.before_rows(start, min(start + _CHUNK, count))
        _forget(tables)
    for name, table in tables.items():
        target.make(name, (len(kept), *table.shape[1:]), table.dtype, table.device)
        target.checksums.forget(name)
    # whole pieces, which are summed up as they are let go: what is read of others would stay
    piece_rows = target.checksums.piece_rows
    size = piece_rows * max(1, _CHUNK // piece_rows)
    for start in range(0, len(kept), size):
        stop = min(start + size, len(kept))
        for first in range(start, stop, _READ):
            index = kept[first : min(first + _READ, stop)]
            for name, table in tables.items():
                target.table(name)[first : first + len(index)] = table[index]
            _forget(tables)
        target.release(start, stop)


def _forget(tables: Mapping[str, Tensor]) -> None:
    """Lets go of all pages: with one that is read, systems map some before it too."""
    for table in tables.values():
        pages.forget_pages(*pages.bytes_of_rows(table, 0, len(table)))


@contextmanager
def replacing_rows(directory: Path) -> Iterator[Path]:
    """A directory for other tables, which take the place of those in `directory` past the with block.

    They have to be on disk at its end; after an error they disappear.

    Raises:
        BlockingIOError, PermissionError: another program selects rows of these tables.
    """
    sweep_selection(directory)
    writing = directory / _WRITING
    writing.mkdir(exist_ok=True)
    try:
        with open_own(writing / _LOCK, create=True) as held:
            lock(held)
            yield writing
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    sync_directory(writing)
    os.rename(writing, directory / _SELECTED)
    sync_directory(directory)
    finish_selection(directory)


def finish_selection(directory: Path) -> None:
    """Moves selected tables to their place, if a program has ended before it did."""
    selected = directory / _SELECTED
    if not selected.is_dir():
        return
    if (selected / _FILES[0]).exists():
        # nothing has been moved: what is here is of the rows of before
        for name in (NAME, *_FILES):
            if name != DESCRIPTION:
                (directory / name).unlink(missing_ok=True)
        for journal in directory.glob(f"{UNDO}*"):
            shutil.rmtree(journal)
        sync_directory(directory)
    for name in _FILES:
        if (selected / name).exists():
            os.rename(selected / name, directory / name)
    sync_directory(directory)
    shutil.rmtree(selected)


def sweep_selection(directory: Path) -> None:
    """Removes what a program has left that ended while it wrote; never raises."""
    writing = directory / _WRITING
    with suppress(OSError):
        if writing.is_dir():
            with open_own(writing / _LOCK, create=True) as held:
                lock(held)  # BlockingIOError: somebody is at work on it
            shutil.rmtree(writing)
