"""Columns bent towards a normal shape before a model sees them, and their inverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

TRANSFORMS = ("auto", "none", "log", "quantile")
# interquartile ranges from the 1 % to the 99 % quantile: more than in a Laplace or Student t
# distribution of three degrees of freedom, less than in a log-normal one of sigma 1
_HEAVY = 6.2
_FEWEST = 20
_KNOTS = 257


@dataclass(frozen=True, eq=False)
class _Column:
    """The function of a column that stays as it is."""

    kind = "none"

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x

    def backward(self, y: np.ndarray) -> np.ndarray:
        return y

    def slope(self, x: np.ndarray) -> np.ndarray:
        return np.ones_like(x)

    def knots(self) -> list[Any]:
        return []

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


@dataclass(frozen=True, eq=False)
class _Log(_Column):
    """log x, from the least training entry down by its tangent; back to the training range."""

    low: float
    high: float
    kind = "log"

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < np.inf:
            raise ValueError(
                f"log: expected 0 < low <= high, both finite, got {self.low} and {self.high}"
            )

    def forward(self, x: np.ndarray) -> np.ndarray:
        below = np.minimum(x, self.low) / self.low - 1
        return np.log(np.maximum(x, self.low)) + below

    def backward(self, y: np.ndarray) -> np.ndarray:
        # exp and log together round: the range itself is exact
        y = np.clip(y, np.log(self.low), np.log(self.high))
        return np.clip(np.exp(y), self.low, self.high)

    def slope(self, x: np.ndarray) -> np.ndarray:
        return 1 / np.maximum(x, self.low)

    def knots(self) -> list[Any]:
        return [self.low, self.high]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "low": self.low, "high": self.high}


@dataclass(frozen=True, eq=False)
class _Quantile(_Column):
    """Normal scores of ranks, straight lines between knots; the ends' outside the training range."""

    values: np.ndarray
    scores: np.ndarray
    kind = "quantile"

    def __post_init__(self) -> None:
        values, scores = (np.asarray(part, np.float64) for part in (self.values, self.scores))
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "scores", scores)
        rising = all(
            part.ndim == 1 and np.isfinite(part).all() and (np.diff(part) > 0).all()
            for part in (values, scores)
        )
        if not rising or values.shape != scores.shape or not len(values):
            raise ValueError(
                "quantile: expected values and scores, finite, rising and as many of each, got "
                f"{values.tolist()} and {scores.tolist()}"
            )

    def forward(self, x: np.ndarray) -> np.ndarray:
        return _interpolated(x, self.values, self.scores)

    def backward(self, y: np.ndarray) -> np.ndarray:
        return _interpolated(y, self.scores, self.values)

    def slope(self, x: np.ndarray) -> np.ndarray:
        if len(self.values) < 2:
            return np.ones_like(x)
        at = np.searchsorted(self.values, x).clip(1, len(self.values) - 1)
        return (np.diff(self.scores) / np.diff(self.values))[at - 1]

    def knots(self) -> list[Any]:
        return [self.values, self.scores]

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "values": self.values.tolist(),
            "scores": self.scores.tolist(),
        }


_KINDS: dict[str, type[_Column]] = {kind.kind: kind for kind in (_Column, _Log, _Quantile)}


