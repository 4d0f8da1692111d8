"""Data sets that are published as IDX files: found, or downloaded and checked."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...files import replacing
from ..files import DataError, blaming
from ..formats.idx import parse_idx, read_idx
from .registry import DataDir, Dataset, cache_dir, candidates, dataset, not_found

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

_MOST_DOWNLOAD = 64 << 20  # bytes; the largest published file has 26 MB
_TIMEOUT = 20.0  # seconds without an answer from a mirror


@dataset("mnist", "fashion-mnist")
def load(name: str, data_dir: DataDir) -> Dataset:
    """60,000 and 10,000 images of 28x28 pixels with labels, downloaded where they are nowhere."""
    arrays = []
    for file, shape in _IDX_SHAPES.items():
        tried = candidates(name, (f"{file}.gz", file), data_dir)
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
        path = cache_dir() / name / f"{file}.gz"
        with blaming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as cached:
                cached.write(data)
        return path
    raise DataError(not_found(name, file, attempts))


def _idx_md5(array: np.ndarray) -> str:
    """MD5 of the uncompressed IDX file that holds these bytes."""
    header = struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape)
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
