"""Imputation by one multivariate Gaussian, fitted by expectation maximisation (Little and Rubin)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import numpy as np

from .held_out import Standard, best, hold_out

RIDGES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
# entries of the matrices that are held at a time
_ENTRIES = 1 << 22


class GaussianEM:
    """The mean of each row's missing entries given those it observes.

    Columns are standardised. The M-step adds `ridge` to the diagonal of the covariance; of `RIDGES`,
    each started from the solution of the one before, that with the least error over a tenth of the
    observed entries, held out, is taken and fitted again to all. An EM stops after `steps`, or when
    no entry of the covariance moves by more than .001.

    Args:
        seed: of the held-out entries, and of the rows drawn.
        rows: most rows that are fitted to, drawn at random.
        steps: most steps of an EM.
    """

    def __init__(self, seed: int = 0, rows: int = 10_000, steps: int = 50) -> None:
        self.seed, self.rows, self.steps = seed, rows, steps

    def fit(self, x: np.ndarray) -> Self:
        """Learns mean and covariance from x [N, D] with NaN where an entry is missing."""
        self.units = Standard(x)
        if len(x) > self.rows:
            x = x[np.random.default_rng(self.seed).permutation(len(x))[: self.rows]]
        z = self.units.to(x)
        holed, held = hold_out(z, self.seed)
        where = held.any(1)
        start = (np.zeros(z.shape[1]), np.eye(z.shape[1]))
        found, filled = {}, []
        for ridge in RIDGES:
            start = found[ridge] = self._em(holed, ridge, start)
            filled.append(_fill(holed[where], *start)[0])
        self.ridge = best(RIDGES, filled, z[where], held[where])
        self.mean, self.covariance = self._em(z, self.ridge, found[self.ridge])
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """x [N, D] with its NaN filled in, float64."""
        filled = self.units.back(_fill(self.units.to(x), self.mean, self.covariance)[0])
        return np.where(np.isnan(x), filled, x)

    def draws(self, x: np.ndarray, count: int, seed: int) -> np.ndarray:
        """So many draws of x's missing entries from their joint distribution, [count, N, D]."""
        generator = np.random.default_rng(seed)
        z = self.units.to(x)
        drawn = np.repeat(z[None], count, 0)
        precision = np.linalg.inv(self.covariance)
        for rows, hidden, mean, factor in _conditionals(z, self.mean, precision):
            noise = generator.standard_normal((count, *mean.shape, 1))
            # P = L L', so that L'^-1 noise has the covariance P^-1
            spread = np.linalg.solve(factor.swapaxes(1, 2)[None], noise)[..., 0]
            drawn[:, rows[:, None], hidden] = mean + spread
        return np.where(np.isnan(x), self.units.back(drawn), x)

    def _em(
        self, z: np.ndarray, ridge: float, start: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        mean, covariance = start
        for _ in range(self.steps):
            filled, spread = _fill(z, mean, covariance)
            mean = filled.mean(0)
            centred = filled - mean
            moved = (centred.T @ centred + spread) / len(z)
            moved[np.diag_indices_from(moved)] += ridge
            change, covariance = np.abs(moved - covariance).max(), moved
            if change < 1e-3:
                break
        return mean, covariance


def _fill(z: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z [N, D] with conditional means in the place of NaN, and the sum of conditional covariances."""
    filled, total = z.copy(), np.zeros_like(covariance)
    for rows, hidden, means, factor in _conditionals(z, mean, np.linalg.inv(covariance)):
        filled[rows[:, None], hidden] = means
        inverse = np.linalg.inv(factor)
        places = hidden[:, :, None] * len(total) + hidden[:, None, :]
        spread = inverse.swapaxes(1, 2) @ inverse
        total += np.bincount(places.ravel(), spread.ravel(), total.size).reshape(total.shape)
    return filled, total


def _conditionals(
    z: np.ndarray, mean: np.ndarray, precision: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Distributions of rows' missing entries given the others, rows with as many together.

    Yields:
        rows [n]; their missing columns [n, h]; conditional means [n, h]; the Cholesky factor of their
        conditional precision [n, h, h], which is the block of the joint precision.
    """
    missing = np.isnan(z)
    counts = missing.sum(1)
    # a missing entry adds nothing: what is left is the observed part of precision @ (z - mean)
    pull = np.where(missing, 0.0, z - mean) @ precision
    for count in np.unique(counts[counts > 0]):
        every = np.flatnonzero(counts == count)
        for rows in np.array_split(every, -(-len(every) * count * count // _ENTRIES)):
            hidden = np.nonzero(missing[rows])[1].reshape(len(rows), count)
            block = precision[hidden[:, :, None], hidden[:, None, :]]
            right = pull[rows[:, None], hidden][..., None]
            yield (
                rows,
                hidden,
                mean[hidden] - np.linalg.solve(block, right)[..., 0],
                np.linalg.cholesky(block),
            )
