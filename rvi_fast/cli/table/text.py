"""Text files of cells: read as strings, written back with other cells where something was missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ...data.formats.cells import DELIMITERS, LINE, Form, Record, content, records_of
from .number_form import is_number
from .packing import decoded, ending_of, unpacked

_SAMPLE = 100  # rows from which the delimiter is told


@dataclass(frozen=True)
class TextTable:
    """A text file with its rows taken apart into cells.

    Args:
        form: encoding, byte-order mark and delimiter.
        head: what stands before the first row: names and comments.
        records: rows, and empty lines between them.
        places: which of the records are rows [N].
        names: of the columns [D], or None.
        cells: the cells of each column as they stand in the file, quotes and spaces included [D][N].
        assumed: what was told from the content, in words.
    """

    form: Form
    head: str
    records: list[Record]
    places: list[int]
    names: list[str] | None
    cells: list[list[str]]
    assumed: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.places)

    def where(self, row: int) -> str:
        """What messages call a row."""
        return f"line {self.records[self.places[row]].line}"

    def column(self, column: int) -> list[str]:
        """What the cells of a column say, without quotes and spaces around [N]."""
        return [content(cell) for cell in self.cells[column]]

    def filled(self, *draws: Mapping[int, Mapping[int, str]]) -> bytes:
        """The file with other texts in some cells, every other byte as it was read.

        Args:
            draws: of a column the texts by row. Of several the rows follow each other, with one more
                column, `draw`, that counts them from 1.
        """
        if len(draws) == 1:
            text = self.head + "".join(self._filled(draws[0]))
            return self.form.mark + text.encode(self.form.encoding)
        body, end = _apart(self.head)
        name = self.form.delimiter + "draw" if self.names is not None else ""
        parts = [body + name + end]
        rows = set(self.places)
        for draw, texts in enumerate(draws, start=1):
            for place, record in enumerate(self._filled(texts)):
                body, end = _apart(record)
                # the last line of a file may lack its end
                end = end or _apart(self.head + self.records[0].text)[1] or "\n"
                number = f"{self.form.delimiter}{draw}" if place in rows else ""
                parts.append(body + number + end)
        return self.form.mark + "".join(parts).encode(self.form.encoding)

    def _filled(self, texts: Mapping[int, Mapping[int, str]]) -> list[str]:
        """The records with other texts in some cells."""
        rows: dict[int, dict[int, str]] = {}
        quoted = {column: self._all_quoted(column) for column in texts}
        for column, own in texts.items():
            for row, text in own.items():
                cell = self._cell(self.cells[column][row], text, quoted[column])
                rows.setdefault(row, {})[column] = cell
        written = [record.text for record in self.records]
        for row, own in rows.items():
            place = self.places[row]
            cells = [own.get(column, cells[row]) for column, cells in enumerate(self.cells)]
            written[place] = self.form.delimiter.join(cells) + _apart(written[place])[1]
        return written

    def _all_quoted(self, column: int) -> bool:
        """Whether the column quotes every cell that is not empty."""
        full = [cell.strip() for cell in self.cells[column] if cell.strip()]
        return bool(full) and all(cell[0] == '"' for cell in full)

    def _cell(self, cell: str, text: str, quoted: bool) -> str:
        """A cell that says something else, with the spaces and quotes that it had."""
        inner = cell.strip()
        quoted |= inner[:1] == '"' or any(sign in text for sign in (self.form.delimiter, '"'))
        quoted |= text[:1] == '"' or "\n" in text or "\r" in text
        written = '"' + text.replace('"', '""') + '"' if quoted else text
        if not inner:
            return written
        start = cell.index(inner)
        return cell[:start] + written + cell[start + len(inner) :]


def read_text(
    path: Path,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
) -> TextTable:
    """Reads a text file, also one that is packed.

    Args:
        path: ends in one of `TEXT`, perhaps with one of `PACKED` behind it.
        delimiter: one character; None tells it from the content.
        encoding: None tells it from the content.
        header: whether the first row holds names; None tells it from the content.

    Raises:
        ValueError: no row, rows of different lengths, quotes that do not close, an encoding that does
            not fit; names the line.
    """
    text, encoding, mark = decoded(unpacked(path), encoding)
    lines = [Record(number, line) for number, line in enumerate(LINE.findall(text), 1)]
    lines, comments = _without_comments(lines)
    if delimiter is None:
        given = False
        delimiter = "\t" if ending_of(path) == ".tsv" else _delimiter_of(lines, encoding)
    else:
        given = True
    form = Form(encoding, mark, delimiter)
    records = list(records_of(lines, form))
    taken: list[list[str]] = []
    places: list[int] = []
    for place, record in enumerate(records):
        # in a file of one column an empty line is a missing entry, and everywhere else it is none
        if record.text.strip("\r\n") or (taken and len(taken[0]) == 1):
            cells = form.cells(record)
            if taken and len(cells) != len(taken[0]):
                raise ValueError(
                    _ragged(record, records[places[0]], len(cells), len(taken[0]), form)
                )
            taken.append(cells)
            places.append(place)
    if not taken:
        raise ValueError("an empty file: no row")
    guessed = header is None
    if header is None:
        header = _is_header(taken)
    names = [content(cell) for cell in taken[0]] if header else None
    if header:
        start = places[0] + 1
        head = "".join(record.text for record in [*comments, *records[:start]])
        records, taken = records[start:], taken[1:]
        places = [place - start for place in places[1:]]
    else:
        head = "".join(record.text for record in comments)
    if not taken:
        raise ValueError(
            "an empty table: names, and no row below them (--no-header if it is a row)"
        )
    return TextTable(
        form,
        head,
        records,
        places,
        names,
        [list(cells) for cells in zip(*taken, strict=True)],
        _assumed(form, given, header if guessed else None, len(comments), len(taken[0])),
    )


def _apart(record: str) -> tuple[str, str]:
    """A record without its line end, and the line end."""
    body = record.rstrip("\r\n")
    return body, record[len(body) :]


def _without_comments(lines: list[Record]) -> tuple[list[Record], list[Record]]:
    """Lines, and apart from them those at the top that begin with # and have other delimiters.

    A line of names may begin with # too.
    """
    top = next((n for n, r in enumerate(lines) if r.text[:1] != "#" and r.text.strip()), len(lines))
    if top in (0, len(lines)):
        return lines, []

    def shape(record: Record) -> tuple[int, ...]:
        return tuple(record.text.count(delimiter) for delimiter in DELIMITERS)

    last = top - 1
    if (
        lines[last].text[:1] == "#"
        and any(shape(lines[top]))
        and shape(lines[last]) == shape(lines[top])
    ):
        top = last
    return lines[top:], lines[:top]


def _delimiter_of(lines: Sequence[Record], encoding: str) -> str:
    """The one that makes rows of one length, rarer ones in text and numbers first."""
    best, most = ",", 0.0
    for delimiter in DELIMITERS:
        widths = list(islice(_widths(lines, Form(encoding, b"", delimiter)), _SAMPLE))
        if not widths:
            continue
        common = max(set(widths), key=widths.count)
        share = widths.count(common) / len(widths) if common > 1 else 0.0
        # one stray row does not make another delimiter: it is refused by its line
        if share > most:
            best, most = delimiter, share
    return best


def _widths(lines: Sequence[Record], form: Form) -> Iterator[int]:
    """Cells of the rows, up to the first that cannot be taken apart."""
    try:
        for record in records_of(lines, form):
            if record.text.strip("\r\n"):
                yield len(form.cells(record))
    except ValueError:
        return


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row holds names: text above columns of numbers, or names that do not recur."""
    first = [content(cell) for cell in rows[0]]
    others = [[content(cell) for cell in row] for row in islice(rows, 1, 1 + 10 * _SAMPLE)]
    if not others:
        return any(first) and not any(map(is_number, first))
    text = [bool(cell) and not is_number(cell) for cell in first]
    for column in (c for c, own in enumerate(text) if own):
        below = [row[column] for row in others if row[column]]
        # a name above numbers, unless it is a token for missing that recurs among them
        if first[column] not in below and sum(map(is_number, below)) > len(below) / 2:
            return True
    if not all(text) or len(set(first)) < len(first):
        return False
    return all(first[column] != row[column] for row in others for column in range(len(first)))


def _ragged(record: Record, first: Record, found: int, width: int, form: Form) -> str:
    name = DELIMITERS.get(form.delimiter, repr(form.delimiter))
    return (
        f"line {record.line}: expected {width} cells as in line {first.line}, got {found} "
        f"(delimiter {name}; see --delimiter)"
    )


def _assumed(
    form: Form, given: bool, header: bool | None, comments: int, width: int
) -> tuple[str, ...]:
    notes = []
    if header is not None:
        other = "--no-header if it is data" if header else "--header if it holds names"
        notes.append(f"the first line {'holds names' if header else 'is data'} ({other})")
    if width > 1 and not given:
        notes.append(f"delimiter {DELIMITERS[form.delimiter]}")
    encoding = {"cp1252": "Latin-1 (cp1252)", "latin-1": "Latin-1"}.get(
        form.encoding, form.encoding.upper()
    )
    notes.append(f"{encoding}{' with a byte-order mark' if form.mark else ''}")
    if comments:
        notes.append(f"{comments} lines of comments (#) above")
    return tuple(notes)
