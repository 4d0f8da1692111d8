"""Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ..files import require
from .arrow import ArrowTable, arrow, from_columns, table_of
from .registry import reads, writes
from .table import Column


@reads(".parquet", takes=("ignore", "also"))
def read(path: Path, ignore: Sequence[str], also: Sequence[str] = ()) -> ArrowTable:
    """Reads a Parquet file; see `rvi_fast.data.read_table`."""
    arrow()
    parquet = require("pyarrow.parquet", "tabular")
    with path.open("rb") as file:
        # unlike read_table it takes names that come twice
        table = parquet.ParquetFile(file).read()
    return table_of(table, ignore, also, save, (".parquet",))


@writes(".parquet", needs=("pandas", "pyarrow"))
def write(file: IO[bytes], suffix: str, columns: Sequence[Column]) -> None:
    """Writes the columns of any table as a Parquet file."""
    save(from_columns(columns), file)


def save(table: Any, file: IO[bytes]) -> None:
    """Writes a `pyarrow.Table`."""
    require("pyarrow.parquet", "tabular").write_table(table, file)
