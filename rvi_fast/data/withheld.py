"""Observed entries that are kept from whatever is trained, to judge it."""

from __future__ import annotations

import numpy as np


def withheld(
    observed: np.ndarray, share: float | np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Draws that share of the observed entries of each column, at least one where it has three.

    No row loses all that it shows. With a fraction at random, many narrow columns lose their share on
    the whole.

    Args:
        observed: bool [n, D].
        share: between 0 and 1, of all columns or of each [D].
        generator: what is drawn from.

    Returns:
        bool [n, D], true where an entry is drawn.

    Example:
        >>> drawn = withheld(np.ones((100, 4), bool), 0.1, np.random.default_rng(0))
        >>> drawn.sum(0).tolist()
        [10, 10, 10, 10]
    """
    hidden = np.zeros_like(observed)
    left, shares = observed.sum(1), np.broadcast_to(share, observed.shape[1])
    for column in generator.permutation(observed.shape[1]):
        # a row keeps one entry at least
        candidates = np.flatnonzero(observed[:, column] & (left > 1))
        seen = int(observed[:, column].sum())
        count = int(shares[column] * seen + generator.random())
        count = min(max(count, int(seen >= 3)), len(candidates))
        drawn = generator.choice(candidates, count, replace=False)
        hidden[drawn, column] = True
        left[drawn] -= 1
    return hidden
