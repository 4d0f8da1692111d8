"""Baselines that an imputation has to beat."""

from __future__ import annotations

import numpy as np

from .metrics import Standardizer
from .readers import _require


def column_mean(x: np.ndarray) -> np.ndarray:
    """Fills each NaN of x [N, D] with the mean of its column's observed entries.

    A column without observed entries is filled with 0. Returns a new array of x's dtype.

    >>> column_mean(np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]]))
    array([[1., 0.],
           [3., 0.],
           [2., 0.]])
    """
    filled = np.array(x)
    rows, columns = np.nonzero(np.isnan(filled))
    filled[rows, columns] = Standardizer.fit(filled).mean[columns]
    return filled


def knn(x: np.ndarray, k: int = 5) -> np.ndarray:
    """Fills each NaN of x [N, D] with its column's mean over the k nearest rows that observe it.

    Distances are Euclidean over the entries that both rows observe (scikit-learn's `KNNImputer`,
    extra `sklearn`); time and memory grow with N^2. A column without observed entries is filled
    with 0. Returns a new array of x's dtype.
    """
    imputer = _require("sklearn.impute", "sklearn").KNNImputer(
        n_neighbors=k, keep_empty_features=True
    )
    return imputer.fit_transform(x).astype(np.asarray(x).dtype)
