"""Files of results: rows as CSV, of the imputers for each table, mechanism, rate, seed and part."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rvi_fast.files import write_text

from .jobs import FIELDS

KEYS = 6
Row = dict[str, str]


class Results:
    """Rows on disk, each there as soon as it is known: a run that was killed goes on where it was.

    Args:
        path: the file, made with the first row.
        fields: names of the columns.
        keys: how many of them, the first ones, name a row.
    """

    def __init__(self, path: Path, fields: Sequence[str] = FIELDS, keys: int = KEYS) -> None:
        self.path, self.fields, self.key = path, fields, fields[:keys]

    def rows(self) -> list[Row]:
        """All rows; a line that a killed process left unfinished is none."""
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_text(self.path, whole)
        return list(csv.DictReader(io.StringIO(whole)))

    def keys(self) -> set[tuple[str, ...]]:
        """What names the rows that are there."""
        return {tuple(row[name] for name in self.key) for row in self.rows()}

    def add(self, rows: list[Row]) -> None:
        """Appends rows by one write, on disk when the call returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._lines(rows)
        with self.path.open("ab", buffering=0) as file:
            if not file.tell():
                lines = self._lines([self._names]) + lines
            file.write(lines.encode())
            os.fsync(file.fileno())

    def forget(self, wanted: Callable[[Row], bool]) -> None:
        """Removes the rows for which `wanted` is true."""
        kept = [row for row in self.rows() if not wanted(row)]
        if self.path.is_file():
            write_text(self.path, self._lines([self._names, *kept]))

    @property
    def _names(self) -> Row:
        return dict(zip(self.fields, self.fields, strict=True))

    def _lines(self, rows: list[Row]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.fields, lineterminator="\n").writerows(rows)
        return text.getvalue()
