"""Data sets by name: what one is, and how a module of this package makes one known."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DataDir = str | os.PathLike[str] | None


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory: rows to train on, rows to test, labels, and what they are.

    Args:
        name: what was asked for.
        train: [N, D] uint8 for pixels (0..255 means [0, 1]), else float32 with NaN for missing.
        test: the same for held-out rows, or None.
        train_labels: [N] int64, or None.
        test_labels: [N] int64, or None.
        image_shape: (height, width) where a row is an image, with height * width = D.
        features: D column names, where the file has them.
    """

    name: str
    train: np.ndarray
    test: np.ndarray | None = None
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    image_shape: tuple[int, int] | None = None
    features: tuple[str, ...] | None = None


LOADERS: dict[str, Callable[[str, DataDir], Dataset]] = {}


def dataset(*names: str) -> Callable[[Callable[[str, DataDir], Dataset]], object]:
    """Registers a function that loads the data sets of these names.

    It is called with the name and the `data_dir` of `rvi_fast.data.load_data`, and raises a `DataError`
    or an `ImportError` where it cannot.
    """

    def register(load: Callable[[str, DataDir], Dataset]) -> Callable[[str, DataDir], Dataset]:
        LOADERS.update(dict.fromkeys(names, load))
        return load

    return register


def candidates(name: str, files: Sequence[str], data_dir: DataDir) -> list[Path]:
    """Where files of a data set are looked for, the likeliest place first."""
    roots = [Path(root) for root in (data_dir, os.environ.get("RVI_FAST_DATA")) if root]
    places = [place for root in (*roots, cache_dir()) for place in (root / name, root)]
    return [place / file for place in places for file in files]


def cache_dir() -> Path:
    """Where downloads go."""
    if chosen := os.environ.get("RVI_FAST_CACHE"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "rvi_fast"


def not_found(name: str, file: str, tried: Sequence[object]) -> str:
    """The message about a file that no place has, with what can be done."""
    lines = "".join(f"\n  tried {entry}" for entry in tried)
    return (
        f"{name}: cannot get {file}{lines}\n"
        f"Put the file into DIR/{name}/ and pass --data-dir DIR (data_dir=DIR in Python),"
        " or set RVI_FAST_DATA=DIR."
    )
