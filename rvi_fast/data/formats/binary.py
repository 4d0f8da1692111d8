"""The part of a binary file that follows its header."""

from __future__ import annotations

import math
from typing import IO

import numpy as np

DEFLATE_RATIO = 1032  # a match of 258 bytes costs at least 2 bits, so 4 * 258 bytes a byte
_READ_CHUNK = 1 << 20  # bytes


def read_bytes(file: IO[bytes], count: int) -> bytes:
    """So many bytes of a header, none less."""
    data = file.read(count)
    if len(data) < count:
        raise ValueError("truncated within its header")
    return data


def read_values(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, most_bytes: int
) -> np.ndarray:
    """What follows a header, to the end: no byte less and none more than the header announces."""
    count = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or count > most_bytes:
        raise ValueError(f"announces shape {list(shape)}, more than the file can hold")
    buffer = np.empty(count, np.uint8)
    filled = 0
    while filled < count:
        data = file.read(min(_READ_CHUNK, count - filled))
        if not data:
            raise ValueError(f"truncated: expected {count} bytes of values, got {filled}")
        buffer[filled : filled + len(data)] = np.frombuffer(data, np.uint8)
        filled += len(data)
    # the read that meets the end is also what makes gzip and zip compare their checksums
    if file.read(1):
        raise ValueError(f"longer than the {count} bytes of values it announces")
    return buffer.view(dtype).reshape(shape)
