"""What an imputer's members say of a row together, and how far off that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import ndtr

from ..models import LinearGaussian
from ..training.held_out import JUDGED
from .blend import blend_weights, crossed
from .calibration import Residuals
from .entries import HeldOutEntries
from .forest import ColumnForest

MEMBERS = ("linear", "relay", "forest")


class Blend:
    """A linear-Gaussian model, a relay model and trees, weighted for each column.

    The first two complete rows; trees start from what these say together. Everything is in the units of
    the relay model, and whatever is found for a row depends on that row alone.

    Args:
        linear: a fitted linear-Gaussian model of the same rows.
        forest: trees to be fitted, or None.

    Attributes:
        names: the members, of `MEMBERS`.
        base: weights [2, D] of linear and relay model in the rows that trees are given.
        weights: [M, D], what `complete` weighs the members with.
        residuals: `Residuals` on held-out entries, in units of the linear model's predictive standard
            deviations.
        errors: of each member and of "blend" the root mean square error on held-out entries of each
            column [D], relative to that of the column's mean; NaN where none was held out.
    """

    base: np.ndarray
    weights: np.ndarray
    residuals: Residuals
    errors: dict[str, np.ndarray]

    def __init__(self, linear: LinearGaussian, forest: ColumnForest | None) -> None:
        self.linear, self.forest = linear, forest
        self.names = MEMBERS if forest is not None else MEMBERS[:2]

    def grow(self, rows: np.ndarray, relayed: np.ndarray) -> None:
        """Fits the trees to rows [N, D], NaN for missing, beside what the relay model says of them."""
        if self.forest is not None:
            filled, missing = self._completed(rows, self._linear(rows), relayed)
            self.forest.fit(filled, ~missing)

    def weigh_latents(self, entries: HeldOutEntries, rows: np.ndarray, relayed: np.ndarray) -> None:
        """Finds how linear and relay model are weighted in the rows that trees are given.

        Args:
            entries: that nobody has seen.
            rows: those that hold them, without them [m, D].
            relayed: what the relay model says of them [m, D].
        """
        predictions = np.stack([entries.of(self._linear(rows)), entries.of(relayed)])
        found = (predictions, entries.truth, entries.column, rows.shape[1])
        self.base = blend_weights(*found)

    def weigh(
        self,
        entries: HeldOutEntries,
        rows: np.ndarray,
        relayed: np.ndarray,
        means: np.ndarray,
    ) -> float:
        """Finds the weights of all members; returns the blend's relative error on held-out entries.

        Args:
            entries, rows, relayed: as in `weigh_latents`.
            means: of the columns [D], without the held-out entries.
        """
        spread = self.linear.predictive(rows)[1].numpy()
        predictions = np.stack([entries.of(own) for own in self._members(rows, relayed)])
        found = (predictions, entries.truth, entries.column, rows.shape[1])
        self.weights = blend_weights(*found)
        wrong = entries.truth - crossed(*found)
        self.residuals = Residuals(wrong / entries.of(spread), entries.column, rows.shape[1])
        of_means = entries.truth - means[entries.column]
        own = [*(predictions - entries.truth), wrong]
        self.errors = {
            name: _relative(error, of_means, entries.column, rows.shape[1])
            for name, error in zip([*self.names, "blend"], own, strict=True)
        }
        expected = np.mean(of_means**2)
        judged = len(wrong) >= JUDGED and expected > 0
        return float(np.sqrt(np.mean(wrong**2) / expected)) if judged else np.nan

    def complete(self, rows: np.ndarray, relayed: np.ndarray) -> np.ndarray:
        """The blend's predictions [N, D] for rows, NaN for missing, from those of the relay model."""
        members = self._members(rows, relayed)
        return sum(w * own for w, own in zip(self.weights, members, strict=True))

    def interval(
        self, rows: np.ndarray, blended: np.ndarray, coverage: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bounds [N, D] that hold an entry with the probability `coverage`, around `complete`'s."""
        spread = self.linear.predictive(rows)[1].numpy()
        low, high = (self.residuals.at(0.5 + side * coverage / 2) for side in (-1, 1))
        return blended + spread * low, blended + spread * high

    def draws(
        self, rows: np.ndarray, blended: np.ndarray, num_draws: int, generator: torch.Generator
    ) -> np.ndarray:
        """Draws [S, N, D] around `complete`'s predictions.

        An entry's distribution is that of the residuals on held-out entries; the entries of a row depend
        on each other as the linear model has them depend.
        """
        mean, spread = (part.numpy() for part in self.linear.predictive(rows))
        drawn = self.linear.impute(
            torch.from_numpy(rows).double(), draws=num_draws, generator=generator
        ).numpy()
        return blended + spread * self.residuals.of(ndtr((drawn - mean) / spread))

    def _members(self, rows: np.ndarray, relayed: np.ndarray) -> Sequence[np.ndarray]:
        linear = self._linear(rows)
        found = [linear, relayed]
        if self.forest is not None:
            filled, missing = self._completed(rows, linear, relayed)
            found.append(self.forest.complete(filled, missing))
        return found

    def _linear(self, rows: np.ndarray) -> np.ndarray:
        return self.linear.predictive(rows)[0].numpy()

    def _completed(
        self, rows: np.ndarray, linear: np.ndarray, relayed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows as trees are given them, and where they were missing."""
        missing = np.isnan(rows)
        filled = np.where(missing, self.base[0] * linear + self.base[1] * relayed, rows)
        return filled.astype(np.float32), missing


def _relative(
    wrong: np.ndarray, of_means: np.ndarray, column: np.ndarray, num_columns: int
) -> np.ndarray:
    """Root mean square errors [D] relative to those of the means."""
    parts = (np.bincount(column, own**2, num_columns) for own in (wrong, of_means))
    found, expected = parts
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, np.sqrt(found / expected), np.nan)
