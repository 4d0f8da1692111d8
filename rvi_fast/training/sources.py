"""Data that are not in memory: memory maps and map-style data sets, read a batch at a time."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from .. import _checks
from ..storage import forget_pages, want_pages

# rows examined at once
_CHUNK = 8192
# batches that wait for the step
AHEAD = 4
# rows of a data set that its fingerprint reads
_SAMPLED = 64
_POLL = 0.05  # seconds
Batch = tuple[Tensor, Tensor | None]


class Visit(NamedTuple):
    """A batch to come: row numbers [B], and up to which of the epoch's windows they reach."""

    rows: Tensor
    window: int


class Source(Protocol):
    """Rows by their numbers; NaN, or false in the mask of a uint8 table, is missing."""

    def __len__(self) -> int: ...
    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """x [B, D] and mask of some rows, on the host."""
        ...

    def prefetch(self, start: int, stop: int) -> None:
        """Rows [start, stop) will be needed soon."""
        ...

    def fingerprint(self, dtype: torch.dtype) -> str:
        """Are two data sets the same to a model of this dtype?"""
        ...

    def release(self, start: int, stop: int) -> None:
        """Rows [start, stop) are not needed for a while."""
        ...


def is_mapped(value: Any) -> bool:
    """Whether an array lies in a mapped file, each row in one piece: reading some rows is cheap."""
    if not isinstance(value, np.ndarray) or value.ndim != 2 or isinstance(value, np.ma.MaskedArray):
        return False
    base: Any = value
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return isinstance(base, np.memmap) and value.strides[1] == value.itemsize


class MappedArray:
    """A mapped table, and a mask that is mapped or in memory."""

    def __init__(self, x: np.ndarray, mask: np.ndarray | None) -> None:
        self.x, self.mask = x, mask

    def __len__(self) -> int:
        return len(self.x)

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        x = _native(self.x[rows])
        return x, None if self.mask is None else torch.from_numpy(self.mask[rows])

    def fingerprint(self, dtype: torch.dtype) -> str:
        """That of the same table in memory."""
        kind = torch.uint8 if self.x.dtype == np.uint8 else dtype
        digest = hashlib.sha256(f"{self.x.shape} {kind}".encode())
        for part in range(1 if self.mask is None or kind != torch.uint8 else 2):
            for rows in chunks(len(self)):
                entry = convert(*self.read(rows), dtype, rows)[part]
                assert entry is not None
                digest.update(entry.contiguous().view(torch.uint8).numpy().data)
                self.release(rows[0], rows[-1] + 1)
        return digest.hexdigest()

    def prefetch(self, start: int, stop: int) -> None:
        for array in self._mapped():
            want_pages(*_extent(array[start:stop]))

    def release(self, start: int, stop: int) -> None:
        for array in self._mapped():
            forget_pages(*_extent(array[start:stop]))

    def _mapped(self) -> list[np.ndarray]:
        return [array for array in (self.x, self.mask) if array is not None and _shared(array)]


