"""Files of tables: where typed columns come from, and where filled ones go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .kinds import KINDS, MISSING, Cells, Column, recognise
from .packing import PACKED, TEXT, is_text, packed
from .text import TextTable, read_text

Fills = Mapping[int, Mapping[int, Any]]  # by column, by row: the value
FRAMES = (".parquet", ".xlsx", ".npy")
ENDINGS = (*TEXT, *(f".csv{ending}" for ending in PACKED), *FRAMES)


@dataclass(frozen=True)
class Options:
    """How a file is to be read; None tells it from the content.

    Args:
        delimiter, encoding, header, decimal: of text files.
        missing_values: further tokens of missing cells.
        kinds: COLUMN=KIND, by name or number from 0.
    """

    delimiter: str | None = None
    encoding: str | None = None
    header: bool | None = None
    decimal: str | None = None
    missing_values: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


class Source(Protocol):
    """A table that was read."""

    names: list[str] | None
    columns: list[Column]
    assumed: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        """N."""

    def content(self, draws: Sequence[Fills], out: Path) -> bytes:
        """What the file `out` holds: the table with cells filled in, draws below each other."""


def read_source(path: Path, options: Options) -> Source:
    """Reads a table.

    Raises:
        ValueError: the file is not as expected; names it, and where it can line and column.
        ImportError: a package is missing; names the extra.
    """
    try:
        if is_text(path):
            return TextSource(path, options)
        given = [
            f"--{name}"
            for name in ("delimiter", "encoding", "decimal")
            if getattr(options, name) is not None
        ]
        if given:
            raise ValueError(f"expected {', '.join(given)} of text files alone")
        from .frame_source import FrameSource

        return FrameSource(path, options)
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"{path}: {error}") from error


class TextSource:
    """A text file."""

    def __init__(self, path: Path, options: Options) -> None:
        self.table: TextTable = read_text(
            path,
            delimiter=options.delimiter,
            encoding=options.encoding,
            header=options.header,
        )
        self.names = self.table.names
        tokens = MISSING | set(options.missing_values)
        labels = labels_of(self.names, len(self.table.cells))
        cells = [
            Cells(
                labels[column],
                name_of(self.names, column),
                self.table.column(column),
                self.table.where,
                tokens,
            )
            for column in range(len(labels))
        ]
        kinds = kinds_of(options.kinds, self.names, len(labels))
        self.columns = recognise(cells, kinds, options.decimal)
        self.texts = [own.texts for own in cells]
        self.assumed = self.table.assumed

    @property
    def num_rows(self) -> int:
        """N."""
        return self.table.num_rows

    def content(self, draws: Sequence[Fills], out: Path) -> bytes:
        """See `Source`; as text with every observed cell byte for byte, in whatever form it came."""
        if is_text(out):
            return packed(self.table.filled(*map(self._texts, draws)), out)
        from .frame_source import frame_content, frame_of

        return frame_content([frame_of(self, draw) for draw in draws], out)

    def series(self, column: int) -> Any:
        """A column as pandas has it, with what is passed through as strings."""
        import pandas

        own = self.columns[column]
        if own.values is not None:
            return own.values
        texts = [
            None if gone else text
            for text, gone in zip(self.texts[column], own.missing, strict=True)
        ]
        return pandas.Series(texts, dtype="string")

    def _texts(self, fills: Fills) -> dict[int, dict[int, str]]:
        found = {}
        for column, values in fills.items():
            form = self.columns[column].form
            found[column] = {
                row: value if form is None else form.text(value) for row, value in values.items()
            }
        return found


def labels_of(names: Sequence[str] | None, width: int) -> list[str]:
    """What messages call the columns: names, with the number where a name is empty or not alone."""
    if names is None:
        return [f"{column}" for column in range(width)]
    return [
        f"{name!r} (number {column})" if not name or list(names).count(name) > 1 else name
        for column, name in enumerate(names)
    ]


def name_of(names: Sequence[str] | None, column: int) -> str:
    """What --kinds calls a column."""
    return str(column) if names is None else names[column]


def kinds_of(words: Sequence[str], names: Sequence[str] | None, width: int) -> dict[int, str]:
    """--kinds by column.

    Raises:
        ValueError: a column that is not there, or a kind that there is not.
    """
    found = {}
    for word in words:
        # a name may hold =, and so may no kind
        name, is_pair, kind = word.rpartition("=")
        if not is_pair or (kind.partition(":")[0] not in KINDS):
            raise ValueError(
                f"--kinds: expected COLUMN=KIND with one of {', '.join(KINDS)}, got {word!r}"
            )
        same = [column for column, own in enumerate(names or ()) if own == name]
        if not same and name.isdecimal() and int(name) < width:
            same = [int(name)]
        if len(same) != 1:
            raise ValueError(
                f"--kinds: expected a column by name or number from 0, got {name!r}, which "
                f"{'several columns are called' if same else 'no column is called'}"
            )
        found[same[0]] = kind
    return found
