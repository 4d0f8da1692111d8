"""What processes are given: data by way of files that all map, so that they lie in memory once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.tables import as_tensor
from ..inputs.sources import extent, is_mapped, map_of


class Carrier:
    """Puts data into files of a directory, each object once, however many runs take it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # objects are kept, or another could get the same id
        self._put: dict[int, tuple[Any, Callable[[], Any]]] = {}

    def put(self, value: Any) -> Callable[[], Any] | None:
        """What gives the same data in another process; None for None.

        Args:
            value: x or mask as `fit` takes them.
        """
        if value is None:
            return None
        if id(value) not in self._put:
            self._put[id(value)] = value, self._carried(value)
        return self._put[id(value)][1]

    def _carried(self, value: Any) -> Callable[[], Any]:
        if is_mapped(value) and (mapped := _Mapped.of(value)) is not None:
            return mapped
        path = self.directory / f"data-{len(self._put)}.pt"
        masked = isinstance(value, np.ma.MaskedArray)
        if masked:
            value = _dense(value.data), _dense(np.ma.getmaskarray(value))
        elif isinstance(value, np.ndarray | Tensor):
            value = _dense(value)
        torch.save(value, path)
        return _Stored(path, masked)


def _dense(value: np.ndarray | Tensor) -> Tensor:
    """A tensor of these numbers that brings no others along, as a part of a larger table would."""
    tensor = as_tensor("x", value)
    alone = tensor.nbytes == tensor.untyped_storage().nbytes()
    return tensor if alone else tensor.clone()


@dataclass(frozen=True)
class _Stored:
    """Data in a file of `torch.save`."""

    path: Path
    masked: bool

    def __call__(self) -> Any:
        value = _loaded(self.path)
        if not self.masked:
            return value
        x, missing = value
        return np.ma.MaskedArray(x.numpy(), missing.numpy())


@functools.lru_cache(maxsize=2)  # x and mask, for the next run of the same
def _loaded(path: Path) -> Any:
    return torch.load(path, mmap=True, weights_only=False)


@dataclass(frozen=True)
class _Mapped:
    """An array in a file that its user has mapped."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    # bytes in the file: where the lowest entry begins, how many there are, where the first row begins
    start: int
    size: int
    first: int

    @classmethod
    def of(cls, array: np.ndarray) -> _Mapped | None:
        """None where the file does not hold what the array does, or has no name."""
        base = map_of(array)
        path = getattr(base, "filename", None)
        if base is None or path is None or base.mode == "c" or not Path(path).is_file():
            return None
        low, size = extent(array)
        start = base.offset + low - base.ctypes.data
        first = array.ctypes.data - low
        return cls(str(path), array.dtype.str, array.shape, array.strides, start, size, first)

    def __call__(self) -> np.ndarray:
        held = np.memmap(self.path, np.uint8, "r", offset=self.start, shape=(self.size,))
        return np.ndarray(self.shape, self.dtype, held, self.first, self.strides)
