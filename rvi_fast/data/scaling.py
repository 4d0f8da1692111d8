"""The scale of a table's features: where each has its centre, and how far it spreads.

Location and scale are mean and population standard deviation of the observed entries, in float64 and
from the entries as they came. Three kinds of feature are set apart:

    constant     every observed entry is one number: it is shifted to 0 and comes back as that number
    unseen       nothing is observed: as a constant of 0
    far entries  some lie more than 15 n^(1/3) robust standard deviations (at most 300) from the median
                 of n entries: the feature is centred on its median and scaled by its quartiles, and
                 cut at 10 of them

Standardised numbers are cut at 10, or where the furthest entry was if that is further: one wrong entry
then neither squeezes the others together nor outweighs them.

The bound leaves alone what tails bring forth by themselves. In robust standard deviations the furthest
of n = 1,000 and of n = 1,000,000 draws lies here in one table of a hundred: normal 4.4 and 5.4,
exponential 14 and 21, Student's t with 3 degrees of freedom 54 and 242, log-normal (sigma 1) 71 and 163;
the bound is 150 and 300. One entry that stays just below it makes the standard deviation 4.8 times as
large with n = 1,000.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from .tables import check_mask, observed_chunks, row_chunks

# how far an entry may lie from the median, and where a standardised number is cut: see the module
_FAR, _FAR_AT_MOST, _LIMIT = 15.0, 300.0, 10.0
# of a feature whose entries all lie nearer to the mean than that, in standard deviations, none is far:
# its quantiles need not be known
_NEAR = 5.0
# percentiles, and how many standard deviations apart a normal distribution has them: the first pair that
# is apart counts, since half of the entries or more may be one number
_PAIRS = ((25.0, 75.0, 1.3489795), (5.0, 95.0, 3.2897073), (1.0, 99.0, 4.6526957))
# rows and entries at most from which quantiles are taken
_SAMPLED_ROWS, _SAMPLED_ENTRIES = 100_000, 1 << 22


class FarEntriesWarning(UserWarning):
    """A feature has entries too far from its others to share a scale with them.

    The message names row and column. Median and quartiles then give the scale of the feature, and within
    the model such entries count as nearer. If they are wrong, pass them as missing; if the feature has
    heavy tails, transform it, see `rvi_fast.data.ColumnTransform`.
    """


@dataclass(frozen=True, eq=False)
class Standardizer:
    """Shifts and scales each feature: (x - mean) / std, cut at +- limit.

    Args:
        mean: [D] float64, finite: the mean; the median of a feature with far entries.
        std: [D] float64, finite, not negative: the standard deviation; of a feature with far entries
            what the quartiles say of it. 0 marks a feature that is always `mean`: it is only shifted,
            and comes back as exactly that number.
        limit: [D] float64, positive: where standardised numbers are cut; nowhere if not given.

    Example:
        >>> import numpy as np
        >>> from rvi_fast.data import Standardizer
        >>> scale = Standardizer.fit(np.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> scale.transform(np.array([[3.0, 5.0]])).tolist(), scale.inverse(np.ones((1, 2))).tolist()
        ([[1.0, 0.0]], [[3.0, 5.0]])
    """

    mean: np.ndarray
    std: np.ndarray
    limit: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.limit is None:
            object.__setattr__(self, "limit", np.full(np.shape(self.std), np.inf))
        for name in ("mean", "std", "limit"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        if self.mean.ndim != 1 or not self.mean.shape == self.std.shape == self.limit.shape:
            raise ValueError(
                "mean, std and limit: expected vectors of one length, got shapes "
                f"{list(self.mean.shape)}, {list(self.std.shape)} and {list(self.limit.shape)}"
            )
        if not np.isfinite(self.mean).all():
            raise ValueError(f"mean: expected finite numbers, got {self.mean}")
        if not (np.isfinite(self.std) & (self.std >= 0)).all():
            raise ValueError(f"std: expected finite numbers >= 0, got {self.std}")
        if not (self.limit > 0).all():
            raise ValueError(f"limit: expected positive numbers, got {self.limit}")

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        robust: bool = True,
        columns: np.ndarray | None = None,
    ) -> Self:
        """The scale of the observed entries of a table, see the module.

        Args:
            x: [N, D] numbers, NaN = missing.
            mask: bool [N, D], True = observed; without it, every entry that is not NaN.
            robust: False takes mean and standard deviation of features with far entries too, and cuts
                nothing.
            columns: bool [D]: features to standardise, all if not given. Others that were observed keep
                their numbers: mean 0, std 1.

        Raises:
            ValueError: shapes differ, x is NaN where the mask is True, or x holds inf.
            TypeError: the mask is not bool.

        Warns:
            FarEntriesWarning: a feature has far entries; names row and column.
        """
        x = np.asarray(x)
        if x.ndim != 2:
            raise ValueError(f"x: expected [N, D], got shape {list(x.shape)}")
        mask = None if mask is None else np.asarray(mask)
        check_mask(x, mask)
        moments, start = Moments(*x.shape), 0
        total, squares = np.zeros((2, x.shape[1]))
        for values in observed_chunks(x, mask):
            moments.add(torch.from_numpy(values), start)
            total += np.nansum(values, axis=0)
            start += len(values)
        # an array can be read twice, and to subtract the mean of all is the most exact
        count = np.maximum(moments.count, 1)
        mean = np.where(moments.constant, moments.low, total / count)
        for values in observed_chunks(x, mask):
            with np.errstate(over="ignore"):
                squares += np.nansum((values - mean) ** 2, axis=0)
        moments.mean, moments.squares = mean, squares
        scale = moments.standardizer(robust=robust, columns=columns)
        moments.warn_of_far_entries()
        return cls(**vars(scale))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """[N, D] in the features' units -> [N, D] float32, standardised. NaN stays NaN."""
        std = np.where(self.std == 0, 1.0, self.std)
        cut = np.isfinite(self.limit).any()

        def scaled(values: np.ndarray) -> np.ndarray:
            values = (values - self.mean) / std
            return np.clip(values, -self.limit, self.limit) if cut else values

        return self._by_rows(x, scaled)

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """[N, D] standardised -> [N, D] float32 in the features' units. NaN stays NaN."""
        return self._by_rows(x, lambda values: values * self.std + self.mean)

    def to_dict(self) -> dict[str, list[float]]:
        """Lists of Python floats, exact through JSON; without `limit` where nothing is cut."""
        values = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        return values | ({"limit": self.limit.tolist()} if np.isfinite(self.limit).any() else {})

    @classmethod
    def from_dict(cls, values: dict[str, list[float]]) -> Self:
        """The scale that a dict of `to_dict` describes, with or without `limit`."""
        if not isinstance(values, dict) or values.keys() - {"limit"} != {"mean", "std"}:
            raise ValueError(f"expected a dict of mean and std, got {values!r}")
        return cls(**{name: np.array(value) for name, value in values.items()})

    def _by_rows(self, x: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"x: expected [N, {len(self.mean)}], got shape {list(x.shape)}")
        out = np.empty(x.shape, np.float32)
        for rows in row_chunks(x.shape):
            out[rows] = function(x[rows])
        return out


class Moments:
    """What is known of the entries of each feature after one look at them, a chunk of rows at a time.

    Those of the parts of a table, looked at by several processes, add up to those of the whole.

    Args:
        num_data: N, rows of the whole table.
        num_features: D.

    Attributes:
        count, mean, squares, low, high: [D] float64: entries, their mean and the sum of squared
            distances from it, the smallest and the largest.
        low_row, high_row: [D] int64: where those are.
        far: row, column and number of the furthest entry of each feature with far entries.
        sample: [n, D] float64: some rows, from which quantiles are taken; the same however the table is
            cut into parts.
    """

    def __init__(self, num_data: int, num_features: int) -> None:
        size = min(_SAMPLED_ROWS, max(1, _SAMPLED_ENTRIES // max(1, num_features)))
        if num_data <= size:
            self._sampled = np.arange(num_data)
        else:
            self._sampled = np.unique(np.random.default_rng(0).integers(0, num_data, size))
        self.count, self.mean, self.squares = np.zeros((3, num_features))
        self.low, self.high = np.full((2, num_features), np.nan)
        self.low_row, self.high_row = np.zeros((2, num_features), np.int64)
        self.far: list[tuple[int, int, float]] = []
        self._samples: list[np.ndarray] = []

    def add(self, values: Tensor, first_row: int) -> None:
        """Looks at rows of the table from `first_row` on: [n, D] float64, NaN = missing."""
        if not len(values):
            return
        other, known = object.__new__(Moments), ~torch.isnan(values)
        count = known.sum(0)
        low, low_row = torch.where(known, values, torch.inf).min(0)
        high, high_row = torch.where(known, values, -torch.inf).max(0)
        # sums of what lies above the smallest: digits that all have in common are not added up
        base = torch.where(count > 0, low, 0.0)
        above = torch.where(known, values - base, 0.0).sum(0) / count.clamp(min=1)
        mean = base + above
        squares = torch.where(known, (values - base - above) ** 2, 0.0).sum(0)
        other.count, other.mean, other.squares = (
            part.to("cpu", torch.float64).numpy() for part in (count, mean, squares)
        )
        nothing = other.count == 0
        other.low, other.high = (
            np.where(nothing, np.nan, part.cpu().numpy()) for part in (low, high)
        )
        other.low_row, other.high_row = (
            part.cpu().numpy() + first_row for part in (low_row, high_row)
        )
        start, stop = np.searchsorted(self._sampled, (first_row, first_row + len(values)))
        chosen = torch.from_numpy(self._sampled[start:stop] - first_row).to(values.device)
        other._samples = [values[chosen].cpu().numpy()]
        self.merge(other)

    def merge(self, other: Moments) -> None:
        """Adds what was seen of rows that come after these."""
        count = self.count + other.count
        share, apart = other.count / np.maximum(count, 1), other.mean - self.mean
        with np.errstate(over="ignore", invalid="ignore"):
            self.squares = self.squares + other.squares + apart**2 * (self.count * share)
            self.mean = np.where(self.count == 0, other.mean, self.mean + apart * share)
        self.count = count
        with np.errstate(invalid="ignore"):
            lower = (other.low < self.low) | np.isnan(self.low)
            higher = (other.high > self.high) | np.isnan(self.high)
        self.low, self.high = np.fmin(self.low, other.low), np.fmax(self.high, other.high)
        self.low_row = np.where(lower, other.low_row, self.low_row)
        self.high_row = np.where(higher, other.high_row, self.high_row)
        self._samples += other._samples

    @property
    def constant(self) -> np.ndarray:
        """bool [D]: all entries are one number, of which there is at least one."""
        return self.low == self.high

    @property
    def sample(self) -> np.ndarray:
        """Some rows [n, D] float64, from which quantiles are taken."""
        return np.concatenate(self._samples) if self._samples else np.empty((0, len(self.count)))

    def standardizer(
        self, *, robust: bool = True, columns: np.ndarray | None = None
    ) -> Standardizer:
        """The scale of the entries that were looked at, robust where some lie far off.

        Args:
            robust: as in `Standardizer.fit`.
            columns: bool [D]: features to standardise, all if not given. Others that were observed keep
                their numbers: mean 0, std 1.
        """
        seen = self.count > 0
        # the mean of equal numbers is off by rounding
        mean = np.where(self.constant, self.low, np.where(seen, self.mean, 0.0))
        still = self.constant | ~seen
        with np.errstate(over="ignore", invalid="ignore"):
            std = np.where(still, 0.0, np.sqrt(self.squares / np.maximum(self.count, 1)))
        if columns is not None:
            kept = seen & ~columns
            mean, std, still = np.where(kept, 0.0, mean), np.where(kept, 1.0, std), still & ~kept
        if not np.isfinite(std).all() or (std[~still] == 0).any():
            wrong = int(np.argmax(~np.isfinite(std) | ((std == 0) & ~still)))
            raise ValueError(
                f"x: expected numbers whose variance float64 can hold, got {self.low[wrong]} to "
                f"{self.high[wrong]} in column {wrong}"
            )
        if not robust:
            return Standardizer(mean, std)
        reach = self._reach(mean, std)
        limit = np.maximum(reach, _LIMIT)
        if columns is not None:
            reach, limit = np.where(kept, 0.0, reach), np.where(kept, np.inf, limit)
        self.far = []
        for column in np.flatnonzero(reach > _NEAR).tolist():
            entries = self.sample[:, column]
            middle, spread = _quantile_scale(entries[~np.isnan(entries)])
            if spread == 0 or not self._far(column, middle, spread):
                continue
            mean[column], std[column], limit[column] = middle, spread, _LIMIT
            up = self.high[column] - middle > middle - self.low[column]
            row, value = (self.high_row, self.high) if up else (self.low_row, self.low)
            self.far.append((int(row[column]), column, float(value[column])))
        return Standardizer(mean, std, limit)

    def warn(self) -> None:
        """Says what is unusual: features that were never observed, and far entries."""
        unseen = np.flatnonzero(self.count == 0).tolist()
        if unseen:
            columns = ", ".join(map(str, unseen[:10])) + (", ..." if len(unseen) > 10 else "")
            warnings.warn(
                f"x: nothing is observed in column {columns}: filled in as 0",
                UserWarning,
                stacklevel=3,
            )
        self.warn_of_far_entries()

    def warn_of_far_entries(self) -> None:
        """Names the furthest entry of each feature that `standardizer` has found to have far entries."""
        if not self.far:
            return
        named = [f"{value} at row {row}, column {column}" for row, column, value in self.far[:5]]
        more = f" and in {len(self.far) - 5} more columns" if len(self.far) > 5 else ""
        warnings.warn(
            f"x: {', '.join(named)}{more}: too far from the other entries of the column to share a "
            "scale with them; median and quartiles give the scale, and within the model such "
            "entries count as nearer. Pass them as missing if they are wrong",
            FarEntriesWarning,
            stacklevel=3,
        )

    def _reach(self, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        """How many standard deviations the furthest entry is from the mean, [D]."""
        far = np.fmax(self.high - mean, mean - self.low)
        return np.where(std > 0, far / np.where(std > 0, std, 1.0), 0.0)

    def _far(self, column: int, middle: float, spread: float) -> bool:
        far = max(self.high[column] - middle, middle - self.low[column]) / spread
        return bool(far > min(_FAR * self.count[column] ** (1 / 3), _FAR_AT_MOST))


def _quantile_scale(entries: np.ndarray) -> tuple[float, float]:
    """Median, and the standard deviation that the quartiles speak of; 0 if nearly all are one number."""
    if not len(entries):
        return 0.0, 0.0
    ends = [end for low, high, _ in _PAIRS for end in (low, high)]
    middle, *found = np.percentile(entries, [50.0, *ends]).tolist()
    pairs = zip(found[::2], found[1::2], _PAIRS, strict=True)
    spreads = [(high - low) / apart for low, high, (_, _, apart) in pairs]
    return middle, next((spread for spread in spreads if spread > 0), 0.0)
