"""Boosted trees from rows with gaps to each column: thresholds that random splits and lines miss."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from .codes import Codes
from .deadline import Deadline

# rows that trees learn from
_ROWS = 4096
# classes that trees take for such, the most that scikit-learn's do
_CLASSES = 255
# small trees, with few rows in a leaf: a rare class is often what a threshold cuts off
_OPTIONS = {
    "max_iter": 60,
    "max_leaf_nodes": 12,
    "min_samples_leaf": 5,
    "early_stopping": False,
}


class BoostedColumns:
    """Gradient boosted trees that predict each column from what a row shows of the others.

    Gaps are gaps to them, not completed, and classes are classes. They find what a threshold tells
    exactly (whether a count is above 0), which splits at random places do not. Of yes/no and classes
    they predict probabilities. They learn from up to 4,096 rows, on one thread.

    Args:
        codes: of the columns.
        seed: of the rows.

    Source:
        Ke et al., LightGBM: a highly efficient gradient boosting decision tree, 2017.
    """

    def __init__(self, codes: Codes, seed: int) -> None:
        self.codes, self.seed = codes, seed
        self.models: dict[int, tuple[np.ndarray, Any]] = {}

    def fit(self, rows: np.ndarray, deadline: Deadline | None = None) -> Self:
        """Grows trees for each column of rows [N, D], NaN for missing, that has two values.

        Raises:
            OutOfTime: the deadline has passed before all trees were grown.
        """
        deadline = Deadline() if deadline is None else deadline
        if len(rows) > _ROWS:
            some = np.random.default_rng(self.seed).permutation(len(rows))[:_ROWS]
            rows = rows[np.sort(some)]
        numeric, widths = self.codes.numeric, self.codes.widths
        classes = ~numeric & (widths <= _CLASSES)
        self.models = {}
        for column in range(rows.shape[1]):
            deadline.check()
            shown = rows[~np.isnan(rows[:, column])]
            values = shown[:, column]
            given = np.flatnonzero(~np.isnan(shown).all(0))
            given = given[given != column]
            if len(values) < 2 or (values == values[0]).all() or not len(given):
                continue
            made = (
                HistGradientBoostingRegressor if numeric[column] else HistGradientBoostingClassifier
            )
            model = made(categorical_features=classes[given], random_state=self.seed, **_OPTIONS)
            with threadpool_limits(1, user_api="openmp"):
                self.models[column] = given, model.fit(shown[:, given], values)
        return self

    def complete(self, rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Codes [N, K] in which trees have replaced what rows [N, D] miss and they have learned."""
        found, missing = codes.copy(), np.isnan(rows)
        of = self.codes.columns()
        for column, (given, model) in self.models.items():
            holes, own = missing[:, column], of[column]
            if not holes.any():
                continue
            with threadpool_limits(1, user_api="openmp"):
                said = self._said(model, rows[holes][:, given], self.codes.widths[column])
            found[holes, own] = said / self.codes.units[own]
        return found

    @staticmethod
    def _said(model: Any, given: np.ndarray, width: int) -> np.ndarray:
        """Means [n, 1], or probabilities [n, width] of classes, of 1 where the width is 1."""
        if isinstance(model, HistGradientBoostingRegressor):
            return model.predict(given)[:, None]
        # classes that nobody has observed have no probability
        shares = np.zeros((len(given), max(width, 2)))
        shares[:, model.classes_.astype(int)] = model.predict_proba(given)
        return shares if width > 1 else shares[:, 1:]
