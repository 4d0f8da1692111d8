"""Files that are read with suspicion and written whole or not at all; optional packages."""

from __future__ import annotations

import importlib
import os
import secrets
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


class DataError(ValueError):
    """A data file is missing, malformed or truncated; the message names the file and the reason."""


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turns whatever a file's content provokes into a `DataError` that names the file."""
    try:
        yield
    except ImportError:
        raise
    # gzip, zip, npy, csv and parquet parsers raise a dozen types on hostile bytes, undocumented
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 600)
        raise DataError(f"{path}: {reason}") from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place when it is complete, and else disappears.

    What a killed process has left of such a file is removed.
    """
    remove_leftovers(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes have left of `replacing(path)`; a live one's stays."""
    start, end = f".{path.name}.", ".partial"
    for found in path.parent.iterdir():
        middle = found.name[len(start) : -len(end)]
        if not (found.name == f"{start}{middle}{end}" and len(middle) == 8):
            continue
        # Windows refuses to remove what another process has open
        with suppress(OSError), found.open("rb") as file:
            _lock(file)
            found.unlink()


def _lock(file: IO[bytes]) -> None:
    """Marks a file as that of a live process; OSError where another one has marked it."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def require(module: str, extra: str) -> Any:
    """Imports an optional package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'needs {module}: pip install "rvi-fast[{extra}]"') from error


def column_name(column: int, features: Sequence[str] | None) -> str:
    """How messages call a column: its number from 0, and its name where it has one."""
    return f"{column} ({features[column]!r})" if features else str(column)
