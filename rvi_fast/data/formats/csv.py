"""Tables as text: cells separated by commas, semicolons, tabs or bars.

What was read is kept as text, and a table with entries filled in is that text with other numbers in
those cells: whatever else it holds comes out byte for byte.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from array import array as packed_array
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from .table import Column, Table, check_finite, column_name, left_out, not_a_number

# cells that say that an entry is missing, in any case and with spaces around
MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "?", "-", ".")

# longer marks first: that of UTF-32 begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DELIMITERS = {"\t": "tab", ";": "semicolon", "|": "bar", ",": "comma"}
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_COMMA_NUMBER = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?")
_SAMPLE = 50  # lines from which the delimiter is guessed
_MOST_RECORD = 1 << 16  # characters of a row, whose quotes may hold line ends


class _Record(NamedTuple):
    """A row of text with its line end: it may hold line ends in quotes."""

    line: int  # number of its first line, from 1
    text: str


@dataclass(frozen=True)
class _Form:
    """How a file writes its cells."""

    encoding: str
    mark: bytes
    delimiter: str
    decimal: str = "."

    def number(self, cell: str) -> float:
        """The number in a cell, NaN for a missing one; ValueError where it holds text."""
        text = cell
        if self.decimal == "," and "," in text and "." not in text:
            text = text.replace(",", ".")
        elif self.decimal == "," and "." in text and cell.strip().lower() not in MISSING:
            raise ValueError(cell)
        try:
            value = float(text)
        except ValueError:
            inner = _content(cell)
            if inner.lower() in MISSING:
                return math.nan
            if inner != cell.strip():
                return self.number(inner)
            raise
        if "_" in text:  # 12_3 is an identifier, though Python reads 123
            raise ValueError(cell)
        return value

    def cells(self, record: _Record) -> list[str]:
        """The cells of a row as they stand, quotes and spaces included."""
        body = record.text.rstrip("\r\n")
        if '"' not in body:
            return body.split(self.delimiter)
        space = " " if self.delimiter == "\t" else r"[ \t]"
        quoted = re.compile(rf'{space}*"((?:[^"]|"")*)("?){space}*')
        cells, start = [], 0
        while True:
            if match := quoted.match(body, start):
                if not match[2]:
                    raise _UnclosedQuote(f"line {record.line}: unexpected end within quotes")
                stop = match.end()
                if stop < len(body) and body[stop] != self.delimiter:
                    raise ValueError(f"line {record.line}: text after a closing quote")
            else:
                stop = body.find(self.delimiter, start)
                stop = len(body) if stop < 0 else stop
            cells.append(body[start:stop])
            if stop >= len(body):
                return cells
            start = stop + 1

    def text(self, number: str) -> str:
        """A number as this file would write it."""
        written = number.replace(".", self.decimal)
        return f'"{written}"' if self.delimiter in written else written


class _UnclosedQuote(ValueError):
    """A row ends within quotes, and may go on in the next line."""


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
        form: _Form,
        head: str,
        records: list[_Record],
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
            r if r.text.endswith(("\r", "\n")) else _Record(r.line, r.text + end) for r in records
        ]
        table = CsvTable(
            self.form,
            self.head,
            records,
            np.arange(len(records)),
            self.width,
            self.names,
            self.modelled,
            self.values[index],
        )
        table.carried, table.carried_names = self.carried, self.carried_names
        table.assumed = self.assumed
        return table

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
            records[place] = _Record(record.line, self.form.delimiter.join(cells) + end)
        table = CsvTable(
            self.form,
            self.head,
            records,
            self.places,
            self.width,
            self.names,
            self.modelled,
            np.where(where, values, self.values),
        )
        table.carried, table.carried_names = self.carried, self.carried_names
        table.assumed = self.assumed
        return table

    def columns(self) -> list[Column]:
        names = self.names or [None] * self.width
        rows = [self.form.cells(self.records[place]) for place in self.places]
        numbers = {int(cell): column for column, cell in enumerate(self.modelled)}
        return [
            Column(name, _exact(self.values[:, numbers[cell]], [row[cell] for row in rows]), True)
            if cell in numbers
            else Column(name, [_content(row[cell]) or None for row in rows], False)
            for cell, name in enumerate(names)
        ]

    def write(self, file: IO[bytes], suffix: str) -> None:
        file.write(self.form.mark + self.head.encode(self.form.encoding))
        for record in self.records:
            file.write(record.text.encode(self.form.encoding))


def read_csv(
    path: Path, header: bool | None, ignore: Sequence[str], also: Sequence[str] = ()
) -> CsvTable:
    """Reads a text table; see `rvi_fast.data.read_table`."""
    text, encoding, mark = _decode(path.read_bytes())
    lines = [_Record(number, line) for number, line in enumerate(_LINE.findall(text), 1)]
    form = _Form(encoding, mark, _delimiter(lines))
    records = list(_records(lines, form))
    comments = sum(record.text.startswith("#") for record in records)
    first = next((n for n, r in enumerate(records) if _is_row(r)), None)
    if first is None:
        raise ValueError("an empty table: no row of numbers")
    cells = form.cells(records[first])
    width = len(cells)
    guessed = header is None
    if header is None:
        header = is_header(cells)
    names = tuple(map(_content, cells)) if header else None
    # in a file of one column an empty line is a missing entry, and everywhere else it is none
    start = first + 1 if header else 0
    places = [
        n
        for n, record in enumerate(records)
        if n >= start and (_is_row(record) or (width == 1 and not record.text.strip("\r\n")))
    ]
    if not places:
        raise ValueError("an empty table: no row of numbers")
    rows = [records[place] for place in places]
    ignored = left_out(ignore, also, names, width)
    parsed = _parse(rows, form, width, names, ignored)
    if form.delimiter != "," and any(_COMMA_NUMBER.fullmatch(t.cell) for t in parsed.faults):
        commas = _parse(rows, _Form(encoding, mark, form.delimiter, ","), width, names, ignored)
        if (len(commas.mixed), len(commas.text)) < (len(parsed.mixed), len(parsed.text)):
            parsed = commas
    if parsed.mixed:
        fault = parsed.mixed[0]
        hint = (
            ""
            if header or fault.line != rows[0].line
            else "; if it is a name, say header (--header)"
        )
        raise ValueError(
            f"{not_a_number(f'line {fault.line}', fault.column, names, fault.cell)}{hint}"
        )
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
    plain, comma = _Form("", b"", ";"), _Form("", b"", ";", ",")
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


def write_columns(file: IO[bytes], columns: Sequence[Column], delimiter: str) -> None:
    """Writes the columns of any table as text, and names where all have some."""
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


def _decode(content: bytes) -> tuple[str, str, bytes]:
    mark, encoding = next((m for m in _MARKS if content.startswith(m[0])), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: len(mark) + error.start].count(b"\n") + 1
        raise ValueError(
            f"line {line}: not {encoding} text ({error.reason}); save it as utf-8, or as UTF-16 with "
            "a byte-order mark"
        ) from None
    if "\0" in text:
        raise ValueError("holds NUL characters: expected utf-8, or UTF-16 with a byte-order mark")
    return text, encoding, mark


def _delimiter(lines: Sequence[_Record]) -> str:
    """The one that every line of a sample has as often, the rarer one in text and numbers first."""
    bodies = [_QUOTED.sub("", r.text).rstrip("\r\n") for r in lines[:_SAMPLE] if _is_row(r)]
    for delimiter in _DELIMITERS:
        counts = {body.count(delimiter) for body in bodies}
        if len(counts) == 1 and counts != {0}:
            return delimiter
    # no line agrees with another: the first one decides, and what does not fit is refused
    return next((d for d in _DELIMITERS if bodies and d in bodies[0]), ",")


def _is_row(record: _Record) -> bool:
    return bool(record.text.strip("\r\n")) and not record.text.startswith("#")


def _records(lines: Sequence[_Record], form: _Form) -> Iterator[_Record]:
    """Lines, joined where quotes hold their ends."""
    pending: _Record | None = None
    for line in lines:
        record = line if pending is None else _Record(pending.line, pending.text + line.text)
        # within quotes only a line with an odd number of them can be the last
        closes = pending is None or line.text.count('"') % 2
        if '"' in record.text and not (pending is None and line.text.startswith("#")):
            try:
                if closes:
                    form.cells(record)
            except _UnclosedQuote:
                closes = False
            if not closes:
                if len(record.text) > _MOST_RECORD:
                    raise ValueError(
                        f"line {record.line}: quotes not closed within {_MOST_RECORD} characters"
                    )
                pending = record
                continue
        pending = None
        yield record
    if pending is not None:
        form.cells(pending)


class _Fault(NamedTuple):
    """The first text of a column."""

    line: int
    column: int
    cell: str


@dataclass
class _Parsed:
    """The numbers of all cells, NaN for text, and the columns that hold some."""

    form: _Form
    values: packed_array
    faults: list[_Fault]
    mixed: list[_Fault]  # of columns that hold numbers beside it
    text: list[_Fault]


def _parse(
    rows: Sequence[_Record],
    form: _Form,
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
                    first[column] = _Fault(record.line, column, _content(cell))
        values.extend(numbers)
    table = np.frombuffer(values, np.float64).reshape(-1, width)
    faults = sorted(first.values())
    mixed = [fault for fault in faults if not np.isnan(table[:, fault.column]).all()]
    return _Parsed(form, values, faults, mixed, [fault for fault in faults if fault not in mixed])


def _content(cell: str) -> str:
    """What a cell says, without quotes and spaces around."""
    inner = cell.strip()
    if len(inner) > 1 and inner[0] == inner[-1] == '"':
        inner = inner[1:-1].replace('""', '"').strip()
    return inner


def _exact(values: np.ndarray, cells: Sequence[str]) -> Any:
    """A column's numbers; where whole ones are too large for float64, as Python's own."""
    large = np.abs(np.nan_to_num(values)) >= 2**53
    if not large.any():
        return values
    exact: list[Any] = values.tolist()
    for row in np.flatnonzero(large).tolist():
        if re.fullmatch(r"[+-]?\d+", _content(cells[row])):
            exact[row] = int(_content(cells[row]))
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


def _assumed(
    form: _Form, header: bool, guessed: bool, comments: int, width: int
) -> tuple[str, ...]:
    notes = []
    if guessed:
        other = "--no-header if it is data" if header else "--header if it holds names"
        notes.append(f"the first line {'holds names' if header else 'is data'} ({other})")
    if width > 1 and form.delimiter != ",":
        notes.append(f"delimiter {_DELIMITERS[form.delimiter]}")
    if form.decimal == ",":
        notes.append("decimal comma")
    if form.encoding != "utf-8":
        notes.append(form.encoding[:6].upper())
    if comments:
        notes.append(f"comments (#) on {comments} lines")
    return tuple(notes)
