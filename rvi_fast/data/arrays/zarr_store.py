"""Arrays of zarr stores on disk, format 2 and 3, by the package zarr."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...files import sync_directory, sync_tree
from ..files import require

_FILES = ("zarr.json", ".zarray", ".zgroup")


def is_store(path: Path) -> bool:
    """Whether a directory is one, whatever its name."""
    return any((path / name).is_file() for name in _FILES)


def find(path: Path) -> dict[str, Any]:
    """All arrays of a store by name, "/" where the store is an array."""
    found = require("zarr", "zarr").open(str(path), mode="r")
    if hasattr(found, "shape"):
        return {"/": found}
    return {f"/{name}": item for name, item in found.members(None) if hasattr(item, "shape")}


def close(array: Any) -> None:
    """There is nothing to close."""


def refused(array: Any) -> str | None:
    """Why an array is not read: some codecs run what a store says."""
    described = {**array.metadata.to_dict(), "attributes": None}
    codecs = str(described).lower()
    return "is pickled, and nothing is unpickled" if "pickle" in codecs else None


def rows_of_chunk(array: Any) -> int:
    """Rows that the store holds in one piece."""
    return int((getattr(array, "shards", None) or array.chunks)[0])


def stamp(path: Path, array: Any) -> list[Any]:
    """What differs when a piece of the array was written anew."""
    folder, found = path / array.path, []
    for root, _, names in os.walk(folder):
        for name in names:
            status = os.stat(os.path.join(root, name))
            place = os.path.relpath(os.path.join(root, name), folder)
            found.append([place, status.st_size, status.st_mtime_ns])
    return sorted(found)


def write(
    path: Path, name: str, shape: tuple[int, int], dtype: np.dtype, parts: Iterable[np.ndarray]
) -> None:
    """Writes a store with one array, whole or not at all."""
    library = require("zarr", "zarr")
    if path.exists():
        raise ValueError(f"out: expected a store that is not there yet, got {path}")
    writing = path.with_name(f".{path.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        rows = max(1, min(shape[0], (1 << 20) // max(1, shape[1] * dtype.itemsize)))
        options = {"shape": shape, "dtype": dtype, "chunks": (rows, shape[1])}
        if name == "/":
            array = library.create_array(str(writing), **options)
        else:
            array = library.open_group(str(writing), mode="w").create_array(name[1:], **options)
        held, start = np.empty((0, shape[1]), dtype), 0
        for part in parts:
            held = np.concatenate((held, part))
            # whole chunks, which are not read again
            stop = len(held) - len(held) % rows
            array[start : start + stop] = held[:stop]
            held, start = held[stop:], start + stop
        if len(held):
            array[start:] = held
        sync_tree(writing)
        os.rename(writing, path)
        sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
