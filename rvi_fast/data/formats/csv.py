"""Tables as text: cells separated by commas, semicolons, tabs or bars.

What was read is kept as text, and a table with entries filled in is that text with other numbers in
those cells: whatever else it holds comes out byte for byte.
"""

from __future__ import annotations

import csv
import io
import math
import re
from array import array as packed_array
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from .cells import DELIMITERS, LINE, Form, Record, content, decode, delimiter_of, is_row, records_of
from .registry import reads, writes
from .table import Column, Table, check_finite, column_name, left_out, not_a_number

_COMMA_NUMBER = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?")


class CsvTable(Table):
    """A table from a text file.

    Args:
        form: how its cells are written.
        head: everything before the first row, names and comments.
        records: its rows, and between them lines that are none.
        places: [N] which of the records are rows.
        width: cells of a row.
        names: of all columns, or None.
        modelled: cell of each column of numbers.
        values: [N, D].
    """

    suffixes = (".csv", ".tsv")

    def __init__(
        self,
        form: Form,
        head: str,
        records: list[Record],
        places: np.ndarray,
        width: int,
        names: tuple[str, ...] | None,
        modelled: np.ndarray,
        values: np.ndarray,
    ) -> None:
        self.form, self.head, self.records, self.places = form, head, records, places
        self.width, self.names, self.modelled, self.values = width, names, modelled, values
        self.features = None if names is None else tuple(names[place] for place in modelled)

    def rows(self, index: np.ndarray) -> CsvTable:
        records = [self.records[self.places[row]] for row in index]
        # the last line of a file may lack its end
        end = next((r.text[len(r.text.rstrip("\r\n")) :] for r in self.records), "") or "\n"
        records = [
            r if r.text.endswith(("\r", "\n")) else Record(r.line, r.text + end) for r in records
        ]
        return self._like(records, np.arange(len(records)), self.values[index])

    def filled(self, values: np.ndarray, where: np.ndarray) -> CsvTable:
        digits = [_digits(column) for column in self.values.T]
        records = list(self.records)
        for row in np.flatnonzero(where.any(axis=1)):
            place = self.places[row]
            record = records[place]
            cells = self.form.cells(record)
            for column in np.flatnonzero(where[row]):
                number = self.form.text(_shortest(float(values[row, column]), digits[column]))
                cell = cells[self.modelled[column]]
                inner = cell.strip()
                start = cell.index(inner)
                if inner[:1] == '"' and number[:1] != '"':
                    number = f'"{number}"'
                cells[self.modelled[column]] = (
                    cell[:start] + number + cell[start + len(inner) :] if inner else number
                )
            end = record.text[len(record.text.rstrip("\r\n")) :]
            records[place] = Record(record.line, self.form.delimiter.join(cells) + end)
        return self._like(records, self.places, np.where(where, values, self.values))

    def columns(self) -> list[Column]:
        names = self.names or [None] * self.width
        rows = [self.form.cells(self.records[place]) for place in self.places]
        numbers = {int(cell): column for column, cell in enumerate(self.modelled)}
        return [
            Column(name, _exact(self.values[:, numbers[cell]], [row[cell] for row in rows]), True)
            if cell in numbers
            else Column(name, [content(row[cell]) or None for row in rows], False)
            for cell, name in enumerate(names)
        ]

    def write(self, file: IO[bytes], suffix: str) -> None:
        file.write(self.form.mark + self.head.encode(self.form.encoding))
        for record in self.records:
            file.write(record.text.encode(self.form.encoding))

    def _like(self, records: list[Record], places: np.ndarray, values: np.ndarray) -> CsvTable:
        """Another table of the same columns."""
        own = (self.width, self.names, self.modelled)
        table = CsvTable(self.form, self.head, records, places, *own, values)
        table.carried, table.carried_names = self.carried, self.carried_names
        table.assumed = self.assumed
        return table


