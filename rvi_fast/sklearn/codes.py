"""Columns of yes/no, classes and counts as numbers that every member of an imputer can say."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from ..likelihoods import Likelihood, make
from .entries import HeldOutEntries

# the square root of a Poisson count and three eighths has nearly the same variance whatever its rate
_ANSCOMBE = 0.375
# of a class nobody has expected, so that it has a logarithm
_LEAST = 1e-12


class Codes:
    """Rows [N, D] of a table as codes [N, K]: what members predict, and what they are weighted by.

    A number or count is one code, itself; yes/no one, 0 or 1; and a class as many as there are classes,
    1 for its own and 0 for the others. Expected codes are means and probabilities, and so are averages
    of several members' codes. The codes of a column are divided by the root of the sum of their
    variances: a squared error of 1 is then what the column's means have, and that of yes/no and of
    classes is the Brier score in that unit. In a table that has only numbers they are those of the rows.

    The linear-Gaussian model is fitted to `features` [N, L]: numbers as they are, yes/no as 0 and 1,
    k - 1 codes of k classes, and of counts x the variance-stabilising 2 sqrt(x + 3/8), whose square has
    an expectation in closed form under a Gaussian.

    Args:
        law: of the columns, one for which `suits` is true, or one of location and scale.
        rows: in the model's units [N, D], NaN for missing.

    Attributes:
        owner: of each code the column [K].
        owner_of_features: of each feature the column [L].
        numeric: bool [D], whether a column holds numbers or counts.
        plain: whether codes and features are the rows.

    Source:
        Anscombe, The transformation of Poisson, binomial and negative-binomial data, 1948.
    """

    def __init__(self, law: Likelihood, rows: np.ndarray) -> None:
        size = rows.shape[1]
        self.plain = all(law.standardizable)
        self.widths = np.ones(size, int) if self.plain else np.array(law.widths)
        self.numeric = np.array(law.classes) == 0
        self.owner = np.repeat(np.arange(size), self.widths)
        self._first = np.cumsum(self.widths) - self.widths
        with np.errstate(invalid="ignore"):
            negative = (rows < 0).any(0)
        self._counts = self.numeric & ~np.array(law.standardizable) & ~negative
        # of classes one code follows from the others
        kept = np.ones(len(self.owner), bool)
        kept[(self._first + self.widths - 1)[self.widths > 1]] = False
        self._features = np.flatnonzero(kept)
        self.owner_of_features = self.owner[kept]
        self.units = np.ones(len(self.owner))
        if not self.plain:
            spread = np.sqrt(np.bincount(self.owner, _variances(self.of_rows(rows)), size))
            self.units = np.where(spread > 0, spread, 1.0)[self.owner]

    @classmethod
    def numbers(cls, num_columns: int) -> Codes:
        """Those of a table that has only numbers."""
        with torch.device("cpu"):
            law = make("gaussian", num_columns)
        assert isinstance(law, Likelihood)
        return cls(law, np.zeros((0, num_columns)))

    @staticmethod
    def suits(law: Likelihood) -> bool:
        """Whether a law says what it expects, and takes it back."""
        if all(law.standardizable):
            return True
        sizes = zip(law.widths, law.classes, strict=True)
        if law.num_outputs is None or any(width not in (1, classes) for width, classes in sizes):
            return False
        try:
            outputs = torch.zeros(1, law.num_outputs, dtype=torch.float64, device="cpu")
            expected = law.expected(outputs)
            again = law.expected(law.outputs_of(expected))
        except ValueError:
            return False
        return again.shape == outputs.shape and bool(torch.allclose(expected, again))

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Codes [N, K] of rows [N, D]; NaN for missing."""
        if self.plain:
            return rows
        codes = rows[:, self.owner]
        place = np.arange(len(self.owner)) - self._first[self.owner]
        wide = (self.widths > 1)[self.owner]
        own = codes[:, wide]
        codes[:, wide] = np.where(np.isnan(own), np.nan, own == place[wide])
        return (codes / self.units).astype(rows.dtype)

    def of_outputs(self, law: Likelihood, outputs: Tensor) -> Tensor:
        """Codes [N, K] that a decoder's outputs [N, K] expect."""
        if self.plain:
            return law.estimate(outputs)
        units = torch.from_numpy(self.units).to(outputs.device, outputs.dtype)
        return law.expected(outputs) / units

    def estimate(self, law: Likelihood, codes: np.ndarray, kind: str | None) -> np.ndarray:
        """What is filled in, [N, D] in the units of rows, for expected codes [N, K].

        Args:
            law: of the model, with what it has learned.
            codes: of all members together.
            kind: "mean" or "mode"; None for what each law takes for the better estimate.
        """
        if self.plain:
            return codes
        # where every device's numbers can go, in float64
        law = copy.deepcopy(law).cpu()
        with torch.no_grad():
            outputs = law.outputs_of(torch.from_numpy(self.expected(codes)))
            return law.estimate(outputs, kind).numpy()

    def expected(self, codes: np.ndarray) -> np.ndarray:
        """Means and probabilities [N, K] that codes stand for."""
        return self._bounded(codes * self.units)

    def columns(self) -> list[slice]:
        """The codes of each column."""
        ends = np.cumsum(self.widths)
        return [slice(end - width, end) for end, width in zip(ends, self.widths, strict=True)]

    def entries(self, entries: HeldOutEntries) -> HeldOutEntries:
        """The codes of held-out entries, those of an entry one after the other."""
        if self.plain:
            return entries
        lines = np.repeat(np.arange(len(entries.row)), self.widths[entries.column])
        first = np.flatnonzero(np.diff(lines, prepend=-1))
        code = self._first[entries.column][lines] + np.arange(len(lines)) - first[lines]
        rows = np.full((len(entries.row), len(self.widths)), np.nan)
        rows[np.arange(len(rows)), entries.column] = entries.truth
        truth = self.of_rows(rows)[lines, code]
        weight = None if entries.weight is None else entries.weight[lines]
        return HeldOutEntries(entries.row[lines], code, truth, weight)

    def features(self, rows: np.ndarray) -> np.ndarray:
        """What the linear model is fitted to [N, L], of rows [N, D]."""
        if self.plain:
            return rows
        features = (self.of_rows(rows) * self.units)[:, self._features]
        counts = self._counts[self.owner_of_features]
        features[:, counts] = 2.0 * np.sqrt(features[:, counts] + _ANSCOMBE)
        return features

    def of_features(self, mean: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected codes [N, K] and their standard deviations, of features [N, L] that are Gaussian."""
        if self.plain:
            return mean, spread
        codes, spreads = np.ones((2, len(mean), len(self.owner)))
        codes[:, self._features], spreads[:, self._features] = mean, spread
        counts = self._counts[self.owner]
        # of y = 2 sqrt(x + 3/8) ~ N(m, s^2): E x = (m^2 + s^2) / 4 - 3/8, var x = s^2 (2 m^2 + s^2) / 8
        m, s = np.maximum(codes[:, counts], 2.0 * np.sqrt(_ANSCOMBE)), spreads[:, counts]
        codes[:, counts] = (m**2 + s**2) / 4.0 - _ANSCOMBE
        spreads[:, counts] = s * np.sqrt((2.0 * m**2 + s**2) / 8.0)
        for first, width in self._classes():
            given = codes[:, first : first + width - 1]
            codes[:, first + width - 1] = 1.0 - given.sum(1)
        return self._bounded(codes) / self.units, spreads / self.units

    def levels(self, levels: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Levels [S, N, D] of entries in their distributions, of those of features [S, N, L].

        That of a class is the level of its most probable code of those that are features, which then
        comes last in the distribution, so that a high level stands for it: the second result [N, D].

        Args:
            levels: between 0 and 1.
            codes: expected ones [N, K].
        """
        if self.plain:
            return levels, None
        found = np.empty((*levels.shape[:2], len(self.widths)))
        last = np.ones(found.shape[1:], int)
        for column, own in enumerate(self.columns()):
            features = levels[..., self.owner_of_features == column]
            if self.widths[column] > 1:
                last[:, column] = codes[:, own][:, :-1].argmax(1)
                features = np.take_along_axis(features, last[None, :, column, None], 2)
            found[..., column] = features[..., 0]
        return found, last

    def entries_at(
        self,
        levels: np.ndarray,
        codes: np.ndarray,
        moved: np.ndarray,
        last: np.ndarray | None = None,
        *,
        whole: bool = False,
    ) -> np.ndarray:
        """Entries [..., N, D] in the units of rows, at levels of their distributions.

        Args:
            levels: between 0 and 1 [..., N, D].
            codes: expected ones [N, K].
            moved: codes [..., N, K] in which numbers and counts are at these levels.
            last: the class that comes last in the distribution [N, D]; None for the order of codes.
            whole: whether counts are rounded.
        """
        if self.plain:
            return moved
        shares, values = self.expected(codes), moved * self.units
        found = np.empty(levels.shape)
        for column, own in enumerate(self.columns()):
            if self.numeric[column]:
                entry = values[..., own.start]
                if self._counts[column]:
                    entry = np.maximum(np.rint(entry) if whole else entry, 0.0)
            else:
                given = shares[:, own]
                if given.shape[1] == 1:
                    given = np.hstack([1.0 - given, given])
                order = None if last is None else last[:, column]
                entry = _class_at(levels[..., column], given, order)
            found[..., column] = entry
        return found

    def _classes(self) -> list[tuple[int, int]]:
        """First code and number of codes of each column of classes."""
        wide = self.widths > 1
        return list(zip(self._first[wide], self.widths[wide], strict=True))

    def _bounded(self, expected: np.ndarray) -> np.ndarray:
        """Expected codes [..., K] as near as they can be: counts not below 0, probabilities of sum 1."""
        found = expected.copy()
        counts = self._counts[self.owner]
        found[..., counts] = np.maximum(found[..., counts], _LEAST)
        shares = ~self.numeric[self.owner]
        found[..., shares] = found[..., shares].clip(_LEAST, 1.0 - _LEAST)
        for first, width in self._classes():
            own = found[..., first : first + width]
            own /= own.sum(-1, keepdims=True)
        return found


def _variances(codes: np.ndarray) -> np.ndarray:
    """Variances [K] of what columns show, 0 of those that show nothing."""
    seen = ~np.isnan(codes)
    count = np.maximum(seen.sum(0), 1)
    values = np.where(seen, codes, 0.0)
    mean = values.sum(0, dtype=np.float64) / count
    return (np.where(seen, values - mean, 0.0) ** 2).sum(0) / count


def _class_at(levels: np.ndarray, shares: np.ndarray, last: np.ndarray | None) -> np.ndarray:
    """The first class [..., N] at which the shares [N, k] together reach a level."""
    order = np.broadcast_to(np.arange(shares.shape[1]), shares.shape)
    if last is not None:
        order = np.where(order == last[:, None], shares.shape[1], order).argsort(1)
    together = np.take_along_axis(shares, order, 1).cumsum(1)
    place = (together[:, :-1] < levels[..., None]).sum(-1)
    return order[np.arange(len(order)), place]