class ColumnTransform:
    """A monotone function for each column, after which a normal distribution suits it better.

    "none" leaves a column as it is. "log" takes the logarithm; below the least entry that was seen in
    `fit` the function goes on as a straight line, so that zero and negative numbers have a value too.
    "quantile" takes the normal scores of ranks, with straight lines between at most 257 knots; outside
    the range that was seen it has the value of the nearer end. The inverse of both stays within the
    range that was seen: a model's error of some units there would otherwise be one of many orders of
    magnitude here.

    "auto" chooses for each column by the entries that are observed. A column has heavy tails where its
    1 % and its 99 % quantile are more than 6.2 interquartile ranges apart (3.4 in a normal
    distribution, 4.2 in an exponential one, 5.6 in Laplace's, 7.0 and 13.7 in a log-normal one of
    sigma 1 and 1.5, 32 in Cauchy's). The most frequent value, zero in many columns, is not counted, nor
    are the largest and the smallest of up to 100 entries, so that a single wrong number does not
    decide; a column with fewer than 20 others is left as it is. Heavy tails get "log" if all entries
    are positive and their logarithms have no heavy tails, and "quantile" if not. All others get "none".

    Args:
        columns: what `fit` or `from_dict` makes.

    Example:
        >>> import numpy as np
        >>> x = np.exp(2 * np.random.default_rng(0).normal(size=(500, 2)))
        >>> x[:, 1] = np.log(x[:, 1])
        >>> transform = ColumnTransform.fit(x)
        >>> transform.kinds
        ['log', 'none']
        >>> bool(np.allclose(transform.inverse(transform.transform(x)), x))
        True
    """

    def __init__(self, columns: list[_Column]) -> None:
        self._columns = columns

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        kind: str = "auto",
        columns: np.ndarray | None = None,
    ) -> ColumnTransform:
        """Learns one function for each column from its observed entries.

        Args:
            x: [N, D] numbers, NaN = missing.
            mask: bool [N, D], True = observed; without it, every entry that is not NaN.
            kind: "auto", "none", "log" or "quantile", for every column.
            columns: bool [D]: those that may be bent, all if not given. Others stay as they are, as
                codes and counts have to.

        Raises:
            ValueError: kind or shapes are not as expected, observed entries are not finite, or kind is
                "log" and an observed entry is not positive.
        """
        if kind not in TRANSFORMS:
            raise ValueError(f"transform: expected one of {', '.join(TRANSFORMS)}, got {kind!r}")
        x = np.asarray(x)
        if x.ndim != 2:
            raise ValueError(f"x: expected [N, D], got shape {list(x.shape)}")
        if mask is not None and np.shape(mask) != x.shape:
            raise ValueError(
                f"mask: expected x's shape {list(x.shape)}, got {list(np.shape(mask))}"
            )
        if kind == "none":
            return cls([_Column()] * x.shape[1])
        fitted = []
        for column in range(x.shape[1]):
            if columns is not None and not columns[column]:
                fitted.append(_Column())
                continue
            values = x[:, column].astype(np.float64)
            values = values[~np.isnan(values) if mask is None else mask[:, column]]
            if not np.isfinite(values).all():
                raise ValueError(f"x: expected finite observed entries in column {column}")
            fitted.append(_fitted(values, kind, column))
        return cls(fitted)

    @property
    def kinds(self) -> list[str]:
        """What bends each column, in their order: "none", "log" or "quantile"."""
        return [column.kind for column in self._columns]

    def transform(self, x: np.ndarray) -> np.ndarray:
        """[N, D] in the data's units -> [N, D] float64, or x itself where every column is "none"."""
        return self._mapped(x, lambda column: column.forward)

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """What `transform` gives -> the data's units, [N, D] float64, or x itself. NaN stays NaN."""
        return self._mapped(x, lambda column: column.backward)

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Derivative of `transform` at [N, D], float64, positive; at a knot that of the line below.

        Outside the range that was seen in `fit` a quantile column has that of its nearest line, which a
        density needs, though `transform` itself goes no further there.
        """
        return self._mapped(
            np.asarray(x, np.float64), lambda column: column.slope, all_columns=True
        )

    def knots(self) -> tuple[np.ndarray, np.ndarray]:
        """All that defines it as two arrays, see `from_knots`.

        Returns:
            float64 [D, 2, K], padded with NaN, and int64 [D]: 0 for "none", 1 for "log", whose knots
            are the least and the greatest entry, 2 for "quantile", whose knots are entries and scores.
        """
        parts = [[np.atleast_1d(part) for part in column.knots()] for column in self._columns]
        most = max((len(part) for column in parts for part in column), default=1)
        knots = np.full((len(parts), 2, most), np.nan)
        for column, own in enumerate(parts):
            for row, part in enumerate(own):
                knots[column, row, : len(part)] = part
        return knots, np.array([list(_KINDS).index(kind) for kind in self.kinds], np.int64)

    @classmethod
    def from_knots(cls, knots: np.ndarray, kinds: np.ndarray) -> ColumnTransform:
        """The transform that two arrays of `knots` describe.

        Raises:
            ValueError: they are not what `knots` gives.
        """
        columns: list[_Column] = []
        for own, kind in zip(knots, kinds.tolist(), strict=True):
            first, second = (part[~np.isnan(part)] for part in own)
            if kind == 0:
                columns.append(_Column())
            elif kind == 1:
                columns.append(_Log(float(first[0]), float(second[0])))
            elif kind == 2:
                columns.append(_Quantile(first, second))
            else:
                raise ValueError(f"kinds: expected 0, 1 or 2, got {kind}")
        return cls(columns)

    def to_dict(self) -> dict[str, Any]:
        """All that defines the transform as strings and Python floats, exact through JSON."""
        return {"columns": [column.to_dict() for column in self._columns]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ColumnTransform:
        """The transform that a dict of `to_dict` describes.

        Raises:
            ValueError: it is not a dict that `to_dict` has made.
        """
        try:
            columns = []
            for given in values["columns"]:
                rest = dict(given)
                columns.append(_KINDS[rest.pop("kind")](**rest))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"transform: expected what ColumnTransform.to_dict gives, got {values!r:.200}"
            ) from error
        return cls(columns)

    def _mapped(
        self,
        x: np.ndarray,
        function: Callable[[_Column], Callable[[np.ndarray], np.ndarray]],
        *,
        all_columns: bool = False,
    ) -> np.ndarray:
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != len(self._columns):
            raise ValueError(f"x: expected [N, {len(self._columns)}], got shape {list(x.shape)}")
        every = enumerate(self._columns)
        bent = [(at, column) for at, column in every if all_columns or column.kind != "none"]
        if not bent:
            return x
        out = x.astype(np.float64)
        for at, column in bent:
            out[:, at] = function(column)(out[:, at])
        return out


def _fitted(values: np.ndarray, kind: str, column: int) -> _Column:
    """The function of one column, from its observed entries [n]."""
    if kind == "log" and len(values) and values.min() <= 0:
        raise ValueError(
            f"transform: expected positive entries for 'log', got {values.min()} in column {column}; "
            "'auto' takes it only where it fits"
        )
    if not len(values):
        return _Column()
    if kind == "auto":
        if not _heavy(values):
            return _Column()
        kind = "log" if values.min() > 0 and not _heavy(np.log(values)) else "quantile"
    if kind == "log":
        return _Log(float(values.min()), float(values.max()))
    distinct, counts = np.unique(values, return_counts=True)
    # the middle of the ranks that equal values share
    shares = (np.cumsum(counts) - counts / 2) / len(values)
    scores = torch.special.ndtri(torch.from_numpy(shares)).numpy()
    # evenly spaced scores: where the tails are, values lie far apart
    wanted = np.linspace(scores[0], scores[-1], _KNOTS)
    knots = np.unique(np.searchsorted(scores, wanted).clip(max=len(scores) - 1))
    return _Quantile(distinct[knots], scores[knots])


def _heavy(values: np.ndarray) -> bool:
    """Whether entries [n] have heavy tails, see `ColumnTransform`."""
    distinct, counts = np.unique(values, return_counts=True)
    rest = values[values != distinct[counts.argmax()]]
    if len(rest) < _FEWEST:
        return False
    quarter, three_quarters = np.quantile(rest, (0.25, 0.75))
    # of few entries neither the smallest nor the largest
    low = np.quantile(rest, 0.01, method="higher")
    high = np.quantile(rest, 0.99, method="lower")
    return bool(high - low > _HEAVY * (three_quarters - quarter) > 0)


def _interpolated(x: np.ndarray, at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Straight lines between knots as np.interp draws them, and NaN where x is NaN."""
    return np.where(np.isnan(x), np.nan, np.interp(x, at, values))
