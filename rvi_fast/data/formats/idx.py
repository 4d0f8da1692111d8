"""IDX files of unsigned bytes, plain or compressed: how MNIST is published."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import IO

import numpy as np

from .binary import DEFLATE_RATIO, read_bytes, read_values
from .npy import ArrayTable
from .registry import reads

# bytes of a compressed file; a larger one is to be unpacked beforehand
_MOST_INFLATED = 1 << 30


@reads("[.-]idx[0-9]-ubyte", "[.-]idx[0-9]-ubyte.gz")
def read(path: Path) -> ArrayTable:
    """Reads a file of images or labels."""
    return ArrayTable(read_idx(path))


def read_idx(path: Path, expected: tuple[int, ...] | None = None) -> np.ndarray:
    with path.open("rb") as file:
        return parse_idx(file, path.stat().st_size, expected)


def parse_idx(file: IO[bytes], size: int, expected: tuple[int, ...] | None = None) -> np.ndarray:
    # IDX starts with 00 00 and gzip with 1f 8b: no need to trust the file's name
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if compressed:
        most = max(_MOST_INFLATED, size)
        file, size = gzip.GzipFile(fileobj=file), min(size * DEFLATE_RATIO, most)  # type: ignore[assignment]
    magic = read_bytes(file, 4)
    if magic[:3] != b"\0\0\x08":
        raise ValueError(f"not an IDX file of unsigned bytes: it starts with {magic.hex(' ')}")
    shape = struct.unpack(f">{magic[3]}I", read_bytes(file, 4 * magic[3]))
    if expected is not None and shape != expected:
        raise ValueError(f"expected shape {list(expected)}, got {list(shape)}")
    return read_values(file, shape, np.dtype(np.uint8), size)
