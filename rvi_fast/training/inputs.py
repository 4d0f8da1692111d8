"""The data boundary: what a user passes as x and mask becomes checked tensors on a device."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from ..models import LatentModel

# rows examined at once, so that no mask of the whole table is made
_CHUNK = 8192


class Inputs(NamedTuple):
    """x [N, D] in the model's dtype with NaN for missing, or uint8 with a mask where entries miss."""

    x: Tensor
    mask: Tensor | None

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """x and mask of rows `index`."""
        return self.x[index], None if self.mask is None else self.mask[index]

    def fingerprint(self) -> str:
        """SHA-256 of shape, dtype and all entries: are two data sets the same?"""
        digest = hashlib.sha256(f"{tuple(self.x.shape)} {self.x.dtype}".encode())
        for tensor in (self.x, self.mask):
            for rows in () if tensor is None else tensor.split(_CHUNK):
                digest.update(rows.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def prepare(
    model: LatentModel,
    x: Any,
    mask: Any = None,
    *,
    num_data: int | None = None,
    device: torch.device | None = None,
) -> Inputs:
    """Checks x and mask and moves them to the device; the caller's arrays are left as they are.

    Args:
        model: gives D, and dtype and device where none is named.
        x: tensor or numpy array [N, D], floating point (NaN = missing) or uint8 (pixels).
        mask: bool [N, D], true = observed.
        num_data: N that x must have.
        device: where to.

    Raises:
        TypeError, ValueError: with row and column for infinities, and for NaN where the mask says
            observed.
    """
    values = _as_tensor("x", x)
    if values.dtype not in _checks.DATA_DTYPES:
        raise TypeError(f"x: expected floating point or uint8, got {values.dtype}")
    if values.dim() != 2 or values.shape[1] != model.num_features or len(values) == 0:
        raise ValueError(
            f"x: expected shape [N, {model.num_features}] with N >= 1, got {_checks.shape_of(values)}"
        )
    if num_data is not None and len(values) != num_data:
        raise ValueError(f"x: expected {num_data} rows, one per datapoint, got {len(values)}")
    observed = None
    if mask is not None:
        observed = _as_tensor("mask", mask)
        if observed.dtype != torch.bool:
            raise TypeError(f"mask: expected dtype bool (true = observed), got {observed.dtype}")
        _checks.check_shape("mask", observed, tuple(values.shape))
    like = next(model.posterior.parameters())
    if values.dtype != torch.uint8:
        _check_finite(values, observed, like.dtype)
    device = like.device if device is None else device
    if values.dtype == torch.uint8:
        return Inputs(values.to(device), None if observed is None else observed.to(device))
    values = values.to(device, like.dtype)
    if observed is not None:
        values = torch.where(observed.to(device), values, torch.nan)
    return Inputs(values, None)


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected a tensor or a plain numpy array, got a masked array; pass its data as "
            "x and the inverse of its mask (true = observed) as mask"
        )
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fub" or value.dtype.itemsize > 8:
            raise TypeError(f"{name}: expected floating point, uint8 or bool, got {value.dtype}")
        # torch takes neither negative strides nor foreign byte orders
        native = value.astype(value.dtype.newbyteorder("="), order="C", copy=False)
        return torch.from_numpy(native if native.flags.writeable else native.copy())
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got {value.layout}")
        return value.detach()
    raise TypeError(f"{name}: expected a tensor or a numpy array, got {type(value).__name__}")


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
