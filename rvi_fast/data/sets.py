"""Data sets by name: found, downloaded, checked."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import replacing
from .artificial import artificial
from .files import DataError, blaming, require
from .formats.idx import parse_idx, read_idx
from .formats.npy import read_npz
from .formats.table import check_finite, check_table, single_precision

DATASETS = ("digits", "artificial", "mnist", "fashion-mnist", "mosi")

_IDX_SHAPES: dict[str, tuple[int, ...]] = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
# MD5 of the uncompressed files, in the order of _IDX_SHAPES
_IDX_MD5 = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
_MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
}
_MOSI_PARTS = ("text", "audio", "video")

_MOST_DOWNLOAD = 64 << 20  # bytes; the largest published file has 26 MB
_TIMEOUT = 20.0  # seconds without an answer from a mirror


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

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


def load_named(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """One of `DATASETS`; see `load_data`."""
    if name == "digits":
        return load_digits()
    if name == "artificial":
        return Dataset("artificial", artificial(10_000), artificial(2_000, first=10_000))
    if name == "mosi":
        return load_mosi(data_dir)
    return load_published(name, data_dir)


def load_digits() -> Dataset:
    digits = require("sklearn.datasets", "sklearn").load_digits()
    pixels = np.rint(digits.data * (255 / 16)).astype(np.uint8)  # grey levels 0..16
    labels = digits.target.astype(np.int64)
    return Dataset("digits", pixels, train_labels=labels, image_shape=(8, 8))


def load_published(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    arrays = []
    for file, shape in _IDX_SHAPES.items():
        tried = _candidates(name, (f"{file}.gz", file), data_dir)
        path = next(filter(os.path.isfile, tried), None) or _download(name, file, tried)
        with blaming(path):
            array = read_idx(path, shape)
            # both sets use the same file names, so a directory of one passes for the other
            owners = [owner for owner, sums in _IDX_MD5.items() if _idx_md5(array) in sums]
            if owners and name not in owners:
                raise ValueError(f"belongs to {owners[0]}, not to {name}")
        arrays.append(array)
    train, train_labels, test, test_labels = arrays
    return Dataset(
        name,
        train.reshape(len(train), -1),
        test.reshape(len(test), -1),
        train_labels.astype(np.int64),
        test_labels.astype(np.int64),
        image_shape=(28, 28),
    )


def load_mosi(data_dir: str | os.PathLike[str] | None) -> Dataset:
    tried = _candidates("mosi", ("mosi_utterance.npz",), data_dir)
    path = next(filter(os.path.isfile, tried), None)
    if path is None:
        raise DataError(_not_found("mosi", "mosi_utterance.npz (it cannot be downloaded)", tried))
    with blaming(path):
        arrays = read_npz(path, (*_MOSI_PARTS, "label", "split"))
        parts = [arrays[part] for part in _MOSI_PARTS]
        features = tuple(
            f"{part}_{column}" for part in _MOSI_PARTS for column in range(arrays[part].shape[1])
        )
        table = np.concatenate(parts, axis=1)
        check_table(table)
        check_finite(table, features)
        table = single_precision(table)
        label, split = arrays["label"].astype(np.int64), arrays["split"]
        if not label.shape == split.shape == (len(table),):
            raise ValueError(f"label and split: expected one entry for each of {len(table)} rows")
        train, test = split == 0, split == 2
        if not train.any() or not test.any():
            raise ValueError("split: expected rows marked 0 (train) and 2 (test)")
    return Dataset("mosi", table[train], table[test], label[train], label[test], features=features)


def _cache_dir() -> Path:
    if chosen := os.environ.get("RVI_FAST_CACHE"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "rvi_fast"


def _candidates(
    name: str, files: Sequence[str], data_dir: str | os.PathLike[str] | None
) -> list[Path]:
    roots = [Path(root) for root in (data_dir, os.environ.get("RVI_FAST_DATA")) if root]
    places = [place for root in (*roots, _cache_dir()) for place in (root / name, root)]
    return [place / file for place in places for file in files]


def _not_found(name: str, file: str, tried: Sequence[object]) -> str:
    lines = "".join(f"\n  tried {entry}" for entry in tried)
    return (
        f"{name}: cannot get {file}{lines}\n"
        f"Put the file into DIR/{name}/ and pass --data-dir DIR (data_dir=DIR in Python),"
        " or set RVI_FAST_DATA=DIR."
    )


def _download(name: str, file: str, tried: Sequence[Path]) -> Path:
    """Fetches one published file into the cache, where it appears only if its MD5 is right."""
    expected = _IDX_MD5[name][list(_IDX_SHAPES).index(file)]
    attempts: list[object] = list(tried)
    for mirror in _MIRRORS[name]:
        url = f"{mirror}{file}.gz"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
                data = response.read(_MOST_DOWNLOAD)
            md5 = _idx_md5(parse_idx(io.BytesIO(data), len(data)))
            if md5 != expected:
                raise ValueError(f"the content's MD5 is {md5}, expected {expected}")
        except Exception as error:  # as in blaming: what arrives may be anything
            attempts.append(f"{url}: {str(error) or type(error).__name__}")
            continue
        path = _cache_dir() / name / f"{file}.gz"
        with blaming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as cached:
                cached.write(data)
        return path
    raise DataError(_not_found(name, file, attempts))


def _idx_md5(array: np.ndarray) -> str:
    """MD5 of the uncompressed IDX file that holds these bytes."""
    header = struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape)
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
