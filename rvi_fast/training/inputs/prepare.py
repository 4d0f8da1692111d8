"""The data boundary: what a user passes as x and mask becomes checked tensors on a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ... import _checks
from ...data.frames import columns_of, unframed
from ...data.tables import as_tensor, row_chunks, unmasked
from ...likelihoods.base import Likelihood
from ...memory.room import check_memory
from ...models import LatentModel
from ...scaler import Scaler
from .feed import HostInputs, Visit
from .sources import (
    DatasetRows,
    InMemory,
    MappedArray,
    Opened,
    chunks,
    convert,
    digest_of,
    fingerprint_of,
    is_mapped,
    kind_of,
)

# rows examined at once, so that no mask of the whole table is made
_CHUNK = 8192


class Inputs(NamedTuple):
    """x [N, D] in the model's dtype with NaN for missing, or uint8 with a mask where entries miss."""

    x: Tensor
    mask: Tensor | None

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """x and mask of rows `index`."""
        return self.x[index], None if self.mask is None else self.mask[index]

    def reserve(self, batch_size: int) -> None:
        """To be called before steps are bound: here every row is where they find it."""

    @property
    def tables(self) -> tuple[Tensor, Tensor | None] | None:
        """x and mask where a CUDA graph finds them in each step; None where there is no such place."""
        return self

    @property
    def place(self) -> int:
        """Which of several `tables` holds what was loaded: steps on each are captured for themselves."""
        return 0

    def load(self, index: Tensor) -> None:
        """To be called before a step on rows `index` [B]: `loaded` and `located` then give these."""

    def loaded(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """x and mask of the rows that were loaded.

        Args:
            index: their numbers [B], in any tensor.
        """
        return self.batch(index)

    def located(self, index: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """`tables`, and which of their rows [B] are those that were loaded; see `loaded`."""
        return self.x, self.mask, index

    @property
    def num_data(self) -> int:
        """N."""
        return len(self.x)

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.x.device

    @contextmanager
    def feed(self, visits: Iterable[Visit]) -> Iterator[Iterator[Visit]]:
        """See `HostInputs.feed`: here there is nothing to read ahead."""
        yield iter(visits)

    def prefetch(self, start: int, stop: int) -> None:
        """See `HostInputs.prefetch`."""

    def release(self, start: int, stop: int) -> None:
        """See `HostInputs.release`."""

    def fingerprint(self) -> str:
        """SHA-256 of shape, dtype and all entries: are two data sets the same?"""
        return fingerprint_of(self.kind, self.num_data, self.digest(0, self.num_data))

    @property
    def kind(self) -> str:
        """What all rows have in common."""
        return kind_of(self.x.shape[1], self.x.dtype, self.mask is not None)

    def digest(self, first_row: int, num_data: int) -> int:
        """Of all entries, where these rows are a part of `num_data`; see `digest_of`."""
        masks = [None] * len(self.x) if self.mask is None else self.mask.split(_CHUNK)
        return sum(
            digest_of(rows, mask, first_row + position * _CHUNK)
            for position, (rows, mask) in enumerate(zip(self.x.split(_CHUNK), masks, strict=False))
        )


def prepare(
    model: LatentModel,
    x: Any,
    mask: Any = None,
    *,
    num_data: int | None = None,
    device: torch.device | None = None,
) -> Inputs | HostInputs:
    """Checks x and mask and moves them to the device; the caller's arrays are left as they are.

    Memory maps and data sets stay where they are, and their batches are read as they are needed. Where
    the model has a scale, what comes out is in the model's units.

    Args:
        model: gives D, scale, and dtype and device where none is named.
        x: tensor or numpy array [N, D], floating point (NaN = missing) or uint8 (pixels), also masked
            (masked = missing); a DataFrame of numbers; or a map-style `torch.utils.data.Dataset` of
            rows.
        mask: bool [N, D], true = observed.
        num_data: N that x must have.
        device: where to.

    Raises:
        TypeError, ValueError: with row and column for infinities, and for NaN where the mask says
            observed, and for what is no data of the model's likelihood; the model's decoder does not
            fit posterior and likelihood.
    """
    return inputs_of(model, open_source(model, x, mask, num_data=num_data), device=device)


def plain(model: LatentModel, x: Any, mask: Any = None) -> tuple[Any, Any]:
    """x and mask as arrays where they are DataFrames of numbers; anything else as it is.

    Raises:
        TypeError: a column holds no numbers.
        ValueError: the columns are not those that the model was trained on, in their order.
    """
    for name, given in (("x", x), ("mask", mask)):
        found = columns_of(given)
        expected = columns_of(x) if model.columns is None else model.columns
        if None not in (found, expected) and found != expected:
            raise ValueError(
                f"{name}: expected the columns {listed(expected)}, got {listed(found)}"
            )
    return unframed("x", x), unframed("mask", mask)


def listed(names: Any) -> str:
    """Names of columns in a message: the first twelve."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def open_source(
    model: LatentModel, x: Any, mask: Any = None, *, num_data: int | None = None
) -> Opened:
    """Checks all of x and mask but their entries; see `prepare`."""
    model.check_decoder()
    if isinstance(x, DataLoader):
        raise TypeError(
            "x: expected data, of which batches are made here, got a DataLoader; pass its dataset, or "
            "write a loop of your own as help(rvi_fast.fit) shows"
        )
    x, mask = unmasked(*plain(model, x, mask))
    if isinstance(x, Dataset):
        if mask is not None:
            raise ValueError("mask: expected None beside a Dataset, whose NaN marks missing")
        data = DatasetRows(x, model.num_features)
        _check_rows("x", (len(data), model.num_features), model.num_features, num_data)
        return data
    if is_mapped(x):
        return _open_mapped(model, x, mask, num_data)
    values = as_tensor("x", x)
    if values.dtype not in _checks.DATA_DTYPES:
        raise TypeError(f"x: expected floating point or uint8, got {values.dtype}")
    _check_rows("x", tuple(values.shape), model.num_features, num_data)
    observed = None
    if mask is not None:
        observed = as_tensor("mask", mask)
        if observed.dtype != torch.bool:
            raise TypeError(f"mask: expected dtype bool (true = observed), got {observed.dtype}")
        _checks.check_shape("mask", observed, tuple(values.shape))
    return InMemory(values, observed)


def inputs_of(
    model: LatentModel,
    source: Opened,
    *,
    device: torch.device | None = None,
    checked: bool = False,
) -> Inputs | HostInputs:
    """What a step takes batches of; see `prepare`.

    Args:
        model: as there.
        source: from `open_source`.
        device: as there.
        checked: the entries have been looked at, as `moments_of` does.
    """
    like, scaler, law = next(model.posterior.parameters()), model.scaler, model.law
    device, dtype = like.device if device is None else device, like.dtype
    if isinstance(source, MappedArray) and not source.pixels() and not checked:
        for rows in chunks(len(source)):
            convert(*source.read(rows), dtype, rows, law=law)
            source.release(rows[0], rows[-1] + 1)
    elif (
        law.restricted
        and not isinstance(source, DatasetRows)
        and (scaler is None or source.pixels())  # else they are looked at as they are scaled
    ):
        for rows in chunks(len(source)):
            law.check(*source.read(rows), rows=rows)
            source.release(rows[0], rows[-1] + 1)
    if not isinstance(source, InMemory):
        if scaler is not None and source.pixels():
            convert(*source.read(np.arange(1)), dtype, np.arange(1), scaler)
        return HostInputs(source, device, dtype, scaler, law)
    values, observed = source.x, source.mask
    if values.dtype == torch.uint8 and scaler is None:
        return Inputs(values.to(device), None if observed is None else observed.to(device))
    if scaler is None:
        _check_finite(values, observed, dtype)
    if values.dtype != dtype or values.device.type != device.type or scaler is not None:
        advice = f"pass x as {dtype}, or as a memory map"
        check_memory(device, "x", values.numel() * like.element_size(), advice)
    if scaler is not None:
        return Inputs(_scaled(source, scaler, law, device, dtype), None)
    values = values.to(device, dtype)
    if observed is not None:
        values = torch.where(observed.to(device), values, torch.nan)
    return Inputs(values, None)


def _scaled(
    source: InMemory, scaler: Scaler, law: Likelihood, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """All rows in the model's units, converted some at a time."""
    scaled = torch.empty(source.x.shape, dtype=dtype, device=device)
    for part in row_chunks(tuple(source.x.shape)):
        rows = np.arange(part.start, min(part.stop, len(source)))
        scaled[part] = convert(*source.read(rows), dtype, rows, scaler, law)[0].to(device)
    return scaled


def _open_mapped(model: LatentModel, x: np.ndarray, mask: Any, num_data: int | None) -> MappedArray:
    as_tensor("x", x[:0])  # a dtype that cannot be used
    _check_rows("x", x.shape, model.num_features, num_data)
    if mask is not None and not is_mapped(mask):
        mask = as_tensor("mask", mask).cpu().numpy()
    if mask is not None:
        if mask.dtype != np.bool_:
            raise TypeError(f"mask: expected dtype bool (true = observed), got {mask.dtype}")
        if mask.shape != x.shape:
            raise ValueError(f"mask: expected shape {list(x.shape)}, got {list(mask.shape)}")
    if x.dtype == np.bool_:
        raise TypeError("x: expected floating point or uint8, got torch.bool")
    return MappedArray(x, mask)


def _check_rows(name: str, shape: tuple[int, ...], num_features: int, num_data: int | None) -> None:
    if len(shape) != 2 or shape[1] != num_features or shape[0] == 0:
        raise ValueError(
            f"{name}: expected shape [N, {num_features}] with N >= 1, got {list(shape)}"
        )
    if num_data is not None and shape[0] != num_data:
        raise ValueError(f"{name}: expected {num_data} rows, one per datapoint, got {shape[0]}")


def _check_finite(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> None:
    """`dtype` is the model's: what it cannot hold would become infinite there."""
    for start in range(0, len(x), _CHUNK):
        part = x[start : start + _CHUNK].to(dtype)
        wrong = torch.isinf(part) if mask is None else ~torch.isfinite(part)
        if mask is not None:
            wrong &= mask[start : start + _CHUNK].to(x.device)
        if bool(wrong.any()):
            row, column = _checks.first_entry(wrong)
            value = x[start + row, column].item()
            raise ValueError(
                f"x: expected finite numbers of {dtype}, or NaN for missing, got {value} at "
                f"row {start + row}, column {column}"
                + (", where the mask says observed" if mask is not None else "")
            )
