"""Imputation by a matrix of small nuclear norm (Mazumder, Hastie and Tibshirani 2010)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import numpy as np

from .held_out import Standard, best, hold_out

# penalties as shares of the largest singular value of the table with zeros for what is missing
PATH = tuple(np.geomspace(0.5, 0.005, 20))


class SoftImpute:
    """The minimiser M of |observed part of (X - M)|^2 / 2 + penalty |M|_*, found by soft-impute.

    Columns are standardised. `PATH` is walked from the largest penalty, each started from the solution
    of the one before; the one with the least error over a tenth of the observed entries, held out, is
    taken, and the path is walked up to it with all of them. A new row gets scores by ridge regression
    on B = V S^(1/2) of M = U S V', which for a row of X are those of M.

    Args:
        seed: of the held-out entries.
        steps: most steps for each penalty; fewer where M moves by less than .001 of its norm.
    """

    def __init__(self, seed: int = 0, steps: int = 50) -> None:
        self.seed, self.steps = seed, steps

    def fit(self, x: np.ndarray) -> Self:
        """Learns the loadings of x [N, D] with NaN where an entry is missing."""
        self.units = Standard(x)
        z = self.units.to(x)
        holed, held = hold_out(z, self.seed)
        share = best(PATH, (made for made, *_ in self._walk(holed)), z, held)
        for reached, (_, penalty, loadings) in zip(PATH, self._walk(z), strict=True):
            if reached == share:
                self.penalty, self.loadings = penalty, loadings
                break
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """x [N, D] with its NaN filled in, float64."""
        z = self.units.to(x)
        filled = z.copy()
        for row in filled:
            known = ~np.isnan(row)
            seen = self.loadings[known]
            gram = seen.T @ seen
            gram[np.diag_indices_from(gram)] += self.penalty
            scores = np.linalg.solve(gram, seen.T @ row[known])
            row[~known] = self.loadings[~known] @ scores
        return np.where(np.isnan(x), self.units.back(filled), x)

    def _walk(self, z: np.ndarray) -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
        """For each penalty of the path: M [N, D], the penalty, and B [D, R]."""
        known = ~np.isnan(z)
        made = np.zeros_like(z)
        largest = np.linalg.norm(np.where(known, z, 0.0), 2)
        for share in PATH:
            penalty = share * largest
            for _ in range(self.steps):
                full = np.where(known, z, made)
                # the eigenvectors of full' full are the right singular vectors, D of them for any N
                values, vectors = np.linalg.eigh(full.T @ full)
                singular = np.sqrt(np.maximum(values, 0.0))
                kept = singular > penalty
                vectors, left = vectors[:, kept], singular[kept] - penalty
                latest = full @ (vectors * (left / singular[kept])) @ vectors.T
                moved = np.linalg.norm(latest - made)
                made = latest
                if moved <= 1e-3 * np.linalg.norm(made):
                    break
            yield made, penalty, vectors * np.sqrt(left)
