"""numpy's own files: .npy and .npz."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from .binary import DEFLATE_RATIO, read_bytes, read_values

_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MOST_NPY_HEADER = 10_000  # bytes, as numpy's own limit


def read_npy(file: IO[bytes], most_bytes: int) -> np.ndarray:
    shape, fortran_order, dtype = _read_npy_header(file)
    if dtype.kind not in "biuf":  # objects would have to be unpickled
        raise ValueError(f"expected numbers, got dtype {dtype}")
    if fortran_order:
        return read_values(file, shape[::-1], dtype, most_bytes).T
    return read_values(file, shape, dtype, most_bytes)


def _read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy_format.read_magic(io.BytesIO(read_bytes(file, npy_format.MAGIC_LEN)))
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format {version} is not supported")
    announced = read_bytes(file, 2 if version == (1, 0) else 4)
    length = int.from_bytes(announced, "little")
    if length > _MOST_NPY_HEADER:
        raise ValueError(f"an npy header of {length} bytes")
    header = io.BytesIO(announced + read_bytes(file, length))
    if version == (1, 0):
        return npy_format.read_array_header_1_0(header)
    return npy_format.read_array_header_2_0(header)


def read_npz(path: Path, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The named arrays of an archive; without names, the array `x`, or the only 2-D array."""
    most_bytes = path.stat().st_size * DEFLATE_RATIO
    with zipfile.ZipFile(path) as archive:
        members = {
            member.filename.removesuffix(".npy"): member
            for member in archive.infolist()
            if member.filename.endswith(".npy")
        }
        if any(m.compress_type not in _ZIP_METHODS for m in members.values()):
            raise ValueError("compressed by another method than deflate")
        if not names:
            names = ("x",) if "x" in members else _only_table(archive, members)
        arrays = {}
        for name in names:
            if name not in members:
                raise ValueError(f"no array called {name}, only {', '.join(members)}")
            with archive.open(members[name]) as file:
                arrays[name] = read_npy(file, min(members[name].file_size, most_bytes))
        return arrays


def _only_table(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> tuple[str]:
    shapes = {}
    for name, member in members.items():
        with archive.open(member) as file:
            shapes[name] = _read_npy_header(file)[0]
    tables = [name for name, shape in shapes.items() if len(shape) == 2]
    if len(tables) != 1:
        found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"expected an array x or one 2-D array, found {found or 'no array'}")
    return (tables[0],)
