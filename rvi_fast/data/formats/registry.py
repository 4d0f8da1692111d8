"""Which function reads and which writes a file, by what its name ends in.

A format is a module of this package: it decorates a function with `reads` or `writes`, and is known to
`read_table`, `write_table`, their messages and the command line from then on.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..files import require
from .table import Table


class Reader(NamedTuple):
    """How files of some endings are read.

    Args:
        read: from a path, and of the options in `takes`, to a `Table`.
        takes: which of "header", "ignore" and "also" it understands.
    """

    read: Callable[..., Table]
    takes: tuple[str, ...]


class Writer(NamedTuple):
    """How files of some endings are written.

    Args:
        write: gets file, ending, and the columns of a table; or, where `arrays`, one array.
        arrays: whether the format holds one array of any shape, and no names.
        needs: modules of the extra `tabular` without which it cannot be written.
        names: whether the format tells D names from data; None where it always does.
    """

    write: Callable[[IO[bytes], str, Any], None]
    arrays: bool = False
    needs: tuple[str, ...] = ()
    names: Callable[[Sequence[str]], bool] | None = None

    def check(self) -> None:
        """Raises an ImportError where a package is missing that it needs."""
        for module in self.needs:
            require(module, "tabular")


READERS: dict[str, Reader] = {}
WRITERS: dict[str, Writer] = {}


def reads(*endings: str, takes: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Registers a function that reads files whose names end so.

    Args:
        endings: in lower case, for instance ".csv"; [0-9] stands for a digit, [.-] for a dot or a dash.
        takes: the options of `rvi_fast.data.read_table` that it has: "header", "ignore", "also".
    """

    def register(read: Callable[..., Table]) -> Callable[..., Table]:
        READERS.update(dict.fromkeys(endings, Reader(read, tuple(takes))))
        return read

    return register


def writes(
    *endings: str,
    arrays: bool = False,
    needs: Sequence[str] = (),
    names: Callable[[Sequence[str]], bool] | None = None,
) -> Callable[[Any], Any]:
    """Registers a function that writes files whose names end so; arguments as in `Writer`."""

    def register(write: Callable[[IO[bytes], str, Any], None]) -> Callable[..., None]:
        WRITERS.update(dict.fromkeys(endings, Writer(write, arrays, tuple(needs), names)))
        return write

    return register


def writable() -> tuple[str, ...]:
    """Endings that can be written, those of arrays first."""
    return tuple(sorted(WRITERS, key=lambda ending: not WRITERS[ending].arrays))


def readable() -> tuple[str, ...]:
    """Endings that can be read, those that can be written first."""
    shown = [ending.replace("[0-9]", "?").replace("[.-]", ".") for ending in READERS]
    return (*writable(), *(ending for ending in shown if ending not in WRITERS))


def reader_of(path: Path) -> tuple[str, Reader]:
    """The ending of a file's name, and who reads it.

    Raises:
        ValueError: nobody does; names what can be read.
    """
    name = path.name.lower()
    found = [ending for ending in READERS if fnmatch.fnmatchcase(name, f"*{ending}")]
    if not found:
        raise ValueError(f"expected {listed(readable())}")
    ending = max(found, key=len)
    return ending, READERS[ending]


def listed(endings: Sequence[str]) -> str:
    """Endings in words: ".a, .b or .c"."""
    return " or ".join(filter(None, [", ".join(endings[:-1]), endings[-1]]))
