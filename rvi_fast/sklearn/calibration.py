"""Predictive intervals and draws whose widths come from held-out entries."""

from __future__ import annotations

import numpy as np

# entries of a column that weigh as much as the residuals of the whole table
_SHRINK = 30.0
# shares of the distribution of residuals that are kept
_LEVELS = np.concatenate(
    [[0.001, 0.0025, 0.005], np.arange(0.01, 0.995, 0.01), [0.995, 0.9975, 0.999]]
)


class Residuals:
    """The distribution of a column's errors on held-out entries, in units of a predicted width.

    A quantile of a column is a mean of its own and of the table's, whose residuals count in units of
    their columns' spread: 30 entries of its own weigh as much as the table.

    Args:
        residuals: of held-out entries, divided by the width that was predicted there [n].
        column: where they are [n].
        num_columns: D.

    Attributes:
        quantiles: [D, L] at the shares `levels` [L], rising.
    """

    levels = _LEVELS

    def __init__(self, residuals: np.ndarray, column: np.ndarray, num_columns: int) -> None:
        square = np.mean(residuals**2)
        spreads = np.ones(num_columns)
        for d in range(num_columns):
            own = residuals[column == d]
            spreads[d] = np.sqrt((np.sum(own**2) + _SHRINK * square) / (len(own) + _SHRINK)) or 1.0
        pooled = _quantiles(residuals / spreads[column])
        self.quantiles = spreads[:, None] * pooled
        for d in range(num_columns):
            own = residuals[column == d]
            if len(own):
                share = len(own) / (len(own) + _SHRINK)
                self.quantiles[d] += share * (_quantiles(own) - self.quantiles[d])

    def at(self, share: float) -> np.ndarray:
        """The quantile [D] of each column at one share."""
        return np.array([np.interp(share, _LEVELS, own) for own in self.quantiles])

    def of(self, shares: np.ndarray) -> np.ndarray:
        """Quantiles at shares [..., D], a column each."""
        found = np.empty_like(shares)
        for d, own in enumerate(self.quantiles):
            found[..., d] = np.interp(shares[..., d], _LEVELS, own)
        return found


def _quantiles(values: np.ndarray) -> np.ndarray:
    """Quantiles [L] that a further value falls below with the probability that they are named by."""
    return np.quantile(values, _LEVELS, method="weibull")
