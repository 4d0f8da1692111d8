"""A table that is written once, and read as a memory map from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...files import replacing
from ...progress import progress_bar


def map_table(
    path: Path,
    shape: tuple[int, int],
    parts: Callable[[], Iterable[np.ndarray]],
    *,
    kind: str = "<f4",
    progress: bool,
) -> np.memmap[Any, Any]:
    """The table of a file, which is written before where it is not there, whole or not at all.

    Args:
        path: ends in .npy; its name says which table it is.
        shape: N and D.
        parts: makes the rows in order, [n, D] at a time.
        kind: dtype of the file, float32 unless it says otherwise.
        progress: show a bar while they are written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _holds(path, shape, kind):
        described = {"descr": kind, "fortran_order": False, "shape": shape}
        with (
            replacing(path) as file,
            progress_bar(shape[0], unit="row", shown=progress, description="reading") as bar,
        ):
            np.lib.format.write_array_header_1_0(file, described)
            for part in parts():
                file.write(np.ascontiguousarray(part, kind).data)
                bar.update(len(part))
    return np.load(path, mmap_mode="r")


def _holds(path: Path, shape: tuple[int, int], kind: str) -> bool:
    """Whether a file is there and as long as such a table: damage of the header is another shape."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return False
    return found.shape == shape and found.dtype == np.dtype(kind)
