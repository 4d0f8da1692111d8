"""How far a reconstruction is from the truth."""

from __future__ import annotations

import numpy as np
import torch

from .._devices import beside
from .pixels import is_pixels
from .scaling import Standardizer as Standardizer
from .tables import Table, check_mask, refuse, row_chunks


def elastic(x: Table, reconstruction: Table, mask: Table | None = None) -> float:
    """Mean over the scored entries of |error| + error^2, error = x - reconstruction.

    Args:
        x: [N, D], the truth; NaN is not scored. uint8 means pixels, scaled by 1/255.
        reconstruction: [N, D], in the units of the (scaled) x; uint8 is scaled likewise.
        mask: bool [N, D], True = scored; without it, every entry that is not NaN.

    Returns:
        The mean, summed in float64. A NaN in a scored entry of the reconstruction makes it NaN.

    Raises:
        ValueError: shapes differ, x is NaN where the mask is True, or nothing is scored.
        TypeError: the mask is not bool.

    >>> elastic(np.array([[1.0, np.nan]]), np.array([[0.5, 7.0]]))
    0.75
    """
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
    if count == 0:
        raise ValueError(f"nothing to score in x of shape {list(x.shape)}")
    return total / count


def _table(values: Table) -> Table:
    return values if isinstance(values, torch.Tensor) else np.asarray(values)


def _tensor(part: Table, dtype: type[np.generic]) -> torch.Tensor:
    # the copy of an array also accepts what torch refuses: read-only, reversed, big-endian
    return part if isinstance(part, torch.Tensor) else torch.from_numpy(part.astype(dtype))


def _float64(part: Table, device: torch.device) -> torch.Tensor:
    values = _tensor(part, np.float64).detach().to(device).to(torch.float64)
    return values / 255 if is_pixels(part) else values