class DatasetRows:
    """A map-style data set whose items are x [D] or (index, x)."""

    def __init__(self, dataset: Dataset[Any], num_features: int) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"x: expected a map-style Dataset with a length, got {type(dataset).__name__}"
            )
        self.dataset, self.num_features = dataset, num_features

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        numbers = [int(row) for row in rows]
        if hasattr(self.dataset, "__getitems__"):
            items = list(self.dataset.__getitems__(numbers))
        else:
            items = [self.dataset[number] for number in numbers]
        if len(items) != len(numbers):
            raise ValueError(f"x: expected {len(numbers)} items of the Dataset, got {len(items)}")
        values = [self._values(row, item) for row, item in zip(numbers, items, strict=True)]
        kinds = {value.dtype for value in values}
        if len(kinds) > 1:
            raise TypeError(
                f"x: expected one dtype, the Dataset returned {sorted(map(str, kinds))}"
            )
        return torch.stack(values) if values else torch.empty(0, self.num_features), None

    def _values(self, row: int, item: Any) -> Tensor:
        if isinstance(item, tuple | list):
            if len(item) != 2 or int(item[0]) != row:
                raise ValueError(f"x: expected item {row} of the Dataset to be x or ({row}, x)")
            item = item[1]
        value = torch.as_tensor(item).detach().cpu()
        if value.dtype not in _checks.DATA_DTYPES:
            raise TypeError(f"x: expected floating point or uint8, item {row} is {value.dtype}")
        _checks.check_shape(f"x[{row}]", value, (self.num_features,))
        return value

    def fingerprint(self, dtype: torch.dtype) -> str:
        """Of type, length and some rows: reading all of a data set may take as long as an epoch."""
        digest = hashlib.sha256(f"{type(self.dataset).__qualname__} {len(self)}".encode())
        rows = np.unique(np.linspace(0, len(self) - 1, _SAMPLED).astype(np.int64))
        x, _ = self.read(rows)
        digest.update(str(x.dtype).encode() + x.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def prefetch(self, start: int, stop: int) -> None:
        pass

    def release(self, start: int, stop: int) -> None:
        pass


class HostInputs:
    """What `Inputs` is for data in memory; each batch is read, checked and converted by itself.

    Within `feed` one thread reads ahead of the steps. Its errors are raised where the batch is asked
    for, and it ends with the block.
    """

    def __init__(self, source: Source, device: torch.device, dtype: torch.dtype) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self._ready: tuple[Tensor, Batch] | None = None

    @property
    def num_data(self) -> int:
        """N."""
        return len(self.source)

    def batch(self, index: Tensor) -> Batch:
        """x and mask of rows `index`."""
        ready = self._ready
        return ready[1] if ready is not None and ready[0] is index else self._read(index)

    def fingerprint(self) -> str:
        """SHA-256 that tells two data sets apart."""
        return self.source.fingerprint(self.dtype)

    def prefetch(self, start: int, stop: int) -> None:
        """Rows [start, stop) will be needed soon."""
        self.source.prefetch(start, stop)

    def release(self, start: int, stop: int) -> None:
        """Rows [start, stop) are not needed for a while."""
        self.source.release(start, stop)

    @contextmanager
    def feed(self, visits: Iterable[Visit]) -> Iterator[Iterator[Visit]]:
        """Within it `batch` finds what it needs read already."""
        waiting: queue.Queue[tuple[Visit, Batch] | BaseException | None]
        waiting, ended = queue.Queue(AHEAD), threading.Event()

        def put(entry: tuple[Visit, Batch] | BaseException | None) -> None:
            while not ended.is_set():
                with suppress(queue.Full):
                    waiting.put(entry, timeout=_POLL)
                    return

        def read() -> None:
            try:
                for visit in visits:
                    if ended.is_set():
                        return
                    put((visit, self._read(visit.rows)))
                put(None)
            except BaseException as error:
                put(error)

        def served() -> Iterator[Visit]:
            while (entry := waiting.get()) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                self._ready = (entry[0].rows, entry[1])
                yield entry[0]

        thread = threading.Thread(target=read, name="rvi_fast reads ahead", daemon=True)
        thread.start()
        try:
            yield served()
        finally:
            ended.set()
            thread.join()
            self._ready = None

    def _read(self, index: Tensor) -> Batch:
        rows = index.cpu().numpy()
        x, mask = convert(*self.source.read(rows), self.dtype, rows)
        return x.to(self.device), None if mask is None else mask.to(self.device)


def chunks(num_data: int) -> Iterator[np.ndarray]:
    """All row numbers, some at a time."""
    for start in range(0, num_data, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, num_data))


def convert(x: Tensor, mask: Tensor | None, dtype: torch.dtype, rows: Any) -> Batch:
    """Some rows as a step takes them: uint8 with a mask, or the model's dtype with NaN for missing.

    Raises:
        ValueError: with row and column for what should not be there.
    """
    if x.dtype == torch.uint8:
        return x, mask
    values = x.to(dtype)
    wrong = torch.isinf(values) if mask is None else ~torch.isfinite(values) & mask
    if bool(wrong.any()):
        position, column = _checks.first_entry(wrong)
        raise ValueError(
            f"x: expected finite numbers of {dtype}, or NaN for missing, got "
            f"{x[position, column].item()} at row {rows[position]}, column {column}"
            + (", where the mask says observed" if mask is not None else "")
        )
    return values if mask is None else torch.where(mask, values, torch.nan), None


def _native(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=False))


def _shared(array: np.ndarray) -> bool:
    """Whether it lies in a map that can let go of its pages: a private one ("c") would lose them."""
    base: Any = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return isinstance(base, np.memmap) and base.mode != "c"


def _extent(rows: np.ndarray) -> tuple[int, int]:
    """Address and length of some rows, whichever way they run."""
    if not len(rows):
        return 0, 0
    reach = rows.strides[0] * (len(rows) - 1)
    return rows.ctypes.data + min(reach, 0), abs(reach) + rows.shape[1] * rows.itemsize
