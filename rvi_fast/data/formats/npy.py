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
from .registry import reads, writes
from .table import Column, Table, check_finite, check_table, fill

_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MOST_NPY_HEADER = 10_000  # bytes, as numpy's own limit


class ArrayTable(Table):
    """A table from an array of numbers: .npy, .npz, IDX, and data sets by name.

    Args:
        array: [N, D] numbers, or uint8 [N, H, W].
        features: D names.
        image_shape: where [N, D] holds images.
    """

    suffixes = (".npy", ".npz")

    def __init__(
        self,
        array: np.ndarray,
        features: Sequence[str] | None = None,
        image_shape: tuple[int, int] | None = None,
    ) -> None:
        check_table(array)
        self.array = array
        self.features = None if features is None else tuple(features)
        self.image_shape = (array.shape[1], array.shape[2]) if array.ndim == 3 else image_shape
        flat = array.reshape(len(array), -1)
        if flat.dtype != np.uint8:
            narrow = flat.dtype.kind == "f" and flat.dtype.itemsize <= 4
            flat = flat.astype(np.float32 if narrow else np.float64, copy=False)
            check_finite(flat, self.features)
        self.values = flat

    def rows(self, index: np.ndarray) -> ArrayTable:
        return ArrayTable(self.array[index], self.features, self.image_shape)

    def filled(self, values: np.ndarray, where: np.ndarray) -> ArrayTable:
        shape = self.array.shape
        array = fill(self.array, values.reshape(shape), where.reshape(shape))
        return ArrayTable(array, self.features, self.image_shape)

    def columns(self) -> list[Column]:
        flat = self.array.reshape(len(self.array), -1)
        names = self.features or [None] * flat.shape[1]
        return [Column(name, flat[:, d], True) for d, name in enumerate(names)]

    def write(self, file: IO[bytes], suffix: str) -> None:
        write(file, suffix, self.array)


@reads(".npy", ".npz")
def read(path: Path) -> ArrayTable:
    """Reads the array of a file, or `x` or the only table of an archive."""
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            return ArrayTable(read_npy(file, path.stat().st_size))
    (array,) = read_npz(path).values()
    return ArrayTable(array)


@writes(".npy", ".npz", arrays=True)
def write(file: IO[bytes], suffix: str, array: np.ndarray) -> None:
    """Writes an array as .npy, or as `x` of an .npz."""
    if suffix == ".npy":
        np.save(file, array, allow_pickle=False)
    else:
        np.savez(file, x=array)


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
