"""What an imputer's members say of a row together, and how far off that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from scipy.special import ndtr

from ..models import LinearGaussian
from ..training.held_out import JUDGED
from .blend import blend_weights, crossed
from .boosting import BoostedColumns
from .calibration import Residuals
from .codes import Codes
from .deadline import Deadline
from .entries import HeldOutEntries
from .forest import ColumnForest

MEMBERS = ("linear", "relay", "forest", "boosting")


class Judged(NamedTuple):
    """What was predicted of held-out entries.

    Attributes:
        entries: codes of entries that nobody had seen.
        predictions: of each member, and of "blend" with weights that have not seen the entry,
            [n] float32.
    """

    entries: HeldOutEntries
    predictions: dict[str, np.ndarray]

    def among(self, numbers: np.ndarray) -> Self:
        """The same in a table of which these were the rows."""
        return self._replace(entries=self.entries._replace(row=numbers[self.entries.row]))

    def by_entry(
        self, codes: Codes, values: Callable[[np.ndarray], np.ndarray]
    ) -> dict[str, np.ndarray]:
        """What `BlendedEstimator.held_out_predictions_` says; `values` makes entries [N, D] of codes."""
        rows, at = np.unique(self.entries.row, return_inverse=True)
        # codes of an entry lie one after the other
        owner = codes.owner[self.entries.column]
        first = np.flatnonzero((np.diff(at, prepend=-1) != 0) | (np.diff(owner, prepend=-1) != 0))
        found = {"row": self.entries.row[first], "column": owner[first]}
        for name, own in {"truth": self.entries.truth, **self.predictions}.items():
            table = np.zeros((len(rows), len(codes.owner)))
            table[at, self.entries.column] = own
            found[name] = values(table)[at, owner][first].astype(np.float64)
        return found


class Blend:
    """A linear-Gaussian model, a relay model and trees, weighted for each column.

    The first two complete rows; the forest starts from what these say together, boosted trees from the
    rows as they are. Rows are in the units of the
    relay model, predictions are expected codes (see `Codes`), and whatever is found for a row depends on
    that row alone.

    Args:
        linear: a linear-Gaussian model fitted to the features of the same rows.
        forest: trees to be fitted, or None.
        boosting: boosted trees to be fitted beside a forest, or None.
        codes: of the columns; None for those of a table of numbers, which are the rows.

    Attributes:
        names: the members, the first ones of `MEMBERS`.
        base: weights [2, D] of linear and relay model in the rows that trees are given.
        weights: [M, D], what `complete` weighs the members with.
        residuals: `Residuals` on held-out entries of numbers and counts, in units of the linear model's
            predictive standard deviations; None where there are no such columns.
        errors: of each member and of "blend" the root mean square error on held-out entries of each
            column [D], relative to that of the column's mean; NaN where none was held out.
        judged: what they predicted there; pickles do not hold it.
        looks: of each training of the relay model, by where it started, the epochs at which held-out
            entries were looked at, and their root mean square error then.
    """

    base: np.ndarray
    weights: np.ndarray
    residuals: Residuals | None = None
    errors: dict[str, np.ndarray]
    judged: Judged | None = None
    looks: Mapping[str, list[tuple[int, float]]] = MappingProxyType({})

    def __init__(
        self,
        linear: LinearGaussian,
        forest: ColumnForest | None,
        codes: Codes | None = None,
        boosting: BoostedColumns | None = None,
    ) -> None:
        self.linear, self.forest, self.boosting = linear, forest, boosting
        self.codes = Codes.numbers(linear.num_features) if codes is None else codes
        self.names: tuple[str, ...] = MEMBERS[: 2 + sum(t is not None for t in (forest, boosting))]

    def leave_out(self, *names: str) -> None:
        """Goes on without members, whose weights are not found yet."""
        self.names = tuple(own for own in self.names if own not in names)
        if "forest" in names:
            self.forest = None
        if "boosting" in names:
            self.boosting = None

    def __getstate__(self) -> dict[str, Any]:
        # entries of the table stay where it was learned from
        return {name: own for name, own in self.__dict__.items() if name != "judged"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # pickles of versions that blended tables of numbers alone have no codes, of later ones no
        # boosted trees
        numbers = Codes.numbers(state["linear"].num_features)
        self.__dict__.update({"codes": numbers, "boosting": None} | state)

    def grow(self, rows: np.ndarray, relayed: np.ndarray, deadline: Deadline) -> None:
        """Fits the trees to rows [N, D], NaN for missing, beside what the relay model says of them.

        Raises:
            OutOfTime: not all trees were grown when the deadline passed.
        """
        if self.forest is not None:
            filled, missing = self._completed(rows, self.predicted(rows)[0], relayed)
            self.forest.fit(filled, ~missing, self.codes.owner, deadline)
        if self.boosting is not None:
            self.boosting.fit(rows, deadline)

    def weigh_latents(self, entries: HeldOutEntries, rows: np.ndarray, relayed: np.ndarray) -> None:
        """Finds how linear and relay model are weighted in the rows that trees are given.

        Args:
            entries: codes of entries that nobody has seen.
            rows: those that hold them, without them [m, D].
            relayed: codes that the relay model expects there [m, K].
        """
        predictions = np.stack([entries.of(self.predicted(rows)[0]), entries.of(relayed)])
        self.base = blend_weights(predictions, *self._judged(entries))

    def weigh(
        self,
        entries: HeldOutEntries,
        rows: np.ndarray,
        relayed: np.ndarray | None,
        means: np.ndarray,
    ) -> tuple[float, np.ndarray]:
        """Finds the weights of all members; returns the blend's relative error on held-out entries.

        Beside it what the blend says there, with weights that have not seen the entry [n].

        Args:
            entries, rows: as in `weigh_latents`.
            relayed: likewise; None without the relay model.
            means: of the codes [K], without the held-out entries.
        """
        spread = self.predicted(rows)[1]
        predictions = np.stack([entries.of(own) for own in self._members(rows, relayed)])
        judged = self._judged(entries)
        truth, column, size, entry, _ = judged
        self.weights = blend_weights(predictions, *judged)
        blended = crossed(predictions, *judged)
        wrong = truth - blended
        numeric = self.codes.numeric[column]
        if numeric.any():
            ratios = wrong[numeric] / entries.of(spread)[numeric]
            self.residuals = Residuals(ratios, column[numeric], size)
        of_means = truth - means[entries.column]
        found = dict(zip(self.names, predictions, strict=True)) | {"blend": blended}
        self.judged = Judged(entries, {name: own.astype(np.float32) for name, own in found.items()})
        self.errors = {
            name: _relative(own - truth, of_means, column, size) for name, own in found.items()
        }
        expected = entries.mean(of_means**2)
        enough = len(np.unique(entry)) >= JUDGED and expected > 0
        error = float(np.sqrt(entries.mean(wrong**2) / expected)) if enough else np.nan
        return error, truth - wrong

    def complete(self, rows: np.ndarray, relayed: np.ndarray | None) -> np.ndarray:
        """The blend's codes [N, K] of rows, NaN for missing, from those of the relay model, if it is one
        of the members."""
        members = self._members(rows, relayed)
        weights = self.weights[:, self.codes.owner]
        return sum(w * own for w, own in zip(weights, members, strict=True))

    def predicted(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The codes [N, K] that the linear model expects, and their standard deviations."""
        mean, spread = self.linear.predictive(self.codes.features(rows))
        return self.codes.of_features(mean.numpy(), spread.numpy())

    def interval(
        self, rows: np.ndarray, blended: np.ndarray, coverage: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bounds [N, D] that hold an entry with the probability `coverage`, around `complete`'s.

        Those of yes/no and classes are codes at both ends of so much of the distribution.
        """
        spread = self.predicted(rows)[1]
        low, high = (0.5 + side * coverage / 2 for side in (-1, 1))
        return self._at(low, rows, blended, spread), self._at(high, rows, blended, spread)

    def draws(
        self, rows: np.ndarray, blended: np.ndarray, num_draws: int, generator: torch.Generator
    ) -> np.ndarray:
        """Draws [S, N, D] around `complete`'s predictions.

        Numbers and counts are distributed as the residuals on held-out entries, yes/no and classes as
        the members say together; entries of a row depend on each other as the linear model has them.
        """
        features = self.codes.features(rows)
        mean, spread = (part.numpy() for part in self.linear.predictive(features))
        drawn = self.linear.impute(
            torch.from_numpy(features).double(), draws=num_draws, generator=generator
        ).numpy()
        levels, last = self.codes.levels(ndtr((drawn - mean) / spread), blended)
        moved = blended
        if self.residuals is not None:
            around = self.codes.of_features(mean, spread)[1]
            moved = blended + around * self.residuals.of(levels)[..., self.codes.owner]
        return self.codes.entries_at(levels, blended, moved, last, whole=True)

    def _at(
        self, share: float, rows: np.ndarray, blended: np.ndarray, spread: np.ndarray
    ) -> np.ndarray:
        """Entries [N, D] which others are below with this probability."""
        moved = blended
        if self.residuals is not None:
            moved = blended + spread * self.residuals.at(share)[self.codes.owner]
        return self.codes.entries_at(np.full(rows.shape, share), blended, moved)

    def _judged(
        self, entries: HeldOutEntries
    ) -> tuple[np.ndarray, np.ndarray, int, np.ndarray, np.ndarray | None]:
        """What weights are found by, beside predictions: truth, columns, their number, entries, and
        what these weigh."""
        column = self.codes.owner[entries.column]
        size = len(self.codes.widths)
        return (
            entries.truth,
            column,
            size,
            np.unique(entries.row * size + column, return_inverse=True)[1],
            entries.weight,
        )

    def _members(self, rows: np.ndarray, relayed: np.ndarray | None) -> Sequence[np.ndarray]:
        linear = self.predicted(rows)[0]
        if relayed is None:
            return [linear]
        found = [linear, relayed]
        if self.forest is not None:
            filled, missing = self._completed(rows, linear, relayed)
            found.append(self.forest.complete(filled, missing, self.codes.owner))
        if self.boosting is not None:
            found.append(self.boosting.complete(rows, linear))
        return found

    def _completed(
        self, rows: np.ndarray, linear: np.ndarray, relayed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes of rows as trees are given them, and where the rows were missing [N, D]."""
        codes, base = self.codes.of_rows(rows), self.base[:, self.codes.owner]
        filled = np.where(np.isnan(codes), base[0] * linear + base[1] * relayed, codes)
        return filled.astype(np.float32), np.isnan(rows)


def _relative(
    wrong: np.ndarray, of_means: np.ndarray, column: np.ndarray, num_columns: int
) -> np.ndarray:
    """Root mean square errors [D] relative to those of the means."""
    parts = (np.bincount(column, own**2, num_columns) for own in (wrong, of_means))
    found, expected = parts
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, np.sqrt(found / expected), np.nan)
