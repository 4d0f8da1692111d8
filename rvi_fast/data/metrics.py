"""How far a reconstruction is from the truth, and the scale on which tables are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

_CHUNK = 1 << 20  # entries held in float64 at a time

Table = np.ndarray | torch.Tensor


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
    _check_mask(x, mask)
    device = next(
        (table.device for table in (x, reconstruction) if isinstance(table, torch.Tensor)),
        torch.device("cpu"),
    )
    total, count = 0.0, 0
    for rows in _row_chunks(x.shape):
        target = _float64(x[rows], device)
        scored = ~target.isnan()
        if mask is not None:
            wanted = _tensor(mask[rows], np.bool_).to(device)
            _refuse((wanted & ~scored).cpu().numpy(), rows, "NaN where the mask is True")
            scored = wanted
        error = (target - _float64(reconstruction[rows], device))[scored].abs()
        total += float((error + error * error).sum())
        count += error.numel()
    if count == 0:
        raise ValueError(f"nothing to score in x of shape {list(x.shape)}")
    return total / count


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Shifts and scales each feature: (x - mean) / std.

    Args:
        mean: [D] float64, finite.
        std: [D] float64, finite and positive.
    """

    mean: np.ndarray
    std: np.ndarray

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ValueError(
                "mean and std: expected two vectors of one length,"
                f" got shapes {list(self.mean.shape)} and {list(self.std.shape)}"
            )
        if not np.isfinite(self.mean).all():
            raise ValueError(f"mean: expected finite numbers, got {self.mean}")
        if not (np.isfinite(self.std) & (self.std > 0)).all():
            raise ValueError(f"std: expected finite positive numbers, got {self.std}")

    @classmethod
    def fit(cls, x: np.ndarray, mask: np.ndarray | None = None) -> Standardizer:
        """Takes mean and population standard deviation of each feature's observed entries.

        A constant feature gets std 1, a feature that is never observed mean 0 and std 1.

        Args:
            x: [N, D] numbers, NaN = missing.
            mask: bool [N, D], True = observed; without it, every entry that is not NaN.

        Raises:
            ValueError: shapes differ, x is NaN where the mask is True, or x holds inf.
            TypeError: the mask is not bool.
        """
        x = np.asarray(x)
        if x.ndim != 2:
            raise ValueError(f"x: expected [N, D], got shape {list(x.shape)}")
        mask = None if mask is None else np.asarray(mask)
        _check_mask(x, mask)
        count, total, squares = np.zeros((3, x.shape[1]))
        low = high = np.full(x.shape[1], np.nan)
        for values in _observed(x, mask):
            count += (~np.isnan(values)).sum(axis=0)
            total += np.nansum(values, axis=0)
            low = np.fmin(low, np.fmin.reduce(values, axis=0))
            high = np.fmax(high, np.fmax.reduce(values, axis=0))
        count = np.maximum(count, 1)
        # the mean of equal numbers is off by rounding, which a division by std would blow up
        mean = np.where(low == high, low, total / count)
        for values in _observed(x, mask):
            squares += np.nansum((values - mean) ** 2, axis=0)
        std = np.sqrt(squares / count)
        return cls(mean, np.where(std == 0, 1.0, std))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """[N, D] in the features' units -> [N, D] float32, standardised. NaN stays NaN."""
        return self._by_rows(x, lambda values: (values - self.mean) / self.std)

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """[N, D] standardised -> [N, D] float32 in the features' units. NaN stays NaN."""
        return self._by_rows(x, lambda values: values * self.std + self.mean)

    def to_dict(self) -> dict[str, list[float]]:
        """Lists of Python floats, exact through JSON."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, list[float]]) -> Standardizer:
        """The inverse of `to_dict`."""
        if not isinstance(values, dict) or values.keys() != {"mean", "std"}:
            raise ValueError(f"expected a dict of mean and std, got {values!r}")
        return cls(np.array(values["mean"]), np.array(values["std"]))

    def _by_rows(self, x: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"x: expected [N, {len(self.mean)}], got shape {list(x.shape)}")
        out = np.empty(x.shape, np.float32)
        for rows in _row_chunks(x.shape):
            out[rows] = function(x[rows])
        return out


def _table(values: Table) -> Table:
    return values if isinstance(values, torch.Tensor) else np.asarray(values)


def _tensor(part: Table, dtype: type[np.generic]) -> torch.Tensor:
    # the copy of an array also accepts what torch refuses: read-only, reversed, big-endian
    return part if isinstance(part, torch.Tensor) else torch.from_numpy(part.astype(dtype))


def _float64(part: Table, device: torch.device) -> torch.Tensor:
    values = _tensor(part, np.float64).detach().to(device, torch.float64)
    return values / 255 if str(part.dtype) in ("uint8", "torch.uint8") else values


def _row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def _observed(x: np.ndarray, mask: np.ndarray | None) -> Iterator[np.ndarray]:
    """Chunks of rows in float64, NaN where an entry is not observed."""
    for rows in _row_chunks(x.shape):
        values = x[rows].astype(np.float64)
        if mask is not None:
            _refuse(mask[rows] & np.isnan(values), rows, "NaN where the mask is True")
            values[~mask[rows]] = np.nan
        _refuse(np.isinf(values), rows, "infinite")
        yield values


def _refuse(wrong: np.ndarray, rows: slice, reason: str) -> None:
    if wrong.any():
        row, column = divmod(int(wrong.argmax()), wrong.shape[1])
        raise ValueError(f"x: {reason} in row {rows.start + row}, column {column}")


def _check_mask(x: Table, mask: Table | None) -> None:
    if mask is None:
        return
    if mask.shape != x.shape:
        raise ValueError(f"mask: expected x's shape {list(x.shape)}, got {list(mask.shape)}")
    if str(mask.dtype).removeprefix("torch.") != "bool":
        raise TypeError(f"mask: expected bool, got {mask.dtype}")
