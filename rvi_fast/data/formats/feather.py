"""Feather files: Arrow's own format (version 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ..files import require
from .arrow import ArrowTable, arrow, from_columns, table_of
from .registry import reads, writes
from .table import Column


@reads(".feather", ".arrow", takes=("ignore", "also"))
def read(path: Path, ignore: Sequence[str], also: Sequence[str] = ()) -> ArrowTable:
    """Reads an Arrow IPC file; see `rvi_fast.data.read_table`."""
    library, ipc = arrow(), require("pyarrow.ipc", "tabular")
    # threads that read ahead of a fault would outlive it
    options = ipc.IpcReadOptions(use_threads=False)
    with path.open("rb") as file, ipc.open_file(file, options=options) as opened:
        table = opened.read_all()
    table.validate(full=True)  # offsets and lengths come from the file
    # what is read of a dictionary may differ from part to part
    return table_of(
        library.Table.unify_dictionaries(table), ignore, also, save, (".feather", ".arrow")
    )


@writes(".feather", ".arrow", needs=("pandas", "pyarrow"))
def write(file: IO[bytes], suffix: str, columns: Sequence[Column]) -> None:
    """Writes the columns of any table as an Arrow IPC file."""
    save(from_columns(columns), file)


def save(table: Any, file: IO[bytes]) -> None:
    """Writes a `pyarrow.Table`."""
    with require("pyarrow.ipc", "tabular").new_file(file, table.schema) as out:
        out.write_table(table)