@reads(".csv", ".tsv", takes=("header", "ignore", "also"))
def read(
    path: Path, header: bool | None, ignore: Sequence[str], also: Sequence[str] = ()
) -> CsvTable:
    """Reads a text table; see `rvi_fast.data.read_table`."""
    text, encoding, mark = decode(path.read_bytes())
    lines = [Record(number, line) for number, line in enumerate(LINE.findall(text), 1)]
    form = Form(encoding, mark, delimiter_of(lines))
    records = list(records_of(lines, form))
    comments = sum(record.text.startswith("#") for record in records)
    first = next((n for n, r in enumerate(records) if is_row(r)), None)
    if first is None:
        raise ValueError("an empty table: no row of numbers")
    cells = form.cells(records[first])
    width, guessed = len(cells), header is None
    header = is_header(cells) if header is None else header
    names = tuple(map(content, cells)) if header else None
    # in a file of one column an empty line is a missing entry, and everywhere else it is none
    start = first + 1 if header else 0
    places = [
        n
        for n, record in enumerate(records)
        if n >= start and (is_row(record) or (width == 1 and not record.text.strip("\r\n")))
    ]
    if not places:
        raise ValueError("an empty table: no row of numbers")
    ignored = left_out(ignore, also, names, width)
    parsed = _parsed([records[place] for place in places], form, width, names, ignored)
    out = {*ignored, *(fault.column for fault in parsed.text)}
    modelled = np.array([cell for cell in range(width) if cell not in out], np.int64)
    if not len(modelled):
        raise ValueError("an empty table: no column of numbers")
    values = np.frombuffer(parsed.values, np.float64).reshape(-1, width)[:, modelled]
    head = "".join(record.text for record in records[:start])
    table = CsvTable(
        parsed.form, head, records[start:], np.array(places) - start, width, names, modelled, values
    )
    check_finite(values, table.features)
    table.carried = tuple(
        (column_name(cell, names), ignored.get(cell, "no number")) for cell in sorted(out)
    )
    table.carried_names = tuple(names[cell] if names else str(cell) for cell in sorted(out))
    if parsed.text:
        fault = parsed.text[0]
        table.text = not_a_number(f"line {fault.line}", fault.column, names, fault.cell)
    table.assumed = _assumed(parsed.form, header, guessed, comments, width)
    return table


def is_header(row: Sequence[str]) -> bool:
    """Some text and no number. Text beside numbers is a row with a fault, to be reported."""
    plain, comma = Form("", b"", ";"), Form("", b"", ";", ",")
    text = False
    for cell in row:
        for form in (plain, comma):
            try:
                if not math.isnan(form.number(cell)):
                    return False
                break
            except ValueError:
                continue
        else:
            text = True
    return text


@writes(".csv", ".tsv", names=is_header)
def write(file: IO[bytes], suffix: str, columns: Sequence[Column]) -> None:
    """Writes the columns of any table as text, and names where all have some."""
    delimiter = "\t" if suffix == ".tsv" else ","
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    names = [column.name for column in columns]
    if all(name is not None for name in names):
        writer.writerow(names)
    # numpy scalars print as the shortest text that reads back as the same number
    parts = [_as_text(column.values) for column in columns]
    for row in zip(*parts, strict=True):
        # a row of one empty cell would be an empty line
        writer.writerow(row) if row != ("",) else text.write("\n")
    text.detach()


def _as_text(values: Any) -> Sequence[object]:
    if isinstance(values, np.ndarray):
        values = values.astype(np.uint8) if values.dtype == bool else values
        return [("" if value != value else value) for value in values]
    return ["" if value is None or value != value else value for value in values]


class _Fault(NamedTuple):
    """The first text of a column."""

    line: int
    column: int
    cell: str


@dataclass
class _Parsed:
    """The numbers of all cells, NaN for text, and the columns that hold some."""

    form: Form
    values: packed_array
    faults: list[_Fault]
    mixed: list[_Fault]  # of columns that hold numbers beside it
    text: list[_Fault]


