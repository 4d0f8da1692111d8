"""Baselines that an imputation has to beat."""

from __future__ import annotations

import numpy as np

from .files import require
from .scaling import Standardizer


def column_mean(x: np.ndarray, *, train: np.ndarray | None = None) -> np.ndarray:
    """Fills each NaN of x [N, D] with the mean of its column's observed entries.

    The means are those of `train` [M, D], of x itself if not given. A column without observed entries
    is filled with 0. Returns a new array of x's dtype.

    >>> column_mean(np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]]))
    array([[1., 0.],
           [3., 0.],
           [2., 0.]])
    """
    filled = np.array(x)
    rows, columns = np.nonzero(np.isnan(filled))
    mean = Standardizer.fit(x if train is None else train, robust=False).mean
    filled[rows, columns] = mean[columns]
    return filled


def knn(x: np.ndarray, k: int = 5, *, train: np.ndarray | None = None) -> np.ndarray:
    """Fills each NaN of x [N, D] with its column's mean over the k nearest rows that observe it.

    Those are rows of `train` [M, D], of x itself if not given. Distances are Euclidean over the
    entries that both rows observe (scikit-learn's `KNNImputer`, extra `sklearn`); time and memory
    grow with N M. A column without observed entries is filled with 0. Returns a new array of x's
    dtype.
    """
    imputer = require("sklearn.impute", "sklearn").KNNImputer(
        n_neighbors=k, keep_empty_features=True
    )
    imputer.fit(x if train is None else train)
    return imputer.transform(x).astype(np.asarray(x).dtype)


def conditional_gaussian(
    x: np.ndarray, *, train: np.ndarray | None = None, ridge: float = 0.1
) -> np.ndarray:
    """Fills the NaN of each row of x [N, D] with their mean given what the row observes.

    The joint distribution is a Gaussian with the means of the columns of `train` [M, D] (of x itself
    if not given) and their pairwise covariances, those over the rows that observe both columns, made
    positive semidefinite (negative eigenvalues are cut off); `ridge` times the mean variance is added
    to the diagonal. Time grows with N D^3. A column without observed entries is filled with 0.
    Returns a new array of x's dtype.
    """
    train = x if train is None else train
    known, mean = ~np.isnan(train), Standardizer.fit(train, robust=False).mean.astype(np.float64)
    centred = np.where(known, train - mean, 0.0)
    counts = known.astype(np.float64).T @ known
    covariance = centred.T @ centred / np.maximum(counts, 1.0)
    values, vectors = np.linalg.eigh(covariance)
    covariance = (vectors * np.maximum(values, 0.0)) @ vectors.T
    covariance[np.diag_indices_from(covariance)] += ridge * max(values.mean(), np.finfo(float).tiny)
    filled = np.array(x)
    for row in filled:  # a view of each
        hidden = np.isnan(row)
        if hidden.any():
            seen = ~hidden
            weights = np.linalg.solve(covariance[np.ix_(seen, seen)], row[seen] - mean[seen])
            row[hidden] = mean[hidden] + covariance[np.ix_(hidden, seen)] @ weights
    return filled
