"""A Parquet file like another one, with other columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...files import replacing
from ..files import blaming, require
from .directory import ParquetDirectory

# what is written is Parquet in all its types
_CODECS = {"UNCOMPRESSED": "NONE", "LZ4": "LZ4_RAW"}


def rewrite(
    source: ParquetDirectory, name: str, path: Path, change: Callable[[int, Any], Any]
) -> None:
    """Writes the rows of a file as another one, whole or not at all, some of them at a time.

    Row groups are those of the file, in pieces where they are larger than a chunk of
    `ParquetDirectory.chunks`; each column keeps its compression.

    Args:
        source: the directory that holds it.
        name: of the file, one of `source.files`.
        path: what is written, replaced if it is there; its directory exists.
        change: makes of the number of the first row and a `pyarrow.Table` of some rows another table of
            as many; called with an empty one for a file without rows.

    Raises:
        DataError: the file is damaged.
    """
    parquet = require("pyarrow.parquet", "tabular")
    codecs, empty = _described(source.path / name)
    with replacing(path) as file:
        writer = None
        for first, table in source.chunks(name):
            changed = change(first, table)
            if writer is None:
                writer = parquet.ParquetWriter(file, changed.schema, compression=codecs)
            writer.write_table(changed, row_group_size=len(changed))
        if writer is None:
            writer = parquet.ParquetWriter(file, change(0, empty).schema)
        writer.close()


def _described(path: Path) -> tuple[Any, Any]:
    """How each column of a file is compressed, and a table of its columns without rows."""
    parquet = require("pyarrow.parquet", "tabular")
    with blaming(path), parquet.ParquetFile(path) as file:
        codecs: Any = {}
        if file.num_row_groups:
            group = file.metadata.row_group(0)
            for place in range(group.num_columns):
                column = group.column(place)
                codec = column.compression
                codecs[column.path_in_schema] = _CODECS.get(codec, codec)
        return codecs or "snappy", file.schema_arrow.empty_table()
