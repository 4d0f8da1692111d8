"""Predictions of several members, weighted by how well they find entries that were held out."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

# as many held-out entries of a column weigh as much as what the whole table says, and as many of a
# table as that its first member be taken alone
_SHRINK, _DOUBT = 200.0, 6.0
# parts of the entries; the weights of the others judge each
_PARTS = 5
# the sum of the weights is 1 to this precision
_SUM = 1e4


def blend_weights(
    predictions: np.ndarray,
    truth: np.ndarray,
    column: np.ndarray,
    num_columns: int,
    entry: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Weights of the members for each column, which minimise the squared error on held-out entries.

    Non-negative, with the sum 1. Those of the table as a whole come first, drawn to the first member as
    by 6 entries more on which it is right and the others are off by their usual error. Those of a column
    are drawn to the table's as by 200 entries.

    Args:
        predictions: of the members [M, n], in units in which columns are comparable.
        truth: [n].
        column: where the entries are [n].
        num_columns: D.
        entry: of which entry each number says something [n], where some have several numbers.
        weight: how much each counts in the weights of the table as a whole [n], those of an entry
            alike; None for 1.

    Returns:
        [M, D] float64.

    Example:
        >>> truth = np.array([0.0, 1.0, 2.0, 3.0])
        >>> blend_weights(np.stack([truth, -truth]), truth, np.zeros(4, int), 1).round(3).tolist()
        [[1.0], [0.0]]
    """
    errors = (predictions - truth).T
    # what an entry weighs
    first = np.unique(np.arange(len(errors)) if entry is None else entry, return_index=True)[1]
    if weight is None:
        products, count = errors.T @ errors, float(len(first))
    else:
        products, count = (errors * weight[:, None]).T @ errors, weight[first].sum()
    unit = np.trace(products) / max(products.shape[0] * count, 1)
    alone = np.eye(len(predictions))[0]
    whole = _simplex(products, alone, _DOUBT * unit)
    weights = np.tile(whole[:, None], (1, num_columns))
    for d in range(num_columns):
        own = errors[column == d]
        if len(own):
            weights[:, d] = _simplex(own.T @ own, whole, _SHRINK * unit)
    return weights


def _simplex(products: np.ndarray, centre: np.ndarray, strength: float) -> np.ndarray:
    """Weights on the simplex that minimise w' products w + strength |w - centre|^2."""
    size = len(products)
    # the larger of what errors and centre weigh: either may be nothing beside the other
    scale = max(np.trace(products) / size, strength, np.finfo(float).tiny)
    values, vectors = np.linalg.eigh(products / scale)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    # never quite without a centre: members without an error are all as good
    pull = np.sqrt(strength / scale + 1e-9)
    sides = np.vstack([root, pull * np.eye(size), np.full((1, size), _SUM)])
    target = np.concatenate([np.zeros(size), pull * centre, [_SUM]])
    found = nnls(sides, target)[0]
    return found / found.sum()


def crossed(
    predictions: np.ndarray,
    truth: np.ndarray,
    column: np.ndarray,
    num_columns: int,
    entry: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """The blend's predictions [n] with weights that have not seen the entry, in fifths."""
    entry = np.arange(len(truth)) if entry is None else entry
    part = entry % _PARTS
    blended = np.empty(len(truth))
    for number in range(_PARTS):
        own = part == number
        others = (truth[~own], column[~own], num_columns, entry[~own])
        counted = None if weight is None else weight[~own]
        weights = blend_weights(predictions[:, ~own], *others, counted)
        blended[own] = blended_entries(weights, predictions[:, own], column[own])
    return blended


def blended_entries(weights: np.ndarray, predictions: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Entries [n] in columns `column` from weights [M, D] and predictions [M, n]."""
    return (weights[:, column] * predictions).sum(0)