def _parsed(
    rows: Sequence[Record],
    form: Form,
    width: int,
    names: Sequence[str] | None,
    ignored: Container[int],
) -> _Parsed:
    """The numbers of all cells, with decimal commas where fewer columns are text then.

    Raises:
        ValueError: a column holds text and numbers.
    """
    parsed = _parse(rows, form, width, names, ignored)
    if form.delimiter != "," and any(_COMMA_NUMBER.fullmatch(t.cell) for t in parsed.faults):
        commas = _parse(rows, replace(form, decimal=","), width, names, ignored)
        if (len(commas.mixed), len(commas.text)) < (len(parsed.mixed), len(parsed.text)):
            parsed = commas
    if parsed.mixed:
        fault = parsed.mixed[0]
        named = names is not None or fault.line != rows[0].line
        hint = "" if named else "; if it is a name, say header (--header)"
        raise ValueError(
            f"{not_a_number(f'line {fault.line}', fault.column, names, fault.cell)}{hint}"
        )
    return parsed


def _parse(
    rows: Sequence[Record],
    form: Form,
    width: int,
    names: Sequence[str] | None,
    ignored: Container[int],
) -> _Parsed:
    values = packed_array("d")
    first: dict[int, _Fault] = {}
    nothing = [math.nan] * width
    for record in rows:
        cells = form.cells(record)
        if len(cells) != width:
            raise ValueError(f"line {record.line}: expected {width} cells, got {len(cells)}")
        numbers = nothing.copy()
        for column, cell in enumerate(cells):
            if column in ignored:
                continue
            try:
                numbers[column] = form.number(cell)
            except ValueError:
                if column not in first:
                    first[column] = _Fault(record.line, column, content(cell))
        values.extend(numbers)
    table = np.frombuffer(values, np.float64).reshape(-1, width)
    faults = sorted(first.values())
    mixed = [fault for fault in faults if not np.isnan(table[:, fault.column]).all()]
    return _Parsed(form, values, faults, mixed, [fault for fault in faults if fault not in mixed])


def _exact(values: np.ndarray, cells: Sequence[str]) -> Any:
    """A column's numbers; where whole ones are too large for float64, as Python's own."""
    large = np.abs(np.nan_to_num(values)) >= 2**53
    if not large.any():
        return values
    known = values[~np.isnan(values)]
    whole = bool((known == np.rint(known)).all())
    exact = [
        None if value != value else int(value) if whole else value for value in values.tolist()
    ]
    for row in np.flatnonzero(large).tolist():
        if re.fullmatch(r"[+-]?\d+", content(cells[row])):
            exact[row] = int(content(cells[row]))
    return exact


def _digits(column: np.ndarray) -> int | None:
    """Decimals that tell a millionth of a column's spread; None where it has no spread."""
    observed = column[~np.isnan(column)]
    spread = float(observed.std()) if observed.size else 0.0
    return None if spread == 0 else max(6 - math.floor(math.log10(spread)), 0)


def _shortest(value: float, digits: int | None) -> str:
    """A model knows a number to a millionth of its column's spread: no more is written."""
    rounded = value if digits is None else round(value, digits)
    return repr(int(rounded)) if rounded.is_integer() and abs(rounded) < 1e15 else repr(rounded)


def _assumed(form: Form, header: bool, guessed: bool, comments: int, width: int) -> tuple[str, ...]:
    notes = []
    if guessed:
        other = "--no-header if it is data" if header else "--header if it holds names"
        notes.append(f"the first line {'holds names' if header else 'is data'} ({other})")
    if width > 1 and form.delimiter != ",":
        notes.append(f"delimiter {DELIMITERS[form.delimiter]}")
    if form.decimal == ",":
        notes.append("decimal comma")
    if form.encoding != "utf-8":
        notes.append(form.encoding[:6].upper())
    if comments:
        notes.append(f"comments (#) on {comments} lines")
    return tuple(notes)
