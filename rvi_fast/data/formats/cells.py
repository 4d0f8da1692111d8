"""How a text file writes the cells of a table: encoding, separator, decimals, quotes, rows."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# cells that say that an entry is missing, in any case and with spaces around
MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "?", "-", ".")

# byte-order marks; longer ones first: that of UTF-32 begins with that of UTF-16
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
DELIMITERS = {"\t": "tab", ";": "semicolon", "|": "bar", ",": "comma"}
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_SAMPLE = 50  # lines from which the delimiter is guessed
_MOST_RECORD = 1 << 16  # characters of a row, whose quotes may hold line ends


class Record(NamedTuple):
    """A row of text with its line end: it may hold line ends in quotes."""

    line: int  # number of its first line, from 1
    text: str


@dataclass(frozen=True)
class Form:
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
            inner = content(cell)
            if inner.lower() in MISSING:
                return math.nan
            if inner != cell.strip():
                return self.number(inner)
            raise
        if "_" in text:  # 12_3 is an identifier, though Python reads 123
            raise ValueError(cell)
        return value

    def cells(self, record: Record) -> list[str]:
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


def decode(written: bytes) -> tuple[str, str, bytes]:
    """The text of a file, its encoding, and the byte-order mark that said so."""
    mark, encoding = next((m for m in MARKS if written.startswith(m[0])), (b"", "utf-8"))
    try:
        text = written[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = written[: len(mark) + error.start].count(b"\n") + 1
        raise ValueError(
            f"line {line}: not {encoding} text ({error.reason}); save it as utf-8, or as UTF-16 with "
            "a byte-order mark"
        ) from None
    if "\0" in text:
        raise ValueError("holds NUL characters: expected utf-8, or UTF-16 with a byte-order mark")
    return text, encoding, mark


def delimiter_of(lines: Sequence[Record]) -> str:
    """The one that every line of a sample has as often, the rarer one in text and numbers first."""
    bodies = [_QUOTED.sub("", r.text).rstrip("\r\n") for r in lines[:_SAMPLE] if is_row(r)]
    for delimiter in DELIMITERS:
        counts = {body.count(delimiter) for body in bodies}
        if len(counts) == 1 and counts != {0}:
            return delimiter
    # no line agrees with another: the first one decides, and what does not fit is refused
    return next((d for d in DELIMITERS if bodies and d in bodies[0]), ",")


def is_row(record: Record) -> bool:
    """Whether a line is neither empty nor a comment."""
    return bool(record.text.strip("\r\n")) and not record.text.startswith("#")


def records_of(lines: Sequence[Record], form: Form) -> Iterator[Record]:
    """Lines, joined where quotes hold their ends."""
    pending: Record | None = None
    for line in lines:
        record = line if pending is None else Record(pending.line, pending.text + line.text)
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


def content(cell: str) -> str:
    """What a cell says, without quotes and spaces around."""
    inner = cell.strip()
    if len(inner) > 1 and inner[0] == inner[-1] == '"':
        inner = inner[1:-1].replace('""', '"').strip()
    return inner
