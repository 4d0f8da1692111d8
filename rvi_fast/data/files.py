"""Files that are read with suspicion; optional packages."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def require(module: str, extra: str) -> Any:
    """Imports an optional package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'needs {module}: pip install "rvi-fast[{extra}]"') from error


def column_name(column: int, features: Sequence[str] | None) -> str:
    """How messages call a column: its number from 0, and its name where it has one."""
    return f"{column} ({features[column]!r})" if features else str(column)
