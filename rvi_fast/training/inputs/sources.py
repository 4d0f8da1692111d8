"""What holds rows: tables in memory, memory maps and map-style data sets, asked by row numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from ... import _checks
from ...data.scaling import Moments
from ...data.tables import row_chunks
from ...likelihoods.base import Likelihood
from ...memory.pages import forget_pages, want_pages
from ...scaler import Scaler

# rows examined at once
_CHUNK = 8192
# rows of a data set that its fingerprint reads
_SAMPLED = 64
_DIGEST = 1 << 256
Batch = tuple[Tensor, Tensor | None]


class Source(Protocol):
    """Rows by their numbers; NaN, or false in the mask of a uint8 table, is missing."""

    def __len__(self) -> int: ...
    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """x [B, D] and mask of some rows, on the host."""
        ...

    def prefetch(self, start: int, stop: int) -> None:
        """Rows [start, stop) will be needed soon."""
        ...

    def pixels(self) -> bool:
        """Whether entries are uint8."""
        ...

    def kind(self, dtype: torch.dtype) -> str:
        """What all rows have in common."""
        ...

    def digest(
        self, dtype: torch.dtype, first_row: int, num_data: int, scaler: Scaler | None
    ) -> int:
        """Of the entries as a model of this dtype and scale sees them, see `digest_of`."""
        ...

    def release(self, start: int, stop: int) -> None:
        """Rows [start, stop) are not needed for a while."""
        ...


def is_mapped(value: Any) -> bool:
    """Whether an array lies in a mapped file, each row in one piece: reading some rows is cheap."""
    if not isinstance(value, np.ndarray) or value.ndim != 2 or isinstance(value, np.ma.MaskedArray):
        return False
    return map_of(value) is not None and value.strides[1] == value.itemsize


def map_of(array: np.ndarray) -> np.memmap | None:
    """The map of a file that an array lies in, as it was opened; None for one in memory."""
    found: np.memmap | None = None
    base: Any = array
    while isinstance(base, np.ndarray):
        found = base if isinstance(base, np.memmap) else found
        base = base.base
    return found


class _Table:
    """A table and its mask, of which only `pixels` need be said."""

    x: Any
    mask: Any

    def __init__(self, x: Any, mask: Any) -> None:
        self.x, self.mask = x, mask

    def __len__(self) -> int:
        return len(self.x)

    def pixels(self) -> bool:
        raise NotImplementedError

    def kind(self, dtype: torch.dtype) -> str:
        """What all rows have in common, in the same words wherever they lie."""
        pixels = self.pixels()
        return kind_of(
            self.x.shape[1], torch.uint8 if pixels else dtype, pixels and self.mask is not None
        )


class InMemory(_Table):
    """A table in memory, host or device, and its mask."""

    x: Tensor
    mask: Tensor | None

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        chosen = torch.from_numpy(rows)
        mask = None if self.mask is None else self.mask[chosen.to(self.mask.device)]
        # what is known of an entry is needed where the entry is
        return self.x[chosen.to(self.x.device)], None if mask is None else mask.to(self.x.device)

    def pixels(self) -> bool:
        return self.x.dtype == torch.uint8

    def prefetch(self, start: int, stop: int) -> None:
        pass

    def release(self, start: int, stop: int) -> None:
        pass


class MappedArray(_Table):
    """A mapped table, and a mask that is mapped or in memory."""

    x: np.ndarray
    mask: np.ndarray | None

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        x = _native(self.x[rows])
        return x, None if self.mask is None else torch.from_numpy(self.mask[rows])

    def pixels(self) -> bool:
        return self.x.dtype == np.uint8

    def digest(
        self, dtype: torch.dtype, first_row: int, num_data: int, scaler: Scaler | None
    ) -> int:
        """What `digest_of` gives for these rows of the same table in memory."""
        total = 0
        for rows in chunks(len(self)):
            seen = convert(*self.read(rows), dtype, rows, scaler)
            total += digest_of(*seen, first_row + int(rows[0]))
            self.release(rows[0], rows[-1] + 1)
        return total % _DIGEST

    def prefetch(self, start: int, stop: int) -> None:
        for array in self._mapped():
            want_pages(*extent(array[start:stop]))

    def release(self, start: int, stop: int) -> None:
        for array in self._mapped():
            forget_pages(*extent(array[start:stop]))

    def _mapped(self) -> list[np.ndarray]:
        return [array for array in (self.x, self.mask) if array is not None and _shared(array)]


class DatasetRows:
    """A map-style data set whose items are x [D], (x,), (index, x) or {"x": x, ...}."""

    def __init__(self, dataset: Dataset[Any], num_features: int) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"x: expected a map-style Dataset with a length, got {type(dataset).__name__}"
            )
        self.dataset, self.num_features = dataset, num_features
        self._dtype: torch.dtype | None = None

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
        if not values:
            return torch.empty(0, self.num_features, device="cpu"), None
        return torch.stack(values), None

    def _values(self, row: int, item: Any) -> Tensor:
        item = self._only_x(row, item)
        value = torch.as_tensor(item, device="cpu").detach()
        if value.dtype not in _checks.DATA_DTYPES:
            raise TypeError(f"x: expected floating point or uint8, item {row} is {value.dtype}")
        _checks.check_shape(f"x[{row}]", value, (self.num_features,))
        return value

    def _only_x(self, row: int, item: Any) -> Any:
        if isinstance(item, Mapping):
            if "x" in item and "mask" not in item:
                return item["x"]
            got = f"a dict of {', '.join(sorted(map(repr, item)))}"
        elif isinstance(item, tuple | list):
            if len(item) == 1:
                return item[0]
            if len(item) == 2 and _is_number(item[0], row):
                return item[1]
            got = f"a {type(item).__name__} of {len(item)}"
        else:
            return item
        raise ValueError(
            f"x: expected item {row} of the Dataset to be x [{self.num_features}], (x,), ({row}, x) "
            f"or a dict with 'x', NaN for missing, got {got}; pass a Dataset that returns x alone, as "
            "TensorDataset(x) does"
        )

    def pixels(self) -> bool:
        return self._item_dtype() == torch.uint8

    def kind(self, dtype: torch.dtype) -> str:
        """Type of the data set and of its items."""
        dataset = self.dataset
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        return f"{type(dataset).__qualname__} {self._item_dtype()}"

    def _item_dtype(self) -> torch.dtype:
        if self._dtype is None:
            self._dtype = self.read(np.arange(1))[0].dtype
        return self._dtype

    def digest(
        self, dtype: torch.dtype, first_row: int, num_data: int, scaler: Scaler | None
    ) -> int:
        """Of some rows: reading all of a data set may take as long as an epoch."""
        sampled = np.unique(np.linspace(0, num_data - 1, _SAMPLED).astype(np.int64)) - first_row
        sampled = sampled[(sampled >= 0) & (sampled < len(self))]
        return sum(digest_of(*self.read(row[None]), first_row + int(row)) for row in sampled)

    def prefetch(self, start: int, stop: int) -> None:
        pass

    def release(self, start: int, stop: int) -> None:
        pass


# what a user passes as x, checked
Opened = InMemory | MappedArray | DatasetRows


def chunks(num_data: int) -> Iterator[np.ndarray]:
    """All row numbers, some at a time."""
    for start in range(0, num_data, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, num_data))


def kind_of(num_features: int, dtype: torch.dtype, masked: bool) -> str:
    """What all rows of a table have in common."""
    return f"{num_features} {dtype}" + (" masked" if masked else "")


def digest_of(x: Tensor, mask: Tensor | None, first_row: int) -> int:
    """A number below 2^256 for some rows: those of the parts of a table add up to that of the whole."""
    parts = [
        entry.cpu().contiguous().view(torch.uint8).numpy()
        for entry in (x, mask)
        if entry is not None
    ]
    total = 0
    for row in range(len(x)):
        digest = hashlib.sha256((first_row + row).to_bytes(8, "little"))
        for part in parts:
            digest.update(part[row].data)
        total += int.from_bytes(digest.digest(), "little")
    return total % _DIGEST


def fingerprint_of(kind: str, num_data: int, digest: int) -> str:
    """SHA-256 that tells two data sets apart."""
    return hashlib.sha256(f"{num_data} {kind} {digest % _DIGEST:064x}".encode()).hexdigest()


def convert(
    x: Tensor,
    mask: Tensor | None,
    dtype: torch.dtype,
    rows: Any,
    scaler: Scaler | None = None,
    law: Likelihood | None = None,
) -> Batch:
    """Some rows as a step takes them: uint8 with a mask, or the model's dtype with NaN for missing.

    Raises:
        ValueError: with row and column for what should not be there, or what the law cannot give.
        TypeError: pixels for a model whose data have a scale, or whose law knows none.
    """
    if law is not None and law.restricted:
        law.check(x, mask, rows=rows)
    if x.dtype == torch.uint8:
        if scaler is not None:
            scaler.to_model(x, dtype)  # says that it cannot
        return x, mask
    values = x.to(dtype) if scaler is None else x
    wrong = torch.isinf(values) if mask is None else ~torch.isfinite(values) & mask
    if bool(wrong.any()):
        position, column = _checks.first_entry(wrong)
        raise ValueError(
            f"x: expected finite numbers of {values.dtype}, or NaN for missing, got "
            f"{x[position, column].item()} at row {rows[position]}, column {column}"
            + (", where the mask says observed" if mask is not None else "")
        )
    if scaler is not None:
        values = scaler.to_model(x, dtype)
    return values if mask is None else torch.where(mask, values, torch.nan), None


def moments_of(
    source: Opened,
    num_features: int,
    first_row: int,
    num_data: int,
    law: Likelihood | None = None,
) -> Moments:
    """What is to be known of the entries of a source, which is read once.

    Args:
        source: floating point.
        num_features: D.
        first_row: which row of the whole table its first one is.
        num_data: N, rows of the whole table.
        law: whose data they are.

    Raises:
        ValueError: with row and column for infinities, for NaN where the mask says observed, and for
            what the law cannot give.
    """
    moments = Moments(num_data, num_features)
    for part in row_chunks((len(source), num_features)):
        rows = np.arange(part.start, min(part.stop, len(source)))
        x, mask = source.read(rows)
        values, _ = convert(x, mask, torch.float64, rows, law=law)
        moments.add(values, first_row + part.start)
        source.release(part.start, int(rows[-1]) + 1)
    return moments


def _is_number(value: Any, row: int) -> bool:
    """Whether a Dataset says with this that an item is that of a row."""
    if isinstance(value, Tensor | np.ndarray):
        value = value.item() if value.ndim == 0 else None
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) == row


def _native(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=False))


def _shared(array: np.ndarray) -> bool:
    """Whether it lies in a map that can let go of its pages: a private one ("c") would lose them."""
    base = map_of(array)
    return base is not None and base.mode != "c"


def extent(rows: np.ndarray) -> tuple[int, int]:
    """Address and length of some rows, whichever way they run."""
    if not len(rows):
        return 0, 0
    reach = rows.strides[0] * (len(rows) - 1)
    return rows.ctypes.data + min(reach, 0), abs(reach) + rows.shape[1] * rows.itemsize
