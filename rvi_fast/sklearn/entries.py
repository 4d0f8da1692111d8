"""Which rows the members of an imputer learn from, and which entries none of them sees."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from scipy.special import chdtri

from ..data.withheld import withheld

# a tenth of the observed entries, of small tables up to a fifth, so that about 200 judge
_SHARE, _LARGEST_SHARE, _ENOUGH = 0.1, 0.2, 200
# entries of more rows would make no judgement better
_ROWS = 4096
# fewer entries tell no member from another
_FEWEST = 20
# shares of missing entries that columns have by chance are as far apart once in a thousand tables; an
# entry that stands for very many missing ones decides nothing alone
_CHANCE, _HEAVIEST = 1e-3, 5.0
# of the share of all, what is drawn of a column at least and at most
_DRAWN = 0.2, 2.0
# entries of each column that a part of the rows shows, if all of them do
_SHOWN = 1000


class HeldOutEntries(NamedTuple):
    """Observed entries of a table that are kept from whatever is trained, to judge it.

    A tenth of the observed entries, and of tables with less than 2,000 of them as many as make 200, up
    to a fifth. Of each column that share is drawn, at least one entry where the column has three, and no
    row loses all that it shows. They lie in up to 4,096 rows.

    Where columns miss entries at rates that differ by more than chance, they are drawn and weighted as
    what is missing: of a column more or less in proportion to its rate, twice to a fifth of that share,
    so that rows which judge show the columns that incomplete rows show. Those of a column together weigh
    as its missing entries are many, each at most five times as much as the mean. Of columns that miss
    nothing or everything none weighs.

    Attributes:
        row, column: where they are, [n] each.
        truth: what was observed there [n].
        weight: of each [n], together as many as entries of equal weight that would judge as well; None
            where all weigh 1.
    """

    row: np.ndarray
    column: np.ndarray
    truth: np.ndarray
    weight: np.ndarray | None = None

    @classmethod
    def drawn(cls, rows: np.ndarray, seed: int) -> Self | None:
        """Draws them from a table [N, D], NaN for missing; None where there are too few to judge."""
        generator = np.random.default_rng(seed)
        some = np.sort(generator.permutation(len(rows))[:_ROWS])
        observed = ~np.isnan(rows[some])
        share = min(max(_SHARE, _ENOUGH / max(observed.sum(), 1)), _LARGEST_SHARE)
        missing = np.isnan(rows).sum(0)
        # nothing can be held out of columns that show nothing
        empty = missing == len(rows)
        apart = _apart(missing[~empty], len(rows))
        missing[empty] = 0
        shares = share * (missing / missing[~empty].mean()).clip(*_DRAWN) if apart else share
        row, column = np.nonzero(withheld(observed, shares, generator))
        if len(row) < _FEWEST:
            return None
        truth = rows[some[row], column].astype(np.float64)
        return cls(some[row], column, truth, _weights(missing, column) if apart else None)

    def without(self, rows: np.ndarray) -> np.ndarray:
        """A copy of the table [N, D] that does not show them."""
        shown = rows.copy()
        shown[self.row, self.column] = np.nan
        return shown

    def mean(self, values: np.ndarray) -> float:
        """The mean of values [n] of the entries, weighted as they are."""
        return float(np.average(values, weights=self.weight))

    @property
    def rows(self) -> np.ndarray:
        """The numbers of the rows in which they lie, in rising order."""
        return np.unique(self.row)

    def of(self, values: np.ndarray) -> np.ndarray:
        """What values [m, D] of `self.rows` say about them, [n]."""
        return values[np.searchsorted(self.rows, self.row), self.column].astype(np.float64)


def _apart(missing: np.ndarray, num_rows: int) -> bool:
    """Whether columns that miss so many entries [D] do so at rates that differ by more than chance."""
    if len(missing) < 2:
        return False
    rate = missing.mean() / num_rows
    # under one rate the counts are binomial
    spread = num_rows * rate * (1.0 - rate)
    squares = ((missing - missing.mean()) ** 2).sum()
    return bool(squares > spread * chdtri(len(missing) - 1, _CHANCE))


def _weights(missing: np.ndarray, column: np.ndarray) -> np.ndarray | None:
    """What entries of columns [n] weigh, where these miss so many [D]; None for 1."""
    weight = missing[column] / np.bincount(column)[column]
    if not weight.any():
        return None
    weight = np.minimum(weight, _HEAVIEST * weight.mean())
    return weight * (weight.sum() / (weight**2).sum())


def some_rows(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Numbers of `most` rows drawn at random, and of those that show what these show too little of."""
    order = np.random.default_rng(seed).permutation(len(rows))
    chosen, others = order[:most], order[most:]
    more = [chosen]
    for column in np.flatnonzero((~np.isnan(rows[chosen])).sum(0) < _SHOWN):
        more.append(others[~np.isnan(rows[others, column])][:_SHOWN])
    return np.unique(np.concatenate(more))


def column_means(rows: np.ndarray) -> np.ndarray:
    """Means [D] of what columns show, 0 of those that show nothing."""
    seen = ~np.isnan(rows)
    return np.where(seen, rows, 0.0).sum(0, dtype=np.float64) / np.maximum(seen.sum(0), 1)
