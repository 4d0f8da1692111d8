"""Imputers of other packages, called as their documentation shows, each with its defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np


def _frame(x: np.ndarray) -> Any:
    import pandas

    return pandas.DataFrame(x, columns=[f"c{column}" for column in range(x.shape[1])])


class MiceForest:
    """miceforest's ImputationKernel: five tables, five rounds; the mean of the five is filled in."""

    def __init__(self, seed: int) -> None:
        from miceforest import ImputationKernel

        self.made, self.seed = ImputationKernel, seed

    def fit(self, x: np.ndarray) -> Self:
        """Grows the forests, which are kept for `transform`."""
        self.kernel = self.made(_frame(x), num_datasets=5, random_state=self.seed)
        self.kernel.mice(5, num_threads=1)
        return self

    def fit_transform(self, x: np.ndarray) -> np.ndarray:
        """Mean of the five completed tables."""
        return self._mean(self.fit(x).kernel)

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Mean of five completions of other rows."""
        return self._mean(self.kernel.impute_new_data(_frame(x), random_state=self.seed))

    def _mean(self, made: Any) -> np.ndarray:
        # of other rows the count of rounds is 0, and without a number they come as they began
        tables = [made.complete_data(number, iteration=5) for number in range(5)]
        return np.mean([table.to_numpy() for table in tables], axis=0)


class GaussianCopula:
    """gcimpute's Gaussian copula, kinds of columns found by itself."""

    def __init__(self, seed: int) -> None:
        from gcimpute.gaussian_copula import GaussianCopula as Model

        self.model = Model(random_state=seed)

    def fit(self, x: np.ndarray) -> Self:
        """Learns marginals and correlation."""
        self.model.fit(x)
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Fills in other rows."""
        return np.asarray(self.model.transform(x))

    def draws(self, x: np.ndarray, count: int, seed: int) -> np.ndarray:
        """The package's multiple imputation."""
        np.random.seed(seed)  # noqa: NPY002  (the package draws from the global state)
        drawn = self.model.sample_imputation(x, num=count)
        return np.moveaxis(np.asarray(drawn), -1, 0)


class MissForest:
    """missforest's MissForest, with its defaults."""

    def __init__(self, seed: int) -> None:
        from missforest import MissForest as Model
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        self.model = Model(
            RandomForestClassifier(random_state=seed), RandomForestRegressor(random_state=seed)
        )

    def fit(self, x: np.ndarray) -> Self:
        """Grows the forests."""
        self.model.fit(_frame(x))
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Fills in rows."""
        return np.asarray(self.model.transform(_frame(x)))


class Transductive:
    """What fills in one table only: other rows are put below those of `fit` and filled in with them.

    Args:
        fill: [N, D] with NaN -> [N, D].
    """

    def __init__(self, fill: Callable[[np.ndarray], np.ndarray]) -> None:
        self.fill = fill

    def fit(self, x: np.ndarray) -> Self:
        """Keeps the rows."""
        self.rows = x
        return self

    def fit_transform(self, x: np.ndarray) -> np.ndarray:
        """Fills in one table."""
        return np.asarray(self.fill(x))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Fills in other rows, beside those of `fit`."""
        return np.asarray(self.fill(np.concatenate([self.rows, x])))[len(self.rows) :]


def _hyperimpute(seed: int) -> Transductive:
    from hyperimpute.plugins.imputers import Imputers

    plugins = Imputers()
    return Transductive(
        lambda x: plugins.get("hyperimpute", random_state=seed).fit_transform(_frame(x))
    )


def _iterative_svd(seed: int) -> Transductive:
    from fancyimpute import IterativeSVD

    return Transductive(
        lambda x: IterativeSVD(min(10, x.shape[1] - 1), verbose=False).fit_transform(x.copy())
    )


def _datafiller(seed: int) -> Transductive:
    from datafiller import MultivariateImputer

    return Transductive(lambda x: MultivariateImputer(rng=seed).fit_transform(x.copy()))


PEERS: dict[str, tuple[Any, str, str]] = {
    "miceforest": (
        MiceForest,
        "LightGBM with mean matching, mean of 5 tables, 5 rounds",
        "miceforest",
    ),
    "gcimpute": (GaussianCopula, "Gaussian copula, defaults", "gcimpute"),
    "hyperimpute": (_hyperimpute, "HyperImpute: a learner chosen for each column", "hyperimpute"),
    "missforest_package": (MissForest, "missforest's MissForest, 100 trees", "missforest"),
    "iterative_svd": (_iterative_svd, "fancyimpute's IterativeSVD, rank 10 at most", "fancyimpute"),
    "datafiller": (_datafiller, "MultivariateImputer; compiles itself each time", "datafiller"),
}
