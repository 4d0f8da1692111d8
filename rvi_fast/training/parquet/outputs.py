"""Which files of a directory are done: a list beside them, that a run started again goes on from.

The list is _rvi_fast.jsonl, which readers of Parquet directories pass over. Its first line says what is
done: the model and the options. Each other line is written when a file has its place, and names that
file, size and time of what it was made of, and its own size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...data.parquet.directory import ParquetFile
from ...files import append_line, read_lines, rewrite_lines

_LIST = "_rvi_fast.jsonl"


class Outputs:
    """The files of an output directory, which this process holds.

    Args:
        out: the directory.
        job: what is done, as JSON can hold it.

    Raises:
        ValueError: it holds Parquet files that somebody else has written, or the same with another model
            or other options.
    """

    def __init__(self, out: Path, job: dict[str, Any]) -> None:
        self.out, self._path = out, out / _LIST
        try:
            lines = read_lines(self._path)
        except ValueError as error:
            raise ValueError(f"out: {self._path}: {error}") from error
        if not lines:
            found = next(out.glob("**/*.parquet"), None)
            if found is not None:
                raise ValueError(
                    f"out: expected a directory without Parquet files, or one that was begun before; "
                    f"{found} is there"
                )
            rewrite_lines(self._path, [job])
            lines = [job]
        begun = lines[0]
        # a job as JSON gives it back
        differing = [name for name in job if begun.get(name) != job[name]]
        if differing:
            raise ValueError(
                f"out: {out} was begun with another {' and '.join(differing)}; name another directory, "
                "or remove what is there"
            )
        self.records = {line["file"]: line for line in lines[1:] if "file" in line}

    def done(self, file: ParquetFile) -> bool:
        """Whether a file has been written, of the file as it is now."""
        record = self.records.get(file.name)
        if record is None or record["input"] != [file.size, file.mtime_ns]:
            return False
        try:
            return os.path.getsize(self.out / file.name) == record["output"]
        except OSError:
            return False

    def left(self, files: Sequence[ParquetFile]) -> list[ParquetFile]:
        """Those that are still to be written, the largest first, so that processes end together."""
        return sorted((f for f in files if not self.done(f)), key=lambda file: -file.num_rows)

    def add(self, file: ParquetFile, filled: int) -> None:
        """Notes that a file has been written."""
        record = {
            "file": file.name,
            "input": [file.size, file.mtime_ns],
            "output": os.path.getsize(self.out / file.name),
            "filled": filled,
        }
        append_line(self._path, record)
        self.records[file.name] = record
