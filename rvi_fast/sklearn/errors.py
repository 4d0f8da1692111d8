"""How far off filled-in entries are, in the units of their columns and in standard deviations."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ..data.withheld import withheld
from ..likelihoods import Likelihood

# of the observed entries `score` hides a tenth, in as many rows at most
_SHARE, _ROWS = 0.1, 4096


def squares(
    found: np.ndarray, truth: np.ndarray, column: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Squared errors [n] of entries in columns `column`; 1 for a wrong class or yes/no, and 0.

    Args:
        found, truth: [n] each.
        column: of the entries [n].
        classes: which columns are yes/no or classes, bool [D].
    """
    wrong = found - truth
    return np.where(classes[column], np.abs(wrong) > 0.5, wrong**2)


def column_errors(
    found: np.ndarray, truth: np.ndarray, column: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Root mean square errors [D], shares that are wrong of yes/no and classes; NaN without entries.

    Args:
        found, truth, column, classes: as in `squares`.

    Example:
        >>> column = np.array([0, 0, 1, 1])
        >>> truth, found = np.array([1.0, 2.0, 0.0, 1.0]), np.array([4.0, 6.0, 1.0, 1.0])
        >>> column_errors(found, truth, column, np.array([False, True])).round(2).tolist()
        [3.54, 0.5]
    """
    wrong = np.bincount(column, squares(found, truth, column, classes), len(classes))
    with np.errstate(invalid="ignore"):
        mean = wrong / np.bincount(column, minlength=len(classes))
    return np.where(classes, mean, np.sqrt(mean))


def classes_of(law: Likelihood) -> np.ndarray:
    """Which columns are yes/no or classes, bool [D]."""
    return np.array(law.classes) > 0


def spreads_of(x: np.ndarray, missing: np.ndarray, law: Likelihood) -> np.ndarray:
    """Errors [D] of who knows means of columns alone, or of classes the most frequent one.

    Standard deviations of the observed entries, and roots of the shares of all other classes; 0 where
    nothing was observed.
    """
    classes, spreads = classes_of(law), np.zeros(x.shape[1])
    for column in range(x.shape[1]):
        values = x[~missing[:, column], column]
        if len(values) and classes[column]:
            counts = np.unique(values, return_counts=True)[1]
            spreads[column] = np.sqrt(1.0 - counts.max() / len(values))
        elif len(values):
            spreads[column] = values.std(dtype=np.float64)
    return spreads


class HeldOutScore:
    """`score` of estimators that find missing entries."""

    # pickles of versions without `score` have none
    _spreads: np.ndarray | None = None

    def score(self: Any, X: Any, y: Any = None) -> float:
        """How well entries of X are found that are hidden; greater is better, and 0 is perfect.

        A tenth of the observed entries, in up to 4,096 rows, is hidden and found from what is left. The
        score is minus the root mean square error, each entry divided by its column's standard deviation
        in the table of `fit`; about -1 is what the means of the columns are worth. A wrong class or
        yes/no is an error of 1, divided by the root of the share that the most frequent one is wrong in
        that table. Columns with one value there do not count. Everything is in the units of X, so that
        scores can be compared whatever the parameters, and searches and `cross_val_score` need no other
        scorer. Which entries are hidden depends on X and `random_state`; for None they are others at
        each call.

        Args:
            X: array or DataFrame [N, D], rows that `fit` has not seen where an honest score is wanted.
            y: ignored.

        Raises:
            ValueError: no entry can be hidden, as no row shows two.
        """
        check_is_fitted(self)
        if self._spreads is None:
            raise ValueError(
                "score: expected an estimator fitted by this version, got an older one"
            )
        x, missing = self._table(X, reset=False)
        self._check(self.model_.law, x, missing)
        generator = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
        some = np.sort(generator.permutation(len(x))[:_ROWS])
        hidden = withheld(~missing[some] & (self._spreads > 0), _SHARE, generator)
        row, column = np.nonzero(hidden)
        if not len(row):
            raise ValueError(
                "X: expected rows with two observed entries, of which one can be hidden"
            )
        rows = self._rows(x[some], missing[some] | hidden)
        used = np.unique(row)
        found = self._values(rows[used])[np.searchsorted(used, row), column]
        truth = x[some[row], column].astype(np.float64)
        wrong = squares(found, truth, column, classes_of(self.model_.law))
        return -float(np.sqrt(np.mean(wrong / self._spreads[column] ** 2)))
