"""Whether columns that miss entries by what others show are bent by what is left of them."""

from __future__ import annotations

import warnings

import numpy as np

from ..data.recipe import Units
from ..data.scaling import FarEntriesWarning
from ..models import ppca
from .entries import HeldOutEntries

# rows that a linear model is fitted to for that
_ROWS = 4096
# bends are worth it where the squared error is so much less: without them the linear member is never
# worse than a Gaussian of the table as it is
_CLEARLY = 0.9


def bends_help(x: np.ndarray, missing: np.ndarray, columns: np.ndarray, seed: int) -> bool:
    """Whether a linear-Gaussian model finds held-out entries clearly better with bent columns.

    That is, with a tenth less squared error. Columns are bent by the shape of their observed entries
    ("auto" of `ColumnTransform`). Where these are not distributed as all are, one of two columns that
    are proportional may be bent and the other not, and no line leads from one to the other any more.
    So where columns miss entries at rates that differ by more than chance, the model is fitted to up to
    4,096 rows in both ways, without entries that then judge them as in `HeldOutEntries`, in units of the
    columns' standard deviations.

    Args:
        x: [N, D], any numbers where an entry is missing.
        missing: bool [N, D].
        columns: bool [D], those of numbers; others play no part.
        seed: of rows and entries.

    Returns:
        True too where columns miss as much as each other, or nothing can be held out.
    """
    some = np.sort(np.random.default_rng(seed).permutation(len(x))[:_ROWS])
    table = np.where(missing[some], np.nan, x[some].astype(np.float64))[:, columns]
    table = table[:, ~np.isnan(table).all(0)]
    entries = HeldOutEntries.drawn(table, seed)
    if entries is None or entries.weight is None:
        return True
    shown = entries.without(table)
    with np.errstate(over="ignore"):
        spread = np.nan_to_num(np.nanstd(shown, axis=0))
    bent, plain = (_error(shown, kind, entries, spread, seed) for kind in ("auto", "none"))
    return bent <= _CLEARLY * plain


def _error(
    shown: np.ndarray, kind: str, entries: HeldOutEntries, spread: np.ndarray, seed: int
) -> float:
    """Mean squared error of a linear model on entries, in units of `spread`; infinite without one."""
    try:
        with warnings.catch_warnings():
            # `fit` itself tells of them
            warnings.simplefilter("ignore", FarEntriesWarning)
            units = Units.fit(shown, ~np.isnan(shown), kind=kind)
        rows = units.to_model(shown)
        linear = ppca(rows.shape[1]).fit(rows, seed=seed)
    except ValueError:
        return np.inf
    found = units.to_data(linear.predictive(rows)[0].numpy())[entries.row, entries.column]
    unit = np.where(spread > 0, spread, 1.0)[entries.column]
    return entries.mean(((found - entries.truth) / unit) ** 2)
