"""The imputers that are compared, with the settings they are compared with.

An imputer has `fit(x)` and `transform(x)`, x [N, D] float64 with NaN where an entry is missing; where
filling in the rows of `fit` is something else than `transform`, `fit_transform(x)` too. Those with
`draws(x, count, seed)`, [count, N, D], are scored as distributions as well, by their intervals where
they have `intervals(x, level)`, two tables of ends. All run with one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from . import packages
from .gaussian import GaussianEM
from .held_out import Standard
from .miwae import Miwae
from .soft_impute import SoftImpute


@dataclass(frozen=True)
class Peer:
    """One imputer.

    Args:
        make: seed -> a fresh imputer.
        settings: what it is, in a line of the report.
        package: the package that an environment of its own may hold, see `environments`.
    """

    make: Callable[[int], Any]
    settings: str
    package: str | None = None


def _simple(strategy: str) -> Callable[[int], Any]:
    def make(seed: int) -> Any:
        from sklearn.impute import SimpleImputer

        return SimpleImputer(strategy=strategy, keep_empty_features=True)

    return make


def _knn(seed: int) -> Any:
    from sklearn.impute import KNNImputer

    return KNNImputer(keep_empty_features=True)


def _iterative(seed: int) -> Any:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    return IterativeImputer(random_state=seed, keep_empty_features=True)


def _missforest(seed: int) -> Any:
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    trees = ExtraTreesRegressor(n_estimators=50, max_features=1 / 3, random_state=seed)
    return IterativeImputer(trees, max_iter=5, random_state=seed, keep_empty_features=True)


def _relay(seed: int) -> Any:
    from rvi_fast.sklearn import RelayImputer

    imputer: Any = RelayImputer(random_state=seed)
    # a version of the package without them is scored by what it fills in
    if hasattr(imputer, "sample"):
        imputer.draws = lambda x, count, of: imputer.sample(x, count, random_state=of)
    if hasattr(imputer, "impute_interval"):
        imputer.intervals = imputer.impute_interval
    return imputer


class HotDeck:
    """A missing entry is the value of a donor: the nearest row that observes it, of those of `fit`.

    Columns are standardised; distances are Euclidean over the entries that both rows observe, scaled
    to all columns. Draws take any of the ten nearest donors. A row is no donor to itself, as it does
    not observe what it misses.
    """

    def __init__(self) -> None:
        from sklearn.metrics import pairwise_distances_chunked

        self.distances = pairwise_distances_chunked

    def fit(self, x: np.ndarray) -> Self:
        """Keeps the rows of x as donors."""
        self.units = Standard(x)
        self.donors = self.units.to(x)
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """x with the value of the nearest donor in the place of NaN."""
        return self._from(x, lambda donors, generator: donors[:1], 1, 0)[0]

    def draws(self, x: np.ndarray, count: int, seed: int) -> np.ndarray:
        """So many values of each missing entry, each of one of its ten nearest donors."""
        return self._from(x, lambda near, generator: generator.choice(near, count), count, seed)

    def _from(self, x: np.ndarray, choose: Callable[..., Any], count: int, seed: int) -> np.ndarray:
        generator = np.random.default_rng(seed)
        filled = np.repeat(self.units.to(x)[None], count, 0)
        known, row = ~np.isnan(self.donors), 0
        for block in self.distances(
            filled[0].copy(), self.donors, metric="nan_euclidean", n_jobs=1
        ):
            for distances in block:
                # rows with nothing in common come last
                order = np.argsort(np.where(np.isnan(distances), np.inf, distances), kind="stable")
                for column in np.flatnonzero(np.isnan(x[row])):
                    near = order[known[order, column]][:10]
                    # nobody observes it: the middle of the units
                    filled[:, row, column] = (
                        self.donors[choose(near, generator), column] if len(near) else 0.0
                    )
                row += 1
        return np.where(np.isnan(x), self.units.back(filled), x)


PEERS = {
    "mean": Peer(_simple("mean"), "scikit-learn's SimpleImputer"),
    "median": Peer(_simple("median"), "scikit-learn's SimpleImputer"),
    "hot_deck": Peer(
        lambda seed: HotDeck(), "the value of the nearest row; draws of the ten nearest"
    ),
    "knn": Peer(_knn, "scikit-learn's KNNImputer, 5 neighbours"),
    "iterative": Peer(_iterative, "scikit-learn's IterativeImputer: BayesianRidge, 10 rounds"),
    "missforest": Peer(
        _missforest,
        "IterativeImputer, ExtraTreesRegressor: 50 trees, a third of the columns at a split, 5 rounds",
    ),
    "gaussian_em": Peer(GaussianEM, "one Gaussian by EM, ridge chosen on held-out entries"),
    "soft_impute": Peer(SoftImpute, "nuclear norm, penalty chosen on held-out entries"),
    "miwae": Peer(
        Miwae,
        "128-128 units, 10 latents, Student t, 20 importance samples, at most 3,000 steps of 64",
    ),
    "relay": Peer(_relay, "rvi_fast.sklearn.RelayImputer, defaults"),
    **{
        name: Peer(make, settings, package)
        for name, (make, settings, package) in packages.PEERS.items()
    },
}
# those that fill in a table in about a second
FAST = ("mean", "median", "knn", "gaussian_em", "soft_impute")
