"""Tables in files of a checkpoint whose rows several processes hold, each in a directory of its own.

A checkpoint names the directories, and the rows in each, by the names of their checksums. Whoever holds
other rows than those that wrote it reads what it needs from them, as they were at the checkpoint: what
the journal has of a block, and else what the file has. Nothing is written to them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...posteriors.checksums import UNKNOWN
from ...posteriors.tables import shard_directory
from .checkpoints import Checkpoint, CheckpointError, remove_directory
from .journal import block_path, discard, found_journal, read_block

_NAME = re.compile(r"rows-(\d+)-(\d+)")
# rows read at once of tables without checksums
_PIECE_ROWS = 1024
# what lies in the directory of a whole table
_FILES = (
    "tables.json",
    "checksums.json",
    "rows.bin",
    "exp_avg.bin",
    "exp_avg_sq.bin",
    "row_step.bin",
)


def parts_of(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """Checksums of each directory by its name, "" where one process held all rows."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, sums in checkpoint.tensors.get("checksums", {}).items():
        name, _, part = key.partition(".")
        parts.setdefault(part, {})[name] = sums
    return parts or {"": {}}


class Part:
    """Rows of tables in one directory, as they were at a checkpoint.

    Args:
        checkpoint: of a run with tables in files.
        directory: where they lie.
        rows: which they are of the whole table.
        sums: their checksums.
        widths: bytes of a row of each table, in the order in which journals hold them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: Path,
        rows: range,
        sums: Mapping[str, Tensor],
        widths: Mapping[str, int],
    ) -> None:
        self.directory, self.rows, self.widths, self._sums = directory, rows, widths, sums
        self._piece_rows = int(sums.get("piece_rows", _PIECE_ROWS))
        self._block_rows = int(checkpoint.metadata["settings"]["block_rows"])
        self._journal = found_journal(directory, checkpoint.path, **checkpoint.metadata["journal"])
        self._files = {name: self._file(name, width) for name, width in widths.items()}
        self._block: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def _file(self, name: str, width: int) -> np.ndarray:
        path = self.directory / f"{name}.bin"
        try:
            found = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise CheckpointError(path, f"cannot be read: {error}") from error
        if len(found) != width * len(self.rows):
            reason = f"has {len(found)} bytes, expected {len(self.rows)} rows of {width}"
            raise CheckpointError(path, reason)
        return found.reshape(len(self.rows), width)

    def read(self, wanted: range) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
        """Those of `wanted` that lie here, some at a time: which, and their bytes [n, width] by table.

        Raises:
            CheckpointError: they do not match their checksums.
        """
        first = max(wanted.start - self.rows.start, 0)
        end = min(wanted.stop - self.rows.start, len(self.rows))
        size = self._piece_rows
        for piece in range(first // size, -(-end // size)):
            start, stop = piece * size, min((piece + 1) * size, len(self.rows))
            content = self._content(start, stop)
            for name, table in content.items():
                held = int(self._sums[name][piece]) if name in self._sums else UNKNOWN
                if held not in (UNKNOWN, zlib.crc32(table.data)):
                    path = self.directory / f"{name}.bin"
                    reason = f"rows {start} to {stop - 1} do not match their checksum"
                    raise CheckpointError(path, reason)
            low, high = max(first, start), min(end, stop)
            rows = range(self.rows.start + low, self.rows.start + high)
            yield rows, {n: table[low - start : high - start] for n, table in content.items()}

    def _content(self, start: int, stop: int) -> dict[str, np.ndarray]:
        content = {name: file[start:stop].copy() for name, file in self._files.items()}
        size = self._block_rows
        for block in range(start // size, -(-stop // size) if self._journal else 0):
            first = block * size
            low, high = max(first, start), min(first + size, stop)
            for name, table in self._kept(block).items():
                content[name][low - start : high - start] = table[low - first : high - first]
        return content

    def _kept(self, block: int) -> dict[str, np.ndarray]:
        """What the journal has of a block, nothing where that has not changed."""
        assert self._journal is not None
        path = block_path(self._journal, block)
        if not path.exists():
            return {}
        if self._block[0] != block:
            count = min(self._block_rows, len(self.rows) - block * self._block_rows)
            content = read_block(path, block, count * sum(self.widths.values()))
            tables, at = {}, 0
            for name, width in self.widths.items():
                tables[name] = np.frombuffer(content[at : at + count * width], np.uint8)
                tables[name] = tables[name].reshape(count, width)
                at += count * width
            self._block = block, tables
        return self._block[1]


def read_rows(
    checkpoint: Checkpoint, root: Path, rows: range, num_data: int, widths: Mapping[str, int]
) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
    """Rows of a checkpoint from wherever they lie in files, some at a time, in order.

    Args:
        checkpoint: of a run with tables in files.
        root: the directory of the whole table.
        rows: which ones.
        num_data: N.
        widths: bytes of a row of each table.

    Raises:
        CheckpointError: files are missing, damaged, or have been changed by something else.
    """
    end = 0
    for held, directory, sums in _directories(checkpoint, root, num_data):
        if held.start != end:
            raise CheckpointError(checkpoint.path, f"has no tables of rows from {end} on")
        end = held.stop
        if max(held.start, rows.start) < min(held.stop, rows.stop):
            yield from Part(checkpoint, directory, held, sums, widths).read(rows)
    if end != num_data:
        raise CheckpointError(checkpoint.path, f"has tables of {end} rows, expected {num_data}")


def _directories(
    checkpoint: Checkpoint, root: Path, num_data: int
) -> list[tuple[range, Path, dict[str, Tensor]]]:
    found = []
    for name, sums in parts_of(checkpoint).items():
        match = _NAME.fullmatch(name)
        rows = range(num_data) if match is None else range(int(match[1]), int(match[2]))
        found.append((rows, root if match is None else shard_directory(root, rows), sums))
    return sorted(found, key=lambda entry: entry[0].start)


def in_memory(
    checkpoint: Checkpoint, root: Path, num_data: int, tables: Mapping[str, Tensor]
) -> Checkpoint:
    """The same checkpoint as if its tables had been in memory.

    Args:
        checkpoint, root, num_data: as in `read_rows`.
        tables: empty ones of their dtypes and shapes but for the rows, by name.
    """
    held = _directories(checkpoint, root, num_data)
    size = sum(_size(directory / "rows.bin") for _, directory, _ in held)
    if size != num_data * row_width(tables["rows"]):  # what is not there must not be allocated for
        raise CheckpointError(checkpoint.path, f"has tables of {size} bytes for {num_data} rows")
    whole = {name: table.new_empty((num_data, *table.shape[1:])) for name, table in tables.items()}
    widths = {name: row_width(table) for name, table in tables.items()}
    for rows, content in read_rows(checkpoint, root, range(num_data), num_data, widths):
        for name, table in whole.items():
            put(table[rows.start : rows.stop], content[name])
    model, optimizer = (dict(checkpoint.tensors[stem]) for stem in ("model", "optimizer"))
    model["posterior.rows"] = whole.pop("rows")
    optimizer |= {f"raw.0.{name}": table for name, table in whole.items()}
    tensors: dict[str, Any] = {**checkpoint.tensors, "model": model, "optimizer": optimizer}
    return replace(checkpoint, tensors=tensors)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def row_width(table: Tensor) -> int:
    """Bytes of a row."""
    return table.dtype.itemsize * table.shape[1:].numel()


def put(table: Tensor, content: np.ndarray) -> None:
    """Writes rows of a contiguous table from their bytes [n, width]."""
    table.reshape(-1).view(torch.uint8).numpy()[:] = content.reshape(-1)


def remove_parts(root: Path, names: Iterable[str]) -> None:
    """Removes tables that no checkpoint goes back to any more.

    Args:
        root: the directory of the whole table.
        names: of directories in it, see `parts_of`; "" for the files in itself.
    """
    for name in names:
        if _NAME.fullmatch(name) and (root / name).is_dir():
            remove_directory(root / name)
        elif name == "":
            discard(root)
            for file in _FILES:
                (root / file).unlink(missing_ok=True)
