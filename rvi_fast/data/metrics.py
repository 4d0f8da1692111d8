"""How far a reconstruction is from the truth."""

from __future__ import annotations

import math

import numpy as np
import torch

from .._devices import beside
from .pixels import is_pixels
from .scaling import Standardizer as Standardizer
from .tables import Table, check_mask, refuse, row_chunks


def elastic(
    x: Table, reconstruction: Table, mask: Table | None = None, *, trim: float = 0.0
) -> float:
    """Mean over the scored entries of |error| + error^2, error = x - reconstruction.

    Args:
        x: [N, D], the truth; NaN is not scored. uint8 means pixels, scaled by 1/255.
        reconstruction: [N, D], in the units of the (scaled) x; uint8 is scaled likewise.
        mask: bool [N, D], True = scored; without it, every entry that is not NaN.
        trim: share of the scored entries, in [0, 1), that is left out: those with the largest errors,
            rounded down to whole entries. A few outliers of a table can outweigh all else.

    Returns:
        The mean, summed in float64. A NaN in a scored entry of the reconstruction makes it NaN.

    Raises:
        ValueError: shapes differ, x is NaN where the mask is True, nothing is scored, or trim is out of
            its range.
        TypeError: the mask is not bool.

    >>> elastic(np.array([[1.0, np.nan]]), np.array([[0.5, 7.0]]))
    0.75
    >>> elastic(np.array([[1.0, 0.5, 0.5, 9.0]]), np.zeros((1, 4)), trim=0.25)
    1.1666666666666667
    """
    if not 0.0 <= trim < 1.0:
        raise ValueError(f"trim: expected a share in [0, 1), got {trim!r}")
    x, reconstruction = _table(x), _table(reconstruction)
    if x.ndim != 2 or x.shape != reconstruction.shape:
        raise ValueError(
            "x and reconstruction: expected one shape [N, D],"
            f" got {list(x.shape)} and {list(reconstruction.shape)}"
        )
    mask = None if mask is None else _table(mask)
    check_mask(x, mask)
    device = next(
        (beside(table.device) for table in (x, reconstruction) if isinstance(table, torch.Tensor)),
        torch.device("cpu"),
    )
    total, count = 0.0, 0
    errors = []  # kept where some of them are to be left out
    for rows in row_chunks(x.shape):
        target = _float64(x[rows], device)
        scored = ~target.isnan()
        if mask is not None:
            wanted = _tensor(mask[rows], np.bool_).to(device)
            refuse((wanted & ~scored).cpu().numpy(), rows, "NaN where the mask is True")
            scored = wanted
        error = (target - _float64(reconstruction[rows], device))[scored].abs()
        total += float((error + error * error).sum())
        count += error.numel()
        if trim:
            errors.append(error)
    if count == 0:
        raise ValueError(f"nothing to score in x of shape {list(x.shape)}")
    if left_out := int(trim * count):
        # NaN sorts last, and is not to be left out
        error = torch.cat(errors).sort().values[: count - left_out]
        return math.nan if math.isnan(total) else float((error + error * error).mean())
    return total / count


def _table(values: Table) -> Table:
    return values if isinstance(values, torch.Tensor) else np.asarray(values)


def _tensor(part: Table, dtype: type[np.generic]) -> torch.Tensor:
    # the copy of an array also accepts what torch refuses: read-only, reversed, big-endian
    return part if isinstance(part, torch.Tensor) else torch.from_numpy(part.astype(dtype))


def _float64(part: Table, device: torch.device) -> torch.Tensor:
    values = _tensor(part, np.float64).detach().to(device).to(torch.float64)
    return values / 255 if is_pixels(part) else values
