"""Datasets of HDF5 files, by h5py."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ...files import replacing
from ..files import require


def find(path: Path) -> dict[str, Any]:
    """All datasets of a file by name, those that its links to other files lead to left out."""
    found: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        if hasattr(item, "shape") and hasattr(item, "dtype"):
            found[f"/{name}"] = item

    file = open_file(path)
    file.visititems(note)
    return found


def open_file(path: Path) -> Any:
    """The file, for reading."""
    return require("h5py", "hdf5").File(path, "r")


def close(dataset: Any) -> None:
    """Closes the file of a dataset."""
    dataset.file.close()


def refused(dataset: Any) -> str | None:
    """Why a dataset is not read, if it lies elsewhere."""
    return "lies in another file" if dataset.external or dataset.is_virtual else None


def rows_of_chunk(dataset: Any) -> int:
    """Rows that the file holds in one piece."""
    return int(dataset.chunks[0]) if dataset.chunks else 1


def stamp(path: Path, dataset: Any) -> list[Any]:
    """What differs when the file was written anew."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def write(
    path: Path, name: str, shape: tuple[int, int], dtype: np.dtype, parts: Iterable[np.ndarray]
) -> None:
    """Writes a file with one dataset, whole or not at all."""
    library = require("h5py", "hdf5")
    with replacing(path) as target, closing(library.File(target, "w")) as file:
        dataset = file.create_dataset(name, shape, dtype)
        start = 0
        for part in parts:
            dataset[start : start + len(part)] = part
            start += len(part)
